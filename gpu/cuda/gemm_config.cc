// SPDX-License-Identifier: Apache-2.0
#include "gpu/cuda/gemm_config.h"

#include "gpu/cuda/tuning_table.h"

#include "absl/container/inlined_vector.h"
#include "absl/strings/str_cat.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace gemmd {
namespace {

constexpr int kMaxStages = 16;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The same by a product, several times as fast, for extents (32 bits) and small divisors known before: with the half, a
// quotient that is whole cannot come out just below itself.
struct Divisor {
  explicit Divisor(int64_t value)
      : less_half(static_cast<double>(value) - 0.5), inverse(1.0 / static_cast<double>(value)) {}
  int64_t CeilOf(int64_t n) const { return static_cast<int64_t>((static_cast<double>(n) + less_half) * inverse); }
  double less_half;
  double inverse;
};

// What the model assumes of the device and the kernels. Fitted to the times of every configuration over 62 shapes on an
// H100 (README.md): choosing by it cost 2.0 % on average over choosing by measurement, before kernels stored by slabs.
struct Model {
  double clocks_per_ns = 1.67;
  double memory_bytes_per_ns = 2595;
  double l2_bytes_per_clock = 40.8;  // What one SM can load.
  double serial_wait_clocks = 109;   // Between a slab's products and its promotion, where nothing overlaps.
  double chain_clocks = 214;         // The shortest k-block.
  double swapped_chain_clocks = 60;  // The same with few columns.
  double tile_clocks = 1296;         // Epilogue of a 128x128 tile, beyond what overlaps.
  double launch_ns = 1911;           // Launch, barriers, first loads, drain.
  double cluster_ns = 2285;          // Starting and ending together.
  double cluster_block_clocks = 53;  // Waiting for the peer at each k-block.
  double promotion_clocks = 2.0;     // Per column and row pair of promotion.
  double crossing = 3.0;             // Promotion of tiles that select each octet's scale at run time, relative.
  double serial_products = 1.03;     // Two warpgroups that drift do not take turns perfectly.
  double overlap = 0.2;              // Share of the shorter of compute and memory time that is not hidden.
  double few_rows = 0.06;            // Of memory time, for tiles that suit few rows badly.
};
constexpr Model kModel;

// Clocks of one tile's k-block.
double BlockClocks(const GemmTraits& t) {
  // m64nNk32: N / 2 clocks of the SM's tensor cores; BF16 needs as many for half the K, of which a k-block holds 64.
  const double slab_products = 2.0 * t.column_side();
  const double slabs = static_cast<double>(t.slab_side()) / kSlabRows;
  const double products = slabs * 2.0 * std::max(t.column_side(), 16);
  const double loads = (static_cast<double>(t.a_stage_bytes()) / t.cluster_n() +
                        static_cast<double>(t.b_stage_bytes()) / t.cluster_m()) /
                       kModel.l2_bytes_per_clock;
  const bool overlapped = !t.scaled() || t.overlapped();
  double promotion = 0;
  if (t.scaled()) {
    const bool factor_per_column = t.swap || t.scaling == KernelScaling::kRowRow;
    const bool crosses =
        !t.swap && t.scaling == KernelScaling::kRowBlock && 128 % t.block_n != 0 && t.block_n % 32 != 0;
    promotion = t.column_side() / 2.0 * (factor_per_column ? 2.0 : 1.0) * (crosses ? kModel.crossing : 1.0) *
                kModel.promotion_clocks;
  }
  double chain = 0;
  if (overlapped) {
    const double alone = t.math_warpgroups() == 1 ? 0.35 * promotion : 0;
    chain = std::max(t.swap ? kModel.swapped_chain_clocks : kModel.chain_clocks,
                     std::max(promotion, slab_products) + alone);
  } else {
    chain = t.slabs() * (slab_products + promotion + kModel.serial_wait_clocks);
  }
  return std::max({products * (overlapped || t.slabs() == 1 ? 1.0 : kModel.serial_products), loads, chain}) +
         (t.cluster() > 1 ? kModel.cluster_block_clocks : 0);
}

// A configuration with what the model needs to know of it: selection is then arithmetic on the shape alone.
struct Costs {
  GemmTraits traits{};
  double block_clocks = 0;     // Of a tile's k-block.
  double epilogue_clocks = 0;  // Of a tile.
  Divisor columns{1};          // Of the tiles of a cluster.
};

Costs CostsOf(const GemmTraits& t) {
  return {t, BlockClocks(t), kModel.tile_clocks * (t.block_m * t.block_n / 16384.0 + 0.3),
          Divisor(int64_t{t.block_n} * t.cluster_n())};
}

// How many tiles of a given height the segments of a shape take; counted once for each height.
class TileCounts {
 public:
  explicit TileCounts(const std::vector<int64_t>& rows) : rows_(rows) {
    for (const int64_t m : rows) total_rows_ += m;
  }

