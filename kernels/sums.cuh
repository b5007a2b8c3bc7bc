// The sums of a warp, and the output vectors that it adds up, posts and stores (reduction.cuh).
//
// A sum's place is the tensor cores' (fragments.cuh): [8 rows][16 channels of word j][4]. After `settle` output vector
// u = 2 m + c of a lane is row 8 m + 2t + g % 2, columns 32 c + 8 (g / 2) and the seven after it. u is a compile-time number
// wherever this is used, so the sums stay in registers.
// The header of the tile, which comes first (tile.cuh or ring_tile.cuh), says kRowBlocks, the operands of 8 rows of a warp.
#pragma once
#include "fragments.cuh"

using Sums = float[kRowBlocks][4][4];
constexpr int kVectors = 2 * kRowBlocks;

__device__ __forceinline__ OutputVector vector_of(const Sums& sums, int u) {
  const float(&low)[4] = sums[u / 2][u % 2 * 2];
  const float(&high)[4] = sums[u / 2][u % 2 * 2 + 1];
  return {{low[0], low[1], low[2], low[3]}, {high[0], high[1], high[2], high[3]}};
}

__device__ __forceinline__ void put_vector(Sums& sums, int u, const OutputVector& vector) {
  float(&low)[4] = sums[u / 2][u % 2 * 2];
  float(&high)[4] = sums[u / 2][u % 2 * 2 + 1];
  low[0] = vector.low.x, low[1] = vector.low.y, low[2] = vector.low.z, low[3] = vector.low.w;
  high[0] = vector.high.x, high[1] = vector.high.y, high[2] = vector.high.z, high[3] = vector.high.w;
}

// Row (of the tile) and column (of the warp's strip) of output vector u.
__device__ __forceinline__ int row_of(int u, const Position& at) {
  return (at.warp_m * kRowBlocks + u / 2) * 8 + 2 * at.pair + at.group % 2;
}

__device__ __forceinline__ int column_of(int u, const Position& at) { return u % 2 * 32 + at.group / 2 * 8; }

// From the tensor cores' order to output vectors: the lanes of g and g ^ 1 exchange a row.
__device__ __forceinline__ void settle(Sums& sums, const Position& at) {
  const bool odd = at.group % 2;
#pragma unroll
  for (int m = 0; m < kRowBlocks; ++m) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float(&two)[4] = sums[m][j];
        const float kept = odd ? two[2 * h + 1] : two[2 * h];
        const float given = __shfl_xor_sync(0xffffffffu, odd ? two[2 * h] : two[2 * h + 1], 4);
        two[2 * h] = odd ? given : kept;
        two[2 * h + 1] = odd ? kept : given;
      }
    }
  }
}
