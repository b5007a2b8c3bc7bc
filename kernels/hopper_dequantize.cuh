// 4-bit codes to tensor-core operands in registers (the paper's "Dequantization and Tensor Cores").
//
// One 32-bit word holds the 8 weights of one thread's A fragment of m64k16: rows g and g + 8, k = 2q, 2q+1, 2q+8, 2q+9.
// Nibble i of the word's low half is element a_i at even k, of its high half at odd k, and the word is stored rotated left by
// two bits, so that two masks take two fragment registers out of it:
//
//     word              .. a1 a1 a1 a1 a0 a0 a0 a0 . .        rotated right by 8: a3 and a2 in the same places
//     & 0x003c003c      a0: bits 2–5  = the FP16 subnormal code * 2^-22
//     & 0x03c003c0      a1: bits 6–9  = the FP16 subnormal code * 2^-18
//
// Tensor cores and HFMA2 keep FP16 subnormals, so nothing has to be converted. Then, for 8 weights in 9 instructions, either
//     integers   code - zero            exact; the group's scale goes on the FP32 sums
//     scaled     round((code - zero) · scale)   one HFMA2, exact because 8 · scale is (with zero points: HADD2 and HMUL2)
//
// BF16 has the same places for sign and small integers: an FP16 subnormal of up to 7 bits, read as BF16, is the same integer
// times 2^-133. So (code - zero) · 4 is made in FP16, in the low places for rows g + 8 too by a product with 2^-4, and
//     scaled     rest = scale - bf16(scale), fma(integer, bf16(scale), integer · rest)   17 instructions for 8 weights
// rounds once: rest has at most 3 bits. FP32 sums have no room for integers that small; those are put together from
// 128 + 4 · code (LOP3) and 2^33 + 2^28 · code (FP16's 32 + code / 8), with 128 + 4 · zero and so on taken off: 11.
#pragma once

#include "hopper_config.cuh"

constexpr bool kIntegers = kScaleAccumulators || kGroupSize == 0;

// What one unit of a sum stands for, as a power of two: rows g and rows g + 8. Stored scales are 16 ≤ scale < 32 for the largest
// group of a column and go into `scaled` fragments as scale · 2^-11.
constexpr float kLowUnit = kBf16 ? (kIntegers ? 0.25f : 512.f) : kIntegers ? 4194304.f : 2048.f;
constexpr float kHighUnit = kBf16 ? (kIntegers ? 0x1p-28f : 512.f) : kIntegers ? 262144.f : 2048.f;

// A 64-row block's group constants for this thread's rows g (low) and g + 8 (high), each duplicated in both halves.
struct GroupConstants {
  u32 low_scale, high_scale;
  u32 low_rest, high_rest;  // BF16: what of the scale its 8 bits do not hold
  u32 low_zero, high_zero;
};

// A group's scale · 2^122 in both halves as a BF16 number and the rest, which is at most 4 units of its 11th bit.
__device__ __forceinline__ void split_scale_bf16(u32& scale, u32& rest, float stored) {
  const float value = stored * 0x1p122f;
  const __nv_bfloat162 rounded = __floats2bfloat162_rn(value, value);
  scale = *reinterpret_cast<const u32*>(&rounded);
  const float missing = value - __uint_as_float(scale & 0xffff0000u);
  const __nv_bfloat162 exact = __floats2bfloat162_rn(missing, missing);
  rest = *reinterpret_cast<const u32*>(&exact);
}

// scales: (scale of row g, scale of row g + 8) as two halves; zeros: the same as two bytes.
__device__ __forceinline__ GroupConstants group_constants(u32 scales, u32 zeros) {
  GroupConstants constants{};
  const u32 low = kZeroPoints ? __byte_perm(zeros, 0, 0x4040) : 0x00080008u;
  const u32 high = kZeroPoints ? __byte_perm(zeros, 0, 0x4141) : 0x00080008u;
  if constexpr (kBf16) {
    constants.low_zero = (kIntegers ? 0xC300C300u : 0x80008000u) | low << 2;
    constants.high_zero = (kIntegers ? 0xD000D000u : 0x80008000u) | high << 2;
    if constexpr (!kIntegers) {
      const __half2 pair = *reinterpret_cast<const __half2*>(&scales);
      split_scale_bf16(constants.low_scale, constants.low_rest, __low2float(pair));
      split_scale_bf16(constants.high_scale, constants.high_rest, __high2float(pair));
    }
  } else if constexpr (kIntegers || kZeroPoints) {
    constants.low_zero = 0x80008000u | low << 2;
    constants.high_zero = 0x80008000u | high << 6;
  }
  if constexpr (!kBf16 && !kIntegers) {
    const u32 low_scale = __byte_perm(scales, scales, 0x1010);
    const u32 high_scale = __byte_perm(scales, scales, 0x3232);
    constants.low_scale = mul_f16x2(low_scale, 0x68006800u);    // * 2^11
    constants.high_scale = mul_f16x2(high_scale, 0x58005800u);  // * 2^7
    if constexpr (!kZeroPoints) {
      constants.low_zero = mul_f16x2(low_scale, 0x9c009c00u);    // * -8 * 2^-11
      constants.high_zero = mul_f16x2(high_scale, 0x9c009c00u);
    }
  }
  return constants;
}

__device__ __forceinline__ u32 weights_f16(u32 subnormal_codes, u32 scale, u32 zero) {
  if constexpr (kIntegers) {
    return add_f16x2(subnormal_codes, zero);
  } else if constexpr (kZeroPoints) {
    return mul_f16x2(add_f16x2(subnormal_codes, zero), scale);
  } else {
    return fma_f16x2(subnormal_codes, scale, zero);
  }
}

// Both fragments of a word or of the rotated word.
__device__ __forceinline__ void weights_bf16(u32& low, u32& high, u32 word, const GroupConstants& constants) {
  const u32 high_codes = word & 0x03c003c0u;  // FP16: code * 2^-18
  if constexpr (kIntegers) {
    low = add_bf16x2(lop3_and_or<0x003c003cu, 0x43004300u>(word), constants.low_zero);
    high = add_bf16x2(fma_f16x2(high_codes, 0x78007800u, 0x50005000u), constants.high_zero);  // * 2^15 + 32
  } else {
    const u32 low_integers = add_f16x2(word & 0x003c003cu, constants.low_zero);
    const u32 high_integers = fma_f16x2(high_codes, 0x2c002c00u, constants.high_zero);  // * 2^-4
    low = fma_bf16x2(low_integers, constants.low_scale, mul_bf16x2(low_integers, constants.low_rest));
    high = fma_bf16x2(high_integers, constants.high_scale, mul_bf16x2(high_integers, constants.high_rest));
  }
}

__device__ __forceinline__ void dequantize(u32 (&fragment)[4], u32 word, const GroupConstants& constants) {
  const u32 rotated = __funnelshift_r(word, word, 8);
  if constexpr (kBf16) {
    weights_bf16(fragment[0], fragment[1], word, constants);
    weights_bf16(fragment[2], fragment[3], rotated, constants);
  } else {
    fragment[0] = weights_f16(word & 0x003c003cu, constants.low_scale, constants.low_zero);
    fragment[1] = weights_f16(word & 0x03c003c0u, constants.high_scale, constants.high_zero);
    fragment[2] = weights_f16(rotated & 0x003c003cu, constants.low_scale, constants.low_zero);
    fragment[3] = weights_f16(rotated & 0x03c003c0u, constants.high_scale, constants.high_zero);
  }
}
