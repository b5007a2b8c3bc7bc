// The products of a CTA's warps, each by itself: mma.sp m16n8k32, with activations through ldmatrix.
#pragma once
#include "sparse_fetch.cuh"
#include "sparse_operands.cuh"

using Reader = RingReader;
using Activations = u32[kBatchBlocks][4];

__device__ __forceinline__ void load_activations(Activations& activations, u32 stage, int unit, const Places& places) {
  const u32 address = stage + places.activations[unit % 2] + unit / 2 * kPanelVectors * 16;
#pragma unroll
  for (int n = 0; n < kBatchBlocks; ++n) ldmatrix_x4(activations[n], address + n * 8 * 8 * 16);
}

// A unit's products. The weights of product j + 1 (after the last: of the next unit) are dequantised while the tensor cores
// work on those of product j (paper 3.4).
__device__ __forceinline__ void multiply(Sums& sums, bool begins, u32 (&operands)[2][4], const Weights& weights,
                                         const Weights& next, const Activations& activations) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    dequantise_product(operands[(j + 1) % 2], j < 3 ? weights : next, (j + 1) % 4);
#pragma unroll
    for (int n = 0; n < kBatchBlocks; ++n) {
      if (j % 2 == 0) {
        mma_sp<0>(Type{}, sums[j][n], operands[j % 2], activations[n], weights.positions[j / 2], begins);
      } else {
        mma_sp<1>(Type{}, sums[j][n], operands[j % 2], activations[n], weights.positions[j / 2], begins);
      }
    }
  }
}

// The products of one segment, summed in registers. A warp whose channels lie beyond N only keeps the ring turning.
__device__ __forceinline__ void accumulate(Sums& sums, Reader& reader, int k_tiles, bool computes, const Places& places) {
#pragma unroll
  for (int u = 0; u < kVectors; ++u) put_vector(sums, u, {});
  u32 stage = reader.begin();
  if (!computes) {
    for (; k_tiles > 0; --k_tiles) reader.turn(k_tiles > 1);
    return;
  }
  constexpr int kBuffers = kBatchBlocks <= (BULK_COPIES ? 4 : 2) ? 2 : 1;  // of activations: registers
  Sums part;
  Weights weights[2];
  Activations activations[kBuffers];
  u32 operands[2][4];
  load_weights(weights[0], weights[1], stage, 0, places);
  if (kBuffers == 2) load_activations(activations[0], stage, 0, places);
  dequantise_product(operands[0], weights[0], 0);
#pragma unroll 1
  for (; k_tiles > 0; --k_tiles) {
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
      Weights& next = weights[(unit + 1) % 2];
      const bool group_ends = (unit + 1) % kGroupUnits == 0;
      u32 scales[4];
      if (kBuffers == 1) load_activations(activations[0], stage, unit, places);
      if (kScaleSums && group_ends) ld_shared_v4_u32(scales, stage + places.scales + Places::scales_after(unit));
      if (unit == kUnits - 1) stage = reader.turn(k_tiles > 1);
      if (unit < kUnits - 1 || k_tiles > 1) {
        load_weights(next, weights[unit % 2], stage, (unit + 1) % kUnits, places);
        if (kBuffers == 2) load_activations(activations[(unit + 1) % 2], stage, (unit + 1) % kUnits, places);
      }
      if constexpr (kScaleSums) {
        multiply(part, unit % kGroupUnits == 0, operands, weights[unit % 2], next, activations[unit % kBuffers]);
        if (group_ends) add_group(sums, part, scales);
      } else {
        multiply(sums, false, operands, weights[unit % 2], next, activations[unit % kBuffers]);
      }
    }
  }
}
