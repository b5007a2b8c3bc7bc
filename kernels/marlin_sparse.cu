// Sparse-MARLIN: C[M, N] = A[M, K] · W[K, N] (+ bias[N]) with 2:4-sparse 4-bit W, on sparse tensor cores.
//
//      W[k, n] = (code[k, n] - 8) · scale[k / g, n]  for the two k of every four that are kept, else 0
//      A, C FP16 or BF16, sums FP32;  computed as C^T = W^T · A^T, because only the left operand may be sparse
//
//            N: kTileN each                       As in marlin.cu, a CTA takes k tiles of one output tile, then of
//          +-----+-----+-----+                    the next (stripes.cuh). Two or three warps keep kStages of them on their
//       K  |  0  |  1  |  2  |                    way (sparse_fetch.cuh, ring.cuh); the others turn 64 channels x 32 k at a
//       |  |  0  |  1  |  3  |  <- one CTA's      time, one 16-byte vector of codes and half a one of positions a lane, into
//       v  |  1  |  2  |  3  |     stripe         tensor-core operands (dequantise.cuh, sparse_fragments.cuh). Sums meet
//          +-----+-----+-----+                    in a fixed order (reduction.cuh), C is written once.
//
// What shapes it: 3.125 bits a weight (2 of codes, 1 of positions, 16 / 128 of scales) make 5.12 times less to read than
// FP16. A stored code costs what a dense one does, but there are half as many: with scales on the sums 50 instructions for
// 64 x 32 weights at M <= 8, a quarter of what an H200 can issue while it reads them. What is left to lose are the start
// of a launch and the sums of tiles that CTAs share, so the host prefers whole tiles where they fill most SMs.
#include "dependence.cuh"
#include "dequantise.cuh"
#include "fragments.cuh"
#include "ptx.cuh"
#include "sparse_fetch.cuh"
#include "sparse_fragments.cuh"
#include "sparse_tile.cuh"
// The reductions work on what the headers above say a tile is.
#include "cluster_reduction.cuh"
#include "reduction.cuh"
#include "stripes.cuh"

// What a warp needs of the weights for one unit: 64 channels x 32 k.
struct Weights {
  u32 codes[4];      // word j: the non-zeros of product j
  u32 positions[2];  // of the products 0 and 1, and of 2 and 3
  u32 scales[4];     // of the lane group's eight channels; not used where sums are scaled
};

using Activations = u32[kBatchBlocks][4];

// Where a lane reads in a stage: bytes from its beginning. What comes after is constants further on.
struct Places {
  u32 activations, codes, positions, scales;

  __device__ explicit Places(const Position& at) {
    const int unit = at.warp_k * kUnits, k_block = unit / 2;
    const int row = at.warp_m * kBatchBlocks * 8 + at.lane % 8;
    const int block = kAVectors + (k_block * kWarpsN + at.warp_n) * kBlockSparseVectors;
    activations = (row * kARowVectors + unit * 4 + at.lane / 8) * 16;
    codes = (block + unit % 2 * kUnitVectors + at.lane) * 16;
    positions = (block + 2 * kUnitVectors + unit % 2 * kPositionVectors) * 16 + at.lane * 8;
    scales = (kAVectors + kBVectors + k_block / kGroupBlocks * kScaleRowVectors + at.warp_n * 8 + at.group) * 16;
  }

  static __device__ constexpr int blocks_after(int unit) { return unit / 2 * kWarpsN * kBlockSparseVectors * 16; }
  static __device__ constexpr int scales_after(int unit) { return unit / 2 / kGroupBlocks * kScaleRowVectors * 16; }
};

// Unit `unit` of a warp's share of a stage. `before` are those of the unit before, whose scales are this one's too inside
// a group.
__device__ __forceinline__ void load_weights(Weights& weights, const Weights& before, u32 stage, int unit,
                                             const Places& places) {
  const u32 block = stage + Places::blocks_after(unit);
  ld_shared_v4_u32(weights.codes, block + places.codes + unit % 2 * (kUnitVectors * 16));
  ld_shared_v2_u32(weights.positions, block + places.positions + unit % 2 * (32 * 8));
  if (kScaleSums) return;
  if (unit % kGroupUnits == 0) {
    ld_shared_v4_u32(weights.scales, stage + places.scales + Places::scales_after(unit));
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j) weights.scales[j] = before.scales[j];
  }
}

__device__ __forceinline__ void load_activations(Activations& activations, u32 stage, int unit, const Places& places) {
  const u32 address = stage + places.activations + unit * (4 * 16);
#pragma unroll
  for (int n = 0; n < kBatchBlocks; ++n) ldmatrix_x4(activations[n], address + n * 8 * kARowVectors * 16);
}

