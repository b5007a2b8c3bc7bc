// MARLIN on Hopper and later: the product of marlin.cu, from the same packed weights, with warps that only fetch.
//
//      W[k, n] = (code[k, n] - zero[k / g, n]) · scale[k / g, n]          A, C FP16 or BF16, sums FP32
//
// What is different: those warps keep up to 200 KiB on their way (ring_fetch.cuh, ring.cuh), so no barrier holds all warps up,
// the next output tile arrives while this one's sums are added up, and no address is worked out between products. For few rows
// scales may go on a group's FP32 sums instead of the weights. On an H200 a layer of 72k x 18k takes 174 us at M = 16, of which
// 167 are reading.
//
// Stripes, products, reduction, dequantisation and swizzle are marlin.cu's. Reading order: ring_tile.cuh, this file,
// ring_fetch.cuh.
#include "dependence.cuh"
#include "ptx.cuh"
#include "ring_fetch.cuh"
#include "ring_tile.cuh"
// These work on what the headers above say a tile is.
#include "cluster_reduction.cuh"
#include "products.cuh"
#include "reduction.cuh"
#include "stripes.cuh"

// Where a lane reads in a stage: bytes from its beginning. Steps are constants further on; only the swizzle of activations
// turns, and comes back with the next panel.
struct Places {
  static constexpr int kTurns = kSteps * kStepBlocks < 4 ? kSteps : kStepBlocks < 4 ? 4 / kStepBlocks : 1;
  u32 rows[kTurns];
  u32 codes, scales, zeros;

  __device__ explicit Places(const Position& at) {
    const int k_block = at.warp_k * kWarpBlocks, scale_row = k_block / kGroupBlocks;
    const int row = at.warp_m * kRowBlocks * 8 + operand_row(at.lane), half = operand_half(at.lane);
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int block = k_block + turn * kStepBlocks;
      rows[turn] = (block / 4 * kPanelVectors + swizzle<8>(row, 2 * (block % 4) + half)) * 16;
    }
    codes = (kAVectors + (k_block / 4 * kWarpsN + at.warp_n) * kBlockVectors + k_block % 4 * kStripVectors + at.lane) * 16;
    scales = (kAVectors + kBVectors + scale_row * kScaleRowVectors + at.warp_n * 8) * 16;
    zeros = (kAVectors + kBVectors + kScaleVectors) * 16 + (scale_row * kScaleRowVectors + at.warp_n * 8 + at.group) * 4;
  }

  static __device__ constexpr int rows_after(int step) { return step / kTurns * (kTurns * kStepBlocks / 4) * kPanelVectors * 16; }
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

// 72 rows leave no registers for the scales of two steps: those of the step before are kept inside a group.
constexpr bool kKeepFactors = kRowBlocks > 8;

// `before` are those of the step before.
__device__ __forceinline__ void load_fragments(Fragments& fragments, const Fragments& before, u32 stage, int step,
                                               const Places& places, const Position& at) {
  fragments.codes = load_vector(stage + places.codes + Places::codes_after(step));
  if (!kKeepFactors || step % kGroupSteps == 0) {
    const uint4 scales = kScaleSums ? uint4{} : load_scales(stage, step, at.group, places);
    const u32 after = Places::scale_rows_after(step) * (kScaleRowVectors * 4);
    set_factors(fragments.factors, scales, kZeros ? ld_shared_u32(stage + places.zeros + after) : 0);
  } else {
    fragments.factors = before.factors;
  }
  load_rows<8>(fragments.rows, stage + places.rows[step % Places::kTurns] + Places::rows_after(step));
}

// sums += scale · part, a group's sums of codes.
__device__ __forceinline__ void add_group(Sums& sums, const Sums& part, const uint4& scales) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
#ifdef ABLATE_SCALES
    const float2 scale = {1, 1};
#else
    const float2 scale = Type::to_floats(pair_of<Type::Pair>(word(scales, j)));
