// MARLIN for few rows, on Hopper and later: the product of marlin.cu, from the same packed weights, where reading them is
// the limit.
//
//      W[k, n] = (code[k, n] - zero[k / g, n]) · scale[k / g, n]          A, C FP16 or BF16, sums FP32
//
// What is different: warps that only fetch keep up to 200 KiB on their way (ring_fetch.cuh, ring.cuh), so no barrier holds all
// warps up and the next output tile arrives while this one's sums are added up; up to 8 rows the weights stand on the left,
// which halves the tensor cores' work (ring_tile.cuh); and scales may go on a group's FP32 sums: 9 instructions for 8
// weights instead of 13. On an H200 a layer of 72k x 18k takes 195 us at M = 16, of which 167 are reading.
//
// Stripes, reduction, dequantisation and swizzle are marlin.cu's. Reading order: ring_tile.cuh, this file, ring_fetch.cuh.
#include "dependence.cuh"
#include "dequantise.cuh"
#include "fragments.cuh"
#include "ptx.cuh"
#include "ring_fetch.cuh"
#include "ring_tile.cuh"
// The reduction works on what the headers above say a tile is.
#include "reduction.cuh"
#include "stripes.cuh"

// What one step of a warp needs: 16 k of its rows, and 16 k of its 64 columns.
struct Fragments {
  u32 activations[kRowBlocks][kWeightsLeft ? 2 : 4];
  uint4 codes;
  uint4 scales;  // of the lane's eight channels; not used where sums are scaled
  u32 zeros;     // likewise, 4 bits each
};

__device__ __forceinline__ u32 word(const uint4& vector, int j) {
  return j == 0 ? vector.x : j == 1 ? vector.y : j == 2 ? vector.z : vector.w;
}

// Where a lane reads in a stage: bytes from its beginning. Steps are constants further on; only the swizzle of activations
// turns, and comes back after 128 bytes.
struct Places {
  static constexpr int kTurns = kSteps * kStepBlocks < 4 ? kSteps : kStepBlocks < 4 ? 4 / kStepBlocks : 1;
  u32 activations[kTurns];
  u32 codes, scales, zeros;

  __device__ explicit Places(const Position& at) {
    const int k_block = at.warp_k * kWarpBlocks, scale_row = k_block / kGroupBlocks;
    const int row = at.lane % kBlockRows, half = at.lane / kBlockRows % 2;
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      activations[turn] = swizzle<kARowVectors>(row, 2 * (k_block + turn * kStepBlocks) + half) * 16;
    }
    codes = (kAVectors + (k_block / 4 * kWarpsN + at.warp_n) * kBlockVectors + k_block % 4 * kStripVectors + at.lane) * 16;
    scales = (kAVectors + kBVectors + scale_row * kScaleRowVectors + at.warp_n * 8) * 16;
    zeros = (kAVectors + kBVectors + kScaleVectors) * 16 + (scale_row * kScaleRowVectors + at.warp_n * 8 + at.group) * 4;
  }

  static __device__ constexpr int activations_after(int step) { return step / kTurns * 128; }
  static __device__ constexpr int codes_after(int step) {
    return (step * kStepBlocks / 4 * kWarpsN * kBlockVectors + step * kStepBlocks % 4 * kStripVectors) * 16;
  }
  static __device__ constexpr int scale_rows_after(int step) { return step * kStepBlocks / kGroupBlocks; }
};
static_assert(kRuns ? kSteps % 4 == 0 || kSteps == 2 : kWarpsK <= 4, "a step's blocks lie in one packed block");

__device__ __forceinline__ uint4 load_vector(u32 address) {
  u32 words[4];
  ld_shared_v4_u32(words, address);
  return {words[0], words[1], words[2], words[3]};
}

__device__ __forceinline__ uint4 load_scales(u32 stage, int step, int group, const Places& places) {
  return load_vector(stage + places.scales + group * 16 + Places::scale_rows_after(step) * (kScaleRowVectors * 16));
}

// 16 k of a row block: 8 rows as a right operand, 16 as a left one.
__device__ __forceinline__ void load_operand(u32 (&right)[2], u32 address) { ldmatrix_x2(right, address); }
__device__ __forceinline__ void load_operand(u32 (&left)[4], u32 address) { ldmatrix_x4(left, address); }

// `before` are those of the step before, whose scales are this one's too inside a group.
__device__ __forceinline__ void load_fragments(Fragments& fragments, const Fragments& before, u32 stage, int step,
                                               const Places& places, const Position& at) {
  fragments.codes = load_vector(stage + places.codes + Places::codes_after(step));
  if (step % kGroupSteps == 0) {
    if (!kScaleSums) fragments.scales = load_scales(stage, step, at.group, places);
    if (kZeros) {
      fragments.zeros = ld_shared_u32(stage + places.zeros + Places::scale_rows_after(step) * (kScaleRowVectors * 4));
    }
  } else {
    fragments.scales = before.scales;
    fragments.zeros = before.zeros;
  }
  const u32 activations = stage + places.activations[step % Places::kTurns] + Places::activations_after(step);
#pragma unroll
  for (int m = 0; m < kRowBlocks; ++m) {
    load_operand(fragments.activations[m], activations + m * (kBlockRows * kARowVectors * 16));
  }
}

