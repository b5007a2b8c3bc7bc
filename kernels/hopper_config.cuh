// The configuration of one build of marlin_hopper.cu and everything that follows from it at compile time.
// The chooser (backends/marlin_hopper.py) passes the macros; each is explained here and nowhere else.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "ptx.cuh"

// What is computed.
constexpr int kGroupSize = GROUP_SIZE;    // K that share a scale: 64, 128, or 0 for one scale a column
constexpr bool kZeroPoints = ZERO_POINTS;  // each group has its own zero point; without: 8
constexpr bool kBf16 = BF16;               // activations and outputs are bfloat16, else half

// How it is tiled. Weights are the left operand: a tile is kTileRows output features by kBatchTile batch rows.
constexpr int kBatchTile = BATCH_TILE;    // batch rows a CTA: the N of wgmma
constexpr int kWarpgroups = WARPGROUPS;   // consumer warpgroups a CTA
constexpr int kSplit = SPLIT;             // of these, how many share the same rows and split the K tiles of a stage
constexpr int kBlocks = BLOCKS;           // 64-row blocks a warpgroup: the M of wgmma, repeated
constexpr int kStageTiles = STAGE_TILES;  // K tiles of 128 that one pipeline stage holds
constexpr int kStages = STAGES;           // depth of the pipeline
constexpr int kCluster = CLUSTER;         // CTAs a cluster
constexpr bool kMulticast = MULTICAST;    // the cluster shares a batch tile (activations multicast); else it splits K
constexpr bool kScaleAccumulators = SCALE_ACCUMULATORS;  // group scales go on FP32 sums; else on the weights
constexpr int kCtasPerSm = CTAS_PER_SM;                  // CTAs that must fit an SM at once
constexpr bool kEarlyTrigger = EARLY_TRIGGER;  // the next launch may become resident at once, else after the last copy
constexpr int kInFlight = IN_FLIGHT;           // steps of products that run while the next step's weights are dequantised
constexpr int kStepProducts = STEP_PRODUCTS;   // k16 products of a block in one step
constexpr bool kBlockOrder = BLOCK_ORDER;  // products of a block follow each other
constexpr bool kReallocate = REALLOCATE;       // the producer hands its registers to the consumers
constexpr bool kBulkStore = BULK_STORE;  // whole tiles leave by tensor-map copies beside the next tile's main loop
constexpr bool kWarpProducts = WARP_PRODUCTS;  // products of single warps, see hopper_warp_loop.cuh; else of warpgroups
constexpr bool kTail = TAIL;  // the last units of every tile go to whichever CTA comes free, see hopper_tail.cuh

constexpr int kTileK = 128;
constexpr int kBlockRows = 64;
constexpr int kStripRows = 128;  // rows that are contiguous in the packed weights for one K tile

constexpr int kRowWarpgroups = kWarpgroups / kSplit;
constexpr int kTileRows = kBlockRows * kBlocks * kRowWarpgroups;
constexpr bool kWholeStrips = kTileRows % kStripRows == 0;  // else a stage holds single blocks
constexpr int kConsumerThreads = 128 * kWarpgroups;
constexpr int kProducerWarps = kReallocate ? 4 : kTail ? 3 : 2;
constexpr int kThreads = kConsumerThreads + 32 * kProducerWarps;
constexpr bool kSplitCluster = kCluster > 1 && !kMulticast;
constexpr int kTeam = kMulticast ? kCluster : 1;  // CTAs that walk the tiles together

// One packed block: 64 rows of one K tile.
constexpr int kGroupsPerTile = kGroupSize == 0 ? 0 : kTileK / kGroupSize;
constexpr int kCodeBytes = kBlockRows * kTileK / 2;
constexpr int kScaleBytes = kGroupsPerTile * kBlockRows * 2;
constexpr int kZeroBytes = kZeroPoints ? (kGroupsPerTile == 0 ? 1 : kGroupsPerTile) * kBlockRows : 0;
constexpr int kBlockBytes = kCodeBytes + kScaleBytes + kZeroBytes;
constexpr int kStripBytes = 2 * kBlockBytes;

// One pipeline stage in shared memory.
constexpr int kPanelBytes = kBatchTile * 128;  // 64 K of the batch tile, 128-byte swizzled
constexpr int kStageActivationBytes = kStageTiles * 2 * kPanelBytes;
constexpr int kOutputBoxBytes = kBatchTile * 128;  // 64 features of a tile on its way out, 128-byte swizzled
constexpr int kStageWeightBytes = kStageTiles * kTileRows / kBlockRows * kBlockBytes;

