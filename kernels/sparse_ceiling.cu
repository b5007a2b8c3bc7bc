// The roof of sparse tensor cores as a warp drives them: products and nothing else.
//
//   2 · 16 · 8 · 32 · kProducts · repeats · warps flop (dense equivalent)  /  time        mma_sp_loop<<<SMs * ctas, kThreads>>>
//
// Every product has sums of its own, so that none waits for another; operands are the caller's (random data draws real
// power) and stay in registers. Positions are 0xE4…: legal, all nibbles in use.
#include "ptx.cuh"

constexpr int kThreads = 256;
constexpr int kProducts = 8;  // a warp has in flight
constexpr u32 kPositions = 0x4e8d9c4eu;

// operands: 16-byte vectors [2 · kThreads] of FP16; sink: 1 float, written if the sums hit one value.
extern "C" __global__ void __launch_bounds__(kThreads) mma_sp_loop(const uint4* __restrict__ operands, int repeats,
                                                                   float* __restrict__ sink) {
  const uint4 left = operands[threadIdx.x], right = operands[kThreads + threadIdx.x];
  const u32 weights[4] = {left.x, left.y, left.z, left.w};
  const u32 activations[4] = {right.x, right.y, right.z, right.w};
  float sums[kProducts][4] = {};
  for (int repeat = 0; repeat < repeats; ++repeat) {
#pragma unroll
    for (int product = 0; product < kProducts; ++product) {
      mma_sp_m16n8k32_f16<0>(sums[product], weights, activations, kPositions);
    }
  }
  float folded = 0;
#pragma unroll
  for (int product = 0; product < kProducts; ++product) folded += sums[product][0] + sums[product][3];
  if (folded == 1e30f) *sink = folded;
}
