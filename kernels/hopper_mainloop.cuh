// A consumer warpgroup's walk over one segment: read codes, dequantise, multiply, stage after stage.
//
// The walk is cut into steps of two k16 products for each of the warpgroup's 64-row blocks. A step's fragments are made while
// the products of the step before run; two sets of fragment registers take turns. The codes of the next 64 of K are read as
// soon as the last of the current ones are dequantised, across stages too, so that neither the barrier nor shared memory
// is waited for with idle tensor cores.
//
//   step          0         1          2         3        …           with group scales on FP32 sums, at a group's first step:
//   fragments    [0]       [1]        [0]       [1]                   wait for all products, sums += scale · products,
//   codes read        next 64 of K         next 64 of K (next stage)  start the products anew
#pragma once

#include "hopper_config.cuh"
#include "hopper_dequantize.cuh"
#include "hopper_pipeline.cuh"
#include "hopper_reduce.cuh"

constexpr bool kPromote = kScaleAccumulators && kGroupSize != 0;
constexpr int kHalves = 2 * kStageTiles / kSplit;  // 64-K halves of a stage that one warpgroup multiplies
constexpr int kHalvesPerGroup = kGroupSize == 64 ? 1 : 2;
constexpr int kSteps = 4 / kStepProducts;          // of a half
constexpr int kFragmentSets = kInFlight == 1 ? 2 : 4;
using Products = WgmmaRs<kBatchTile, kBf16>;

// What a thread reads of a stage for 64 of K.
struct Codes {
  u32 words[kBlocks][4];  // one a k16
  u32 scales[kBlocks];    // (row g, row g + 8) as halves; read at the first half of a group
  u32 zeros[kBlocks];     // the same as bytes
};

struct ConsumerPosition {
  int split;          // share of K
  int row_warpgroup;  // rows
  int warp_in_group;
  int lane;
};

template <int kHalf>
__device__ __forceinline__ void read_codes(Codes& codes, u32 stage_weights, const ConsumerPosition& at) {
  constexpr int kHalfInTile = kHalf % 2;
  const int tile = kHalf / 2 * kSplit + at.split;
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
    const int row_block = at.row_warpgroup * kBlocks + block;
    u32 address = stage_weights;
    if constexpr (!kWholeStrips) {
      address += (row_block * kStageTiles + tile) * kBlockBytes;
    } else {
      address += ((row_block >> 1) * kStageTiles + tile) * kStripBytes + (row_block & 1) * kBlockBytes;
    }
    const int thread = at.warp_in_group * 32 + at.lane;
    ld_shared_v4_u32(codes.words[block], address + kHalfInTile * (kCodeBytes / 2) + thread * 16);
    if constexpr (kHalf % kHalvesPerGroup == 0) {
      constexpr int kGroup = kGroupSize == 64 ? kHalfInTile : 0;
      const int row_pair = at.warp_in_group * 8 + (at.lane >> 2);
      if constexpr (kGroupSize != 0) {
        codes.scales[block] = ld_shared_u32(address + kCodeBytes + kGroup * kBlockRows * 2 + row_pair * 4);
      }
      if constexpr (kZeroPoints) {
        codes.zeros[block] = ld_shared_u16(address + kCodeBytes + kScaleBytes + kGroup * kBlockRows + row_pair * 2);
      }
    }
  }
}

// The low word of the matrix descriptor of this warpgroup's first panel in a stage; the warp-wide or keeps it uniform.
__device__ __forceinline__ u32 panel_descriptor(u32 stage_activations, int split) {
  const u32 address = stage_activations + split * 2 * kPanelBytes;
  return redux_or((address & 0x3ffff) >> 4 | 1u << 16);
}

// K-major, 128-byte swizzle, 8-row atoms 1024 bytes apart.
__device__ __forceinline__ u64 matrix_descriptor(u32 low) { return 0x4000004000000000ull | low; }

// sums += scales · products, for a group that is complete.
__device__ __forceinline__ void promote(Sums& sums, const Sums& products, const u32 (&scales)[kBlocks]) {
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
    const __half2 pair = *reinterpret_cast<const __half2*>(&scales[block]);
    const float low = __low2float(pair), high = __high2float(pair);
#pragma unroll
    for (int i = 0; i < kBatchTile / 8; ++i) {
      sums[block][4 * i] = fmaf(low, products[block][4 * i], sums[block][4 * i]);
      sums[block][4 * i + 1] = fmaf(low, products[block][4 * i + 1], sums[block][4 * i + 1]);
      sums[block][4 * i + 2] = fmaf(high, products[block][4 * i + 2], sums[block][4 * i + 2]);
      sums[block][4 * i + 3] = fmaf(high, products[block][4 * i + 3], sums[block][4 * i + 3]);
    }
  }
}

