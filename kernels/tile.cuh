// The numbers that shape one build of marlin.cu, all from -D options (marlin_bench/marlin_config.py sets them):
//   TILE_M x TILE_N x TILE_K   rows, columns and k steps of a CTA's tile
//   STAGES                     depth of the shared-memory ring, as deep as the device allows
//   SCALE_ROWS                 scale groups that one k tile touches: 1, or TILE_K / group
//   BF16, ZEROS                0 or 1: activations in BF16, weights with 4-bit zero points
//   CTAS_PER_SM                how many are meant to share an SM
//
// Warp layout (paper 3.4 "Warp Layout"): eight warps = kWarpsM x kWarpsN x kWarpsK. A warp owns 64 columns and up to 72
// rows; the warps left over split K inside the tile and are added up at its end (reduction.cuh). Wide warp tiles use
// each weight from shared memory for all rows, and eight warps suffice to keep four schedulers busy.
//
//      TILE 16x128x128  1 x 2 x 4      TILE 64x256x64  1 x 4 x 2      TILE 128x256x64  2 x 4 x 1
#pragma once
#include "build.cuh"

constexpr bool kScaleSums = false;  // weights are scaled

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kWarpsN = kTileN / kStripColumns;
constexpr int kWarpsM = (kTileM + 71) / 72;
constexpr int kWarpsK = kWarps / (kWarpsN * kWarpsM);
constexpr int kRowBlocks = kTileM / 8 / kWarpsM;   // operands of 8 rows of a warp
constexpr int kSteps = kTileK / 16 / kWarpsK;      // k blocks of a warp in a tile
static_assert(kWarpsM * kWarpsN * kWarpsK == kWarps, "TILE_N / 64 times the row warps must divide 8");
static_assert(kRowBlocks * 8 * kWarpsM == kTileM, "row warps share the tile evenly");
static_assert(kSteps >= 2 && kSteps % 2 == 0, "an even number of steps lets two register buffers take turns");

constexpr int kStageLine = 8;
#include "dense_stage.cuh"

// Where a thread stands.
struct Position {
  int lane, group, pair;            // group = lane / 4, pair = lane % 4 (g and t of fragments.cuh)
  int warp_m, warp_n, warp_k;
  __device__ Position() {
    const int warp = threadIdx.x / 32;
    lane = threadIdx.x % 32;
    group = lane / 4;
    pair = lane % 4;
    warp_n = warp % kWarpsN;
    warp_m = warp / kWarpsN % kWarpsM;
    warp_k = warp / (kWarpsN * kWarpsM);
  }
};

#include "sums.cuh"

// Every thread of the CTA computes.
__device__ __forceinline__ void sync_computing() { __syncthreads(); }
