// What the -D options of every build of marlin.cu, marlin_ring.cu and marlin_sparse.cu say: types, the tile, the ring's depth.
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
constexpr int kScaleRowVectors = kTileN / 8, kScaleVectors = kScaleRows * kScaleRowVectors;