class Mainloop {
 public:
  __device__ __forceinline__ Mainloop(const Ring& ring, const ConsumerPosition& at) : ring_(ring), at_(at) {}

  // The ticket that came with the next stage, once it is full.
  __device__ __forceinline__ u32 next_ticket() const {
    ring_.wait_full(cursor_);
    return ld_shared_u32(ring_.ticket(cursor_.index));
  }

  // sums = the segment's products; leaves no stage unreleased.
  __device__ __forceinline__ void run(Sums& sums, int units) { ring_.release(run_and_keep(sums, units), at_.lane); }

  // The same, but keeps the last stage, whose index it returns.
  __device__ __forceinline__ int run_and_keep(Sums& sums, int units) {
    clear(sums);
    if constexpr (kPromote) clear(products_);
    ring_.wait_full(cursor_);
    read_codes<0>(codes_, ring_.weights(cursor_.index), at_);
    int previous = -1;
    for (int unit = 0; unit < units; ++unit) {
      const u32 descriptor = panel_descriptor(ring_.activations(cursor_.index), at_.split);
      const int stage = cursor_.index;
      cursor_.advance();
      multiply_half<0>(sums, stage, descriptor, previous, unit + 1 < units);
      previous = stage;
    }
    wgmma_wait_group<0>();
    if constexpr (kPromote) promote(sums, products_, scales_);
    return previous;
  }

  __device__ __forceinline__ void release(int stage) const { ring_.release(stage, at_.lane); }

 private:
  __device__ __forceinline__ static void clear(Sums& sums) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int i = 0; i < kBatchTile / 2; ++i) sums[block][i] = 0.f;
    }
  }

  template <int kHalf>
  __device__ __forceinline__ void multiply_half(Sums& sums, int stage, u32 descriptor, int previous, bool more) {
    if constexpr (kHalf % kHalvesPerGroup == 0) {
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        constants_[block] = group_constants(codes_.scales[block], codes_.zeros[block]);
        next_scales_[block] = codes_.scales[block];
      }
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int step_in_group = kHalf % kHalvesPerGroup * kSteps + step;
      auto& fragments = fragments_[(kHalf * kSteps + step) % kFragmentSets];
#pragma unroll
      for (int product = 0; product < kStepProducts; ++product) {
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
          dequantize(fragments[product][block], codes_.words[block][step * kStepProducts + product], constants_[block]);
        }
      }
      if (step == kSteps - 1) {
        if constexpr (kHalf + 1 < kHalves) {
          read_codes<kHalf + 1>(codes_, ring_.weights(stage), at_);
        } else if (more) {
          ring_.wait_full(cursor_);
          read_codes<0>(codes_, ring_.weights(cursor_.index), at_);
        }
      }
      if (kPromote && step_in_group == 0) {
        wgmma_wait_group<0>();
        promote_group(sums);
      }
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < kStepProducts * kBlocks; ++i) {
        const int product = kBlockOrder ? i % kStepProducts : i / kBlocks;
        const int block = kBlockOrder ? i / kStepProducts : i % kBlocks;
        const int k16 = step * kStepProducts + product;
        const int panel = kHalf / 2 * kSplit * 2 + kHalf % 2;
        const u64 b = matrix_descriptor(descriptor + panel * (kPanelBytes >> 4) + k16 * 2);
        if constexpr (kPromote) {
          if (step_in_group == 0 && product == 0) {
            Products::start(products_[block], fragments[product][block], b);
          } else {
            Products::accumulate(products_[block], fragments[product][block], b);
          }
        } else {
          Products::accumulate(sums[block], fragments[product][block], b);
        }
      }
      wgmma_commit_group();
      // ptxas serialises products when more than one group is in flight over the loop's back edge.
      if (kHalf + 1 == kHalves && step == kSteps - 1) {
        wgmma_wait_group<1>();
      } else {
        wgmma_wait_group<kInFlight>();
      }
      if (kHalf * kSteps + step == kInFlight - 1 && previous >= 0) ring_.release(previous, at_.lane);
    }
    if constexpr (kHalf + 1 < kHalves) multiply_half<kHalf + 1>(sums, stage, descriptor, previous, more);
  }

  // Adds the group before the current one, whose products are complete.
  __device__ __forceinline__ void promote_group(Sums& sums) {
    promote(sums, products_, scales_);
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) scales_[block] = next_scales_[block];
  }

  const Ring& ring_;
  const ConsumerPosition& at_;
  StageCursor cursor_;
  Codes codes_{};
  GroupConstants constants_[kBlocks];
  u32 fragments_[kFragmentSets][kStepProducts][kBlocks][4];
  Sums products_;               // of the current group, with scales on the sums
  u32 scales_[kBlocks]{};       // of the group that is added next
  u32 next_scales_[kBlocks]{};  // of the group after it
};
