// A warp's step: 64 columns and 16 k of weights times its rows, weights on the left.
//
// The header of the tile, which comes first (tile.cuh or ring_tile.cuh), says Type, kRowBlocks, kZeros, and
// kScaleSums: a group's sums are scaled, not its weights.
#pragma once
#include "codes.cuh"
#include "fragments.cuh"
#include "ptx.cuh"

using Rows = u32[kRowBlocks][2];  // 16 k of the warp's rows, as right operands of 8
using WordWeights = u32[4];       // 16 channels of 16 k, as a left operand

// An offset that holds the scale too takes one instruction with the product.
constexpr bool kFused = Type::kSubnormals && !kZeros && !kScaleSums;

// What a lane's codes are scaled by, a pair a word, and what is taken off them.
struct Factors {
  u32 scales[4], offsets[4];
};

__device__ __forceinline__ u32 word(const uint4& vector, int j) {
  return j == 0 ? vector.x : j == 1 ? vector.y : j == 2 ? vector.z : vector.w;
}

__device__ __forceinline__ void set_factors(Factors& factors, const uint4& scales, u32 zeros) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    using Pair = Type::Pair;
    factors.scales[j] = word(scales, j);
    factors.offsets[j] = kZeros   ? Codes<Type>::minus_zeros(zeros, j)
                         : kFused ? bits_of(__hmul2(pair_of<Pair>(factors.scales[j]), pair_of<Pair>(Codes<Type>::kMinusEight)))
                                  : Codes<Type>::kMinusEight;
  }
}

// Register i = 2q + h of the weights of word j.
__device__ __forceinline__ u32 dequantised(const uint4& codes, const Factors& factors, int j, int i) {
#ifdef ABLATE_DEQUANTISE
  return word(codes, j) ^ i;
#else
  const int q = i / 2, h = i % 2;
  const Type::Pair scales = pair_of<Type::Pair>(factors.scales[j]), offsets = pair_of<Type::Pair>(factors.offsets[j]);
  const Type::Pair code = Codes<Type>::pair(word(codes, j), q, h);
  const Type::Pair scale = h == 0 ? Type::low(scales) : Type::high(scales);
  const Type::Pair offset = h == 0 ? Type::low(offsets) : Type::high(offsets);
#ifdef ABLATE_SCALES
  return bits_of(__hadd2(code, offset));
#else
  return bits_of(kFused       ? __hfma2(code, scale, offset)
                 : kScaleSums ? __hadd2(code, offset)
                              : __hmul2(__hadd2(code, offset), scale));
#endif
#endif
}

// The lane's place among 16 rows, 8 of which are one operand: ldmatrix takes two operands a load, or the last one.
__device__ __forceinline__ int operand_row(int lane) { return lane / 16 * 8 + lane % 8; }
__device__ __forceinline__ int operand_half(int lane) { return lane / 8 % 2; }

// `from`: this lane's vector of the first operand; rows are kRowVectors apart.
template <int kRowVectors>
__device__ __forceinline__ void load_rows(Rows& rows, u32 from) {
  constexpr int kDown = 8 * kRowVectors * 16;
#pragma unroll
  for (int m = 0; m + 1 < kRowBlocks; m += 2) {
    u32 two[4];
    ldmatrix_x4(two, from + m * kDown);
    rows[m][0] = two[0], rows[m][1] = two[1], rows[m + 1][0] = two[2], rows[m + 1][1] = two[3];
  }
  if (kRowBlocks % 2) ldmatrix_x2(rows[kRowBlocks - 1], from + (kRowBlocks - 1) * kDown);
}

// What one step of a warp needs.
struct Fragments {
  Rows rows;
  uint4 codes;
  Factors factors;
};

__device__ __forceinline__ void dequantise_first(WordWeights& weights, const Fragments& fragments) {
#pragma unroll
  for (int i = 0; i < 4; ++i) weights[i] = dequantised(fragments.codes, fragments.factors, 0, i);
}

// A step's products: sums = or += them. The weights of word j + 1 (of the next step after the last) are dequantised between the
// products of word j, so neither the tensor cores nor the other units wait (paper 3.4).
__device__ __forceinline__ void multiply(Sums& sums, bool begins, WordWeights (&weights)[2], const Fragments& fragments,
                                         const Fragments& next) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const Fragments& source = j < 3 ? fragments : next;
#pragma unroll
    for (int m = 0; m < kRowBlocks; ++m) {
      if (begins) {
        Type::mma_new(sums[m][j], weights[j % 2], fragments.rows[m]);
      } else {
        Type::mma(sums[m][j], weights[j % 2], fragments.rows[m]);
      }
#pragma unroll
      for (int i = 4 * m / kRowBlocks; i < 4 * (m + 1) / kRowBlocks; ++i) {
        weights[(j + 1) % 2][i] = dequantised(source.codes, source.factors, (j + 1) % 4, i);
      }
    }
  }
}
