// Global memory -> ring of stages in shared memory, by warps that do nothing else (paper 3.4 "Memory Load Pipelining").
//
//      producers   wait empty[s]   fetch W, scales | fetch A -> stage s                   (they may be kStages ahead)
//                                  each completion arrives at full[s]
//      computing   wait full[s]    read …  arrive at empty[s], one arrival a warp
//
// No warp ever waits for another one that computes: a CTA-wide barrier a tile, as the dense pipeline has, costs an H200 a
// fifth of its bandwidth. Packed weights are gapless blocks of 1.5 KiB, so that a tile reads runs of up to 12 KiB: on sm_90
// each run is one bulk copy. Before, and for activations everywhere (their rows are swizzled), copies are 16 bytes a lane.
// Rows of A beyond M and strips of W beyond N are not fetched: what stands in their place only meets outputs that are
// never stored.
#pragma once
#include "ptx.cuh"
#include "sparse_tile.cuh"
#include "swizzle.cuh"

// 1 for compute-sanitizer's racecheck, which does not follow __syncwarp from the lanes that read to the one that arrives.
#ifndef EVERY_LANE_RELEASES
#define EVERY_LANE_RELEASES 0
#endif

struct Operands {
  const Scalar* activations;  // [M, K] row major
  const uint4* weights;       // [K / 64, N / 64, kBlockSparseVectors] (layouts/marlin_sparse.py)
  const uint4* scales;        // [groups, N / 8] vectors of 8
  int M, N, K;
  int group_shift;            // log2 of the group size, 31 for one scale a column
};

// Position in the ring; `phase` is the parity of the round.
struct Cursor {
  int stage = 0;
  u32 phase = 0;

  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

class Ring {
 public:
  // `memory`: kStages stages; `barriers`: 2 · kStages of 8 bytes.
  __device__ Ring(const uint4* memory, const u64* barriers)
      : memory_(memory), full_(shared_address(barriers)), empty_(full_ + 8 * kStages) {}

  // By one thread, before any other uses the ring.
  __device__ void initialize() const {
    for (int stage = 0; stage < kStages; ++stage) {
      mbarrier_init(full(stage), kActivationThreads + (BULK_COPIES ? 1 : 32));
      mbarrier_init(empty_ + 8 * stage, kWarps * (EVERY_LANE_RELEASES ? 32 : 1));
    }
#if __CUDA_ARCH__ >= 900
    fence_mbarrier_init();
    fence_proxy_async_shared();
#endif
  }

  __device__ __forceinline__ const uint4* stage(Cursor cursor) const { return memory_ + cursor.stage * kStageVectors; }
  __device__ __forceinline__ u32 full(int stage) const { return full_ + 8 * stage; }
  __device__ __forceinline__ void wait_full(Cursor cursor) const { wait(full(cursor.stage), cursor.phase); }
  // The first round finds every stage empty: a wait for the phase before the first one returns at once.
  __device__ __forceinline__ void wait_empty(Cursor cursor) const { wait(empty_ + 8 * cursor.stage, cursor.phase ^ 1); }
  // By a whole warp, once it has read the stage.
  __device__ __forceinline__ void release(Cursor cursor, int lane) const {
    __syncwarp();
    if (EVERY_LANE_RELEASES || lane == 0) mbarrier_arrive(empty_ + 8 * cursor.stage);
  }

 private:
  __device__ __forceinline__ static void wait(u32 barrier, u32 phase) {
#if __CUDA_ARCH__ >= 900
    while (!mbarrier_try_wait_parity(barrier, phase)) {
    }
#else
    while (!mbarrier_test_wait_parity(barrier, phase)) {
    }
#endif
  }

  const uint4* memory_;
  u32 full_, empty_;
};

// A warp that fetches: weights and scales, which do not depend on the previous kernel of the stream, or (a share of the)
// activations, which may.
class Producer {
 public:
  __device__ Producer(const Operands& operands, const Ring& ring)
      : op_(operands), ring_(ring), lane_(threadIdx.x % 32), strips_(operands.N / 64) {}

