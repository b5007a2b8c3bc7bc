// Sparse-MARLIN: C[M, N] = A[M, K] · W[K, N] (+ bias[N]) with 2:4-sparse 4-bit W, on sparse tensor cores.
//
//      W[k, n] = (code[k, n] - 8) · scale[k / g, n]  for the two k of every four that are kept, else 0
//      A, C FP16 or BF16, sums FP32;  computed as C^T = W^T · A^T, because only the left operand may be sparse
//
//            N: kTileN each                       As in marlin.cu, a CTA takes k tiles of one output tile, then of
//          +-----+-----+-----+                    the next (stripes.cuh). Two or three warps keep kStages of them on their
//       K  |  0  |  1  |  2  |                    way (sparse_pipeline.cuh); the others turn 64 channels x 32 k at a time,
//       |  |  0  |  1  |  3  |  <- one CTA's      one 16-byte vector of codes and half a one of positions a lane, into
//       v  |  1  |  2  |  3  |     stripe         tensor-core operands (dequantise.cuh, sparse_fragments.cuh). Sums meet
//          +-----+-----+-----+                    in a fixed order (reduction.cuh), C is written once.
//
// What shapes it: 3.125 bits a weight (2 of codes, 1 of positions, 16 / 128 of scales) make 5.12 times less to read than
// FP16. A stored code costs what a dense one does, but there are half as many: 60 instructions for 64 x 32 weights at
// M <= 8, a third of what an H200 can issue while it reads them.
#include "dequantise.cuh"
#include "fragments.cuh"
#include "ptx.cuh"
#include "sparse_fragments.cuh"
#include "sparse_pipeline.cuh"
#include "sparse_tile.cuh"
// The reductions work on what the headers above say a tile is.
#include "cluster_reduction.cuh"
#include "reduction.cuh"
#include "stripes.cuh"

// What a warp needs of the weights for one unit: 64 channels x 32 k.
struct Weights {
  uint4 codes;      // word j: the non-zeros of product j
  uint2 positions;  // x of the products 0 and 1, y of 2 and 3
  uint4 scales;     // of the lane group's eight channels
};

using Activations = u32[kBatchBlocks][4];

__device__ __forceinline__ u32 word(const uint4& vector, int j) {
  return j == 0 ? vector.x : j == 1 ? vector.y : j == 2 ? vector.z : vector.w;
}

// Unit `unit` of a warp's share of a stage.
__device__ __forceinline__ void load_weights(Weights& weights, const uint4* stage, int unit, const Position& at) {
  const int k_block = unit / 2 * kWarpsK + at.warp_k;
  const uint4* block = stage + kAVectors + (k_block * kWarpsN + at.warp_n) * kBlockSparseVectors;
  weights.codes = block[unit % 2 * kUnitVectors + at.lane];
  weights.positions = reinterpret_cast<const uint2*>(block + 2 * kUnitVectors)[unit % 2 * 32 + at.lane];
  const int scale_row = k_block * kScaleRows / (kTileK / 64);
  weights.scales = stage[kAVectors + kBVectors + scale_row * kScaleRowVectors + at.warp_n * 8 + at.group];
}

__device__ __forceinline__ void load_activations(Activations& activations, const uint4* stage, int unit, const Position& at) {
  const int k_unit = 2 * (unit / 2 * kWarpsK + at.warp_k) + unit % 2;
  const int row = at.warp_m * kBatchBlocks * 8 + at.lane % 8;
  const u32 address = shared_address(stage + swizzle<kARowVectors>(row, 4 * k_unit + at.lane / 8));
#pragma unroll
  for (int n = 0; n < kBatchBlocks; ++n) ldmatrix_x4(activations[n], address + n * 8 * kARowVectors * 16);
}

// The left operand of product j.
__device__ __forceinline__ void dequantise_product(u32 (&operand)[4], const Weights& weights, int j) {
  const Type::Pair scales = pair_of<Type::Pair>(word(weights.scales, j));
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    u32 halves[2];
    dequantise<Type>(word(weights.codes, j), h, Dequantiser<Type>::symmetric(), scales, halves);
    operand[h] = halves[0];
    operand[h + 2] = halves[1];
  }
}

// Dequantises the next product's weights while the tensor cores work on those of this one (paper 3.4).
__device__ __forceinline__ void multiply(Sums& sums, const Weights& weights, const Activations& activations) {
  u32 operands[2][4];
  dequantise_product(operands[0], weights, 0);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (j < 3) dequantise_product(operands[(j + 1) % 2], weights, j + 1);
    const u32 positions = j < 2 ? weights.positions.x : weights.positions.y;
#pragma unroll
    for (int n = 0; n < kBatchBlocks; ++n) {
      if (j % 2 == 0) {
        mma_sp<0>(Type{}, sums[n][j], operands[j % 2], activations[n], positions);
      } else {
        mma_sp<1>(Type{}, sums[n][j], operands[j % 2], activations[n], positions);
      }
    }
  }
}

