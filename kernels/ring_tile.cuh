// The numbers that shape one build of marlin_ring.cu, all from -D options (marlin_bench/marlin_config.py sets them):
//   TILE_M x TILE_N x TILE_K   rows, columns and k steps of a CTA's tile
//   WARPS                      that compute
//   STAGES                     depth of the shared-memory ring, as deep as the device allows
//   SCALE_ROWS                 scale groups that one k tile touches: 1, or TILE_K / group
//   BF16, ZEROS                0 or 1: activations in BF16, weights with 4-bit zero points
//   CTAS_PER_SM                how many are meant to share an SM
//   SCALE_SUMS                 0 or 1: scales are applied to weights, or to the sums of a group
//
// Warp layout (paper 3.4 "Warp Layout"): kWarps = kWarpsN x kWarpsK. A warp owns 64 columns and all rows; the warps left
// over split K inside the tile and are added up at its end (reduction.cuh).
//
//      TILE 8x256x128  4 x 2      TILE 16x128x256  2 x 4
#pragma once
#include "fragments.cuh"

#if BF16
using Type = Bf16;
#else
using Type = Fp16;
#endif
using Scalar = Type::Scalar;

constexpr int kTileM = TILE_M, kTileN = TILE_N, kTileK = TILE_K;
constexpr int kStages = STAGES;
constexpr int kScaleRows = SCALE_ROWS;
constexpr bool kZeros = ZEROS;
constexpr bool kScaleSums = SCALE_SUMS;

constexpr int kWarps = WARPS, kThreads = 32 * kWarps;  // that compute
constexpr int kFetchThreads = 128;  // beside those that compute: a warp for weights, two for activations, an idle one
constexpr int kWarpsN = kTileN / kStripColumns;
constexpr int kWarpsK = kWarps / kWarpsN;
constexpr bool kWeightsLeft = kTileM == 8;  // half the work for the tensor cores; else as in fragments.cuh
constexpr int kBlockRows = kWeightsLeft ? 8 : 16;
constexpr int kRowBlocks = kTileM / kBlockRows;
constexpr int kSteps = kTileK / 16 / kWarpsK;             // k blocks of a warp in a tile
constexpr int kGroupBlocks = kTileK / 16 / kScaleRows;    // k blocks of a tile that share scales
// Warps that split K take its blocks in turns, or a run each, so that a group's sums are whole before they are scaled.
constexpr bool kRuns = SCALE_SUMS;
constexpr int kStepBlocks = kRuns ? 1 : kWarpsK;          // k blocks from step to step
constexpr int kWarpBlocks = kRuns ? kSteps : 1;           // and from warp to warp
constexpr int kStepsAGroup = kGroupBlocks > kStepBlocks ? kGroupBlocks / kStepBlocks : 1;
constexpr int kGroupSteps = kSteps < kStepsAGroup ? kSteps : kStepsAGroup;
static_assert(kWarpsN * kWarpsK == kWarps, "TILE_N / 64 must divide the warps");
static_assert(kTileM == 8 || kTileM % 16 == 0, "row blocks are whole");
static_assert(kSteps >= 2 && kSteps % 2 == 0, "an even number of steps lets two register buffers take turns");

// A stage of the ring, in 16-byte vectors: activations, weights, scales, zero points.
constexpr int kARowVectors = kTileK / 8;
constexpr int kAVectors = kTileM * kARowVectors;
constexpr int kBVectors = (kTileK / 64) * kWarpsN * kBlockVectors;
constexpr int kScaleRowVectors = kTileN / 8;
constexpr int kScaleVectors = kScaleRows * kScaleRowVectors;
constexpr int kZeroRowVectors = kTileN / 32;
constexpr int kZeroVectors = kZeros ? kScaleRows * kZeroRowVectors : 0;
constexpr int kStageVectors = kAVectors + kBVectors + kScaleVectors + kZeroVectors;

// Where a computing thread stands.
struct Position {
  int lane, group, pair;  // group = lane / 4, pair = lane % 4 (g and t of fragments.cuh)
  int warp_n, warp_k;
  static constexpr int warp_m = 0;
  __device__ Position() {
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // the compiler then knows that it is uniform
    lane = threadIdx.x % 32;
    group = lane / 4;
    pair = lane % 4;
    warp_n = warp % kWarpsN;
    warp_k = warp / kWarpsN;
  }
};

