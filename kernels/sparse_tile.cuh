// The numbers that shape one build of marlin_sparse.cu, all from -D options (marlin_bench/marlin_sparse_config.py):
//   TILE_M x TILE_N x TILE_K   batch rows, output channels and (dense) k of a CTA's tile
//   WARPS                      that compute, 8 or 16; two or three more fetch
//   WARP_ROWS                  most batch rows of a warp: 32, or 64 with the registers of idle warps (sm_90a)
//   STAGES                     depth of the shared-memory ring
//   SCALE_ROWS                 scale groups that one k tile touches: 1, or TILE_K / group
//   BF16                       0 or 1: activations in BF16
//   CLUSTER                    2 where slices of a tile are the CTAs of clusters (sm_90a), or 1 for no clusters
//   SCALE_SUMS                 0 or 1: scales are applied to weights, or to the sums of a group
//   BULK_COPIES                0 or 1: the ring is filled by bulk copies; by default where they exist, from sm_90 on
//
// Computing warps = kWarpsM x kWarpsN x kWarpsK. A warp owns 64 channels and up to WARP_ROWS batch rows; the warps left over
// split K inside the tile and are added up at its end (reduction.cuh). Where N allows, all warps lie side by side:
// the wider the tile, the fewer times the activations are read from L2.
//
//      TILE 16x512x128  1 x 8 x 1      TILE 16x128x256  1 x 2 x 4      TILE 64x256x64  2 x 4 x 1
#pragma once
#include "build.cuh"

#ifndef BULK_COPIES
#define BULK_COPIES (__CUDA_ARCH__ >= 900)
#endif

constexpr int kCluster = CLUSTER;
constexpr bool kScaleSums = SCALE_SUMS;

constexpr int kWarps = WARPS, kThreads = 32 * kWarps;  // that compute
// Eight are two a scheduler, and a warp loads and dequantises ahead. Sixteen are four a scheduler: three work while one
// waits, and none has registers for what is ahead.
constexpr bool kAhead = kWarps == 8;
// Beside them one warp fetches weights and one or two fetch activations.
//
// A warp of 64 rows has 128 sums a lane and needs more registers than eleven warps can have; so do sixteen warps of 24 rows.
// On sm_90a an idle warp beside the three that fetch makes a warpgroup, which may hand its registers on.
constexpr bool kReallocate = WARP_ROWS > 32 || kWarps > 8;
constexpr int kActivationThreads = TILE_M > 8 ? 64 : 32;
constexpr int kProducerThreads = kReallocate ? 128 : 32 + kActivationThreads;
constexpr int kProducerRegisters = kWarps > 8 ? 32 : 56, kComputeRegisters = kWarps > 8 ? 112 : 224;
constexpr int kWarpsN = kTileN / 64;
constexpr int kWarpsM = (kTileM + WARP_ROWS - 1) / WARP_ROWS;
constexpr int kWarpsK = kWarps / (kWarpsN * kWarpsM);
constexpr int kBatchBlocks = kTileM / 8 / kWarpsM;  // 8-row blocks of a warp
constexpr int kUnits = kTileK / 32 / kWarpsK;       // units of 64 channels x 32 k of a warp in a tile
static_assert(kWarpsM * kWarpsN * kWarpsK == kWarps, "TILE_N / 64 times the batch warps must divide the warps");
static_assert(kBatchBlocks * 8 * kWarpsM == kTileM, "batch warps share the tile evenly");
static_assert(kUnits >= 1 && kUnits * kWarpsK * 32 == kTileK, "warps that split K get a run of units each");
static_assert(!kAhead || kUnits % 2 == 0, "an even number of units lets two register buffers take turns");

// A packed 64x64 block, in 16-byte vectors: codes of two units of 32 k, then their positions (layouts/marlin_sparse.py).
constexpr int kUnitVectors = 32;                  // codes of 64 channels x 32 k: one vector a lane
constexpr int kPositionVectors = 16;              // half a vector a lane
constexpr int kBlockSparseVectors = 2 * (kUnitVectors + kPositionVectors);
constexpr int kGroupBlocks = kTileK / 64 / kScaleRows;  // 64x64 blocks down K that share scales
constexpr int kGroupUnits = 2 * kGroupBlocks < kUnits ? 2 * kGroupBlocks : kUnits;  // of a warp

// A stage of the ring, in 16-byte vectors: activations, weights, scales.
// A row of activations is one copy; the vector between rows puts neighbours into different banks for ldmatrix.
constexpr int kARowVectors = kTileK / 8 + 1;
constexpr int kAVectors = kTileM * kARowVectors;
constexpr int kBVectors = kTileK / 64 * kWarpsN * kBlockSparseVectors;
constexpr int kStageVectors = kAVectors + kBVectors + kScaleVectors;
static_assert(kStageVectors % 8 == 0 && kAVectors % 8 == 0, "bulk copies go to whole lines of 128 bytes");

// Where a computing thread stands.
struct Position {
  int lane, group, pair;  // group = lane / 4, pair = lane % 4 (g and t of sparse_fragments.cuh)
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

// The threads that compute meet; the one that fetches goes on.
__device__ __forceinline__ void sync_computing() { bar_sync(1, kThreads); }
