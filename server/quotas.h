// SPDX-License-Identifier: Apache-2.0
// How much one session, one user and the whole daemon may hold. Every bound is refused at once with RESOURCE_EXHAUSTED.
// Filled from flags by server/options.h; read by the registries and the broker. All sessions opened over gRPC count as
// one user ("remote"), because their callers cannot be told apart.
#ifndef GEMMD_SERVER_QUOTAS_H_
#define GEMMD_SERVER_QUOTAS_H_

#include <cstdint>

namespace gemmd {

struct Quotas {
  // A session is a client process: a machine runs hundreds at most. One user keeps a quarter for the others.
  uint32_t sessions = 1024;
  uint32_t sessions_per_uid = 256;

  // Broker connections, sessions or not yet: each costs one descriptor. A little more than `sessions`, so that a client
  // over the limit still gets a reply that says so.
  uint32_t broker_connections = 1056;
  uint32_t broker_connections_per_uid = 264;

  // Each region costs a descriptor in the front end and in every worker, whose limit is usually a few thousand.
  uint32_t regions_per_session = 256;
  uint32_t regions_per_uid = 1024;
  // Bytes that clients brought; the clients' own memory limits hold as well.
  uint64_t region_bytes_per_session = uint64_t{256} << 30;
  uint64_t region_bytes_per_uid = uint64_t{512} << 30;

  // A large model has some thousands of weight tensors, and one process usually loads them all.
  uint32_t tensors_per_session = 16384;
  uint32_t tensors_per_uid = 16384;
  // Bytes that gemmd allocates; the device itself refuses what does not fit.
  uint64_t tensor_bytes_per_session = uint64_t{1024} << 30;
  uint64_t tensor_bytes_per_uid = uint64_t{1024} << 30;

  // Jobs of one session between admission and completion: a quarter of a worker's ring, so that no session fills it.
  uint32_t jobs_per_session = 256;
  // Of all sessions of one user together: as many as a worker's ring has slots.
  uint32_t jobs_per_uid = 1024;
  // All calls without a session share one allowance.
  uint32_t anonymous_jobs = 1024;
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_QUOTAS_H_
