// The ring of stages between the producer warps and the consumer warpgroups (the paper's "Memory Load Pipelining").
//
//   full[s]   2 arrivals (weights, activations) + their bytes      empty[s]   one arrival of every consumer warp
//
// A stage is one bulk copy of packed weights per strip of 128 rows (or per block of 64 and K tile, in a tile of an odd number
// of blocks) and one tensor-map copy of activations, which lands in the 128-byte-swizzled K-major order that wgmma reads. Weights do not depend on the previous kernel of the stream, so their
// producer starts before griddepcontrol.wait; the activations' producer starts after it.
#pragma once

#include "hopper_config.cuh"
#include "hopper_schedule.cuh"

// 1 for compute-sanitizer's racecheck, which does not follow warp-wide products from the lanes that read to the one that
// arrives.
#ifndef EVERY_LANE_RELEASES
#define EVERY_LANE_RELEASES 0
#endif

constexpr u32 kStoreBarrier = 2;   // from the consumers to the warp that stores
constexpr u32 kStoredBarrier = 3;  // and back, for racecheck

struct alignas(64) TensorMap {
  u64 opaque[16];
};

// Position in the ring; `phase` is the parity of the round.
struct StageCursor {
  int index = 0;
  u32 phase = 0;

  __device__ __forceinline__ void advance() {
    if (++index == kStages) {
      index = 0;
      phase ^= 1;
    }
  }
};

// Shared addresses of the pieces of the ring.
struct Ring {
  u32 base;

  __device__ __forceinline__ u32 activations(int stage) const {
    return base + kActivationsAt + stage * kStageActivationBytes;
  }
  __device__ __forceinline__ u32 weights(int stage) const { return base + kWeightsAt + stage * kStageWeightBytes; }
  __device__ __forceinline__ u32 full(int stage) const { return base + kBarriersAt + 8 * stage; }
  __device__ __forceinline__ u32 ticket(int stage) const { return base + kTicketsAt + 4 * stage; }
  __device__ __forceinline__ u32 empty(int stage) const { return base + kBarriersAt + 8 * (kStages + stage); }

  // One thread runs this.
  __device__ __forceinline__ void initialize() const {
#pragma unroll
    for (int stage = 0; stage < kStages; ++stage) {
      mbarrier_init(full(stage), 2);
      mbarrier_init(empty(stage), kConsumerWarps * kTeam * (EVERY_LANE_RELEASES ? 32 : 1));
    }
    fence_mbarrier_init();
    fence_proxy_async_shared();
  }

  __device__ __forceinline__ void wait_full(StageCursor cursor) const {
    while (!mbarrier_try_wait_parity(full(cursor.index), cursor.phase)) {
    }
  }
  // The first round finds every stage empty: a wait for the phase before the first one returns at once.
  __device__ __forceinline__ void wait_empty(StageCursor cursor) const {
    while (!mbarrier_try_wait_parity(empty(cursor.index), cursor.phase ^ 1)) {
    }
  }
  // One warp in place of all consumer warps.
  __device__ __forceinline__ void release_for_all(int stage, int lane) const {
    for (int i = lane; i < kConsumerWarps * kTeam; i += 32) {
      if constexpr (kTeam > 1) {
        mbarrier_arrive_cluster(empty(stage), i % kTeam);
      } else {
        mbarrier_arrive(empty(stage));
      }
    }
  }
  __device__ __forceinline__ void release(int stage, int lane) const {
    if constexpr (EVERY_LANE_RELEASES) {
      for (int cta = 0; cta < kTeam; ++cta) {
        if constexpr (kTeam > 1) {
          mbarrier_arrive_cluster(empty(stage), cta);
        } else {
          mbarrier_arrive(empty(stage));
        }
      }
    } else if constexpr (kTeam > 1) {
      if (lane < kTeam) mbarrier_arrive_cluster(empty(stage), lane);
    } else {
      if (lane == 0) mbarrier_arrive(empty(stage));
    }
  }
};

