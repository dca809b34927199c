// SPDX-License-Identifier: Apache-2.0
#include "client/load_run.h"

#include "proto/job.h"

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"

#include <algorithm>
#include <cstddef>
#include <memory>
#include <random>
#include <unistd.h>
#include <utility>

namespace gemmd {
namespace {

uint64_t Nanos(absl::Duration duration) {
  return static_cast<uint64_t>(std::max<int64_t>(0, absl::ToInt64Nanoseconds(duration)));
}

struct Connection {
  std::unique_ptr<Client> client;
  std::unique_ptr<RunStream> stream;                    // Null for unary.
  std::vector<std::shared_ptr<const Weights>> weights;  // By mix entry; null for quantize.
};

// Operands of one request at a time. Its fields belong to whoever has the slot: the sender, then the callback.
struct Slot {
  Connection* connection = nullptr;
  std::vector<std::unique_ptr<Problem>> problems;  // By mix entry.
  size_t entry = 0;
  absl::Time intended;
  absl::Time sent;
  size_t last_entry = 0;  // Of last_response.
  bool has_response = false;
  v1::RunResponse last_response;
};

class LoadRun {
 public:
  explicit LoadRun(const LoadOptions& options) : options_(options), random_(options.seed) {
    for (const MixEntry& entry : options.mix) shares_.push_back(entry.share);
  }
  ~LoadRun() {
    // Streams first: their callbacks use the slots.
    for (Connection& connection : connections_) connection.stream.reset();
    slots_.clear();
    // Weights shared between connections belong to the first.
    while (!connections_.empty()) {
      connections_.back().weights.clear();
      connections_.pop_back();
    }
  }

  absl::Status SetUp();
  LoadReport Run();

 private:
  void NoteGpus(Client& client);
  absl::Status SetUpWeights(Connection* connection, bool first);
  void Send(Slot* slot, absl::Time intended);
  void OnAnswer(Slot* slot, absl::StatusOr<v1::RunResponse> response);
  void Record(const Slot& slot, absl::Time now, const absl::StatusOr<v1::RunResponse>& response)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SendOpenLoop(absl::Time start, absl::Time end);
  Slot* WaitForFreeSlot();
  void CheckResults(LoadReport* report) const;

  const LoadOptions options_;
  std::vector<double> shares_;
  std::vector<Connection> connections_;
  std::vector<std::unique_ptr<Slot>> slots_;
  absl::Time measure_from_;
  absl::Time end_;

  absl::Mutex mutex_;
  std::mt19937_64 random_ ABSL_GUARDED_BY(mutex_);
  std::vector<Slot*> free_ ABSL_GUARDED_BY(mutex_);
  absl::Time last_answer_ ABSL_GUARDED_BY(mutex_);
  LoadReport report_ ABSL_GUARDED_BY(mutex_);
};

// Administration may be refused on TCP; then the report does not say.
void LoadRun::NoteGpus(Client& client) {
  const absl::StatusOr<v1::ServerInfo> info = client.GetInfo();
  if (!info.ok()) return;
  const absl::MutexLock lock(&mutex_);
  for (const v1::WorkerInfo& worker : info->workers()) {
    if (worker.device() != kCpuDevice) report_.mps[worker.device()] = worker.mps();
  }
}

absl::Status LoadRun::SetUp() {
  connections_.resize(static_cast<size_t>(options_.connections));
  for (Connection& connection : connections_) {
    absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect(options_.server, options_.connect);
    if (!client.ok()) return client.status();
    connection.client = *std::move(client);
    NoteGpus(*connection.client);
    const absl::Status status = SetUpWeights(&connection, &connection == &connections_.front());
    if (!status.ok()) return status;
    if (options_.stream) connection.stream = connection.client->OpenStream();
  }
  for (int64_t i = 0; i < options_.slots; ++i) {
    auto slot = std::make_unique<Slot>();
    slot->connection = &connections_[static_cast<size_t>(i) % connections_.size()];
    for (size_t entry = 0; entry < options_.mix.size(); ++entry) {
      auto problem =
          Problem::Create(slot->connection->client.get(), options_.mix[entry].spec, options_.transport,
                          slot->connection->weights[entry], options_.seed + static_cast<uint64_t>(i) * 1000 + entry);
      if (!problem.ok()) return problem.status();
      slot->problems.push_back(*std::move(problem));
    }
    slots_.push_back(std::move(slot));
  }
  return absl::OkStatus();
}

// Entries with the same B share it, which is what lets the daemon merge their requests.
absl::Status LoadRun::SetUpWeights(Connection* connection, bool first) {
  const Transport transport = options_.resident_weights ? Transport::kTensor : options_.transport;
  const bool shared = options_.resident_weights && connections_.size() > 1;
  if (shared && !first) {
    connection->weights = connections_.front().weights;
    for (const std::shared_ptr<const Weights>& weights : connection->weights) {
      if (weights == nullptr) continue;
      for (const std::string& name : weights->tensor_names()) {
        const absl::Status held = connection->client->GetTensor(name).status();
        if (!held.ok()) return held;
      }
    }
    return absl::OkStatus();
  }
  for (size_t entry = 0; entry < options_.mix.size(); ++entry) {
    const ProblemSpec& spec = options_.mix[entry].spec;
    std::shared_ptr<const Weights> weights;
    for (size_t earlier = 0; earlier < entry && weights == nullptr; ++earlier) {
      const ProblemSpec& other = options_.mix[earlier].spec;
      // k-grouped B has the layout of its groups' K; do not share it.
      if (spec.op == other.op && spec.op != Op::kKGrouped && spec.n == other.n && spec.k == other.k &&
          spec.groups == other.groups && spec.scaling == other.scaling) {
        weights = connection->weights[earlier];
      }
    }
    if (!options_.weights_name.empty() && spec.op != Op::kQuantize) {
      weights = Weights::Named(spec, options_.weights_name);
    } else if (weights == nullptr && spec.op != Op::kQuantize) {
      const std::string name = shared ? absl::StrCat("gemmload-", getpid(), "-", entry) : "";
      const auto made = Weights::Create(connection->client.get(), spec, transport, options_.seed + entry, name);
      if (!made.ok()) return made.status();
      weights = *made;
    }
    connection->weights.push_back(weights);
  }
  return absl::OkStatus();
}

LoadReport LoadRun::Run() {
  const absl::Time start = absl::Now();
  measure_from_ = start + options_.warmup;
  end_ = measure_from_ + options_.duration;
  {
    const absl::MutexLock lock(&mutex_);
    last_answer_ = measure_from_;
    if (options_.open_loop) {
      for (const std::unique_ptr<Slot>& slot : slots_) free_.push_back(slot.get());
    }
  }
  if (options_.open_loop) {
    SendOpenLoop(start, end_);
  } else {
    for (const std::unique_ptr<Slot>& slot : slots_) Send(slot.get(), absl::Now());
  }
  LoadReport report;
  {
    const absl::MutexLock lock(&mutex_);
    const auto idle = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return free_.size() == slots_.size(); };
    mutex_.Await(absl::Condition(&idle));
    report = report_;
    report.seconds = absl::ToDoubleSeconds(last_answer_ - measure_from_);
  }
  if (options_.check) CheckResults(&report);
  return report;
}

void LoadRun::SendOpenLoop(absl::Time start, absl::Time end) {
  Pacer pacer(options_.arrival, options_.rate, start, options_.seed);
  for (absl::Time intended = pacer.Next(); intended < end; intended = pacer.Next()) {
    absl::SleepFor(intended - absl::Now());
    Send(WaitForFreeSlot(), intended);
  }
}

Slot* LoadRun::WaitForFreeSlot() {
  const absl::MutexLock lock(&mutex_);
  const auto any = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !free_.empty(); };
  mutex_.Await(absl::Condition(&any));
  Slot* slot = free_.back();
  free_.pop_back();
  return slot;
}

