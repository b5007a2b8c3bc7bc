// MARLIN: C[M, N] = A[M, K] · W[K, N] (+ bias[N]) with 4-bit W, for batches that leave a GPU bound by reading W.
//
//      W[k, n] = (code[k, n] - zero[k / g, n]) · scale[k / g, n]          A, C FP16 or BF16, sums FP32
//
//            N: kTileN each                       A CTA takes k tiles of one output tile, then of the next
//          +-----+-----+-----+                    (stripes.cuh), keeping kStages of them on their way (pipeline.cuh).
//       K  |  0  |  1  |  2  |                    A warp loads 16 x 64 weights as one 16-byte vector a lane, turns
//       |  |  0  |  1  |  3  |  <- one CTA's      them into tensor-core operands in registers (codes.cuh),
//       v  |  1  |  2  |  3  |     stripe         while the vector and the activations of the next step are loaded.
//          +-----+-----+-----+                    Sums meet in a fixed order (reduction.cuh), C is written once.
//
// What shapes it: 4.125 bits a weight (g = 128) make 3.88 times less to read than FP16, if 64 KiB a SM are always in
// flight and 9 instructions per 8 weights hide behind them (H200: 167 us of 72k x 18k are reading). From M = 64 on
// the tensor cores are the limit: a weight is dequantised once for up to 72 rows.
//
// Reading order: tile.cuh, fragments.cuh, this file, products.cuh, codes.cuh, pipeline.cuh, stripes.cuh, sums.cuh,
// reduction.cuh.
#include "pipeline.cuh"
#include "ptx.cuh"
#include "tile.cuh"
// These work on what the headers above say a tile is.
#include "products.cuh"
#include "reduction.cuh"
#include "stripes.cuh"

// Scales are read again at each step, also inside a group: kept, they cost the order in which ptxas puts dequantisation between
// the products (73728 x 18432 at M = 64 takes 13 % longer on an H200).
__device__ __forceinline__ void load_fragments(Fragments& fragments, const uint4* stage, int step, const Position& at) {
  const int k_block = step * kWarpsK + at.warp_k;
  const int row = at.warp_m * kRowBlocks * 8 + operand_row(at.lane);
  load_rows<kARowVectors>(fragments.rows, shared_address(stage + swizzle<kARowVectors>(row, 2 * k_block + operand_half(at.lane))));
  const uint4* weights = stage + kAVectors;
  fragments.codes = weights[(k_block / 4 * kWarpsN + at.warp_n) * kBlockVectors + k_block % 4 * kStripVectors + at.lane];
  const int place = k_block * kScaleRows / (kTileK / 16) * kScaleRowVectors + at.warp_n * 8 + at.group;
  const uint4* scales = weights + kBVectors;
  set_factors(fragments.factors, scales[place], kZeros ? reinterpret_cast<const u32*>(scales + kScaleVectors)[place] : 0);
}

// The products of one segment, summed in registers.
__device__ __forceinline__ void accumulate(Sums& sums, Pipeline& pipeline, int k_tiles, const Position& at) {
#pragma unroll
  for (int u = 0; u < kVectors; ++u) put_vector(sums, u, {});
  Fragments fragments[2];
#pragma unroll 1
  for (int stage = 0; stage < kStages - 1; ++stage) pipeline.fetch();
  pipeline.wait();
  const uint4* stage = pipeline.next_stage();
  load_fragments(fragments[0], stage, 0, at);
  WordWeights weights[2];
  dequantise_first(weights[0], fragments[0]);
  for (; k_tiles > 0; --k_tiles) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      if (step == kSteps - 1) {
        pipeline.wait();
        stage = pipeline.next_stage();
      }
      Fragments& next = fragments[(step + 1) % 2];
      load_fragments(next, stage, (step + 1) % kSteps, at);
      if (step == 0) pipeline.fetch();
      multiply(sums, false, weights, fragments[step % 2], next);
    }
  }
  pipeline.drain();
  settle(sums, at);
}

// Where a tile of C goes, and what is added to it.
struct Output {
  Scalar* C;           // [M, N]
  const Scalar* bias;  // [N] or null
  float unit;          // of the sums
  int M, N;
  int row, column;     // of the tile

  // Output vector u · unit (+ bias) -> C: 16 bytes a lane, 64 contiguous bytes a row.
  __device__ __forceinline__ void write(int u, OutputVector sum, const Position& at) const {
    const int m = row + row_of(u, at), n = column + at.warp_n * kStripColumns + column_of(u, at);
    if (m >= M || n >= N) return;
    sum = sum * unit;
    if (bias != nullptr) sum = sum + widened<Type>(*reinterpret_cast<const uint4*>(bias + n));
    *reinterpret_cast<uint4*>(C + static_cast<size_t>(m) * N + n) = rounded<Type>(sum);
  }
};

// A dependent launch may start before its predecessor's results are in memory; from here on they are. Nothing triggers
// it early: CTAs of two launches would share SMs unevenly.
__device__ __forceinline__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  griddepcontrol_wait();
#endif
}

extern "C" __global__ void __launch_bounds__(kThreads, CTAS_PER_SM)
marlin(const Scalar* __restrict__ A,      // [M, K] row major, 16-byte aligned
       const uint4* __restrict__ W,       // [K / 64, N / 64, 4, 32] vectors of 32 codes (layouts/marlin.py)
       const uint4* __restrict__ scales,  // [groups, N / 64, 8] vectors of 8
       const uint4* __restrict__ zeros,   // [groups, N / 64, 2] vectors of 32 4-bit zero points, or null
       const float* __restrict__ unit,    // [1], of the scales
       const Scalar* __restrict__ bias,   // [N] or null
       Scalar* __restrict__ C,            // [M, N] row major
       float4* partial_sums,              // [striped tiles + CTAs][kTileM · kTileN / 4]
       u64* arrivals,                     // [striped tiles]
       int M, int N, int K, int group_shift) {
  extern __shared__ uint4 shared[];
  const Position at;
  const Operands operands{A, W, scales, zeros, M, N, K, group_shift};
  const Workspace workspace{partial_sums, arrivals};
  const int row_tiles = (M + kTileM - 1) / kTileM, column_tiles = (N + kTileN - 1) / kTileN;
  const Stripes stripes(K / kTileK, row_tiles * column_tiles);
  Pipeline pipeline(operands, shared);
  Sums sums;
  const float unit_of_sums = *unit;

  const auto compute = [&](const Segment& segment) {
    const TileCoordinates tile = tile_coordinates(segment.tile, row_tiles, column_tiles);
    const Output output{C, bias, unit_of_sums, M, N, tile.row * kTileM, tile.column * kTileN};
    const auto write = [&](int u, const OutputVector& sum) { output.write(u, sum, at); };
    pipeline.aim(output.row, output.column, segment.k_begin, segment.k_end);
    accumulate(sums, pipeline, segment.k_end - segment.k_begin, at);
    reduce_over_warps(sums, at, reinterpret_cast<float4*>(shared));
    if (segment.slices == 1 || kReductionAblated) {
      for_each_owned(sums, at, write);
    } else if (post_slice(sums, segment, workspace, at)) {
      add_slices(segment, workspace, at, write);
    }
  };

  wait_for_predecessor();
  for_each_segment(stripes, compute);
}
