// Which lane of a warp holds which number of a sparse product (paper 4 "2:4 sparsity", figures 7 and 8).
//
// mma.sp.m16n8k32 with g = lane / 4 and t = lane % 4. The sparse operand can only stand on the left, so the weights do,
// and the product is C^T = W · A^T:
//
//      weights 16x32, stored 16x16      activations 32x8        sums 16x8
//            non-zeros of k                     batch                 batch
//        a0 | a2   channel row g            b0  k 2t, 2t+1          d0 d1   row g,   batch 2t, 2t+1
//        ---+---                            b1  k 2t+8 …            d2 d3   row g+8, batch 2t, 2t+1
//        a1 | a3   channel row g+8          b2  k 2t+16 …
//      2t, 2t+1 | 2t+8, 2t+9                b3  k 2t+24 …
//
// Two of every four k are kept. Their positions, 2 bits each, come from two lanes of every quad; a selector says which
// two, so one register feeds two products: lanes t = 0, 1 the product of even j, t = 2, 3 that of odd j.
//
// Four such products (j = 0 … 3) cover the 64 channels of a warp. Which channel stands at row g + 8h of product j is
// free, and this order makes the epilogue and the scales trivial:
//
//      channel(j, h, g) = 8g + 2j + h
//
// so a lane's sums are, for each of its batch rows, the eight consecutive channels 8g … 8g+7: one 16-byte store, 128
// contiguous bytes for eight lanes. Its scales are eight neighbours too.
#pragma once
#include "fragments.cuh"
#include "sparse_tile.cuh"

using Sums = float[4][kBatchBlocks][4];  // [product j][8 batch rows][d0 … d3]

// Output vector u of a lane: batch row 8 (u / 2) + 2t + u % 2, channels 8g … 8g+7. u is a compile-time number.
constexpr int kVectors = 2 * kBatchBlocks;

__device__ __forceinline__ OutputVector vector_of(const Sums& sums, int u) {
  const int n = u / 2, e = u % 2;
  return {{sums[0][n][e], sums[0][n][e + 2], sums[1][n][e], sums[1][n][e + 2]},
          {sums[2][n][e], sums[2][n][e + 2], sums[3][n][e], sums[3][n][e + 2]}};
}

__device__ __forceinline__ void put_vector(Sums& sums, int u, const OutputVector& vector) {
  const int n = u / 2, e = u % 2;
  sums[0][n][e] = vector.low.x, sums[0][n][e + 2] = vector.low.y;
  sums[1][n][e] = vector.low.z, sums[1][n][e + 2] = vector.low.w;
  sums[2][n][e] = vector.high.x, sums[2][n][e + 2] = vector.high.y;
  sums[3][n][e] = vector.high.z, sums[3][n][e + 2] = vector.high.w;
}

// sum (+)= weights · activations.
template <int kSelector>
__device__ __forceinline__ void mma_sp(Fp16, float (&d)[4], const u32 (&a)[4], const u32 (&b)[4], u32 positions, bool begins) {
  if (begins) {
    mma_sp_m16n8k32_f16_new<kSelector>(d, a, b, positions);
  } else {
    mma_sp_m16n8k32_f16<kSelector>(d, a, b, positions);
  }
}

template <int kSelector>
__device__ __forceinline__ void mma_sp(Bf16, float (&d)[4], const u32 (&a)[4], const u32 (&b)[4], u32 positions, bool begins) {
  if (begins) d[0] = d[1] = d[2] = d[3] = 0;
  mma_sp_m16n8k32_bf16<kSelector>(d, a, b, positions);
}
