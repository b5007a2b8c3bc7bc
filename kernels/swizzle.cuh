// Where a 16-byte vector of the activation tile lies in shared memory (paper 3.4 "Shared Memory Layouts").
//
//      row i, vector j   ->   place i · S + (j ^ (i % 8))          S = vectors a row, a multiple of 8
//
// Eight lanes that write one row, and the eight rows of a vector column that ldmatrix reads, both touch all 32 banks
// once: in a column, i % 8 takes every value, and XOR with different numbers gives different places.
#pragma once

template <int kVectorsPerRow>
__device__ __forceinline__ constexpr int swizzle(int row, int vector) {
  static_assert(kVectorsPerRow % 8 == 0, "a row must cover all banks");
#ifdef ABLATE_SWIZZLE
  return row * kVectorsPerRow + vector;
#else
  return row * kVectorsPerRow + (vector ^ (row % 8));
#endif
}