// The left operand of product j.
__device__ __forceinline__ void dequantise_product(u32 (&operand)[4], const Weights& weights, int j) {
  const Type::Pair scales = pair_of<Type::Pair>(weights.scales[j]);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    u32 halves[2];
    dequantise<Type, !kScaleSums>(weights.codes[j], h, Dequantiser<Type>::symmetric(), scales, halves);
    operand[h] = halves[0];
    operand[h + 2] = halves[1];
  }
}

constexpr bool kAcrossUnits = kAhead && kBatchBlocks <= 4;  // tall warps have no registers for it

// A unit's products. The weights of product j + 1 (after the last: of the next unit) are dequantised while the tensor cores
// work on those of product j (paper 3.4).
__device__ __forceinline__ void multiply(Sums& sums, bool begins, u32 (&operands)[2][4], const Weights& weights,
                                         const Weights& next, const Activations& activations) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (!kAcrossUnits && j == 0) dequantise_product(operands[0], weights, 0);
    if (kAcrossUnits || j < 3) dequantise_product(operands[(j + 1) % 2], j < 3 ? weights : next, (j + 1) % 4);
#pragma unroll
    for (int n = 0; n < kBatchBlocks; ++n) {
      if (j % 2 == 0) {
        mma_sp<0>(Type{}, sums[n][j], operands[j % 2], activations[n], weights.positions[j / 2], begins);
      } else {
        mma_sp<1>(Type{}, sums[n][j], operands[j % 2], activations[n], weights.positions[j / 2], begins);
      }
    }
  }
}

// sums += scale · part, a group's sums of codes.
__device__ __forceinline__ void add_group(Sums& sums, const Sums& part, const u32 (&scales)[4]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float2 scale = Type::to_floats(pair_of<Type::Pair>(scales[j]));
#pragma unroll
    for (int n = 0; n < kBatchBlocks; ++n) {
      sums[n][j][0] += scale.x * part[n][j][0], sums[n][j][1] += scale.x * part[n][j][1];
      sums[n][j][2] += scale.y * part[n][j][2], sums[n][j][3] += scale.y * part[n][j][3];
    }
  }
}

// The products of `k_tiles` tiles, the first of them in `stage`: a unit is loaded, dequantised and multiplied, then the next.
__device__ __forceinline__ void accumulate_in_turn(Sums& sums, RingReader& reader, int k_tiles, u32 stage,
                                                   const Places& places) {
  Weights weights;
  Activations activations;
  u32 operands[2][4];
#pragma unroll 1
  for (; k_tiles > 0; --k_tiles) {
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
      load_weights(weights, weights, stage, unit, places);
      load_activations(activations, stage, unit, places);
      multiply(sums, false, operands, weights, weights, activations);
    }
    stage = reader.turn(k_tiles > 1);
  }
}

// The products of one segment, summed in registers. A warp whose channels lie beyond N only keeps the ring turning.
__device__ __forceinline__ void accumulate(Sums& sums, RingReader& reader, int k_tiles, bool computes, const Places& places) {
#pragma unroll
  for (int u = 0; u < kVectors; ++u) put_vector(sums, u, {});
  u32 stage = reader.begin();
  if (!computes) {
    for (; k_tiles > 0; --k_tiles) reader.turn(k_tiles > 1);
    return;
  }
  if constexpr (!kAhead) {
    accumulate_in_turn(sums, reader, k_tiles, stage, places);
    return;
  }
  constexpr int kBuffers = kAhead && kBatchBlocks <= (BULK_COPIES ? 4 : 2) ? 2 : 1;  // of activations: registers
  Sums part;
  Weights weights[2];
  Activations activations[kBuffers];
  u32 operands[2][4];
  load_weights(weights[0], weights[1], stage, 0, places);
  if (kBuffers == 2) load_activations(activations[0], stage, 0, places);
  if (kAcrossUnits) dequantise_product(operands[0], weights[0], 0);
#pragma unroll 1
  for (; k_tiles > 0; --k_tiles) {
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
      Weights& next = weights[(unit + 1) % 2];
      const bool group_ends = (unit + 1) % kGroupUnits == 0;
      u32 scales[4];
      if (kBuffers == 1) load_activations(activations[0], stage, unit, places);
      if (kScaleSums && group_ends) ld_shared_v4_u32(scales, stage + places.scales + Places::scales_after(unit));
      if (unit == kUnits - 1) stage = reader.turn(k_tiles > 1);
      if (unit < kUnits - 1 || k_tiles > 1) {
        load_weights(next, weights[unit % 2], stage, (unit + 1) % kUnits, places);
        if (kBuffers == 2) load_activations(activations[(unit + 1) % 2], stage, (unit + 1) % kUnits, places);
      }
      if constexpr (kScaleSums) {
        multiply(part, unit % kGroupUnits == 0, operands, weights[unit % 2], next, activations[unit % kBuffers]);
        if (group_ends) add_group(sums, part, scales);
      } else {
        multiply(sums, false, operands, weights[unit % 2], next, activations[unit % kBuffers]);
      }
    }
  }
}