// The weights of word j: 16 columns, 16 k. [h][half of k] as two right operands, [half of k][h] as a left one.
using WordWeights = u32[2][2];

__device__ __forceinline__ void dequantise_word(WordWeights& weights, const Fragments& fragments, int j) {
  const Offset<Type> offset = kZeros ? Dequantiser<Type>::from_zeros(fragments.zeros, j) : Dequantiser<Type>::symmetric();
  const Type::Pair scales = pair_of<Type::Pair>(word(fragments.scales, j));
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const Offset<Type> own = !kZeros  ? offset
                             : h == 0 ? Offset<Type>{Type::low(offset.low), Type::low(offset.high)}
                                      : Offset<Type>{Type::high(offset.low), Type::high(offset.high)};
    u32 halves[2];
    dequantise<Type, !kScaleSums>(word(fragments.codes, j), h, own, scales, halves);
    weights[kWeightsLeft ? 0 : h][kWeightsLeft ? h : 0] = halves[0];
    weights[kWeightsLeft ? 1 : h][kWeightsLeft ? h : 1] = halves[1];
  }
}

// sum (+)= left · right.
__device__ __forceinline__ void product(float (&sum)[4], const u32 (&left)[4], const u32 (&right)[2], bool begins) {
  if (begins) {
    Type::mma_new(sum, left, right);
  } else {
    Type::mma(sum, left, right);
  }
}

// The products of word j with 8 rows, weights on the left, and with 16, weights on the right.
__device__ __forceinline__ void products(float (*sums)[4], int j, const WordWeights& weights, const u32 (&rows)[2],
                                         bool begins) {
  product(sums[j], {weights[0][0], weights[0][1], weights[1][0], weights[1][1]}, rows, begins);
}

__device__ __forceinline__ void products(float (*sums)[4], int j, const WordWeights& weights, const u32 (&rows)[4],
                                         bool begins) {
  product(sums[2 * j], rows, weights[0], begins);
  product(sums[2 * j + 1], rows, weights[1], begins);
}

// A step's products. The weights of word j + 1 (of the next step after the last) are dequantised while the tensor cores
// work on those of word j, so neither waits for the other (paper 3.4).
__device__ __forceinline__ void multiply(Sums& sums, bool begins, WordWeights (&weights)[2], const Fragments& fragments,
                                         const Fragments& next) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    dequantise_word(weights[(j + 1) % 2], j < 3 ? fragments : next, (j + 1) % 4);
#pragma unroll
    for (int m = 0; m < kRowBlocks; ++m) {
      products(sums[m], j, weights[j % 2], fragments.activations[m], begins);
    }
  }
}

// sums += scale · part, a group's sums of codes.
struct GroupScales {
  uint4 even, odd;  // of a lane's sums in even and odd places, where weights stand on the right; else all in `even`
};

__device__ __forceinline__ GroupScales load_group_scales(u32 stage, int step, const Places& places, const Position& at) {
  if (kWeightsLeft) return {load_scales(stage, step, at.group, places), {}};
  return {load_scales(stage, step, 2 * at.pair, places), load_scales(stage, step, 2 * at.pair + 1, places)};
}

__device__ __forceinline__ void add_group(Sums& sums, const Sums& part, const GroupScales& scales) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
#ifdef ABLATE_SCALES
    const float2 low = {1, 1}, high = {1, 1};
#else
    const float2 low = Type::to_floats(pair_of<Type::Pair>(word(scales.even, j)));
    const float2 high = Type::to_floats(pair_of<Type::Pair>(word(kWeightsLeft ? scales.even : scales.odd, j)));
#endif
#pragma unroll
    for (int m = 0; m < kRowBlocks; ++m) {
      if constexpr (kWeightsLeft) {
        sums[m][j][0] += low.x * part[m][j][0], sums[m][j][1] += low.x * part[m][j][1];
        sums[m][j][2] += low.y * part[m][j][2], sums[m][j][3] += low.y * part[m][j][3];
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          sums[m][2 * j][i] += (i % 2 ? high.x : low.x) * part[m][2 * j][i];
          sums[m][2 * j + 1][i] += (i % 2 ? high.y : low.y) * part[m][2 * j + 1][i];
        }
      }
    }
  }
}

