// Global memory -> ring of stages in shared memory, by warps that do nothing else (paper 3.4 "Memory Load Pipelining").
//
// One warp asks for weights, one or two for activations. Packed weights are gapless blocks of 1.5 KiB, so that a tile reads
// runs of up to 12 KiB: on sm_90 each run is one bulk copy. On sm_90a all activations of a stage are one copy by tensor map.
// Else copies are 16 bytes a lane (rows are short, and an H200 takes 60 ns for each bulk copy of one).
// Rows of A beyond M (a map delivers zeros) and strips of W beyond N only meet outputs that are never stored.
#pragma once
#include "ptx.cuh"
#include "sparse_tile.cuh"
// The ring works on what the tile is.
#include "ring.cuh"
#include "swizzle.cuh"

struct alignas(64) TensorMap {
  u64 opaque[16];
};

struct Operands {
  const Scalar* activations;  // [M, K] row major
  const TensorMap* map;       // of them, in boxes of a stage's panels (sm_90a)
  const uint4* weights;       // [K / 64, N / 64, kBlockSparseVectors] (layouts/marlin_sparse.py)
  const uint4* scales;        // [groups, N / 8] vectors of 8
  int M, N, K;
  int group_shift;            // log2 of the group size, 31 for one scale a column
};

// Weights and scales of one k tile after the other, asked for by a warp: bulk copies by as many lanes, or 16 bytes a lane.
class WeightFetcher {
 public:
  static constexpr int kArrivals = BULK_COPIES ? 1 : 32;  // at a stage's barrier

  __device__ WeightFetcher(const Operands& operands) : op_(operands), lane_(threadIdx.x % 32), strips_(operands.N / 64) {}

  // Points at k tile `k_tile` of the output tile whose first channel is given.
  __device__ __forceinline__ void aim(int channel, int k_tile) {
    strip_ = channel / 64;
    across_ = min(kWarpsN, strips_ - strip_);
    k_ = k_tile * kTileK;
    weights_ = op_.weights + (static_cast<size_t>(k_tile) * (kTileK / 64) * strips_ + strip_) * kBlockSparseVectors;
  }

  // Asks for the next tile; `barrier` hears of it.
  __device__ __forceinline__ void fetch(u32 stage, u32 barrier) {
    const uint4* scales = op_.scales + (static_cast<size_t>(k_ >> op_.group_shift) * strips_ + strip_) * 8;
#if BULK_COPIES
    constexpr int kAStrip = kTileK / 64 * kBlockSparseVectors + kScaleRows * 8;
    if (lane_ == 0) mbarrier_arrive_expect_tx(barrier, kAStrip * 16 * across_);
    __syncwarp();
#endif
    fetch_runs<kTileK / 64, kBlockSparseVectors>(stage + kAVectors * 16, weights_, barrier);
    fetch_runs<kScaleRows, 8>(stage + (kAVectors + kBVectors) * 16, scales, barrier);
#if !BULK_COPIES
    cp_async_mbarrier_arrive_noinc(barrier);
#endif
    weights_ += static_cast<size_t>(kTileK / 64) * strips_ * kBlockSparseVectors;
    k_ += kTileK;
  }

 private:
  // kRows times the tile's strips of kRun vectors.
  template <int kRows, int kRun>
  __device__ __forceinline__ void fetch_runs(u32 to, const uint4* from, u32 barrier) const {
#if BULK_COPIES
    for (int run = lane_; run < kRows; run += 32) {
      cp_async_bulk(to + run * kWarpsN * kRun * 16, from + static_cast<size_t>(run) * strips_ * kRun, across_ * kRun * 16, barrier);
    }
#else
    constexpr int kUnrolled = kReallocate ? 1 : 4;  // warps that hand registers on have few
#pragma unroll kUnrolled
    for (int run = 0; run < kRows; ++run) {
#pragma unroll kUnrolled
      for (int i = lane_; i < across_ * kRun; i += 32) cp_async_cg(to + (run * kWarpsN * kRun + i) * 16, from + i);
      from += static_cast<size_t>(strips_) * kRun;
    }
#endif
  }

  const Operands& op_;
  const int lane_, strips_;
  int strip_, across_, k_;
  const uint4* weights_;
};

#if ACTIVATION_MAP

// Activations of one k tile after the other: one thread asks for all panels of a stage.
class ActivationFetcher {
 public:
  static constexpr int kThreads = 32, kArrivals = 1;

  __device__ ActivationFetcher(const Operands& operands) : map_(operands.map), lane_(threadIdx.x % 32) {
    if (lane_ == 0) prefetch_tensormap(map_);
  }

  // Points at k tile `k_tile` of the output tile whose first row is given.
  __device__ __forceinline__ void aim(int row, int k_tile) {
    row_ = row;
    panel_ = k_tile * (kTileK / 64);
  }

  // Asks for the next tile; `barrier` hears of it. Rows beyond M come as zeros.
  __device__ __forceinline__ void fetch(u32 stage, u32 barrier) {
    if (lane_ == 0) {
      mbarrier_arrive_expect_tx(barrier, kAVectors * 16);
      cp_async_bulk_tensor_3d(stage, map_, 0, row_, panel_, barrier);
    }
    panel_ += kTileK / 64;
  }

 private:
  const TensorMap* map_;
  const int lane_;
  int row_, panel_;
};

#else

// Rows of activations of one k tile after the other, 16 bytes a lane.
class ActivationFetcher {
 public:
  static constexpr int kThreads = kActivationThreads, kArrivals = kThreads;

  __device__ ActivationFetcher(const Operands& operands)
      : op_(operands), row_(threadIdx.x % kThreads / kAcross), vector_(threadIdx.x % kThreads % kAcross) {}

  // Points at k tile `k_tile` of the output tile whose first row is given.
  __device__ __forceinline__ void aim(int row, int k_tile) {
    rows_ = min(kTileM, op_.M - row) - row_;
    from_ = op_.activations + static_cast<size_t>(row + row_) * op_.K + k_tile * kTileK + vector_ * 8;
  }

  // Asks for the next tile; `barrier` hears of it from each lane.
  __device__ __forceinline__ void fetch(u32 stage, u32 barrier) {
    constexpr int kRowsAPass = kThreads / kAcross;
    const Scalar* from = from_;
#pragma unroll 4
    for (int row = 0; row < kTileM; row += kRowsAPass) {
      if (row < rows_) {
        const u32 to = stage + (vector_ / 8 * kPanelVectors + swizzle<8>(row_ + row, vector_ % 8)) * 16;
#pragma unroll
        for (int i = 0; i < kTileK / 8; i += kAcross) cp_async_cg(to + i / 8 * kPanelVectors * 16, from + i * 8);
      }
      from += static_cast<size_t>(kRowsAPass) * op_.K;
    }
    cp_async_mbarrier_arrive_noinc(barrier);
    from_ += kTileK;
  }

 private:
  static constexpr int kAcross = kTileK / 8 < kThreads ? kTileK / 8 : kThreads;
  const Operands& op_;
  const int row_, vector_;
  int rows_;
  const Scalar* from_;
};

#endif

constexpr int kFullArrivals = WeightFetcher::kArrivals + ActivationFetcher::kArrivals;  // of a stage
