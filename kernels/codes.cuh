// 4-bit codes -> weights as the tensor cores take them on the left, two at a time, in registers (paper 3.4).
//
// A word holds the eight codes u of one lane in a 16x16 block, rotated left by two bits; nibble p from the low end of the rest is
//      p = 4e + 2q + h     k = 2t + 8q + e,  channel row g + 8h
// FP16: a code in the mantissa of an FP16 subnormal is a number without any conversion:
//      word                     & 0x003c003c = u · 2^-22 (h = 0)      & 0x03c003c0 = u · 2^-18 (h = 1)        q = 0
//      word turned right by 8   & 0x003c003c                          & 0x03c003c0                            q = 1
// One HFMA2 then takes the zero point off and scales: u · 2^-22 · (scale · 2^22) - 8 · scale rounds once, as the FP16 weight
// itself does: 9 instructions for 8 weights, where putting 1024 + u together takes 13. Scales are stored with these powers,
// divided by the layer's `unit` (layouts/marlin.py) so that they fit, and sums are multiplied by it.
// BF16 has 7 mantissa bits: 128 + 4u is put together by LOP3, 128 + 4z taken off, and scales are stored over 4.
//
// z is 8 for symmetric weights, else a 4-bit zero point: word of nibbles p = 4 h + j for word j.
#pragma once
#include "fragments.cuh"

constexpr u32 kLowCodes = 0x003c003cu, kHighCodes = 0x03c003c0u;

__device__ __forceinline__ u32 turned_right(u32 word, int bits) { return bits == 0 ? word : __funnelshift_r(word, word, bits); }

// One type's codes and what is taken off them; pairs of zero points and scales hold h = 0 and 1.
template <typename Type>
struct Codes;

template <>
struct Codes<Fp16> {
  static constexpr u32 kMinusEight = 0x82008020u;  // -8 · 2^-22, -8 · 2^-18

  static __device__ __forceinline__ __half2 pair(u32 word, int q, int h) {
    return pair_of<__half2>(turned_right(word, 8 * q) & (h == 0 ? kLowCodes : kHighCodes));
  }

  static __device__ __forceinline__ u32 minus_zeros(u32 zeros, int j) {  // a nibble is z · 2^-24
    return bits_of(__hmul2(pair_of<__half2>(zeros >> (4 * j) & 0x000f000fu), pair_of<__half2>(0xd400c400u)));  // -4, -64
  }
};

template <>
struct Codes<Bf16> {
  static constexpr u32 kMinusEight = 0xc320c320u;  // -(128 + 4 · 8)

  static __device__ __forceinline__ __nv_bfloat162 pair(u32 word, int q, int h) {
    return pair_of<__nv_bfloat162>(lop3_and_or<kLowCodes, 0x43004300u>(turned_right(word, 8 * q + 4 * h)));  // 128
  }

  static __device__ __forceinline__ u32 minus_zeros(u32 zeros, int j) {
    return lop3_and_or<kLowCodes, 0xc300c300u>(j == 0 ? zeros << 2 : zeros >> (4 * j - 2));  // -128
  }
};
