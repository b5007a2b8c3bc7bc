// The product with 4-bit weights as one would first write it: C[M, N] = A[M, K] · W[K, N], one thread a column.
//
//      W[k, n] = (code[k, n] - zero[k / g, n]) · scale[k / g, n]
//
//            N: a thread each            One word holds eight codes of a column, k the lowest four bits first:
//          +-----------------+             | k+7 | k+6 | k+5 | k+4 | k+3 | k+2 | k+1 |  k  |
//       K  | | | | | | | | | |           Neighbouring threads read neighbouring words, so a warp's loads are whole
//       |  | v v v v v v v v |           lines; the activations are the same for a whole warp and come from L1.
//       v  +-----------------+
//
// It is right for every shape it accepts, and slow: a thread has one word on its way at a time, a narrow layer leaves
// most SMs idle, every weight costs a shift, a mask, a conversion and a rounding, and no tensor core is used. Each of
// these is what a file of marlin.cu puts right (pipeline, stripes, dequantise, fragments); the answer is the same.
#include <cuda_fp16.h>

constexpr int kThreads = 64;  // columns of a CTA
constexpr int kRows = 8;      // rows of A a thread multiplies one weight with
constexpr int kCodes = 8;     // codes a word

extern "C" __global__ void __launch_bounds__(kThreads)
naive_w4a16(const __half* __restrict__ A,             // [M, K] row major
            const unsigned int* __restrict__ W,       // [K / 8, N] words of eight codes
            const __half* __restrict__ scales,        // [groups, N]
            const unsigned char* __restrict__ zeros,  // [groups, N], 0..15
            __half* __restrict__ C,                   // [M, N] row major
            int M, int N, int K, int group_rows) {
  const int n = blockIdx.x * kThreads + threadIdx.x;
  const int m = blockIdx.y * kRows;
  if (n >= N) return;

  float sums[kRows] = {};
  for (int k = 0; k < K; k += kCodes) {
    const unsigned int word = W[static_cast<size_t>(k / kCodes) * N + n];
    const size_t group = static_cast<size_t>(k / group_rows) * N + n;
    const float scale = __half2float(scales[group]);
    const int zero = zeros[group];
    for (int i = 0; i < kCodes; ++i) {
      const int code = word >> (4 * i) & 15;
      const float weight = __half2float(__float2half(static_cast<float>(code - zero) * scale));
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        if (m + row < M) sums[row] += __half2float(A[static_cast<size_t>(m + row) * K + k + i]) * weight;
      }
    }
  }

#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    if (m + row < M) C[static_cast<size_t>(m + row) * N + n] = __float2half(sums[row]);
  }
}