#endif
#pragma unroll
    for (int m = 0; m < kRowBlocks; ++m) {
      sums[m][j][0] += scale.x * part[m][j][0], sums[m][j][1] += scale.x * part[m][j][1];
      sums[m][j][2] += scale.y * part[m][j][2], sums[m][j][3] += scale.y * part[m][j][3];
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
  bool full = false;  // the next stage, as far as known
  load_fragments(fragments[0], fragments[1], stage, 0, places, at);
  dequantise_first(weights[0], fragments[0]);
#pragma unroll 1
  for (; k_tiles > 0; --k_tiles) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      Fragments& next = fragments[(step + 1) % 2];
      const bool group_ends = (step + 1) % kGroupSteps == 0;
      uint4 scales;
      if (kScaleSums && group_ends) scales = load_scales(stage, step, at.group, places);
      if (kTall && step == kSteps - 2) full = reader.next_is_full();
      if (step == kSteps - 1) stage = reader.turn(k_tiles > 1, full);
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

extern "C" __global__ void __launch_bounds__(kThreads + kFetchThreads, CTAS_PER_SM)
marlin_ring(const Scalar* __restrict__ A,      // [M, K] row major, 16-byte aligned
            const uint4* __restrict__ W,       // [K / 64, N / 64, 4, 32] vectors of 32 codes (layouts/marlin.py)
            const uint4* __restrict__ scales,  // [groups, N / 64, 8] vectors of 8
            const uint4* __restrict__ zeros,   // [groups, N / 64, 2] vectors of 32 4-bit zero points, or null
            const float* __restrict__ unit,    // [1], of the scales
            const Scalar* __restrict__ bias,   // [N] or null
            Scalar* __restrict__ C,            // [M, N] row major
            float4* partial_sums,              // [striped tiles + CTAs][kTileM · kTileN / 4]
            u64* arrivals,                     // [striped tiles], two each where clusters share them
            int M, int N, int K, int group_shift,
            const __grid_constant__ TensorMap activation_map) {  // of A as (64, M, K / 64), for tiles of more than 8 rows
  // The ring, then what warps that split K exchange, then what a cluster does. Bulk copies to places off 128 bytes are slow:
  // with stages that began 80 bytes off a line 73728 x 18432 at M = 1 took an H200 213 us, and takes 172.
  extern __shared__ __align__(kStageLine * 16) uint4 shared[];
  const Operands operands{A, &activation_map, W, scales, zeros, M, N, K, group_shift};
  const int row_tiles = (M + kTileM - 1) / kTileM, column_tiles = (N + kTileN - 1) / kTileN;
  const auto tile_of = [&](const Segment& segment) { return tile_coordinates(segment.tile, row_tiles, column_tiles); };
  __shared__ u64 barriers[2 * kStages];
  const Ring ring(shared, barriers);
  if (threadIdx.x == 0) ring.initialize(kFullArrivals);
  __syncthreads();
  announce_to_cluster();
  launch_dependents();

  if (threadIdx.x >= kThreads) {
#if __CUDA_ARCH_FEAT_SM90_ALL
    if (kHandOver) setmaxnreg_dec<kFetchRegisters>();
#endif
    const Stripes stripes(K / kTileK, row_tiles * column_tiles);
    const int role = threadIdx.x / 32 - kWarps;
    Cursor cursor;
    if (role == 0) {
      WeightFetcher fetcher(operands);
      for_each_segment(stripes, [&](const Segment& segment) {
        fetcher.aim(tile_of(segment).column * kTileN, segment.k_begin);
        fill(ring, cursor, fetcher, segment);
      });
    } else if (role <= ActivationFetcher::kWarps) {
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
  if (kHandOver) setmaxnreg_inc<kComputeRegisters>();
#endif
  wait_for_predecessor();
  const Stripes stripes(K / kTileK, row_tiles * column_tiles);
  const float unit_of_sums = *unit;
  const Position at;
  const Places places(at);
  const Workspace workspace{partial_sums, arrivals};
  RingReader reader(ring, at.lane);
  Sums sums;
  for_each_segment(stripes, [&](const Segment& segment) {
    const TileCoordinates tile = tile_of(segment);
    const Output output{C, bias, unit_of_sums, M, N, tile.row * kTileM, tile.column * kTileN};
    const auto write = [&](int u, const OutputVector& sum) { output.write(u, sum, at); };
    accumulate(sums, reader, segment.k_end - segment.k_begin, places, at);
    float4* behind_ring = reinterpret_cast<float4*>(shared + kStages * kStageVectors);
    reduce_over_warps<kExchange>(sums, at, behind_ring);
    if (CLUSTER > 1) {
      add_in_cluster<!kTall>(sums, behind_ring + kExchangeVectors, segment, workspace, at, write);
    } else if (segment.slices == 1 || kReductionAblated) {
      for_each_owned(sums, at, write);
    } else if (post_slice(sums, segment, workspace, at)) {
      add_slices(segment, workspace, at, write);
    }
  });
}