  int64_t total_rows() const { return total_rows_; }

  int64_t Of(int height) {
    for (const auto& [counted, tiles] : counts_) {
      if (counted == height) return tiles;
    }
    int64_t tiles = 0;
    const Divisor divisor(height);
    for (const int64_t m : rows_) tiles += divisor.CeilOf(m);
    counts_.emplace_back(height, tiles);
    return tiles;
  }

 private:
  const std::vector<int64_t>& rows_;
  int64_t total_rows_ = 0;
  absl::InlinedVector<std::pair<int, int64_t>, 16> counts_;
};

double Predict(const GemmShape& shape, TileCounts& counts, const Costs& costs, int sms) {
  const GemmTraits& t = costs.traits;
  const int64_t clusters = counts.Of(t.block_m * t.cluster_m()) * costs.columns.CeilOf(shape.n);
  const int64_t waves = CeilDiv(clusters, sms / t.cluster());
  const double rows = static_cast<double>(counts.total_rows());
  const double k_blocks = static_cast<double>(CeilDiv(shape.k, t.block_k()));
  const double element = t.scaled() ? 1 : 2;
  const double k = static_cast<double>(shape.k);
  const double n = static_cast<double>(shape.n);
  const double groups = static_cast<double>(shape.grouping == Grouping::kDense ? 1 : shape.rows.size());
  const double bytes = rows * k * element + groups * n * k * element + rows * n * t.output_bytes();
  const double busy =
      static_cast<double>(waves) * (k_blocks * costs.block_clocks + costs.epilogue_clocks) / kModel.clocks_per_ns;
  const double memory = bytes / kModel.memory_bytes_per_ns;
  // Few rows: best where they are the columns of WGMMA, and one tile holds them all, so that weights are read once.
  const bool wasteful = shape.grouping == Grouping::kDense && !shape.rows.empty() && shape.rows[0] <= 128 &&
                        (!t.swap || shape.rows[0] > t.block_m);
  return kModel.launch_ns + (t.cluster() > 1 ? kModel.cluster_ns : 0) + (wasteful ? kModel.few_rows * memory : 0) +
         std::max(busy, memory) + kModel.overlap * std::min(busy, memory);
}

// Candidates(), as configurations; made once for each kind of product.
const std::vector<Costs>& CandidateCosts(KernelScaling scaling, KernelOutput output, Grouping grouping) {
  static const auto* const kinds = [] {
    auto* made = new std::array<std::vector<Costs>, 27>;
    for (size_t kind = 0; kind < made->size(); ++kind) {
      const auto s = static_cast<KernelScaling>(kind / 9);
      const auto o = static_cast<KernelOutput>(kind / 3 % 3);
      const auto g = static_cast<Grouping>(kind % 3);
      for (const TileChoice& tile : Candidates(s, g)) {
        const GemmTraits traits = TraitsOf(tile, s, o, g);
        if (traits.legal()) (*made)[kind].push_back(CostsOf(traits));
      }
    }
    return made;
  }();
  return (*kinds)[static_cast<size_t>(scaling) * 9 + static_cast<size_t>(output) * 3 + static_cast<size_t>(grouping)];
}

// Four stages hide the latency of memory behind a tile's products; more staging buffers than that comes second.
constexpr int kEnoughStages = 4;

// As many stages as fit beside them.
GemmTraits WithStoreBuffers(GemmTraits traits, int buffers) {
  traits.store_buffers = buffers;
  for (traits.stages = kMaxStages; traits.stages > 2 && traits.shared_bytes() > kSharedBytesLimit;) --traits.stages;
  return traits;
}

}  // namespace

