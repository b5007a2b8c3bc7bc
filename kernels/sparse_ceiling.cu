// The roof of sparse tensor cores: products and nothing else.
//
//   mma_sp_loop     2 · 16 · 8 · 32 · kProducts · repeats · warps flop (dense equivalent)           / time
//   wgmma_sp_loop   2 · 64 · 256 · 32 · kProducts · repeats · warpgroups flop (sm_90a)             / time
//
// The first is what a warp reaches, on every GPU with sparse tensor cores; the second what a warpgroup of an sm_90a reaches,
// with weights in registers and activations in shared memory. Operands are the caller's (random data draws real power) and
// change from product to product; positions are legal and differ by lane.
#include "ptx.cuh"

constexpr int kThreads = 256;
constexpr int kProducts = 8;                 // of a warp or warpgroup in one repeat
constexpr u32 kPositions = 0x4e8d9c4eu;      // all six legal pairs

__device__ __forceinline__ u32 positions() { return __funnelshift_l(kPositions, kPositions, threadIdx.x % 8 * 4); }

// The loops' sums are wanted only so that the loops are kept.
template <int kCount>
__device__ __forceinline__ void keep(const float (&sums)[kCount], float* sink) {
  float folded = 0;
#pragma unroll
  for (int i = 0; i < kCount; ++i) folded += sums[i];
  if (folded == 1e30f) *sink = folded;
}

// operands: 16-byte vectors [6 · kThreads] of FP16; sink: 1 float. Every product has sums of its own: none waits for another.
extern "C" __global__ void __launch_bounds__(kThreads) mma_sp_loop(const uint4* __restrict__ operands, int repeats,
                                                                   float* __restrict__ sink) {
  constexpr int kWeights = 2, kActivations = kProducts / kWeights;
  u32 weights[kWeights][4], activations[kActivations][4];
#pragma unroll
  for (int i = 0; i < kWeights + kActivations; ++i) {
    const uint4 vector = operands[i * kThreads + threadIdx.x];
    u32(&to)[4] = i < kWeights ? weights[i] : activations[i - kWeights];
    to[0] = vector.x, to[1] = vector.y, to[2] = vector.z, to[3] = vector.w;
  }
  float sums[kProducts][4] = {};
  for (int repeat = 0; repeat < repeats; ++repeat) {
#pragma unroll
    for (int i = 0; i < kProducts; ++i) {
      mma_sp_m16n8k32_f16<0>(sums[i], weights[i / kActivations], activations[i % kActivations], positions());
    }
  }
#pragma unroll
  for (int i = 0; i < kProducts; ++i) keep(sums[i], sink);
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// operands: 16-byte vectors [kTileVectors + 2 · kThreads] of FP16: 256 rows of 64 k of activations, then weights.
extern "C" __global__ void __launch_bounds__(kThreads) wgmma_sp_loop(const uint4* __restrict__ operands, int repeats,
                                                                     float* __restrict__ sink) {
  constexpr int kTileVectors = 256 * 64 / 8, kWeights = 2;
  constexpr u64 kSwizzle128 = 1ull << 62, kRowsStride = 1024 / 16;
  __shared__ __align__(1024) uint4 tile[kTileVectors];
  for (int i = threadIdx.x; i < kTileVectors; i += kThreads) tile[i] = operands[i];
  u32 weights[kWeights][4];
#pragma unroll
  for (int i = 0; i < kWeights; ++i) {
    const uint4 vector = operands[kTileVectors + i * kThreads + threadIdx.x];
    weights[i][0] = vector.x, weights[i][1] = vector.y, weights[i][2] = vector.z, weights[i][3] = vector.w;
  }
  fence_proxy_async_shared();
  __syncthreads();
  const u64 rows = kSwizzle128 | kRowsStride << 32 | 1ull << 16 | (shared_address(tile) & 0x3ffff) >> 4;
  const u32 at = positions();
  float sums[128] = {};
  for (int repeat = 0; repeat < repeats; ++repeat) {
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kProducts; ++i) {
      wgmma_sp_m64n256k32_f16(sums, weights[i / 2 % kWeights], rows + i % 2 * (64 / 16), at);
    }
    wgmma_commit_group();
    wgmma_wait_group<0>();
  }
  keep(sums, sink);
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL
