// Global memory -> ring of stages in shared memory (paper 3.4 "Memory Load Pipelining").
//
//      stage      0        1        2        3          kStages - 1 tiles are on their way while one is computed on
//               [A|W|s]  [A|W|s]  [A|W|s]  [A|W|s]      A swizzled, W and scales in their packed order
//
// Bytes in flight a SM decide the bandwidth: 64 KiB and more reach the roof of an H200, the original's 24 do not.
// Weights are stored as gapless 64x64 blocks [K / 64][N / 64][2 KiB], so a tile reads runs of 4 to 8 KiB.
// One commit group a tile, also when nothing is left to fetch, keeps the count that wait() relies on.
// Rows of A beyond M and strips of W beyond N are not fetched: what stands in their place only meets outputs that are
// never stored.
#pragma once
#include "ptx.cuh"
#include "swizzle.cuh"
#include "tile.cuh"

struct Operands {
  const Scalar* activations;  // [M, K] row major
  const uint4* weights;       // [K / 64, N / 64, 4, 32] vectors of 32 codes
  const uint4* scales;        // [groups, N / 8] vectors of 8 scales of one strip and one lane group
  const uint4* zeros;         // [groups, N / 32] vectors of 32 zero points; null without
  int M, N, K;
  int group_shift;            // log2 of the group size, 31 for one scale a column
};

class Pipeline {
 public:
  __device__ Pipeline(const Operands& operands, const uint4* ring) : op_(operands), ring_(ring) {
    const int thread = threadIdx.x;
    a_row_ = thread / kARowVectors;
    a_place_ = swizzle<kARowVectors>(a_row_, thread % kARowVectors);
    strips_ = op_.N / kStripColumns;
  }

  // Points at k tile `k_tile` of the output tile whose first row and column are given.
  __device__ void aim(int row, int column, int k_tile, int k_end) {
    const int thread = threadIdx.x;
    rows_ = op_.M - row;
    strip_ = column / kStripColumns;
    k_tile_ = k_tile;
    k_end_ = k_end;
    a_next_ = op_.activations + static_cast<size_t>(row + a_row_) * op_.K + k_tile * kTileK + thread % kARowVectors * 8;
    b_next_ = op_.weights + (static_cast<size_t>(k_tile) * (kTileK / 64) * strips_ + strip_) * kBlockVectors + thread;
    read_ = write_ = 0;
  }

  // Asks for the next tile's operands; the stage it goes to must not be read any more.
  __device__ void fetch() {
    if (k_tile_ < k_end_) {
      const u32 stage = shared_address(ring_ + write_ * kStageVectors);
      fetch_activations(stage);
      fetch_weights(stage + kAVectors * 16);
      fetch_scales(stage + (kAVectors + kBVectors) * 16);
      ++k_tile_;
      a_next_ += kTileK;
      b_next_ += static_cast<size_t>(kTileK / 64) * strips_ * kBlockVectors;
    }
    cp_async_commit_group();
    write_ = write_ + 1 == kStages ? 0 : write_ + 1;
  }

  // The oldest tile has arrived, for all threads; everything they read of the one before is read.
  __device__ void wait() {
    cp_async_wait_group<kStages - 2>();
    __syncthreads();
  }

  // Turns to the oldest tile that has not been read.
  __device__ const uint4* next_stage() {
    const uint4* stage = ring_ + read_ * kStageVectors;
    read_ = read_ + 1 == kStages ? 0 : read_ + 1;
    return stage;
  }

  // Nothing is in flight and nothing is read: the ring is plain shared memory again.
  __device__ void drain() {
    cp_async_wait_group<0>();
    __syncthreads();
  }

 private:
  __device__ void fetch_activations(u32 stage) {
    constexpr int kRowsAPass = kThreads / kARowVectors;
    static_assert(kRowsAPass % 8 == 0, "the swizzle of a thread's vectors is the same in each pass");
#pragma unroll
    for (int pass = 0; pass * kRowsAPass < kTileM; ++pass) {
      const int row = a_row_ + pass * kRowsAPass;
      if (row < rows_ && row < kTileM) {
        cp_async_cg(stage + (a_place_ + pass * kThreads) * 16, a_next_ + static_cast<size_t>(pass * kRowsAPass) * op_.K);
      }
    }
  }

  __device__ void fetch_weights(u32 stage) {
    constexpr int kBlocksAPass = kThreads / kBlockVectors;
#pragma unroll
    for (int pass = 0; pass * kThreads < kBVectors; ++pass) {
      constexpr int kAcross = kWarpsN;
      const int block_k = pass * kBlocksAPass / kAcross;
      const int block_n = pass * kBlocksAPass % kAcross;
      const int strip = strip_ + block_n + static_cast<int>(threadIdx.x) / kBlockVectors;
      if (strip < strips_) {
        cp_async_cg(stage + (threadIdx.x + pass * kThreads) * 16,
                    b_next_ + (static_cast<size_t>(block_k) * strips_ + block_n) * kBlockVectors);
      }
    }
  }

  // A tile inside one group fetches that group's row again: it comes from L2, and no tile depends on another's fetch.
  __device__ void fetch_scales(u32 stage) {
    const int thread = threadIdx.x;
    const int group = (k_tile_ * kTileK) >> op_.group_shift;
    fetch_rows<kScaleRowVectors>(stage, op_.scales, thread, group);
    if (kZeros) fetch_rows<kZeroRowVectors>(stage + kScaleVectors * 16, op_.zeros, thread - kScaleVectors, group);
  }

  template <int kRowVectors>
  __device__ void fetch_rows(u32 stage, const uint4* table, int index, int group) {
    constexpr int kStripSize = kRowVectors / kWarpsN;
    if (index >= 0 && index < kScaleRows * kRowVectors) {
      const int vector = strip_ * kStripSize + index % kRowVectors;
      if (vector < strips_ * kStripSize) {
        const size_t row = group + index / kRowVectors;
        cp_async_cg(stage + index * 16, table + row * (strips_ * kStripSize) + vector);
      }
    }
  }

  const Operands& op_;
  const uint4* ring_;
  int strips_, strip_, rows_, a_row_, a_place_;
  int k_tile_, k_end_;
  int read_, write_;
  const Scalar* a_next_;
  const uint4* b_next_;
};
