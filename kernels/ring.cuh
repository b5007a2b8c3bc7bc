// A ring of stages in shared memory between a warp that fills them and warps that read them.
//
//      fills       wait empty[s]   fetch -> stage s     each completion arrives at full[s]      (kStages ahead at most)
//      reads       wait full[s]    read …               arrive at empty[s], one arrival a warp
//
// No warp ever waits for another one that computes: a CTA-wide barrier a tile costs an H200 a tenth of its bandwidth.
// The header of the tile says kStages, kStageVectors and kWarps, the warps that read.
#pragma once
#include "ptx.cuh"
#include "stripes.cuh"

// 1 for compute-sanitizer's racecheck, which does not follow __syncwarp from the lanes that read to the one that arrives.
#ifndef EVERY_LANE_RELEASES
#define EVERY_LANE_RELEASES 0
#endif

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
      : memory_(shared_address(memory)), full_(shared_address(barriers)), empty_(full_ + 8 * kStages) {}

  // By one thread, before any other uses the ring; a stage is full after `arrivals`.
  __device__ void initialize(int arrivals) const {
    for (int stage = 0; stage < kStages; ++stage) {
      mbarrier_init(full_ + 8 * stage, arrivals);
      mbarrier_init(empty_ + 8 * stage, kWarps * (EVERY_LANE_RELEASES ? 32 : 1));
    }
#if __CUDA_ARCH__ >= 900
    fence_mbarrier_init();
    fence_proxy_async_shared();
#endif
  }

  // Its shared-memory address.
  __device__ __forceinline__ u32 stage(Cursor cursor) const { return memory_ + cursor.stage * (kStageVectors * 16); }
  __device__ __forceinline__ u32 full(Cursor cursor) const { return full_ + 8 * cursor.stage; }
  __device__ __forceinline__ void wait_full(Cursor cursor) const { wait(full(cursor), cursor.phase); }
  // The first round finds every stage empty: a wait for the phase before the first one returns at once.
  __device__ __forceinline__ void wait_empty(Cursor cursor) const { wait(empty_ + 8 * cursor.stage, cursor.phase ^ 1); }
  __device__ __forceinline__ bool is_full(Cursor cursor) const { return mbarrier_test_wait_parity(full(cursor), cursor.phase); }
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

  u32 memory_, full_, empty_;
};

// Asks `fetcher` for the tiles of a segment, each once its stage is empty.
template <typename Fetcher>
__device__ __forceinline__ void fill(const Ring& ring, Cursor& cursor, Fetcher& fetcher, const Segment& segment) {
#pragma unroll 1
  for (int k_tile = segment.k_begin; k_tile < segment.k_end; ++k_tile) {
    ring.wait_empty(cursor);
    fetcher.fetch(ring.stage(cursor), ring.full(cursor));
    cursor.advance();
  }
}

// The computing warps' side of the ring, as accumulate() uses it.
class RingReader {
 public:
  __device__ RingReader(const Ring& ring, int lane) : ring_(ring), lane_(lane) {}

  // Turns to the first stage of a segment; gives its address.
  __device__ __forceinline__ u32 begin() const {
    ring_.wait_full(cursor_);
    return ring_.stage(cursor_);
  }

  // Whether the next stage is full already; does not wait. Asked for early, the answer costs no time.
  __device__ __forceinline__ bool next_is_full() const {
    Cursor next = cursor_;
    next.advance();
    return ring_.is_full(next);
  }

  // This stage is read; turns to the next one, if there are `more` in this segment. `full`: that one is known to be.
  __device__ __forceinline__ u32 turn(bool more, bool full = false) {
    ring_.release(cursor_, lane_);
    cursor_.advance();
    if (more && !full) ring_.wait_full(cursor_);
    return ring_.stage(cursor_);
  }

 private:
  const Ring& ring_;
  const int lane_;
  Cursor cursor_;
};
