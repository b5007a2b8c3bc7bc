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
// BF16 has no subnormals to spare in its FP32 sums: there 128 + 4 · code is put together by LOP3 and 128 + 4 · zero taken off.
#pragma once

#include "hopper_config.cuh"

constexpr bool kIntegers = kScaleAccumulators || kGroupSize == 0;

// What one unit of a sum stands for, as a power of two: rows g and rows g + 8. Stored scales are 16 ≤ scale < 32 for the largest
// group of a column and go into `scaled` fragments as scale · 2^-11.
constexpr float kLowUnit = kBf16 ? 0.25f : kIntegers ? 4194304.f : 2048.f;
constexpr float kHighUnit = kBf16 ? 0.25f : kIntegers ? 262144.f : 2048.f;

// A 64-row block's group constants for this thread's rows g (low) and g + 8 (high), each duplicated in both halves.
struct GroupConstants {
  u32 low_scale, high_scale;
  u32 low_zero, high_zero;
};

// scales: (scale of row g, scale of row g + 8) as two halves; zeros: the same as two bytes.
__device__ __forceinline__ GroupConstants group_constants(u32 scales, u32 zeros) {
  GroupConstants constants{};
  const u32 low = kZeroPoints ? __byte_perm(zeros, 0, 0x4040) : 0x00080008u;
  const u32 high = kZeroPoints ? __byte_perm(zeros, 0, 0x4141) : 0x00080008u;
  if constexpr (kBf16) {
    constants.low_zero = 0xC300C300u | low << 2;
    constants.high_zero = 0xC300C300u | high << 2;
  } else if constexpr (kIntegers || kZeroPoints) {
    constants.low_zero = 0x80008000u | low << 2;
    constants.high_zero = 0x80008000u | high << 6;
  }
  if constexpr (!kIntegers) {
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

__device__ __forceinline__ void dequantize(u32 (&fragment)[4], u32 word, const GroupConstants& constants) {
  if constexpr (kBf16) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const u32 codes = lop3_and_or<0x003c003cu, 0x43004300u>(__funnelshift_r(word, word, 4 * i));
      fragment[i] = add_bf16x2(codes, i % 2 ? constants.high_zero : constants.low_zero);
    }
  } else {
    const u32 rotated = __funnelshift_r(word, word, 8);
    fragment[0] = weights_f16(word & 0x003c003cu, constants.low_scale, constants.low_zero);
    fragment[1] = weights_f16(word & 0x03c003c0u, constants.high_scale, constants.high_zero);
    fragment[2] = weights_f16(rotated & 0x003c003cu, constants.low_scale, constants.low_zero);
    fragment[3] = weights_f16(rotated & 0x03c003c0u, constants.high_scale, constants.high_zero);
  }
}
