// The numbers that shape one build of marlin_ring.cu, all from -D options (marlin_bench/marlin_config.py sets them):
//   TILE_M x TILE_N x TILE_K   rows, columns and k steps of a CTA's tile
//   WARPS                      that compute
//   STAGES                     depth of the shared-memory ring, as deep as the device allows
//   SCALE_ROWS                 scale groups that one k tile touches: 1, or TILE_K / group
//   BF16, ZEROS                0 or 1: activations in BF16, weights with 4-bit zero points
//   CTAS_PER_SM                how many are meant to share an SM
//   SCALE_SUMS                 0 or 1: scales are applied to weights, or to the sums of a group
//   CLUSTER                    2 where the two CTAs of a cluster share a tile, half of K each (cluster_reduction.cuh); else 1
//
// Warp layout (paper 3.4 "Warp Layout"): kWarps = kWarpsM x kWarpsN x kWarpsK. A warp owns 64 columns and up to 72 rows; the
// warps left over split K inside the tile and are added up at its end (reduction.cuh).
//
//      TILE 8x256x128  1 x 4 x 2      TILE 16x128x256  1 x 2 x 4      TILE 128x256x128  2 x 4 x 1
#pragma once
#include "build.cuh"

constexpr bool kScaleSums = SCALE_SUMS;
// Measured on an H200: for more than 8 rows activations come by tensor map …
constexpr bool kByMap = kTileM > 8;
// … and for more than 32 there is more room for exchanges, and stages are asked for early.
constexpr bool kTall = kTileM > 32;

constexpr int kWarps = WARPS, kThreads = 32 * kWarps;  // that compute
constexpr int kFetchThreads = 128;  // beside those that compute: a warp for weights, one or two for activations, idle ones
// Tiles of more than 8 rows need more registers than 12 warps get, so those that fetch hand some over (sm_90a).
constexpr bool kHandOver = kTileM > 8;
constexpr int kFetchRegisters = 40, kComputeRegisters = 232;
constexpr int kWarpsN = kTileN / kStripColumns;
constexpr int kWarpsM = (kTileM + 71) / 72;
constexpr int kWarpsK = kWarps / (kWarpsN * kWarpsM);
constexpr int kRowBlocks = kTileM / 8 / kWarpsM;          // operands of 8 rows of a warp
constexpr int kSteps = kTileK / 16 / kWarpsK;             // k blocks of a warp in a tile
constexpr int kGroupBlocks = kTileK / 16 / kScaleRows;    // k blocks of a tile that share scales
// Warps that split K take its blocks in turns, or a run each, so that a group's sums are whole before they are scaled.
constexpr bool kRuns = SCALE_SUMS;
constexpr int kStepBlocks = kRuns ? 1 : kWarpsK;          // k blocks from step to step
constexpr int kWarpBlocks = kRuns ? kSteps : 1;           // and from warp to warp
constexpr int kStepsAGroup = kGroupBlocks > kStepBlocks ? kGroupBlocks / kStepBlocks : 1;
constexpr int kGroupSteps = kSteps < kStepsAGroup ? kSteps : kStepsAGroup;
static_assert(kWarpsM * kWarpsN * kWarpsK == kWarps, "TILE_N / 64 times the row warps must divide the warps");
static_assert(kRowBlocks * 8 * kWarpsM == kTileM, "row warps share the tile evenly");
static_assert(kSteps >= 2 && kSteps % 2 == 0, "an even number of steps lets two register buffers take turns");

// A stage begins where bulk copies are fast (128 bytes), and where a tensor map's swizzle begins (1024).
constexpr int kStageLine = kByMap ? 64 : 8;
#include "dense_stage.cuh"

constexpr int kPanelVectors = kTileM * 8;  // activations lie in panels of 64 k, as a tensor map delivers them

// Where a computing thread stands.
struct Position {
  int lane, group, pair;  // group = lane / 4, pair = lane % 4 (g and t of fragments.cuh)
  int warp_m, warp_n, warp_k;
  __device__ Position() {
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // the compiler then knows that it is uniform
    lane = threadIdx.x % 32;
    group = lane / 4;
    pair = lane % 4;
    warp_n = warp % kWarpsN;
    warp_m = warp / kWarpsN % kWarpsM;
    warp_k = warp / (kWarpsN * kWarpsM);
  }
};

#include "sums.cuh"

// Vectors that warps which split K exchange at a time, behind the ring, which is being filled: 24 or 96 KiB or less.
constexpr int kExchangeSpace = (kTall ? 96 : 24) / (kWarpsN * kWarpsM * (kWarpsK > 1 ? kWarpsK - 1 : 1));
constexpr int kExchange = kExchangeSpace > kVectors ? kVectors : kExchangeSpace < 1 ? 1 : kExchangeSpace;
constexpr int kExchangeVectors = kWarpsK > 1 ? kWarpsN * kWarpsM * (kWarpsK - 1) * kExchange * 64 : 0;  // 16 bytes each

// The warps that compute meet; those that fetch go on.
__device__ __forceinline__ void sync_computing() { bar_sync(1, kThreads); }
