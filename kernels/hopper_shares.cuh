// How a split cluster joins the sums of a wide batch tile: its `kSources` warpgroups with sums of the same features share the
// tile's batch rows, 16 at a time. Each keeps the sums that it finishes in registers, sends the others through distributed
// shared memory and adds what it gets in the order of (CTA, warpgroup). So no sums are sent to their own warp, as they are
// where features are shared (hopper_reduce.cuh), which suits batch tiles too narrow to be cut.
#pragma once

#include "hopper_config.cuh"
#include "hopper_reduce.cuh"

// Square columns of 16 batch rows: the first one of each source's share, and whose the n8 block `n8` is.
constexpr int first_square(int source) { return (kSquareColumns * source + kSources - 1) / kSources; }
constexpr int finisher(int n8) { return n8 / 2 * kSources / kSquareColumns; }

// Offset in a CTA's exchange buffer, float4 [warp][part][block][n8 block of the share][lane], of this thread's part 0.
__device__ __forceinline__ u32 parts_offset(int warp, int lane) {
  return warp * (kSources - 1) * kPartBytes + lane * 16;
}

// Of n8 block `n8` of `block` as `source` sends it to `finisher`, which gets no part of its own.
constexpr u32 part_offset(int source, int finisher, int block, int n8) {
  const int part = source < finisher ? source : source - 1;
  return part * kPartBytes + (block * kShareSquares * 2 + n8 - 2 * first_square(finisher)) * 512;
}

// Sends this warp's sums to the warps of the same rows that finish them; `source` is its share of K in the cluster.
template <int kSource = 0>
__device__ __forceinline__ void send_shares(const Sums& sums, u32 exchange, int source, int row_warp, int lane) {
  if constexpr (kSource < kSources) {
    if (source != kSource) return send_shares<kSource + 1>(sums, exchange, source, row_warp, lane);
#pragma unroll
    for (int target = 0; target < kSources; ++target) {
      if (target == kSource) continue;
      const int warp = target % kSplit * kRowWarpgroups * 4 + row_warp;
      const u32 address = mapa_shared_cluster(exchange + parts_offset(warp, lane), target / kSplit);
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
        for (int i = 0; i < kBatchTile / 8; ++i) {
          if (finisher(i) != target) continue;
          const float* s = &sums[block][4 * i];
          st_shared_cluster_v4(address + part_offset(kSource, target, block, i), make_float4(s[0], s[1], s[2], s[3]));
        }
      }
    }
  }
}

// Batch rows of a tile.
template <int kFirst, int kPastLast>
struct BatchRows {
  static constexpr int kBegin = kFirst;
  static constexpr int kEnd = kPastLast < kBatchTile ? kPastLast : kBatchTile;
};

// Adds the other sources' parts of the batch rows that `source` finishes to its own, in the order of (CTA, warpgroup), and
// calls store(BatchRows).
template <int kSource = 0, typename Store>
__device__ __forceinline__ void finish_share(Sums& sums, u32 exchange, int source, int warp, int lane, const Store& store) {
  if constexpr (kSource < kSources) {
    if (source != kSource) return finish_share<kSource + 1>(sums, exchange, source, warp, lane, store);
    const u32 address = exchange + parts_offset(warp, lane);
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int i = 0; i < kBatchTile / 8; ++i) {
        if (finisher(i) != kSource) continue;
        float* s = &sums[block][4 * i];
        const float4 own = make_float4(s[0], s[1], s[2], s[3]);
#pragma unroll
        for (int from = 0; from < kSources; ++from) {
          const float4 part = from == kSource ? own : ld_shared_v4_f32(address + part_offset(from, kSource, block, i));
          s[0] = from == 0 ? part.x : s[0] + part.x;
          s[1] = from == 0 ? part.y : s[1] + part.y;
          s[2] = from == 0 ? part.z : s[2] + part.z;
          s[3] = from == 0 ? part.w : s[3] + part.w;
        }
      }
    }
    store(BatchRows<16 * first_square(kSource), 16 * first_square(kSource + 1)>{});
  }
}
