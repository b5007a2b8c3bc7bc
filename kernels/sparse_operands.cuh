// A stage's weights -> registers -> the tensor cores' left operand, for one unit: 64 channels x 32 k (layouts/marlin_sparse.py).
#pragma once
#include "dequantise.cuh"
#include "ptx.cuh"
#include "sparse_fragments.cuh"
#include "sparse_tile.cuh"
#include "swizzle.cuh"

// What a warp needs of the weights for one unit.
struct Weights {
  u32 codes[4];      // word j: the non-zeros of product j
  u32 positions[2];  // of the products 0 and 1, and of 2 and 3
  u32 scales[4];     // of the lane group's eight channels; not used where sums are scaled
};

// Where a lane reads in a stage: bytes from its beginning. What comes after is constants further on.
struct Places {
  u32 activations[2];  // of even and of odd units, for ldmatrix
  u32 panel;           // of the first unit's activations
  u32 codes, positions, scales;

  __device__ explicit Places(const Position& at) {
    const int k_block = at.warp_k * kUnits / 2;
    const int row = at.warp_m * kBatchBlocks * 8 + at.lane % 8;
    const int block = kAVectors + (k_block * kWarpsN + at.warp_n) * kBlockSparseVectors;
    for (int odd = 0; odd < 2; ++odd) {
      activations[odd] = (k_block * kPanelVectors + swizzle<8>(row, odd * 4 + at.lane / 8)) * 16;
    }
    panel = k_block * kPanelVectors * 16;
    codes = (block + at.lane) * 16;
    positions = (block + 2 * kUnitVectors) * 16 + at.lane * 8;
    scales = (kAVectors + kBVectors + k_block / kGroupBlocks * kScaleRowVectors + at.warp_n * 8 + at.group) * 16;
  }

  static __device__ constexpr int blocks_after(int unit) { return unit / 2 * kWarpsN * kBlockSparseVectors * 16; }
  static __device__ constexpr int scales_after(int unit) { return unit / 2 / kGroupBlocks * kScaleRowVectors * 16; }
};

// Unit `unit` of a warp's share of a stage. `before` are those of the unit before, whose scales are this one's too inside
// a group.
__device__ __forceinline__ void load_weights(Weights& weights, const Weights& before, u32 stage, int unit,
                                             const Places& places) {
  const u32 block = stage + Places::blocks_after(unit);
  ld_shared_v4_u32(weights.codes, block + places.codes + unit % 2 * (kUnitVectors * 16));
  ld_shared_v2_u32(weights.positions, block + places.positions + unit % 2 * (32 * 8));
  if (kScaleSums) return;
  if (unit % kGroupUnits == 0) {
    ld_shared_v4_u32(weights.scales, stage + places.scales + Places::scales_after(unit));
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j) weights.scales[j] = before.scales[j];
  }
}

// The left operand of product j.
__device__ __forceinline__ void dequantise_product(u32 (&operand)[4], const Weights& weights, int j) {
  const Type::Pair scales = pair_of<Type::Pair>(weights.scales[j]);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    u32 halves[2];
    dequantise<Type, !kScaleSums>(weights.codes[j], h, Dequantiser<Type>::symmetric(), scales, halves);
    operand[h] = halves[0];
    operand[h + 2] = halves[1];
  }
}

// sums += scale · part, a group's sums of codes.
__device__ __forceinline__ void add_group(Sums& sums, const Sums& part, const u32 (&scales)[4]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float2 scale = Type::to_floats(pair_of<Type::Pair>(scales[j]));
#pragma unroll
    for (int n = 0; n < kBatchBlocks; ++n) {
      sums[j][n][0] += scale.x * part[j][n][0], sums[j][n][1] += scale.x * part[j][n][1];
      sums[j][n][2] += scale.y * part[j][n][2], sums[j][n][3] += scale.y * part[j][n][3];
    }
  }
}