GemmTraits TraitsOf(const TileChoice& tile, KernelScaling scaling, KernelOutput output, Grouping grouping) {
  GemmTraits traits{};
  traits.block_m = tile.block_m;
  traits.block_n = tile.block_n;
  traits.multicast = tile.multicast;
  traits.swap = tile.swap;
  traits.scaling = scaling;
  traits.output = output;
  traits.max_segments = grouping == Grouping::kDense  ? 1
                        : grouping == Grouping::kRows ? kMaxRowSegments
                                                      : kMaxDepthSegments;
  traits.map_pairs = grouping == Grouping::kDepth ? kMaxDepthSegments : 1;
  const int boxes = traits.boxes_per_slab() * traits.slabs();
  GemmTraits few = traits;
  for (int buffers = std::min(boxes, traits.slabs() > 1 ? 4 : 2); buffers >= 1; --buffers) {
    few = WithStoreBuffers(traits, buffers);
    if (few.stages >= kEnoughStages) break;
  }
  // Buffers for all that a tile stores save it most of its barriers and fences. They are worth the fourth stage of two
  // slabs of FP8, where a stage lasts longest, and none elsewhere: BF16 products, whose stages hold half as much of K,
  // take 5 to 11 % longer with three, and FP32 results of two slabs would take more than one stage.
  const GemmTraits all = WithStoreBuffers(traits, boxes);
  const int least = traits.slabs() > 1 && traits.scaled() ? kEnoughStages - 1 : few.stages;
  return all.stages >= least ? all : few;
}

std::vector<TileChoice> Candidates(KernelScaling scaling, Grouping grouping) {
  std::vector<TileChoice> tiles;
  const auto add = [&](int block_m, int block_n, bool swap) {
    for (const Multicast multicast : {Multicast::kNone, Multicast::kA, Multicast::kB}) {
      // Neighbours along M may belong to different groups, or to the same few rows.
      if (multicast == Multicast::kB && (swap || grouping != Grouping::kDense)) continue;
      const TileChoice tile{block_m, block_n, swap, multicast};
      if (TraitsOf(tile, scaling, KernelOutput::kBf16, grouping).legal()) tiles.push_back(tile);
    }
  };
  const int widest = scaling == KernelScaling::kRowBlock ? 192 : scaling == KernelScaling::kRowRow ? 128 : 256;
  for (const int block_n : {64, 96, 112, 128, 160, 192, 256}) {
    if (block_n > widest) continue;
    add(128, block_n, false);
    if (block_n <= 128 && block_n >= 112 && scaling != KernelScaling::kRowRow) add(256, block_n, false);
  }
  for (const int block_m : {16, 32, 48, 64, 96, 128}) {
    add(block_m, 64, true);
    add(block_m, 128, true);
  }
  return tiles;
}

double PredictNanos(const GemmShape& shape, const GemmTraits& traits, int sms) {
  TileCounts counts(shape.rows);
  return Predict(shape, counts, CostsOf(traits), sms);
}

