// A stage of a ring of dense weights, in 16-byte vectors: activations, weights, scales, zero points. The header of the tile,
// which comes first (tile.cuh or ring_tile.cuh), says kWarpsN and kStageLine, whose multiples stages are.
#pragma once
#include "build.cuh"

constexpr bool kZeros = ZEROS;
constexpr int kARowVectors = kTileK / 8;
constexpr int kAVectors = kTileM * kARowVectors;
constexpr int kBVectors = (kTileK / 64) * kWarpsN * kBlockVectors;
constexpr int kZeroRowVectors = kTileN / 32;
constexpr int kZeroVectors = kZeros ? kScaleRows * kZeroRowVectors : 0;
constexpr int kStageLines = (kAVectors + kBVectors + kScaleVectors + kZeroVectors + kStageLine - 1) / kStageLine;
constexpr int kStageVectors = kStageLines * kStageLine;
