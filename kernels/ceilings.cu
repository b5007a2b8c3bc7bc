// Roofs of the machine: reading memory as fast as it goes.
//
//   bytes / time  of  sum over n vectors of 16 bytes          read_stream<<<SMs * ctas, kThreads>>>
//
//   vector index   0 .. stride-1 | stride .. 2*stride-1 | ...        stride = gridDim * kThreads
//                  one a thread    the next of each thread           kUnroll of them in flight a thread
//
// The buffer is read `repeats` times: once past the L2 for HBM, many times within it for the L2 roof. Nothing is written
// unless the sum hits one value, which random data does not, so that no load can be left out.

constexpr int kThreads = 512;
constexpr int kUnroll = 8;

// data: 16-byte vectors [vectors]; sink: 1 word. Loads bypass L1, so that a small buffer measures the L2.
extern "C" __global__ void __launch_bounds__(kThreads) read_stream(const uint4* __restrict__ data, unsigned long long vectors,
                                                                   int repeats, unsigned* __restrict__ sink) {
  const unsigned long long stride = (unsigned long long)gridDim.x * kThreads;
  const unsigned long long first = (unsigned long long)blockIdx.x * kThreads + threadIdx.x;
  unsigned folded = 0;
  for (int repeat = 0; repeat < repeats; ++repeat) {
    unsigned long long index = first;
    for (; index + (kUnroll - 1) * stride < vectors; index += kUnroll * stride) {
      uint4 value[kUnroll];
#pragma unroll
      for (int i = 0; i < kUnroll; ++i) value[i] = __ldcg(data + index + i * stride);
#pragma unroll
      for (int i = 0; i < kUnroll; ++i) folded ^= value[i].x ^ value[i].y ^ value[i].z ^ value[i].w;
    }
    for (; index < vectors; index += stride) {
      const uint4 value = __ldcg(data + index);
      folded ^= value.x ^ value.y ^ value.z ^ value.w;
    }
  }
  if (folded == 0x9E3779B9u) *sink = folded;
}

// One node of an empty graph: what a launch costs when the kernel does nothing.
extern "C" __global__ void empty() {}