int BandOf(const GemmTraits& traits, int sms) {
  // The running rectangle loads band * block_m + (SMs / band) * block_n rows: smallest where both sides are equal.
  // Bands below eight were up to 4 % slower where measured.
  const double tiles = static_cast<double>(sms) / traits.cluster();
  const double m = traits.block_m * traits.cluster_m();
  const double n = traits.block_n * traits.cluster_n();
  return std::clamp(static_cast<int>(std::lround(std::sqrt(tiles * n / m))), 8, 64);
}

GemmConfig SelectConfig(const GemmShape& shape, int sms) {
  GemmConfig best;
  if (const TileChoice* tile = FindTuned(shape, sms)) {
    best.traits = TraitsOf(*tile, shape.scaling, shape.output, shape.grouping);
    best.band = BandOf(best.traits, sms);
    return best;
  }
  TileCounts counts(shape.rows);
  const Costs* cheapest = nullptr;
  double best_ns = std::numeric_limits<double>::infinity();
  for (const Costs& costs : CandidateCosts(shape.scaling, shape.output, shape.grouping)) {
    const double ns = Predict(shape, counts, costs, sms);
    if (ns < best_ns * 0.999) {
      best_ns = ns;
      cheapest = &costs;
    }
  }
  best.traits = cheapest != nullptr ? cheapest->traits : FallbackConfig(shape).traits;
  best.band = BandOf(best.traits, sms);
  return best;
}

GemmConfig FallbackConfig(const GemmShape& shape) {
  const TileChoice tile{128, 128, false, Multicast::kNone};
  return {TraitsOf(tile, shape.scaling, shape.output, shape.grouping), 8};
}

std::string Describe(const GemmTraits& t) {
  return absl::StrCat(t.block_m, "x", t.block_n, t.swap ? " swap" : "",
                      t.multicast == Multicast::kA   ? " a2"
                      : t.multicast == Multicast::kB ? " b2"
                                                     : "",
                      " s", t.stages);
}

std::string ExpressionOf(const GemmTraits& t) {
  return absl::StrCat("gemmd::Gemm<gemmd::GemmTraits{", t.block_m, ", ", t.block_n, ", ", t.stages, ", ",
                      t.store_buffers, ", (gemmd::Multicast)", static_cast<int>(t.multicast), ", ",
                      t.swap ? "true" : "false", ", (gemmd::KernelScaling)", static_cast<int>(t.scaling),
                      ", (gemmd::KernelOutput)", static_cast<int>(t.output), ", ", t.max_segments, ", ", t.map_pairs,
                      "}>");
}

std::vector<GemmTraits> SelectableTraits() {
  struct Kind {
    KernelScaling scaling;
    KernelOutput output;
    Grouping grouping;
  };
  std::vector<Kind> kinds;
  for (const KernelScaling scaling : {KernelScaling::kRowBlock, KernelScaling::kRowRow, KernelScaling::kBf16}) {
    for (const KernelOutput output : {KernelOutput::kBf16, KernelOutput::kF32, KernelOutput::kF32Add}) {
      kinds.push_back({scaling, output, Grouping::kDense});
    }
  }
  kinds.push_back({KernelScaling::kRowBlock, KernelOutput::kBf16, Grouping::kRows});
  kinds.push_back({KernelScaling::kBf16, KernelOutput::kBf16, Grouping::kRows});
  kinds.push_back({KernelScaling::kBf16, KernelOutput::kF32, Grouping::kRows});
  for (const KernelOutput output : {KernelOutput::kF32, KernelOutput::kF32Add}) {
    kinds.push_back({KernelScaling::kRowRow, output, Grouping::kDepth});
    kinds.push_back({KernelScaling::kBf16, output, Grouping::kDepth});
  }
  std::vector<GemmTraits> all;
  for (const Kind& kind : kinds) {
    for (const TileChoice& tile : Candidates(kind.scaling, kind.grouping)) {
      const GemmTraits traits = TraitsOf(tile, kind.scaling, kind.output, kind.grouping);
      if (traits.legal()) all.push_back(traits);
    }
  }
  return all;
}

}  // namespace gemmd