void LoadRun::Send(Slot* slot, absl::Time intended) {
  {
    const absl::MutexLock lock(&mutex_);
    slot->entry = std::discrete_distribution<size_t>(shares_.begin(), shares_.end())(random_);
  }
  slot->intended = intended;
  slot->sent = absl::Now();
  const v1::RunRequest& request = slot->problems[slot->entry]->request();
  auto callback = [this, slot](absl::StatusOr<v1::RunResponse> response) { OnAnswer(slot, std::move(response)); };
  if (slot->connection->stream == nullptr) {
    slot->connection->client->RunAsync(request, {}, callback);
    return;
  }
  const absl::Status sent = slot->connection->stream->Submit(request, callback);
  if (sent.ok()) return;
  // The stream is broken for good: this slot stops, so that a closed loop does not spin on it.
  const absl::MutexLock lock(&mutex_);
  Record(*slot, absl::Now(), sent);
  free_.push_back(slot);
}

void LoadRun::OnAnswer(Slot* slot, absl::StatusOr<v1::RunResponse> response) {
  const absl::Time now = absl::Now();
  bool again = false;
  {
    const absl::MutexLock lock(&mutex_);
    Record(*slot, now, response);
    slot->has_response = response.ok();
    if (response.ok() && options_.check) {
      slot->last_entry = slot->entry;
      slot->last_response = *std::move(response);
    }
    again = !options_.open_loop && now < end_;
    if (!again) free_.push_back(slot);
  }
  if (again) Send(slot, now);
}

void LoadRun::Record(const Slot& slot, absl::Time now, const absl::StatusOr<v1::RunResponse>& response) {
  if (slot.intended < measure_from_) return;
  last_answer_ = std::max(last_answer_, now);
  if (!response.ok()) {
    ++report_.errors[absl::StatusCodeToString(response.status().code())];
    return;
  }
  const ProblemSpec& spec = options_.mix[slot.entry].spec;
  ++report_.succeeded;
  const auto stretch = static_cast<size_t>(absl::ToDoubleSeconds(now - measure_from_) / LoadReport::kTimelineSeconds);
  if (stretch >= report_.timeline.size()) report_.timeline.resize(stretch + 1, 0);
  ++report_.timeline[stretch];
  report_.flops += FlopsOf(spec);
  report_.rows += static_cast<double>(RowsOf(spec));
  report_.batch_jobs += response->batch_jobs();
  report_.latency.Record(Nanos(now - slot.intended));
  report_.service.Record(Nanos(now - slot.sent));
  report_.late.Record(Nanos(slot.sent - slot.intended));
  report_.decode.Record(response->times().decode_ns());
  report_.queue.Record(response->times().queue_ns());
  report_.device.Record(response->times().device_ns());
  report_.reply.Record(response->times().reply_ns());
}

void LoadRun::CheckResults(LoadReport* report) const {
  for (const std::unique_ptr<Slot>& slot : slots_) {
    if (!slot->has_response) continue;
    ++report->checked;
    const auto error = slot->problems[slot->last_entry]->Check(slot->last_response);
    if (error.ok()) continue;
    ++report->check_failures;
    if (report->first_check_failure.empty()) report->first_check_failure = error.status().ToString();
  }
}

}  // namespace

absl::StatusOr<LoadReport> RunLoad(const LoadOptions& options) {
  LoadRun run(options);
  if (absl::Status status = run.SetUp(); !status.ok()) return status;
  return run.Run();
}

}  // namespace gemmd