// The products of one segment, summed in registers.
__device__ __forceinline__ void accumulate(Sums& sums, RingReader& reader, int k_tiles, const Places& places,
                                           const Position& at) {
#pragma unroll
  for (int u = 0; u < kVectors; ++u) put_vector(sums, u, {});
  Sums part;
  Fragments fragments[2];
  WordWeights weights[2];
  u32 stage = reader.begin();
  load_fragments(fragments[0], fragments[1], stage, 0, places, at);
  dequantise_word(weights[0], fragments[0], 0);
#pragma unroll 1
  for (; k_tiles > 0; --k_tiles) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      Fragments& next = fragments[(step + 1) % 2];
      const bool group_ends = (step + 1) % kGroupSteps == 0;
      GroupScales scales;
      if (kScaleSums && group_ends) scales = load_group_scales(stage, step, places, at);
      if (step == kSteps - 1) stage = reader.turn(k_tiles > 1);
      if (step < kSteps - 1 || k_tiles > 1) {
        load_fragments(next, fragments[step % 2], stage, (step + 1) % kSteps, places, at);
      }
      if constexpr (kScaleSums) {
        multiply(part, step % kGroupSteps == 0, weights, fragments[step % 2], next);
        if (group_ends) add_group(sums, part, scales);
      } else {
        multiply(sums, false, weights, fragments[step % 2], next);
      }
    }
  }
  settle(sums, at);
}

// Where a tile of C goes, and what is added to it.
struct Output {
  Scalar* C;           // [M, N]
  const Scalar* bias;  // [N] or null
  int M, N;
  int row, column;     // of the tile

  // Output vector u (+ bias) -> C: 16 bytes a lane, 64 contiguous bytes a row.
  __device__ __forceinline__ void write(int u, OutputVector sum, const Position& at) const {
    const int m = row + row_of(u, at);
    const int n = column + at.warp_n * kStripColumns + column_of(u, at);
    if (m >= M || n >= N) return;
    if (bias != nullptr) sum = sum + widened<Type>(*reinterpret_cast<const uint4*>(bias + n));
    *reinterpret_cast<uint4*>(C + static_cast<size_t>(m) * N + n) = rounded<Type>(sum);
  }
};

extern "C" __global__ void __launch_bounds__(kThreads + kFetchThreads, CTAS_PER_SM)
marlin_ring(const Scalar* __restrict__ A,      // [M, K] row major, 16-byte aligned
            const uint4* __restrict__ W,       // [K / 64, N / 64, 4, 32] vectors of 32 codes (layouts/marlin.py)
            const uint4* __restrict__ scales,  // [groups, N / 64, 8] vectors of 8
            const uint4* __restrict__ zeros,   // [groups, N / 64, 2] vectors of 32 4-bit zero points, or null
            const Scalar* __restrict__ bias,   // [N] or null
            Scalar* __restrict__ C,            // [M, N] row major
            float4* partial_sums,              // [striped tiles + CTAs][kTileM · kTileN / 4]
            u64* arrivals,                     // [striped tiles]
            int M, int N, int K, int group_shift) {
  extern __shared__ uint4 shared[];  // the ring, then what warps that split K exchange
  const Operands operands{A, W, scales, zeros, M, N, K, group_shift};
  const int row_tiles = (M + kTileM - 1) / kTileM, column_tiles = (N + kTileN - 1) / kTileN;
  const Stripes stripes(K / kTileK, row_tiles * column_tiles);
  const auto tile_of = [&](const Segment& segment) { return tile_coordinates(segment.tile, row_tiles, column_tiles); };
  __shared__ u64 barriers[2 * kStages];
  const Ring ring(shared, barriers);
  if (threadIdx.x == 0) ring.initialize(kFullArrivals);
  __syncthreads();
  launch_dependents();

  if (threadIdx.x >= kThreads) {
    const int role = threadIdx.x / 32 - kWarps;
    Cursor cursor;
    if (role == 0) {
      WeightFetcher fetcher(operands);
      for_each_segment(stripes, [&](const Segment& segment) {
        fetcher.aim(tile_of(segment).column * kTileN, segment.k_begin);
        fill(ring, cursor, fetcher, segment);
      });
    } else if (role <= 2) {
      wait_for_predecessor();  // weights do not depend on it, activations may
      ActivationFetcher fetcher(operands);
      for_each_segment(stripes, [&](const Segment& segment) {
        fetcher.aim(tile_of(segment).row * kTileM, segment.k_begin);
        fill(ring, cursor, fetcher, segment);
      });
    }
    return;
  }

  wait_for_predecessor();
  const Position at;
  const Places places(at);
  const Workspace workspace{partial_sums, arrivals};
  RingReader reader(ring, at.lane);
  Sums sums;
  for_each_segment(stripes, [&](const Segment& segment) {
    const TileCoordinates tile = tile_of(segment);
    const Output output{C, bias, M, N, tile.row * kTileM, tile.column * kTileN};
    const auto write = [&](int u, const OutputVector& sum) { output.write(u, sum, at); };
    accumulate(sums, reader, segment.k_end - segment.k_begin, places, at);
    reduce_over_warps<kExchange>(sums, at, reinterpret_cast<float4*>(shared + kStages * kStageVectors));
    if (segment.slices == 1 || kReductionAblated) {
      for_each_owned(sums, at, write);
    } else if (post_slice(sums, segment, workspace, at)) {
      add_slices(segment, workspace, at, write);
    }
  });
}