// Asks for one unit's weights into a stage that is empty. packed: uint8 [strips][k_tiles][2][kBlockBytes]; a row tile beyond
// the last strip reads the last one, its rows are not stored.
__device__ __forceinline__ void copy_weights(const Ring& ring, int stage, const unsigned char* __restrict__ packed,
                                             int strips, int k_tiles, int row_tile, int unit) {
  const u32 barrier = ring.full(stage);
  u32 shared = ring.weights(stage);
  mbarrier_arrive_expect_tx(barrier, kStageWeightBytes);
  if constexpr (!kWholeStrips) {
#pragma unroll
    for (int i = 0; i < kTileRows / kBlockRows; ++i) {
      const int block = row_tile * (kTileRows / kBlockRows) + i;
      const int strip = min(block >> 1, strips - 1);
      const unsigned char* source = packed + (block & 1) * kBlockBytes +
                                    (static_cast<size_t>(strip) * k_tiles + unit * kStageTiles) * kStripBytes;
#pragma unroll
      for (int tile = 0; tile < kStageTiles; ++tile) {
        cp_async_bulk(shared, source, kBlockBytes, barrier);
        shared += kBlockBytes;
        source += kStripBytes;
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < kTileRows / kStripRows; ++i) {
      const int strip = min(row_tile * (kTileRows / kStripRows) + i, strips - 1);
      cp_async_bulk(shared, packed + (static_cast<size_t>(strip) * k_tiles + unit * kStageTiles) * kStripBytes,
                    kStageTiles * kStripBytes, barrier);
      shared += kStageTiles * kStripBytes;
    }
  }
}

// All weights of a CTA's own segments. One thread runs this.
__device__ __forceinline__ StageCursor produce_weights(const Ring& ring, const Schedule& schedule,
                                                       const unsigned char* __restrict__ packed, int strips,
                                                       int k_tiles) {
  Segments segments(schedule);
  Segment segment;
  StageCursor cursor;
  while (segments.next(segment)) {
    const int row_tile = tile_position(schedule, segment.tile).row_tile;
    for (int unit = segment.last - 1; unit >= segment.first; --unit) {
      ring.wait_empty(cursor);
      copy_weights(ring, cursor.index, packed, strips, k_tiles, row_tile, unit);
      cursor.advance();
    }
  }
  return cursor;
}

// Asks for one unit's activations into a stage that is empty (a team's CTA for its part, sent to all). activations: tensor
// map of A[M,K] as (64, M, K/64) with boxes (64, kBatchTile, panels). Rows and panels beyond the matrix arrive as zeros.
__device__ __forceinline__ void copy_activations(const Ring& ring, int stage, const TensorMap* activations, int rank,
                                                 int first_row, int unit) {
  const u32 barrier = ring.full(stage);
  mbarrier_arrive_expect_tx(barrier, kStageActivationBytes);
  constexpr int kPanels = 2 * kStageTiles / kTeam;
  const u32 shared = ring.activations(stage) + rank * kPanels * kPanelBytes;
  const int panel = unit * 2 * kStageTiles + rank * kPanels;
  if constexpr (kTeam > 1) {
    cp_async_bulk_tensor_3d_multicast(shared, activations, 0, first_row, panel, barrier, (1 << kTeam) - 1);
  } else {
    cp_async_bulk_tensor_3d(shared, activations, 0, first_row, panel, barrier);
  }
}

// All activations of a CTA's own segments, once the previous kernel of the stream has ended. One thread runs this. The first
// tile is looked up before, which takes a few hundred clocks.
__device__ __forceinline__ void produce_activations(const Ring& ring, const Schedule& schedule,
                                                    const TensorMap* activations) {
  Segments segments(schedule);
  Segment segment;
  StageCursor cursor;
  const int rank = kTeam > 1 ? blockIdx.x % kTeam : 0;
  bool is_first = true;
  while (segments.next(segment)) {
    const int first_row = tile_position(schedule, segment.tile).batch_tile * kBatchTile;
    for (int unit = segment.last - 1; unit >= segment.first; --unit) {
      ring.wait_empty(cursor);
      if (is_first) griddepcontrol_wait();
      is_first = false;
      copy_activations(ring, cursor.index, activations, rank, first_row, unit);
      cursor.advance();
    }
  }
}

// Sends off the whole tiles of a CTA's own segments. The consumers put them where the activations of their last stage were;
// when a tile is read, the stage is given back for all of them. One warp runs this.
__device__ __forceinline__ void store_tiles(const Ring& ring, const Schedule& schedule, const TensorMap* outputs,
                                            int features, int lane) {
  Segments segments(schedule);
  Segment segment;
  int units = 0;
  while (segments.next(segment)) {
    units += segment.last - segment.first;
    if (segment.last - segment.first < schedule.units_per_tile) continue;
    const TilePosition position = tile_position(schedule, segment.tile);
    const int stage = (units - 1) % kStages;
    bar_sync(kStoreBarrier, kConsumerThreads + 32);
    if (lane == 0) {
#pragma unroll
      for (int i = 0; i < kTileRows / kBlockRows; ++i) {
        const int block = position.row_tile * (kTileRows / kBlockRows) + i;
        if (block * kBlockRows >= features) continue;
        cp_async_bulk_tensor_3d_store(outputs, 0, position.batch_tile * kBatchTile, block,
                                      ring.activations(stage) + i * kOutputBoxBytes);
      }
      cp_async_bulk_commit_group();
      cp_async_bulk_wait_read();
    }
    __syncwarp();
    if constexpr (EVERY_LANE_RELEASES) {
      bar_sync(kStoredBarrier, kConsumerThreads + 32);  // and the consumers give it back themselves
    } else {
      ring.release_for_all(stage, lane);
    }
  }
}
