// Which lane of a warp holds which number (paper 3.4 "Dequantization and Tensor Cores").
//
// mma.m16n8k16 with g = lane / 4 and t = lane % 4:
//
//      activations 16x16         weights 16x8              sums 16x8
//            k                        n                        n
//        a0 | a2   row g         b0   k 2t, 2t+1          d0 d1   row g,   n 2t, 2t+1
//        ---+---                 b1   k 2t+8, 2t+9        d2 d3   row g+8, n 2t, 2t+1
//        a1 | a3   row g+8           column n = g
//
// Eight such products cover the 64 columns of a warp. Which column of the weight matrix stands at position n of
// product b is free, because a column of W and of C never meets another one. This order makes the epilogue trivial:
//
//      column(b, n) = 32 (b / 4) + 8 (n / 2) + 2 (b % 4) + n % 2
//
// so lane t holds, for b = 4c … 4c+3 and n = 2t, 2t+1, the eight consecutive columns 32c + 8t … 32c + 8t + 7:
// one 16-byte store, 64 contiguous bytes for four lanes, and no transposition through shared memory.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "ptx.cuh"

constexpr int kStripColumns = 64;                // columns of a warp; one weight strip is 16 x 64
constexpr int kProducts = kStripColumns / 8;     // mma across a strip
constexpr int kStripVectors = 32;                // 16-byte vectors of a packed 16 x 64 strip: one a lane
constexpr int kBlockVectors = 4 * kStripVectors; // a packed 64 x 64 block: 2 KiB without a gap

using Accumulator = float[kProducts][4];  // the sums of 16 rows x 64 columns

// One type's pair, its product with the tensor cores, and the bits of a pair.
struct Fp16 {
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