// Shared memory: activations | weights | exchange | output staging | barriers and a broadcast word.
constexpr int kConsumerWarps = kConsumerThreads / 32;
constexpr int kSquareBytes = 16 * 32;  // a warp's 16 batch rows x 16 features on their way out
constexpr int kSquareColumns = (kBatchTile + 15) / 16;
constexpr int kMostSquares = kSplitCluster ? 2 : 4;  // of these at once
constexpr int kSquares = kSquareColumns < kMostSquares ? kSquareColumns : kMostSquares;
constexpr int kStagingBytes = kSquares * kSquareBytes;
constexpr int kSources = kSplitCluster ? kCluster * kSplit : 1;  // warpgroups of a cluster with sums of the same rows
constexpr int kShareSquares = (kSquareColumns + kSources - 1) / kSources;
constexpr int kPartBytes = kBlocks * kShareSquares * 2 * 512;  // what a warp gets from another one of its rows
constexpr int kPartsBytes = kConsumerWarps * (kSources - 1) * kPartBytes;
constexpr int kTilesBytes = kSplitCluster ? kSplit * kTileRows * kBatchTile * 4 : 0;
constexpr bool kWideTile = kBatchTile > 32;
constexpr bool kBatchShares = kWideTile && kPartsBytes < kTilesBytes;  // join by hopper_shares.cuh, else hopper_reduce.cuh
constexpr int kExchangeBytes = kBatchShares ? kPartsBytes : kTilesBytes;
constexpr int kActivationsAt = 0;
constexpr int kWeightsAt = kActivationsAt + kStages * kStageActivationBytes;
constexpr int kExchangeAt = kWeightsAt + kStages * kStageWeightBytes;
constexpr int kStagingAt = kExchangeAt + kExchangeBytes;
constexpr int kBarriersAt = kStagingAt + kConsumerWarps * kStagingBytes;
constexpr int kBroadcastAt = kBarriersAt + 2 * kStages * 8;
constexpr int kTicketsAt = kBroadcastAt + 16;  // a word a stage, see hopper_tail.cuh
constexpr int kPostBoxAt = kTicketsAt + 128;   // four barriers, four words
constexpr int kSharedBytes = kTail ? kPostBoxAt + 48 : kTicketsAt;

// Registers after the hand-over, from what ptxas grants at entry for this many threads.
constexpr int kEntryRegisters = 65536 / (kThreads * kCtasPerSm) / 8 * 8;
constexpr int kProducerRegisters = kCtasPerSm > 1 ? 24 : kWarpgroups == 2 ? 40 : kWarpgroups == 3 ? 32 : 24;
constexpr int kConsumerRegisters =
    (kEntryRegisters * kThreads - 128 * kProducerRegisters) / kConsumerThreads / 8 * 8;

static_assert(kSharedBytes == SHARED_BYTES, "the host computes the shared memory of a configuration differently");
static_assert(kGroupSize == 0 || kGroupSize == 64 || kGroupSize == 128, "groups of 64, 128 or a whole column");
static_assert(kBatchTile % 8 == 0 && kBatchTile <= 256, "wgmma takes multiples of 8 up to 256");
static_assert(kBatchShares || !kSplitCluster || kTileRows / 16 % kCluster == 0, "each CTA finishes whole 16-row groups");
static_assert(kWarpgroups % kSplit == 0 && kStageTiles % kSplit == 0, "every warpgroup needs K tiles of its own");
static_assert(kSplit == 1 || kSplitCluster, "warpgroups that split K meet in the cluster's exchange");
static_assert(!kBulkStore || (kReallocate && !kSplitCluster && !kTail), "a warp is free to store tiles that one CTA ends");
static_assert(!kBulkStore || (kBatchTile % 16 == 0 && kTileRows * kBatchTile * 2 <= kStageActivationBytes),
              "a tile in whole squares takes the place of a stage's activations");
static_assert(!kTail || (kCluster == 1 && kSplit == 1), "pieces are handed out to single CTAs");
static_assert(kStages >= 2, "a consumer holds one stage while it waits for the next");
static_assert(kStageActivationBytes % 1024 == 0, "the 128-byte swizzle repeats every 1024 bytes");
static_assert(!kReallocate || kWarpgroups >= 2, "one warpgroup may have 255 registers anyway");