// Where a tile of C goes, and what is added to it.
struct Output {
  Scalar* C;           // [M, N]
  const Scalar* bias;  // [N] or null
  int M, N;
  int row, channel;    // of the tile

  // Output vector u (+ bias) -> C: 16 bytes a lane, 128 contiguous bytes a row.
  __device__ __forceinline__ void write(int u, OutputVector sum, const Position& at) const {
    const int m = row + (at.warp_m * kBatchBlocks + u / 2) * 8 + 2 * at.pair + u % 2;
    const int n = channel + at.warp_n * 64 + at.group * 8;
    if (m >= M || n >= N) return;
    if (bias != nullptr) sum = sum + widened<Type>(*reinterpret_cast<const uint4*>(bias + n));
    *reinterpret_cast<uint4*>(C + static_cast<size_t>(m) * N + n) = rounded<Type>(sum);
  }
};

extern "C" __global__ void __launch_bounds__(kThreads + kProducerThreads, 1)
marlin_sparse(const Scalar* __restrict__ A,      // [M, K] row major, 16-byte aligned
              const uint4* __restrict__ W,       // [K / 64, N / 64, 96] vectors: packed blocks (layouts/marlin_sparse.py)
              const uint4* __restrict__ scales,  // [groups, N / 8] vectors of 8
              const Scalar* __restrict__ bias,   // [N] or null
              Scalar* __restrict__ C,            // [M, N] row major
              float4* partial_sums,              // [striped tiles + CTAs][kTileM · kTileN / 4]
              u64* arrivals,                     // [striped tiles]
              int M, int N, int K, int group_shift) {
  // The ring, then kTileM · kTileN · (kWarpsK - 1) floats, and a cluster's exchange. Bulk copies to places off 128 bytes are
  // slow: with stages 16 bytes off a product took an H200 up to a quarter longer.
  extern __shared__ __align__(128) uint4 shared[];
  __shared__ u64 barriers[2 * kStages];
  const Operands operands{A, W, scales, M, N, K, group_shift};
  const int row_tiles = (M + kTileM - 1) / kTileM, channel_tiles = (N + kTileN - 1) / kTileN;
  const auto tile_of = [&](const Segment& segment) { return tile_coordinates(segment.tile, row_tiles, channel_tiles); };
  const Ring ring(shared, barriers);
  if (threadIdx.x == 0) ring.initialize(kFullArrivals);
  __syncthreads();
  announce_to_cluster();
  launch_dependents();

  if (threadIdx.x >= kThreads) {
#if __CUDA_ARCH_FEAT_SM90_ALL
    if (kReallocate) setmaxnreg_dec<kProducerRegisters>();
#endif
    const int role = threadIdx.x - kThreads;
    const Stripes stripes(K / kTileK, row_tiles * channel_tiles);
    Cursor cursor;
    if (role < 32) {
      WeightFetcher fetcher(operands);
      for_each_segment(stripes, [&](const Segment& segment) {
        fetcher.aim(tile_of(segment).column * kTileN, segment.k_begin);
        fill(ring, cursor, fetcher, segment);
      });
    } else if (role < 32 + kActivationThreads) {
      wait_for_predecessor();  // weights do not depend on it, activations may
      ActivationFetcher fetcher(operands);
      for_each_segment(stripes, [&](const Segment& segment) {
        fetcher.aim(tile_of(segment).row * kTileM, segment.k_begin);
        fill(ring, cursor, fetcher, segment);
      });
    }
    leave_cluster();
    return;
  }

#if __CUDA_ARCH_FEAT_SM90_ALL
  if (kReallocate) setmaxnreg_inc<kComputeRegisters>();
#endif
  wait_for_predecessor();
  const Stripes stripes(K / kTileK, row_tiles * channel_tiles);
  const Position thread;
  const Places places(thread);
  const Workspace workspace{partial_sums, arrivals};
  RingReader reader(ring, thread.lane);
  Sums sums;
  for_each_segment(stripes, [&](const Segment& segment) {
    const TileCoordinates tile = tile_of(segment);
    const Output output{C, bias, M, N, tile.row * kTileM, tile.column * kTileN};
    const bool computes = output.channel + thread.warp_n * 64 < N;
    accumulate(sums, reader, segment.k_end - segment.k_begin, computes, places);
    const Position at = kAhead ? thread : Position();  // sixteen warps have no registers to keep it meanwhile
    const auto write = [&](int u, const OutputVector& sum) { output.write(u, sum, at); };
    float4* behind_ring = reinterpret_cast<float4*>(shared + kStages * kStageVectors);
    reduce_over_warps(sums, at, behind_ring);
    if (kCluster > 1) {
      add_in_cluster<true>(sums, behind_ring + kWarpReductionVectors, segment, workspace, at, write);
    } else if (segment.slices == 1 || kReductionAblated) {
      for_each_owned(sums, at, write);
    } else if (post_slice(sums, segment, workspace, at)) {
      add_slices(segment, workspace, at, write);
    }
  });
}
