// The walk of hopper_mainloop.cuh with products of single warps (mma.sync m16n8k16) instead of warpgroups, for up to 8 batch rows.
//
// A warpgroup product of 8 batch rows takes 13 clocks, four warp products of its size 6, and nothing need wait for a group of
// them. Weights, scales and sums lie in registers as they do for a warpgroup; only activations are read into registers too.
#pragma once

#include "hopper_mainloop.cuh"

constexpr int kChains = kSplit > 1 ? 2 : 1;  // sets of sums of a group, so that fewer products wait for the one before

class WarpLoop {
 public:
  __device__ __forceinline__ WarpLoop(const Ring& ring, const ConsumerPosition& at) : ring_(ring), at_(at) {
    const int row = at.lane & 7;
    offset_ = at.split * 2 * kPanelBytes + row * 128 + ((at.lane >> 3) ^ row) * 16;
  }

  // The ticket that came with the next stage, once it is full.
  __device__ __forceinline__ u32 next_ticket() const {
    ring_.wait_full(cursor_);
    return ld_shared_u32(ring_.ticket(cursor_.index));
  }

  // sums = the segment's products; leaves no stage unreleased.
  __device__ __forceinline__ void run(Sums& sums, int units) { release(run_and_keep(sums, units)); }

  // The same, but keeps the last stage, whose index it returns.
  __device__ __forceinline__ int run_and_keep(Sums& sums, int units) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int i = 0; i < kBatchTile / 2; ++i) sums[block][i] = 0.f;
    }
    ring_.wait_full(cursor_);
    read_codes<0>(codes_, ring_.weights(cursor_.index), at_);
#pragma unroll 1
    for (int unit = 1;; ++unit) {
      const int stage = cursor_.index;
      cursor_.advance();
      multiply_half<0>(sums, stage, unit < units);
      if (unit == units) return stage;
      release(stage);
    }
  }

  __device__ __forceinline__ void release(int stage) const {
    __syncwarp();
    ring_.release(stage, at_.lane);
  }

 private:
  template <int kHalf>
  __device__ __forceinline__ void multiply_half(Sums& sums, int stage, bool more) {
    constexpr bool kStartsGroup = kHalf % kHalvesPerGroup == 0;
    constexpr bool kEndsGroup = (kHalf + 1) % kHalvesPerGroup == 0;
    if constexpr (kStartsGroup) {
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        constants_[block] = group_constants(codes_.scales[block], codes_.zeros[block]);
        scales_[block] = codes_.scales[block];
      }
    }
    const Codes codes = codes_;
    if constexpr (kHalf + 1 < kHalves) read_codes<kHalf + 1>(codes_, ring_.weights(stage), at_);
    constexpr int kPanel = kHalf / 2 * kSplit * 2 + kHalf % 2;
    const u32 panel = ring_.activations(stage) + kPanel * kPanelBytes + offset_;
    u32 activations[kBatchTile / 8][4];  // of an n8 block: two k16
#pragma unroll
    for (int k16 = 0; k16 < 4; ++k16) {
      if (k16 % 2 == 0) {
#pragma unroll
        for (int n8 = 0; n8 < kBatchTile / 8; ++n8) ldmatrix_x4(activations[n8], (panel ^ (k16 * 32)) + n8 * 1024);
      }
      if (kHalf + 1 == kHalves && k16 == 3 && more) {
        ring_.wait_full(cursor_);
        read_codes<0>(codes_, ring_.weights(cursor_.index), at_);
      }
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        u32 weights[4];
        dequantize(weights, codes.words[block][k16], constants_[block]);
#pragma unroll
        for (int n8 = 0; n8 < kBatchTile / 8; ++n8) {
          const u32 b[2] = {activations[n8][k16 % 2 * 2], activations[n8][k16 % 2 * 2 + 1]};
          if constexpr (kPromote) {
            multiply(&products_[k16 % kChains][block][4 * n8], weights, b, kStartsGroup && k16 < kChains);
          } else {
            multiply(&sums[block][4 * n8], weights, b, false);
          }
        }
      }
    }
    if constexpr (kPromote && kEndsGroup) {
#pragma unroll
      for (int chain = 0; chain < kChains; ++chain) promote(sums, products_[chain], scales_);
    }
    if constexpr (kHalf + 1 < kHalves) multiply_half<kHalf + 1>(sums, stage, more);
  }

  // Adds a product of 16 features and 8 batch rows to four sums, or starts them with it.
  __device__ __forceinline__ static void multiply(float* sums, const u32 (&a)[4], const u32 (&b)[2], bool starts) {
    float(&d)[4] = *reinterpret_cast<float(*)[4]>(sums);
    if constexpr (kBf16) {
      starts ? mma_m16n8k16_bf16_new(d, a, b) : mma_m16n8k16_bf16(d, a, b);
    } else {
      starts ? mma_m16n8k16_f16_new(d, a, b) : mma_m16n8k16_f16(d, a, b);
    }
  }

  const Ring& ring_;
  const ConsumerPosition& at_;
  StageCursor cursor_;
  Codes codes_{};
  GroupConstants constants_[kBlocks];
  Sums products_[kChains];  // of the current group, with scales on the sums
  u32 scales_[kBlocks]{};
  u32 offset_;  // of this lane's activations in a panel
};

template <bool kByWarps>
struct LoopBy {
  using Type = Mainloop;
};
template <>
struct LoopBy<true> {
  using Type = WarpLoop;
};