// With the weights on the left the product is C^T = W^T · A^T, and a batch costs multiples of 8 rows:
//
//      weights 16x16               activations 16x8        sums 16x8
//            k                           batch                 batch
//        a0 | a2   channel row g      b0   k 2t, 2t+1         d0 d1   row g,   batch 2t, 2t+1
//        ---+---                      b1   k 2t+8, 2t+9       d2 d3   row g+8, batch 2t, 2t+1
//        a1 | a3   row g+8               batch row g
//
// Word j of a lane's codes is one such operand: channel(b, g) of fragments.cuh at row g + 8h, b = 2j + h. So the lanes of g
// and g ^ 1 hold the even and the odd ones of eight neighbours, for two batch rows; each gives the other one row (settle).
//
// The sums of a warp, and its output vectors (reduction.cuh): eight neighbours of a row of C. u is a compile-time number
// wherever this is used, so the sums stay in registers.
using Sums = float[kRowBlocks][kWeightsLeft ? 4 : 8][4];
constexpr int kVectors = kTileM / 4;

// Vectors that warps which split K exchange at a time, behind the ring, which is being filled: 24 KiB or less.
constexpr int kExchangeSpace = 24 / (kWarpsN * (kWarpsK > 1 ? kWarpsK - 1 : 1));
constexpr int kExchange = kExchangeSpace > kVectors ? kVectors : kExchangeSpace < 1 ? 1 : kExchangeSpace;

__device__ __forceinline__ OutputVector vector_of(const Sums& sums, int u) {
  if constexpr (kWeightsLeft) {
    const float(&low)[4] = sums[u / 2][u % 2 * 2];
    const float(&high)[4] = sums[u / 2][u % 2 * 2 + 1];
    return {{low[0], low[1], low[2], low[3]}, {high[0], high[1], high[2], high[3]}};
  } else {
    const auto& row = sums[u / 4];
    const int h = u / 2 % 2 * 2, c = u % 2 * 4;
    return {{row[c][h], row[c][h + 1], row[c + 1][h], row[c + 1][h + 1]},
            {row[c + 2][h], row[c + 2][h + 1], row[c + 3][h], row[c + 3][h + 1]}};
  }
}

__device__ __forceinline__ void put_vector(Sums& sums, int u, const OutputVector& vector) {
  if constexpr (kWeightsLeft) {
    float(&low)[4] = sums[u / 2][u % 2 * 2];
    float(&high)[4] = sums[u / 2][u % 2 * 2 + 1];
    low[0] = vector.low.x, low[1] = vector.low.y, low[2] = vector.low.z, low[3] = vector.low.w;
    high[0] = vector.high.x, high[1] = vector.high.y, high[2] = vector.high.z, high[3] = vector.high.w;
  } else {
    auto& row = sums[u / 4];
    const int h = u / 2 % 2 * 2, c = u % 2 * 4;
    row[c][h] = vector.low.x, row[c][h + 1] = vector.low.y;
    row[c + 1][h] = vector.low.z, row[c + 1][h + 1] = vector.low.w;
    row[c + 2][h] = vector.high.x, row[c + 2][h + 1] = vector.high.y;
    row[c + 3][h] = vector.high.z, row[c + 3][h + 1] = vector.high.w;
  }
}

// Row (of the tile) and column (of the warp) of output vector u.
__device__ __forceinline__ int row_of(int u, const Position& at) {
  return kWeightsLeft ? u / 2 * 8 + 2 * at.pair + at.group % 2 : u / 4 * 16 + u / 2 % 2 * 8 + at.group;
}

__device__ __forceinline__ int column_of(int u, const Position& at) {
  return u % 2 * 32 + (kWeightsLeft ? at.group / 2 : at.pair) * 8;
}

// From the tensor cores' order to output vectors: the lanes of g and g ^ 1 exchange a row.
__device__ __forceinline__ void settle(Sums& sums, const Position& at) {
  if (!kWeightsLeft) return;
  const bool odd = at.group % 2;
#pragma unroll
  for (int m = 0; m < kRowBlocks; ++m) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float(&two)[4] = sums[m][j];
        const float kept = odd ? two[2 * h + 1] : two[2 * h];
        const float given = __shfl_xor_sync(0xffffffffu, odd ? two[2 * h] : two[2 * h + 1], 4);
        two[2 * h] = odd ? given : kept;
        two[2 * h + 1] = odd ? kept : given;
      }
    }
  }
}

// The warps that compute meet; those that fetch go on.
__device__ __forceinline__ void sync_computing() { bar_sync(1, kThreads); }
