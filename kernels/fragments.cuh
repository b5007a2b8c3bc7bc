// Which lane of a warp holds which number (paper 3.4 "Dequantization and Tensor Cores").
//
// Weights stand on the left of mma.m16n8k16, so the product is C^T = W^T · A^T and a batch costs multiples of 8 rows. With
// g = lane / 4 and t = lane % 4:
//
//      weights 16x16               activations 16x8        sums 16x8
//            k                           batch                 batch
//        a0 | a2   channel row g      b0   k 2t, 2t+1         d0 d1   row g,   batch 2t, 2t+1
//        ---+---                      b1   k 2t+8, 2t+9       d2 d3   row g+8, batch 2t, 2t+1
//        a1 | a3   row g+8               batch row g
//
// Four such operands cover the 64 columns of a warp; word j of a lane's codes is one of them. Which column of the weight
// matrix stands at channel row g + 8h of word j is free, because a column of W and of C never meets another one. This order
// makes the epilogue trivial (b = 2j + h):
//
//      channel(b, g) = 32 (b / 4) + 8 (g / 2) + 2 (b % 4) + g % 2
//
// so the lanes of g and g ^ 1 hold the even and the odd ones of eight neighbours, for two batch rows each: they exchange one
// (sums.cuh), and each has a 16-byte vector to store, without a transposition through shared memory.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "ptx.cuh"

constexpr int kStripColumns = 64;                // columns of a warp; one weight strip is 16 x 64
constexpr int kStripVectors = 32;                // 16-byte vectors of a packed 16 x 64 strip: one a lane
constexpr int kBlockVectors = 4 * kStripVectors; // a packed 64 x 64 block: 2 KiB without a gap

// One type's pair, its product with the tensor cores, and the bits of a pair.
struct Fp16 {
  static constexpr bool kSubnormals = true;  // hold a code (codes.cuh)
  using Scalar = __half;
  using Pair = __half2;
  static __device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    mma_m16n8k16_f16(d, a, b);
  }
  static __device__ __forceinline__ void mma_new(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    mma_m16n8k16_f16_new(d, a, b);
  }
  static __device__ __forceinline__ Pair low(Pair p) { return __low2half2(p); }
  static __device__ __forceinline__ Pair high(Pair p) { return __high2half2(p); }
  static __device__ __forceinline__ Pair from_floats(float x, float y) { return __floats2half2_rn(x, y); }
  static __device__ __forceinline__ float2 to_floats(Pair p) { return __half22float2(p); }
};

struct Bf16 {
  static constexpr bool kSubnormals = false;
  using Scalar = __nv_bfloat16;
  using Pair = __nv_bfloat162;
  static __device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    mma_m16n8k16_bf16(d, a, b);
  }
  static __device__ __forceinline__ void mma_new(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    mma_m16n8k16_bf16_new(d, a, b);
  }
  static __device__ __forceinline__ Pair low(Pair p) { return __low2bfloat162(p); }
  static __device__ __forceinline__ Pair high(Pair p) { return __high2bfloat162(p); }
  static __device__ __forceinline__ Pair from_floats(float x, float y) { return __floats2bfloat162_rn(x, y); }
  static __device__ __forceinline__ float2 to_floats(Pair p) { return __bfloat1622float2(p); }
};

template <typename Pair>
__device__ __forceinline__ Pair pair_of(u32 bits) {
  return *reinterpret_cast<const Pair*>(&bits);
}

template <typename Pair>
__device__ __forceinline__ u32 bits_of(Pair pair) {
  return *reinterpret_cast<const u32*>(&pair);
}

// Eight consecutive columns of one row: what a lane adds up, posts and stores at a time.
struct OutputVector {
  float4 low, high;
};

__device__ __forceinline__ OutputVector operator+(const OutputVector& a, const OutputVector& b) {
  return {{a.low.x + b.low.x, a.low.y + b.low.y, a.low.z + b.low.z, a.low.w + b.low.w},
          {a.high.x + b.high.x, a.high.y + b.high.y, a.high.z + b.high.z, a.high.w + b.high.w}};
}

__device__ __forceinline__ OutputVector operator*(const OutputVector& a, float b) {
  return {{a.low.x * b, a.low.y * b, a.low.z * b, a.low.w * b}, {a.high.x * b, a.high.y * b, a.high.z * b, a.high.w * b}};
}

// Eight neighbours of a row of C, or of a bias: stored in 16 bytes and added up in FP32.
template <typename Type>
__device__ __forceinline__ OutputVector widened(const uint4& stored) {
  using Pair = typename Type::Pair;
  const float2 a = Type::to_floats(pair_of<Pair>(stored.x)), b = Type::to_floats(pair_of<Pair>(stored.y));
  const float2 c = Type::to_floats(pair_of<Pair>(stored.z)), d = Type::to_floats(pair_of<Pair>(stored.w));
  return {{a.x, a.y, b.x, b.y}, {c.x, c.y, d.x, d.y}};
}

template <typename Type>
__device__ __forceinline__ uint4 rounded(const OutputVector& sum) {
  return {bits_of(Type::from_floats(sum.low.x, sum.low.y)), bits_of(Type::from_floats(sum.low.z, sum.low.w)),
          bits_of(Type::from_floats(sum.high.x, sum.high.y)), bits_of(Type::from_floats(sum.high.z, sum.high.w))};
}