  // Weights and scales of k tiles [k_begin, k_end) of the output tile whose first channel is given.
  __device__ void produce_weights(int channel, int k_begin, int k_end) {
    const int strip = channel / 64;
    const int strips = min(kWarpsN, strips_ - strip);
    const uint4* weights = op_.weights + (static_cast<size_t>(k_begin) * (kTileK / 64) * strips_ + strip) * kBlockSparseVectors;
    for (int k_tile = k_begin; k_tile < k_end; ++k_tile) {
      const uint4* scales = op_.scales + static_cast<size_t>((k_tile * kTileK) >> op_.group_shift) * (strips_ * 8) + strip * 8;
      ring_.wait_empty(cursor_);
      const u32 stage = shared_address(ring_.stage(cursor_)) + kAVectors * 16;
      const u32 barrier = ring_.full(cursor_.stage);
      expect(barrier, (kTileK / 64 * kBlockSparseVectors + kScaleRows * 8) * strips * 16);
#pragma unroll
      for (int k = 0; k < kTileK / 64; ++k) {
        fetch_run(stage + k * kWarpsN * kBlockSparseVectors * 16,
                  weights + static_cast<size_t>(k) * strips_ * kBlockSparseVectors, strips * kBlockSparseVectors, barrier);
      }
#pragma unroll
      for (int group = 0; group < kScaleRows; ++group) {
        fetch_run(stage + (kBVectors + group * kScaleRowVectors) * 16, scales + static_cast<size_t>(group) * (strips_ * 8),
                  strips * 8, barrier);
      }
      arrive_when_copied(barrier);
      weights += static_cast<size_t>(kTileK / 64) * strips_ * kBlockSparseVectors;
      cursor_.advance();
    }
  }

  // Activations of k tiles [k_begin, k_end) of the output tile whose first batch row is given.
  __device__ void produce_activations(int row, int k_begin, int k_end) {
    const int rows = min(kTileM, op_.M - row);
    const Scalar* tile = op_.activations + static_cast<size_t>(row) * op_.K + k_begin * kTileK;
    for (int k_tile = k_begin; k_tile < k_end; ++k_tile) {
      ring_.wait_empty(cursor_);
      fetch_activations(shared_address(ring_.stage(cursor_)), tile, rows);
      cp_async_mbarrier_arrive_noinc(ring_.full(cursor_.stage));
      tile += kTileK;
      cursor_.advance();
    }
  }

 private:
  // `vectors` neighbours: a bulk copy by one lane, or 16 bytes a lane.
  __device__ __forceinline__ void fetch_run(u32 shared, const uint4* global, int vectors, u32 barrier) const {
#if BULK_COPIES
    if (lane_ == 0) cp_async_bulk(shared, global, vectors * 16, barrier);
#else
    for (int i = lane_; i < vectors; i += 32) cp_async_cg(shared + i * 16, global + i);
#endif
  }

  __device__ __forceinline__ void expect(u32 barrier, u32 bytes) const {
#if BULK_COPIES
    if (lane_ == 0) mbarrier_arrive_expect_tx(barrier, bytes);
#endif
  }

  // Without bulk copies: once this lane's copies are complete.
  __device__ __forceinline__ void arrive_when_copied(u32 barrier) const {
#if !BULK_COPIES
    cp_async_mbarrier_arrive_noinc(barrier);
#endif
  }

  // 16 bytes a lane and pass; all addresses of a pass are the first one's and a constant of the pass.
  __device__ __forceinline__ void fetch_activations(u32 stage, const Scalar* tile, int rows) const {
    constexpr int kPasses = kAVectors / kActivationThreads;
    static_assert(kPasses * kActivationThreads == kAVectors, "the fetching lanes share a stage evenly");
    const int first = threadIdx.x % kActivationThreads;
    const int first_row = first / kARowVectors, first_vector = first % kARowVectors;
    const Scalar* from = tile + static_cast<size_t>(first_row) * op_.K + first_vector * 8;
#pragma unroll 8
    for (int pass = 0; pass < kPasses; ++pass) {
      const int row = pass * kActivationThreads / kARowVectors, vector = pass * kActivationThreads % kARowVectors;
      if (first_row + row < rows) {
        cp_async_cg(stage + swizzle<kARowVectors>(first_row + row, first_vector + vector) * 16,
                    from + static_cast<size_t>(row) * op_.K + vector * 8);
      }
    }
  }

  const Operands& op_;
  const Ring& ring_;
  const int lane_, strips_;
  Cursor cursor_;
};
