// SPDX-License-Identifier: Apache-2.0
// The shapes of a warm-up from gemmd.v1 to what workers are asked. Used by the Admin service and, for the manifest, by
// server/daemon.cc. Pure.
#ifndef GEMMD_SERVER_WARM_UP_H_
#define GEMMD_SERVER_WARM_UP_H_

#include "gemmd/v1/admin.pb.h"
#include "proto/control.h"

#include "absl/status/statusor.h"

#include <vector>

namespace gemmd {

// Most shapes in one warm-up: a model has some dozens.
inline constexpr int kMaxWarmUpShapes = 4096;

// Errors: INVALID_ARGUMENT, naming the field: "shapes[2].n: expected at least 1, got 0".
absl::StatusOr<std::vector<PrepareShape>> ToPrepareShapes(const v1::WarmUpRequest& request);

}  // namespace gemmd

#endif  // GEMMD_SERVER_WARM_UP_H_
