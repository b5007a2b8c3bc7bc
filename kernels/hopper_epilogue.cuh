// From FP32 sums to the output (the swap of operands undone): a thread holds two batch columns of two output features, the
// output wants 16 consecutive features of one batch row. Each warp turns its 16 features x 16 batch rows through 512 bytes of
// shared memory of its own (stmatrix, transposing) and writes 32-byte sectors; no barrier between warps.
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

// What a thread needs of its features `feature` + lane/4 and + 8 to finish sums.
struct FeaturePair {
  float low_factor, high_factor;
  float low_bias, high_bias;

  // factors: shared address of the tile's column factors; `in_tile` is the first feature's place there.
  __device__ __forceinline__ FeaturePair(const Output& output, u32 factors, int in_tile, int first_feature, int lane) {
    const int low = first_feature + (lane >> 2);
    const u32 address = factors + (in_tile + (lane >> 2)) * 4;
    low_factor = __uint_as_float(ld_shared_u32(address)) * kLowUnit;
    high_factor = __uint_as_float(ld_shared_u32(address + 32)) * kHighUnit;
    low_bias = load_bias(output, low);
    high_bias = load_bias(output, low + 8);
  }
};

// Stores 16 batch rows (two n8 blocks of sums, `left` and `right`) x 16 features of one warp. Rows from `rows` on are not
// stored. staging: this warp's kStagingBytes.
__device__ __forceinline__ void store_16x16(const Output& output, const FeaturePair& features, const float* left,
                                            const float* right, int first_feature, int first_row, int rows,
                                            u32 staging, int lane) {
  u32 matrices[4];
#pragma unroll
  for (int block = 0; block < 2; ++block) {
    const float* sums = block ? right : left;
    matrices[2 * block] = pack_pair(fmaf(sums[0], features.low_factor, features.low_bias),
                                    fmaf(sums[1], features.low_factor, features.low_bias));
    matrices[2 * block + 1] = pack_pair(fmaf(sums[2], features.high_factor, features.high_bias),
                                        fmaf(sums[3], features.high_factor, features.high_bias));
  }
  // [16 rows][2 x 8 features], the two halves of a row exchanged in every other group of four rows against bank conflicts.
  const int written = (lane >> 4) * 8 + (lane & 7);
  const int written_half = (lane >> 3 & 1) ^ (written >> 2 & 1);
  stmatrix_x4_trans(staging + written * 32 + written_half * 16, matrices);
  __syncwarp();
  const int row = lane >> 1;
  const int half = lane & 1;
  u32 words[4];
  ld_shared_v4_u32(words, staging + row * 32 + (half ^ (row >> 2 & 1)) * 16);
  if (row < rows) {
    u16* target = static_cast<u16*>(output.c) + static_cast<size_t>(first_row + row) * output.N +
                       first_feature + half * 8;
    *reinterpret_cast<uint4*>(target) = make_uint4(words[0], words[1], words[2], words[3]);
  }
  __syncwarp();
}

// The tile's column factors take the long way from memory while the main loop runs: each consumer thread loads its share before
// the loop and puts it into shared memory after it. A barrier of the consumers must follow.
class ColumnFactors {
 public:
  __device__ __forceinline__ ColumnFactors(const Output& output, int tile_feature) {
#pragma unroll
    for (int i = 0; i < kShare; ++i) {
      const int feature = tile_feature + i * kConsumerThreads + threadIdx.x;
      const bool is_mine = i * kConsumerThreads + threadIdx.x < kTileRows && feature < output.N;
      values_[i] = is_mine ? __ldg(output.column_factors + feature) : 0.f;
    }
  }

  __device__ __forceinline__ void share(u32 shared) const {
#pragma unroll
    for (int i = 0; i < kShare; ++i) {
      const int place = i * kConsumerThreads + threadIdx.x;
      if (place < kTileRows) st_shared_u32(shared + place * 4, __float_as_uint(values_[i]));
    }
  }

 private:
  static constexpr int kShare = (kTileRows + kConsumerThreads - 1) / kConsumerThreads;
  float values_[kShare];
};

// Stores all sums of a warp: kBlocks blocks of 16 features (64 apart) x kBatchTile rows.
__device__ __forceinline__ void store_tile(const Output& output, const float (&sums)[kBlocks][kBatchTile / 2],
                                           int tile_feature, int in_tile, int first_row, u32 factors, u32 staging,
                                           int lane) {
  const float nothing[4] = {};
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
    const int first_feature = tile_feature + in_tile + block * kBlockRows;
    if (first_feature >= output.N) continue;
    const FeaturePair features(output, factors, in_tile + block * kBlockRows, first_feature, lane);
#pragma unroll
    for (int n = 0; n < kBatchTile; n += 16) {
      const int rows = min(output.M - first_row, kBatchTile) - n;
      if (rows <= 0) continue;
      store_16x16(output, features, &sums[block][n / 2], n + 8 < kBatchTile ? &sums[block][n / 2 + 4] : nothing,
                  first_feature, first_row + n, rows, staging, lane);
    }
  }
}
