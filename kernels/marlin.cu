// MARLIN: C[M, N] = A[M, K] · W[K, N] (+ bias[N]) with 4-bit W, for batches that leave a GPU bound by reading W.
//
//      W[k, n] = (code[k, n] - zero[k / g, n]) · scale[k / g, n]          A, C FP16 or BF16, sums FP32
//
//            N: kTileN each                       A CTA takes k tiles of one output tile, then of the next
//          +-----+-----+-----+                    (stripes.cuh), keeping kStages of them on their way (pipeline.cuh).
//       K  |  0  |  1  |  2  |                    A warp loads 16 x 64 weights as one 16-byte vector a lane, turns
//       |  |  0  |  1  |  3  |  <- one CTA's      them into tensor-core operands in registers (dequantise.cuh),
//       v  |  1  |  2  |  3  |     stripe         while the vector and the activations of the next step are loaded.
//          +-----+-----+-----+                    Sums meet in a fixed order (reduction.cuh), C is written once.
//
// What shapes it: 4.125 bits a weight (g = 128) make 3.88 times less to read than FP16, if 64 KiB a SM are always in
// flight and 13 instructions per 8 weights hide behind them (H200: 167 us of 72k x 18k are reading). From M = 64 on
// the tensor cores are the limit: a weight is dequantised once for 64 rows.
//
// Reading order: tile.cuh, fragments.cuh, this file, dequantise.cuh, pipeline.cuh, stripes.cuh, reduction.cuh.
#include "dequantise.cuh"
#include "fragments.cuh"
#include "pipeline.cuh"
#include "ptx.cuh"
#include "reduction.cuh"
#include "stripes.cuh"
#include "tile.cuh"

// What one step of a warp needs: 16 k of its rows, and 16 k of its 64 columns.
struct Fragments {
  u32 activations[kRowBlocks][4];
  uint4 codes;
  uint4 scales;  // of the eight products, in their order
  u32 zeros;     // likewise, 4 bits each
};

__device__ __forceinline__ u32 word(const uint4& vector, int j) {
  return j == 0 ? vector.x : j == 1 ? vector.y : j == 2 ? vector.z : vector.w;
}

__device__ __forceinline__ void load_fragments(Fragments& fragments, const uint4* stage, int step, const Position& at) {
  const int k_block = step * kWarpsK + at.warp_k;
  const int row = at.warp_m * kRowBlocks * 16 + at.lane % 16;
  const u32 activations = shared_address(stage + swizzle<kARowVectors>(row, 2 * k_block + at.lane / 16));
#pragma unroll
  for (int m = 0; m < kRowBlocks; ++m) {
    ldmatrix_x4(fragments.activations[m], activations + m * 16 * kARowVectors * 16);
  }
  const uint4* weights = stage + kAVectors;
  fragments.codes = weights[(k_block / 4 * kWarpsN + at.warp_n) * kBlockVectors + k_block % 4 * kStripVectors + at.lane];
  const int scale_row = k_block * kScaleRows / (kTileK / 16);
  const uint4* scales = weights + kBVectors;
  fragments.scales = scales[scale_row * kScaleRowVectors + at.warp_n * 8 + at.group];
  if (kZeros) {
    const u32* zeros = reinterpret_cast<const u32*>(scales + kScaleVectors);
    fragments.zeros = zeros[scale_row * kScaleRowVectors + at.warp_n * 8 + at.group];
  }
}

// The tensor-core operands of word j: two products, 16 k of 16 columns.
using WordWeights = u32[2][2];

__device__ __forceinline__ void dequantise_word(WordWeights& weights, const Fragments& fragments, int j) {
  const Offset<Type> offset = kZeros ? Dequantiser<Type>::from_zeros(fragments.zeros, j) : Dequantiser<Type>::symmetric();
  const Type::Pair scales = pair_of<Type::Pair>(word(fragments.scales, j));
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const Offset<Type> own = !kZeros  ? offset
                             : h == 0 ? Offset<Type>{Type::low(offset.low), Type::low(offset.high)}
                                      : Offset<Type>{Type::high(offset.low), Type::high(offset.high)};
    dequantise<Type>(word(fragments.codes, j), h, own, scales, weights[h]);
  }
}

// A step's products. The weights of word j + 1 (of the next step after the last) are dequantised while the tensor cores
// work on those of word j, so neither waits for the other (paper 3.4).
__device__ __forceinline__ void multiply(Accumulator (&sums)[kRowBlocks], WordWeights (&weights)[2],
                                         const Fragments& fragments, const Fragments& next) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    dequantise_word(weights[(j + 1) % 2], j < 3 ? fragments : next, (j + 1) % 4);
#pragma unroll
    for (int m = 0; m < kRowBlocks; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) Type::mma(sums[m][2 * j + h], fragments.activations[m], weights[j % 2][h]);
    }
  }
}

// The products of one segment, summed in registers.
__device__ __forceinline__ void accumulate(Accumulator (&sums)[kRowBlocks], Pipeline& pipeline, int k_tiles,
                                           const Position& at) {
#pragma unroll
  for (int m = 0; m < kRowBlocks; ++m) {
#pragma unroll
    for (int b = 0; b < kProducts; ++b) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[m][b][i] = 0;
    }
  }
  Fragments fragments[2];
#pragma unroll 1
  for (int stage = 0; stage < kStages - 1; ++stage) pipeline.fetch();
  pipeline.wait();
  const uint4* stage = pipeline.next_stage();
  load_fragments(fragments[0], stage, 0, at);
  WordWeights weights[2];
  dequantise_word(weights[0], fragments[0], 0);
  for (; k_tiles > 0; --k_tiles) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      if (step == kSteps - 1) {
        pipeline.wait();
        stage = pipeline.next_stage();
      }
      load_fragments(fragments[(step + 1) % 2], stage, (step + 1) % kSteps, at);
      if (step == 0) pipeline.fetch();
      multiply(sums, weights, fragments[step % 2], fragments[(step + 1) % 2]);
    }
  }
  pipeline.drain();
}

// Where a tile of C goes, and what is added to it.
struct Output {
  Scalar* C;           // [M, N]
  const Scalar* bias;  // [N] or null
  int M, N;
  int row, column;     // of the tile

  // Output vector u (+ bias) -> C: 16 bytes a lane, 64 contiguous bytes a row.
  __device__ __forceinline__ void write(int u, OutputVector sum, const Position& at) const {
    const int m = row + (at.warp_m * kRowBlocks + u / 4) * 16 + u / 2 % 2 * 8 + at.group;
    const int n = column + at.warp_n * kStripColumns + u % 2 * 32 + at.pair * 8;
    if (m >= M || n >= N) return;
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
  Accumulator sums[kRowBlocks];

  const auto compute = [&](const Segment& segment) {
    const TileCoordinates tile = tile_coordinates(segment.tile, row_tiles, column_tiles);
    const Output output{C, bias, M, N, tile.row * kTileM, tile.column * kTileN};
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
