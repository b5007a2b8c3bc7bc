// The numbers that shape one build of marlin_sparse.cu, all from -D options (marlin_bench/marlin_sparse_config.py):
//   TILE_M x TILE_N x TILE_K   batch rows, output channels and (dense) k of a CTA's tile
//   WARPGROUPS                 0 or 1: products by wgmma.sp (sm_90a), a warp takes all of up to 64 rows; else mma.sp, up to 32 rows
//   STAGES                     depth of the shared-memory ring
//   SCALE_ROWS                 scale groups that one k tile touches: 1, or TILE_K / group
//   BF16                       0 or 1: activations in BF16
//   CLUSTER                    2 where slices of a tile are the CTAs of clusters (sm_90a), or 1 for no clusters
//   SEVERAL_CLUSTERS           0 or 1: whether several clusters may share a tile
//   SCALE_SUMS                 0 or 1: scales are applied to weights, or to the sums of a group
//   BULK_COPIES                0 or 1: the ring is filled by bulk copies; by default where they exist, from sm_90 on
//
// Computing warps = kWarpsM x kWarpsN x kWarpsK. A warp owns 64 channels and up to kWarpRows batch rows; the warps left over
// split K inside the tile and are added up at its end (reduction.cuh). Where N allows, all warps lie side by side:
// the wider the tile, the fewer times the activations are read from L2.
//
//      TILE 16x512x128  1 x 8 x 1      TILE 16x128x256  1 x 2 x 4      TILE 64x256x64  2 x 4 x 1
#pragma once
#include "build.cuh"

#ifndef BULK_COPIES
#define BULK_COPIES (__CUDA_ARCH__ >= 900)
#endif
#ifndef ACTIVATION_MAP
#if BULK_COPIES && defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define ACTIVATION_MAP 1
#else
#define ACTIVATION_MAP 0
#endif
#endif

constexpr int kCluster = CLUSTER;
constexpr bool kScaleSums = SCALE_SUMS;

constexpr int kWarps = 8, kThreads = 32 * kWarps;  // that compute
// Beside them one warp fetches weights and one or two fetch activations. Warps of more than 32 rows need more registers than
// theirs: with idle ones the warps that fetch make a warpgroup, which may hand its registers on.
constexpr int kWarpRows = WARPGROUPS ? 64 : 32;
constexpr bool kReallocate = WARPGROUPS && kTileM > 32;
constexpr int kActivationThreads = TILE_M > 8 && !WARPGROUPS ? 64 : 32;
constexpr int kProducerThreads = kReallocate ? 128 : 32 + kActivationThreads;
constexpr int kProducerRegisters = 56, kComputeRegisters = 224;
constexpr int kWarpsN = kTileN / 64;
constexpr int kWarpsM = (kTileM + kWarpRows - 1) / kWarpRows;
constexpr int kWarpsK = kWarps / (kWarpsN * kWarpsM);
constexpr int kBatchBlocks = kTileM / 8 / kWarpsM;  // 8-row blocks of a warp
constexpr int kUnits = kTileK / 32 / kWarpsK;       // units of 64 channels x 32 k of a warp in a tile
static_assert(kWarpsM * kWarpsN * kWarpsK == kWarps, "TILE_N / 64 times the batch warps must divide the warps");
static_assert(kBatchBlocks * 8 * kWarpsM == kTileM, "batch warps share the tile evenly");
static_assert(kUnits % 2 == 0 && kUnits * kWarpsK * 32 == kTileK, "warps that split K get a run of whole blocks each");

// A packed 64x64 block, in 16-byte vectors: codes of two units of 32 k, then their positions (layouts/marlin_sparse.py).
constexpr int kUnitVectors = 32;                  // codes of 64 channels x 32 k: one vector a lane
constexpr int kPositionVectors = 16;              // half a vector a lane
constexpr int kBlockSparseVectors = 2 * (kUnitVectors + kPositionVectors);
constexpr int kGroupBlocks = kTileK / 64 / kScaleRows;  // 64x64 blocks down K that share scales
constexpr int kGroupUnits = 2 * kGroupBlocks < kUnits ? 2 * kGroupBlocks : kUnits;  // of a warp

// A stage of the ring, in 16-byte vectors: activations, weights, scales.
// Activations lie in panels of 64 k, swizzled so that ldmatrix meets no bank twice, as a tensor map delivers them:
//      row i, vector j of panel p   ->   place p · rows · 8 + i · 8 + (j ^ (i % 8))
// It wants each stage on 1024 bytes; bulk copies are slow to places off 128.
constexpr int kPanelVectors = kTileM * 8;
constexpr int kAVectors = kTileK / 64 * kPanelVectors;
constexpr int kBVectors = kTileK / 64 * kWarpsN * kBlockSparseVectors;
constexpr int kStageLine = 64;
constexpr int kStageVectors = (kAVectors + kBVectors + kScaleVectors + kStageLine - 1) / kStageLine * kStageLine;

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

// Output vectors that warps which split K exchange at a time, behind the ring, which is being filled: 48 KiB or less.
constexpr int kVectorsOfRows = 2 * kBatchBlocks;
constexpr int kExchangeSpace = 48 / (kWarpsN * kWarpsM * (kWarpsK > 1 ? kWarpsK - 1 : 1));
constexpr int kExchange = kExchangeSpace < kVectorsOfRows ? kExchangeSpace : kVectorsOfRows;
constexpr int kExchangeVectors = kWarpsN * kWarpsM * (kWarpsK - 1) * kExchange * 64;  // 16 bytes each

// The threads that compute meet; the one that fetches goes on.
__device__ __forceinline__ void sync_computing() { bar_sync(1, kThreads); }
