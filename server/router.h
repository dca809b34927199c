// SPDX-License-Identifier: Apache-2.0
// Which worker takes a job. Pure; the pool asks on reactor threads.
#ifndef GEMMD_SERVER_ROUTER_H_
#define GEMMD_SERVER_ROUTER_H_

#include "proto/job.h"

#include "absl/types/span.h"

#include <optional>

namespace gemmd {

struct WorkerLoad {
  bool ready = false;
  double work_in_flight = 0;  // In units of PredictWork.
};

// The ready worker with least work in flight, the first of equals; none if none is ready.
std::optional<int> LeastLoaded(absl::Span<const WorkerLoad> loads);

// 2*M*N*K as the shapes in the descriptor say (nobody has checked them yet; impossible ones count as 0), every offered
// row included: what is masked out or padding is known to the worker only.
double OfferedFlops(const JobDescriptor& job);

// How much device time a job will take, in a unit of its own: good enough to compare queues, not to predict a time.
double PredictWork(const JobDescriptor& job);

}  // namespace gemmd

#endif  // GEMMD_SERVER_ROUTER_H_
