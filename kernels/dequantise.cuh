// 4-bit codes -> weights, two at a time, by writing a code into the mantissa of a constant (paper 3.4).
//
// A word holds the eight codes u of one lane in a 16x16 block, nibble p from the low end:
//      p = 4e + 2h + q     k = 2t + 8q + e,  column half h (the product b = 2j + h of word j)
// FP16 has 10 mantissa bits, so with the exponent of 1024 a bit pattern is an integer:
//      low nibbles    (w & 0x000f000f) | 0x6400 6400  =  1024 + u            minus (1024 + z)        =  u - z
//      high nibbles   (w & 0x00f000f0) | 0x6400 6400  =  1024 + 16 u         times 1/16 minus (64+z) =  u - z
// BF16 has 7: only low nibbles fit, under the exponent of 128, and each nibble is shifted there first.
// Every step is exact; the product with the scale rounds once, as the FP16 (BF16) weight itself would.
//
// z is 8 for symmetric weights, else a 4-bit zero point: word of nibbles p = 4 (b % 2) + b / 2, so the same mask
// yields 1024 + z of the products 2j and 2j + 1.
#pragma once
#include "fragments.cuh"

constexpr u32 kLowNibbles = 0x000f000fu;
constexpr u32 kHighNibbles = 0x00f000f0u;

// What is taken off the codes of one product: {1024 + z, -(64 + z)} in FP16, {128 + z, unused} in BF16; one z a column.
template <typename Type>
struct Offset {
  typename Type::Pair low;
  typename Type::Pair high;
};

template <typename Type>
struct Dequantiser;

template <>
struct Dequantiser<Fp16> {
  static constexpr u32 kExponent = 0x64006400u;  // 1024, 1024

  static __device__ __forceinline__ Offset<Fp16> symmetric() {
    return {pair_of<__half2>(0x64086408u), pair_of<__half2>(0xd480d480u)};  // 1032, -72
  }

  // Both products of word j: halves of the result are columns of h = 0 and h = 1.
  static __device__ __forceinline__ Offset<Fp16> from_zeros(u32 zeros, int j) {
    const __half2 low = pair_of<__half2>(lop3_and_or<kLowNibbles, kExponent>(zeros >> (4 * j)));
    return {low, __hsub2(pair_of<__half2>(0x63806380u), low)};  // 960 - (1024 + z) = -(64 + z)
  }

  static __device__ __forceinline__ void codes(u32 word, int h, Offset<Fp16> offset, __half2 (&weights)[2]) {
    const u32 w = word >> (8 * h);
    const u32 low = lop3_and_or<kLowNibbles, kExponent>(w);
    const u32 high = lop3_and_or<kHighNibbles, kExponent>(w);
    weights[0] = __hsub2(pair_of<__half2>(low), offset.low);
    weights[1] = __hfma2(pair_of<__half2>(high), pair_of<__half2>(0x2c002c00u), offset.high);  // 1/16
  }
};

template <>
struct Dequantiser<Bf16> {
  static constexpr u32 kExponent = 0x43004300u;  // 128, 128

  static __device__ __forceinline__ Offset<Bf16> symmetric() {
    return {pair_of<__nv_bfloat162>(0x43084308u), {}};  // 136
  }

  static __device__ __forceinline__ Offset<Bf16> from_zeros(u32 zeros, int j) {
    return {pair_of<__nv_bfloat162>(lop3_and_or<kLowNibbles, kExponent>(zeros >> (4 * j))), {}};
  }

  static __device__ __forceinline__ void codes(u32 word, int h, Offset<Bf16> offset, __nv_bfloat162 (&weights)[2]) {
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      const u32 code = lop3_and_or<kLowNibbles, kExponent>(word >> (8 * h + 4 * q));
      weights[q] = __hsub2(pair_of<__nv_bfloat162>(code), offset.low);
    }
  }
};

// Two codes as the tensor cores take them, an operand's halves of k: without their scale, or scaled and rounded as the 16-bit
// weight would be. `scales` holds the scales of products 2j and 2j + 1, of which h picks one.
template <typename Type, bool kScaled = true>
__device__ __forceinline__ void dequantise(u32 word, int h, Offset<Type> offsets, typename Type::Pair scales,
                                           u32 (&fragment)[2]) {
#ifdef ABLATE_DEQUANTISE
  fragment[0] = word;
  fragment[1] = word ^ h;
#else
  typename Type::Pair weights[2];
  Dequantiser<Type>::codes(word, h, offsets, weights);
#ifndef ABLATE_SCALES
  if (kScaled) {
    const typename Type::Pair scale = h == 0 ? Type::low(scales) : Type::high(scales);
    weights[0] = __hmul2(weights[0], scale);
    weights[1] = __hmul2(weights[1], scale);
  }
#endif
  fragment[0] = bits_of(weights[0]);
  fragment[1] = bits_of(weights[1]);
#endif
}
