// Global memory -> ring of stages in shared memory, by warps that do nothing else (paper 3.4 "Memory Load Pipelining").
//
// One warp asks for weights, one or two for activations; each runs ahead of the warps that compute as far as the ring is deep,
// also into the next output tile. Weights are stored as gapless 64x64 blocks [K / 64][N / 64][2 KiB], so a tile reads runs of 4
// to 16 KiB, and each run is one bulk copy (sm_90 and later). Activations lie in panels of 64 k, swizzled:
//
//      row i, vector j of panel p   ->   place p · rows · 8 + i · 8 + (j ^ (i % 8))
//
// which is what a tensor map with a swizzle of 128 bytes delivers: one thread asks for a stage's panels at once. On an H200 that
// takes 4 % to 14 % off products of more than 32 rows against copies of 16 bytes a lane by two warps, and up to 5 % off those of
// 9 to 32; up to 8 rows it gives nothing, and they still copy.
// Rows of A beyond M (a map delivers zeros) and strips of W beyond N only meet outputs that are never stored.
#pragma once
#include "ptx.cuh"
#include "ring_tile.cuh"
// The ring works on what the tile is.
#include "ring.cuh"
#include "stripes.cuh"
#include "swizzle.cuh"

struct alignas(64) TensorMap {
  u64 opaque[16];
};

struct Operands {
  const Scalar* activations;  // [M, K] row major
  const TensorMap* map;       // of them, in boxes of a stage's panels
  const uint4* weights;       // [K / 64, N / 64, 4, 32] vectors of 32 codes
  const uint4* scales;        // [groups, N / 8] vectors of 8 scales of one strip and one lane group
  const uint4* zeros;         // [groups, N / 32] vectors of 32 zero points; null without
  int M, N, K;
  int group_shift;            // log2 of the group size, 31 for one scale a column
};

// Weights, scales and zero points of one k tile after the other, asked for by a warp.
class WeightFetcher {
 public:
  __device__ WeightFetcher(const Operands& operands) : op_(operands), lane_(threadIdx.x % 32), strips_(operands.N / 64) {}

  // Points at k tile `k_tile` of the output tile whose first column is given.
  __device__ __forceinline__ void aim(int column, int k_tile) {
    strip_ = column / kStripColumns;
    across_ = min(kWarpsN, strips_ - strip_);
    k_ = k_tile * kTileK;
    weights_ = op_.weights + (static_cast<size_t>(k_tile) * (kTileK / 64) * strips_ + strip_) * kBlockVectors;
  }

  // Asks for the next tile; `barrier` hears of it.
  __device__ __forceinline__ void fetch(u32 stage, u32 barrier) {
    const size_t scale = static_cast<size_t>(k_ >> op_.group_shift) * strips_ + strip_;
    constexpr int kAStrip = kTileK / 64 * kBlockVectors + kScaleRows * (kZeros ? 10 : 8);
    if (lane_ == 0) mbarrier_arrive_expect_tx(barrier, kAStrip * 16 * across_);
    fetch_runs<kTileK / 64, kBlockVectors>(stage + kAVectors * 16, weights_, barrier);
    fetch_runs<kScaleRows, 8>(stage + (kAVectors + kBVectors) * 16, op_.scales + scale * 8, barrier);
    if (kZeros) {
      fetch_runs<kScaleRows, 2>(stage + (kAVectors + kBVectors + kScaleVectors) * 16, op_.zeros + scale * 2, barrier);
    }
    weights_ += static_cast<size_t>(kTileK / 64) * strips_ * kBlockVectors;
    k_ += kTileK;
  }

 private:
  // kRows times the tile's strips of kRun vectors.
  template <int kRows, int kRun>
  __device__ __forceinline__ void fetch_runs(u32 to, const uint4* from, u32 barrier) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (lane_ == 0) cp_async_bulk(to + i * kWarpsN * kRun * 16, from, across_ * kRun * 16, barrier);
      from += static_cast<size_t>(strips_) * kRun;
    }
  }

  const Operands& op_;
  const int lane_, strips_;
  int strip_, across_, k_;
  const uint4* weights_;
};

// Activations of one k tile after the other, by tensor map.
class MapFetcher {
 public:
  static constexpr int kWarps = 1, kArrivals = 1;

  __device__ MapFetcher(const Operands& operands) : map_(operands.map), lane_(threadIdx.x % 32) {}

  // Points at k tile `k_tile` of the output tile whose first row is given.
  __device__ __forceinline__ void aim(int row, int k_tile) {
    row_ = row;
    panel_ = k_tile * kPanels;
  }

  // Asks for the next tile; `barrier` hears of it.
  __device__ __forceinline__ void fetch(u32 stage, u32 barrier) {
#if __CUDA_ARCH_FEAT_SM90_ALL
    if (lane_ == 0) {
      mbarrier_arrive_expect_tx(barrier, kAVectors * 16);
      cp_async_bulk_tensor_3d(stage, map_, 0, row_, panel_, barrier);
    }
#endif
    panel_ += kPanels;
  }

 private:
  static constexpr int kPanels = kTileK / 64;

  const TensorMap* map_;
  const int lane_;
  int row_, panel_;
};

// Rows of activations of one k tile after the other, 16 bytes a lane.
class RowFetcher {
 public:
  static constexpr int kWarps = 2, kLanes = 32 * kWarps, kArrivals = kLanes;

  __device__ RowFetcher(const Operands& operands)
      : op_(operands), row_(threadIdx.x % kLanes / kARowVectors), vector_(threadIdx.x % kLanes % kARowVectors) {}

  // Points at k tile `k_tile` of the output tile whose first row is given.
  __device__ __forceinline__ void aim(int row, int k_tile) {
    rows_ = op_.M - row - row_;
    from_ = op_.activations + static_cast<size_t>(row + row_) * op_.K + k_tile * kTileK + vector_ * 8;
  }

  // Asks for the next tile; `barrier` hears of it from each lane.
  __device__ __forceinline__ void fetch(u32 stage, u32 barrier) {
    constexpr int kRowsAPass = kLanes / kARowVectors, kPasses = (kTileM + kRowsAPass - 1) / kRowsAPass;
    static_assert(kRowsAPass * kARowVectors == kLanes, "a pass is whole rows");
    const Scalar* from = from_;
    const size_t down = static_cast<size_t>(kRowsAPass) * op_.K;
#pragma unroll 4
    for (int pass = 0; pass < kPasses; ++pass) {
      const int row = pass * kRowsAPass;
      if (row < rows_ && (kTileM % kRowsAPass == 0 || row + row_ < kTileM)) {
        cp_async_cg(stage + (vector_ / 8 * kPanelVectors + swizzle<8>(row_ + row, vector_ % 8)) * 16, from);
      }
      from += down;
    }
    cp_async_mbarrier_arrive_noinc(barrier);
    from_ += kTileK;
  }

 private:
  const Operands& op_;
  const int row_, vector_;
  int rows_;
  const Scalar* from_;
};

template <bool kByMap>
struct FetcherFor {
  using Type = RowFetcher;
};
template <>
struct FetcherFor<true> {
  using Type = MapFetcher;
};
using ActivationFetcher = FetcherFor<kByMap>::Type;

constexpr int kFullArrivals = ActivationFetcher::kArrivals + 1;  // of a stage: weights announce their bytes once
