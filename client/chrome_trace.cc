// SPDX-License-Identifier: Apache-2.0
#include "client/chrome_trace.h"

#include "absl/strings/str_cat.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace gemmd {
namespace {

using Json = nlohmann::json;

// Process numbers of the file: groups of rows.
constexpr int kFrontEnd = 1;
constexpr int kFirstWorker = 2;

std::string ShapeText(const v1::RequestTrace& request) {
  const std::string text = absl::StrCat(request.m(), "x", request.n(), "x", request.k());
  return request.groups() == 0 ? text : absl::StrCat(request.groups(), "x", text);
}

struct Slice {
  std::string name;
  uint64_t begin_ns = 0;
  uint64_t end_ns = 0;
  Json args;
  std::vector<std::pair<const char*, uint64_t>> flows;  // Chrome's phase ("s", "t" or "f"), and whose arrow it is.
};

// Slices of one kind: as many rows as are needed for no two of a row to overlap, which viewers cannot draw.
class Track {
 public:
  Track(int process, std::string name) : process_(process), name_(std::move(name)) {}

  void Add(Slice slice) { slices_.push_back(std::move(slice)); }

  // Row numbers begin at *next_row and are unique in the file.
  void Write(uint64_t origin_ns, int* next_row, Json& events) {
    std::stable_sort(slices_.begin(), slices_.end(),
                     [](const Slice& left, const Slice& right) { return left.begin_ns < right.begin_ns; });
    std::vector<uint64_t> ends;  // Of the last slice of each row.
    for (const Slice& slice : slices_) {
      size_t row = 0;
      while (row < ends.size() && ends[row] > slice.begin_ns) ++row;
      if (row == ends.size()) ends.push_back(0);
      ends[row] = slice.end_ns;
      WriteSlice(slice, *next_row + static_cast<int>(row), origin_ns, events);
    }
    for (size_t row = 0; row < ends.size(); ++row) {
      const int number = (*next_row)++;
      const std::string name = row == 0 ? name_ : absl::StrCat(name_, " ", row + 1);
      events.push_back(
          {{"ph", "M"}, {"name", "thread_name"}, {"pid", process_}, {"tid", number}, {"args", {{"name", name}}}});
      events.push_back({{"ph", "M"},
                        {"name", "thread_sort_index"},
                        {"pid", process_},
                        {"tid", number},
                        {"args", {{"sort_index", number}}}});
    }
  }

 private:
  void WriteSlice(const Slice& slice, int row, uint64_t origin_ns, Json& events) const {
    // Microseconds, as the format wants them.
    const double at = static_cast<double>(slice.begin_ns - origin_ns) / 1e3;
    const double length = static_cast<double>(slice.end_ns - slice.begin_ns) / 1e3;
    events.push_back({{"ph", "X"},
                      {"name", slice.name},
                      {"cat", name_},
                      {"ts", at},
                      {"dur", length},
                      {"pid", process_},
                      {"tid", row},
                      {"args", slice.args}});
    for (const auto& [phase, id] : slice.flows) {
      events.push_back({{"ph", phase},
                        {"name", "request"},
                        {"cat", "request"},
                        {"id", id},
                        {"ts", at},
                        {"pid", process_},
                        {"tid", row},
                        {"bp", "e"}});
    }
  }

  const int process_;
  const std::string name_;
  std::vector<Slice> slices_;
};

// Everything that is known of a request, on the slice where it begins.
Json Arguments(const v1::RequestTrace& request) {
  return {{"trace_id", request.trace_id()},
          {"span_id", request.span_id()},
          {"parent_span_id", request.parent_span_id()},
          {"request_id", request.request_id()},
          {"shape", ShapeText(request)},
          {"transport", request.transport()},
          {"code", request.code()},
          {"worker", request.worker()},
          {"batch_jobs", request.batch_jobs()},
          {"total_us", static_cast<double>(request.answered_ns() - request.received_ns()) / 1e3}};
}

struct WorkerTracks {
  explicit WorkerTracks(int worker) : queue(kFirstWorker + worker, "queue"), device(kFirstWorker + worker, "device") {}
  Track queue;
  Track device;
  std::map<uint64_t, Slice> batches;  // By launch.
};

void AddToBatch(const v1::RequestTrace& request, uint64_t id, WorkerTracks& worker) {
  Slice& batch = worker.batches[request.launched_ns()];
  if (batch.args.is_null()) {
    batch.begin_ns = request.launched_ns();
    batch.end_ns = std::max(request.finished_ns(), request.launched_ns());
    batch.name = absl::StrCat(request.op(), " ", ShapeText(request));
    batch.args = {{"batch_jobs", request.batch_jobs()}, {"trace_ids", Json::array()}};
    if (request.batch_jobs() > 1) absl::StrAppend(&batch.name, " and ", request.batch_jobs() - 1, " more");
  }
  batch.args["trace_ids"].push_back(request.trace_id());
  batch.flows.emplace_back("t", id);
}

Json ProcessName(int process, const std::string& name) {
  return {{"ph", "M"}, {"name", "process_name"}, {"pid", process}, {"args", {{"name", name}}}};
}

}  // namespace

nlohmann::json ToChromeTrace(const v1::GetTraceResponse& trace) {
  Track decode(kFrontEnd, "decode");
  Track reply(kFrontEnd, "reply");
  std::map<int, WorkerTracks> workers;
  uint64_t origin_ns = trace.now_ns();
  for (const v1::RequestTrace& request : trace.requests()) origin_ns = std::min(origin_ns, request.received_ns());
  uint64_t id = 0;
  for (const v1::RequestTrace& request : trace.requests()) {
    ++id;
    const bool submitted = request.submitted_ns() != 0;
    // What was refused is all decoding.
    decode.Add({request.op(),
                request.received_ns(),
                submitted ? request.submitted_ns() : request.answered_ns(),
                Arguments(request),
                {{"s", id}}});
    if (request.completed_ns() != 0) {
      reply.Add({request.op(),
                 request.completed_ns(),
                 request.answered_ns(),
                 {{"trace_id", request.trace_id()}, {"code", request.code()}},
                 {{"f", id}}});
    }
    if (!submitted || request.worker() < 0) continue;
    WorkerTracks& worker = workers.try_emplace(request.worker(), request.worker()).first->second;
    const bool launched = request.launched_ns() != 0;
    const uint64_t left_queue_ns = launched ? request.launched_ns() : request.completed_ns();
    worker.queue.Add({request.op(),
                      request.submitted_ns(),
                      std::max(left_queue_ns, request.submitted_ns()),
                      {{"trace_id", request.trace_id()}},
                      {}});
    if (launched) AddToBatch(request, id, worker);
  }
  Json events = Json::array({ProcessName(kFrontEnd, "gemmd")});
  int next_row = 1;
  decode.Write(origin_ns, &next_row, events);
  for (auto& [index, worker] : workers) {
    for (auto& [launched_ns, batch] : worker.batches) worker.device.Add(std::move(batch));
    events.push_back(ProcessName(kFirstWorker + index, absl::StrCat("worker ", index)));
    worker.queue.Write(origin_ns, &next_row, events);
    worker.device.Write(origin_ns, &next_row, events);
  }
  reply.Write(origin_ns, &next_row, events);
  return {{"displayTimeUnit", "ns"},
          {"otherData", {{"origin_unix_ns", trace.now_unix_ns() - static_cast<int64_t>(trace.now_ns() - origin_ns)}}},
          {"traceEvents", std::move(events)}};
}

}  // namespace gemmd
