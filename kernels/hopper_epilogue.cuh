// From FP32 sums to the output (the swap of operands undone): a thread holds two batch columns of two output features, the
// output wants 16 consecutive features of one batch row. Each warp turns squares of 16 features x 16 batch rows through shared memory of
// its own (stmatrix, transposing), several at once, and writes 32-byte sectors; no barrier between warps.
#pragma once

#include "hopper_config.cuh"
#include "hopper_dequantize.cuh"

struct Output {
  void* __restrict__ c;                      // half or bfloat16 [M, N]
  const float* __restrict__ column_factors;  // [N]: undoes the scales' normalisation; with one scale a column, the scale
  const void* __restrict__ bias;             // half or bfloat16 [N], or null
  int M;
  int N;
};

__device__ __forceinline__ u32 pack_pair(float even, float odd) {
  if constexpr (kBf16) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(even, odd);
    return *reinterpret_cast<const u32*>(&pair);
  } else {
    const __half2 pair = __floats2half2_rn(even, odd);
    return *reinterpret_cast<const u32*>(&pair);
  }
}

__device__ __forceinline__ float load_bias(const Output& output, int feature) {
  if (output.bias == nullptr) return 0.f;
  if constexpr (kBf16) return __bfloat162float(static_cast<const __nv_bfloat16*>(output.bias)[feature]);
  return __half2float(static_cast<const __half*>(output.bias)[feature]);
}

// What a thread needs of its features `first_feature` + lane/4 and + 8 to finish sums.
struct FeaturePair {
  float low_factor, high_factor;
  float low_bias, high_bias;
};

// The factors of kCount groups of 16 features that this warp finishes, a lane one feature of every other group. They take the
// long way from memory while the main loop runs.
template <int kCount>
class ColumnFactors {
 public:
  // first_feature(i): of the warp's i-th group.
  template <typename FirstFeature>
  __device__ __forceinline__ ColumnFactors(const Output& output, const FirstFeature& first_feature, int lane) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int feature = first_feature(2 * i + (lane >> 4)) + (lane & 15);
      values_[i] = feature < output.N ? __ldg(output.column_factors + feature) : 0.f;
    }
  }

  // Of group `i`, which begins at `first_feature`. All lanes must call this.
  __device__ __forceinline__ FeaturePair features(const Output& output, int i, int first_feature, int lane) const {
    const int source = i % 2 * 16 + (lane >> 2);
    const int low = first_feature + (lane >> 2);
    return {__shfl_sync(0xffffffff, values_[i / 2], source) * kLowUnit,
            __shfl_sync(0xffffffff, values_[i / 2], source + 8) * kHighUnit, load_bias(output, low),
            load_bias(output, low + 8)};
  }

 private:
  static constexpr int kHeld = (kCount + 1) / 2;
  float values_[kHeld];
};

// 16 batch rows (two n8 blocks of sums, `left` and `right`) x 16 features of one warp, as stmatrix takes them.
__device__ __forceinline__ void pack_16x16(u32 (&matrices)[4], const FeaturePair& features, const float* left,
                                           const float* right) {
#pragma unroll
  for (int block = 0; block < 2; ++block) {
    const float* sums = block ? right : left;
    matrices[2 * block] = pack_pair(fmaf(sums[0], features.low_factor, features.low_bias),
                                    fmaf(sums[1], features.low_factor, features.low_bias));
    matrices[2 * block + 1] = pack_pair(fmaf(sums[2], features.high_factor, features.high_bias),
                                        fmaf(sums[3], features.high_factor, features.high_bias));
  }
}

// Puts them into `square`, kSquareBytes.
__device__ __forceinline__ void stage_16x16(const FeaturePair& features, const float* left, const float* right,
                                            u32 square, int lane) {
  u32 matrices[4];
  pack_16x16(matrices, features, left, right);
  // [16 rows][2 x 8 features], the two halves of a row exchanged in every other group of four rows against bank conflicts.
  const int written = (lane >> 4) * 8 + (lane & 7);
  const int written_half = (lane >> 3 & 1) ^ (written >> 2 & 1);
  stmatrix_x4_trans(square + written * 32 + written_half * 16, matrices);
}

// Stores a staged square at (first_row, first_feature); rows from `rows` on are not stored.
__device__ __forceinline__ void store_16x16(const Output& output, u32 square, int first_feature, int first_row, int rows,
                                            int lane) {
  const int row = lane >> 1;
  const int half = lane & 1;
  u32 words[4];
  ld_shared_v4_u32(words, square + row * 32 + (half ^ (row >> 2 & 1)) * 16);
  if (row < rows) {
    u16* target = static_cast<u16*>(output.c) + static_cast<size_t>(first_row + row) * output.N +
                       first_feature + half * 8;
    *reinterpret_cast<uint4*>(target) = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

// Stores a warp's sums of the batch rows [kBegin, kEnd) of the tile: kBlocks groups of 16 features, 64 apart, the first at
// `first_feature`.
template <int kBegin = 0, int kEnd = kBatchTile>
__device__ __forceinline__ void store_tile(const Output& output, const float (&sums)[kBlocks][kBatchTile / 2],
                                           const ColumnFactors<kBlocks>& factors, int first_feature, int first_row,
                                           u32 staging, int lane) {
  const float nothing[4] = {};
  const int rows = min(output.M - first_row, kBatchTile);
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
    const int feature = first_feature + block * kBlockRows;
    if (feature >= output.N) continue;
    const FeaturePair features = factors.features(output, block, feature, lane);
#pragma unroll
    for (int first = kBegin; first < kEnd; first += 16 * kSquares) {
#pragma unroll
      for (int i = 0; i < kSquares; ++i) {
        const int n = first + 16 * i;
        if (n >= kEnd) continue;
        stage_16x16(features, &sums[block][n / 2], n + 8 < kBatchTile ? &sums[block][n / 2 + 4] : nothing,
                    staging + i * kSquareBytes, lane);
      }
      __syncwarp();
#pragma unroll
      for (int i = 0; i < kSquares; ++i) {
        const int n = first + 16 * i;
        if (n >= kEnd) continue;
        store_16x16(output, staging + i * kSquareBytes, feature, first_row + n, rows - n, lane);
      }
      __syncwarp();
    }
  }
}

// The same of a whole tile, into boxes of 64 features, 128-byte swizzled, for a tensor map: `boxes` is the warpgroup's first.
__device__ __forceinline__ void stage_tile(const Output& output, const float (&sums)[kBlocks][kBatchTile / 2],
                                           const ColumnFactors<kBlocks>& factors, int first_feature, u32 boxes,
                                           int warp_in_group, int lane) {
  const int row = (lane >> 4) * 8 + (lane & 7);
  const int chunk = (warp_in_group * 2 + (lane >> 3 & 1)) ^ (lane & 7);
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
    const int feature = first_feature + block * kBlockRows;
    if (feature >= output.N) continue;
    const FeaturePair features = factors.features(output, block, feature, lane);
#pragma unroll
    for (int n = 0; n < kBatchTile; n += 16) {
      u32 matrices[4];
      pack_16x16(matrices, features, &sums[block][n / 2], &sums[block][n / 2 + 4]);
      stmatrix_x4_trans(boxes + block * kOutputBoxBytes + (n + row) * 128 + chunk * 16, matrices);
    }
  }
}
