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
#include "fragments.cuh"
#include "ptx.cuh"
#include "sparse_fetch.cuh"
#include "sparse_fragments.cuh"
#include "sparse_tile.cuh"
#if WARPGROUPS
#include "sparse_warpgroups.cuh"
#else
#include "sparse_warps.cuh"
#endif
// The reductions work on what the headers above say a tile is.
#include "cluster_reduction.cuh"
#include "reduction.cuh"
#include "stripes.cuh"

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
              int M, int N, int K, int group_shift,
              const __grid_constant__ TensorMap activation_map) {  // of A as (64, M, K / 64)
  // The ring, then what warps that split K exchange, then what a cluster does. Bulk copies to places off 128 bytes are
  // slow: with stages 16 bytes off a product took an H200 up to a quarter longer.
  extern __shared__ __align__(kStageLine * 16) uint4 shared[];
  __shared__ u64 barriers[2 * kStages];
  const Operands operands{A, &activation_map, W, scales, M, N, K, group_shift};
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
    } else if (role < 32 + ActivationFetcher::kThreads) {
      ActivationFetcher fetcher(operands);
      wait_for_predecessor();  // weights do not depend on it, activations may
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
  const Position at;
  const Places places(at);
  const Workspace workspace{partial_sums, arrivals};
  Reader reader(ring, at.lane);
  Sums sums;
  for_each_segment(stripes, [&](const Segment& segment) {
    const TileCoordinates tile = tile_of(segment);
    const Output output{C, bias, M, N, tile.row * kTileM, tile.column * kTileN};
    const bool computes = output.channel + at.warp_n * 64 < N;
    accumulate(sums, reader, segment.k_end - segment.k_begin, computes, places);
    const auto write = [&](int u, const OutputVector& sum) { output.write(u, sum, at); };
    float4* behind_ring = reinterpret_cast<float4*>(shared + kStages * kStageVectors);
    reduce_over_warps<kExchange>(sums, at, behind_ring);
    if (kCluster > 1) {
      add_in_cluster<SEVERAL_CLUSTERS>(sums, behind_ring + kExchangeVectors, segment, workspace, at, write);
    } else if (segment.slices == 1 || kReductionAblated) {
      for_each_owned(sums, at, write);
    } else if (post_slice(sums, segment, workspace, at)) {
      add_slices(segment, workspace, at, write);
    }
  });
}