// The products of one segment, summed in registers; reads `k_tiles` stages from the cursor on and releases them. A warp
// whose channels lie beyond N only keeps the ring turning.
__device__ __forceinline__ void accumulate(Sums& sums, const Ring& ring, Cursor& cursor, int k_tiles, bool computes,
                                           const Position& at) {
#pragma unroll
  for (int u = 0; u < kVectors; ++u) put_vector(sums, u, {});
  if (!computes) {
    for (; k_tiles > 0; --k_tiles) {
      ring.wait_full(cursor);
      ring.release(cursor, at.lane);
      cursor.advance();
    }
    return;
  }
  constexpr int kBuffers = kBatchBlocks <= (kWarps * CTAS_PER_SM > 8 ? 1 : 4) ? 2 : 1;  // of activations: registers
  Weights weights[2];
  Activations activations[kBuffers];
  ring.wait_full(cursor);
  load_weights(weights[0], ring.stage(cursor), 0, at);
  if (kBuffers == 2) load_activations(activations[0], ring.stage(cursor), 0, at);
#pragma unroll 1
  for (; k_tiles > 0; --k_tiles) {
    const Cursor current = cursor;
    cursor.advance();
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
      const int next = (unit + 1) % 2;
      if (kBuffers == 1) load_activations(activations[0], ring.stage(current), unit, at);
      if (unit + 1 < kUnits) {
        load_weights(weights[next], ring.stage(current), unit + 1, at);
        if (kBuffers == 2) load_activations(activations[next], ring.stage(current), unit + 1, at);
      } else if (k_tiles > 1) {
        ring.wait_full(cursor);
        load_weights(weights[0], ring.stage(cursor), 0, at);
        if (kBuffers == 2) load_activations(activations[0], ring.stage(cursor), 0, at);
      }
      multiply(sums, weights[unit % 2], activations[unit % kBuffers]);
    }
    ring.release(current, at.lane);
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

// A dependent launch starts while its predecessor still runs; from here on the predecessor's results are there. Weights
// are fetched before.
__device__ __forceinline__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  griddepcontrol_launch_dependents();
  griddepcontrol_wait();
#endif
}

extern "C" __global__ void __launch_bounds__(kThreads + kProducerThreads, CTAS_PER_SM)
marlin_sparse(const Scalar* __restrict__ A,      // [M, K] row major, 16-byte aligned
              const uint4* __restrict__ W,       // [K / 64, N / 64, 96] vectors: packed blocks (layouts/marlin_sparse.py)
              const uint4* __restrict__ scales,  // [groups, N / 8] vectors of 8
              const Scalar* __restrict__ bias,   // [N] or null
              Scalar* __restrict__ C,            // [M, N] row major
              float4* partial_sums,              // [striped tiles + CTAs][kTileM · kTileN / 4]
              u64* arrivals,                     // [striped tiles]
              int M, int N, int K, int group_shift) {
  extern __shared__ uint4 shared[];  // the ring, then kTileM · kTileN · (kWarpsK - 1) floats, and a cluster's exchange
  __shared__ u64 barriers[2 * kStages];
  const Operands operands{A, W, scales, M, N, K, group_shift};
  const Ring ring(shared, barriers);
  if (threadIdx.x == 0) ring.initialize();
  __syncthreads();
  announce_to_cluster();

  const int row_tiles = (M + kTileM - 1) / kTileM, channel_tiles = (N + kTileN - 1) / kTileN;
  const auto tile_of = [&](const Segment& segment) { return tile_coordinates(segment.tile, row_tiles, channel_tiles); };

  if (threadIdx.x >= kThreads) {
#if __CUDA_ARCH_FEAT_SM90_ALL
    if (kReallocate) setmaxnreg_dec<kProducerRegisters>();
#endif
    const int role = threadIdx.x - kThreads;
    const Stripes stripes(K / kTileK, row_tiles * channel_tiles);
    Producer producer(operands, ring);
    if (role < 32) {
      for_each_segment(stripes, [&](const Segment& segment) {
        producer.produce_weights(tile_of(segment).column * kTileN, segment.k_begin, segment.k_end);
      });
    } else if (role < 32 + kActivationThreads) {
      wait_for_predecessor();
      for_each_segment(stripes, [&](const Segment& segment) {
        producer.produce_activations(tile_of(segment).row * kTileM, segment.k_begin, segment.k_end);
      });
    }
    leave_cluster();
    return;
  }

  wait_for_predecessor();
#if __CUDA_ARCH_FEAT_SM90_ALL
  if (kReallocate) setmaxnreg_inc<kComputeRegisters>();
#endif
  const Stripes stripes(K / kTileK, row_tiles * channel_tiles);
  const Position at;
  const Workspace workspace{partial_sums, arrivals};
  Cursor cursor;
  Sums sums;
  for_each_segment(stripes, [&](const Segment& segment) {
    const TileCoordinates tile = tile_of(segment);
    const Output output{C, bias, M, N, tile.row * kTileM, tile.column * kTileN};
    const auto write = [&](int u, const OutputVector& sum) { output.write(u, sum, at); };
    const bool computes = output.channel + at.warp_n * 64 < N;
    accumulate(sums, ring, cursor, segment.k_end - segment.k_begin, computes, at);
    float4* behind_ring = reinterpret_cast<float4*>(shared + kStages * kStageVectors);
    reduce_over_warps(sums, at, behind_ring);
    if (kCluster > 1) {
      add_in_cluster(sums, behind_ring + kWarpReductionVectors, at, write);
    } else if (segment.slices == 1) {
      for_each_owned(sums, at, write);
    } else if (post_slice(sums, segment, workspace, at)) {
      add_slices(segment, workspace, at, write);
    }
  });
}
