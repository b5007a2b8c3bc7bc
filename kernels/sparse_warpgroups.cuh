// The products of a CTA's warpgroups: wgmma.sp m64nNk32 (sm_90a), with activations from shared memory, at twice the rate of
// mma.sp and without ldmatrix.
//
// Four neighbouring warps have the same k, so their products j are one of 64 channels: not 64 neighbours, but as each warp's own
// channels lie anywhere, nothing else changes. Products run behind: while those of a unit do, the next one's weights are
// dequantised, into the other one of two sets of registers.
//
//      unit            0           1           2           3         of a stage
//      registers      [0]         [1]         [0]         [1]
//      products       wait for those of the unit before, whose registers and (at unit 0) stage are free then
#pragma once
#include "ptx.cuh"
#include "sparse_fetch.cuh"
#include "sparse_operands.cuh"

static_assert(kWarpsN % 4 == 0 && kWarpsM == 1, "the four warps of a group share their k, and a warp takes all rows");
static_assert(ACTIVATION_MAP, "what wgmma reads is written by bulk copies");
static_assert(!kScaleSums, "sums are in flight");

// The computing warps' side of the ring where a stage is still read after the next one has been turned to.
class LateReader {
 public:
  __device__ LateReader(const Ring& ring, int lane) : ring_(ring), lane_(lane) {}

  __device__ __forceinline__ u32 begin() const {
    ring_.wait_full(cursor_);
    return ring_.stage(cursor_);
  }

  // Turns to the next stage, if there are `more` in this segment, and keeps this one.
  __device__ __forceinline__ u32 turn(bool more) {
    previous_ = cursor_;
    cursor_.advance();
    if (more) ring_.wait_full(cursor_);
    return ring_.stage(cursor_);
  }

  // Gives back the stage before the last turn.
  __device__ __forceinline__ void release() const { ring_.release(previous_, lane_); }

 private:
  const Ring& ring_;
  const int lane_;
  Cursor cursor_, previous_;
};

using Reader = LateReader;

// K-major, 128-byte swizzle, groups of 8 rows 1024 bytes apart.
__device__ __forceinline__ u64 matrix_descriptor(u32 address) {
  return 0x4000004000000000ull | redux_or((address & 0x3ffff) >> 4 | 1u << 16);
}

// Asks for the products of one unit.
__device__ __forceinline__ void multiply(Sums& sums, const u32 (&operands)[4][4], const u32 (&positions)[2], u64 activations) {
  using Product = WgmmaSp<kTileM, BF16>;
  using Sum = float[kTileM / 2];
  wgmma_fence();
  Product::accumulate<0>(reinterpret_cast<Sum&>(sums[0]), operands[0], activations, positions[0]);
  Product::accumulate<1>(reinterpret_cast<Sum&>(sums[1]), operands[1], activations, positions[0]);
  Product::accumulate<0>(reinterpret_cast<Sum&>(sums[2]), operands[2], activations, positions[1]);
  Product::accumulate<1>(reinterpret_cast<Sum&>(sums[3]), operands[3], activations, positions[1]);
  wgmma_commit_group();
}

// The products of one segment, summed in registers. Warps whose channels lie beyond N work too, on whatever their part of a
// stage holds: a warpgroup is all of its warps.
__device__ __forceinline__ void accumulate(Sums& sums, Reader& reader, int k_tiles, bool computes, const Places& places) {
  constexpr u32 kLegalPositions = 0x44444444u;
  Weights weights[2];
  u32 operands[2][4][4], positions[2][2];
#pragma unroll
  for (int u = 0; u < kVectors; ++u) put_vector(sums, u, {});
  u32 stage = reader.begin();
  load_weights(weights[0], weights[1], stage, 0, places);
  bool first = true;
#pragma unroll 1
  for (; k_tiles > 0; --k_tiles) {
    const u64 activations = matrix_descriptor(stage + places.panel);
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
      const int set = unit % 2;
#pragma unroll
      for (int j = 0; j < 4; ++j) dequantise_product(operands[set][j], weights[set], j);
#pragma unroll
      for (int r = 0; r < 2; ++r) positions[set][r] = computes ? weights[set].positions[r] : kLegalPositions;
      if (unit < kUnits - 1) load_weights(weights[1 - set], weights[set], stage, unit + 1, places);
      const u64 b = activations + unit / 2 * kPanelVectors + unit % 2 * 4;
      multiply(sums, operands[set], positions[set], b);
      wgmma_wait_group<1>();
      if (unit == 0 && !first) reader.release();
      if (unit == kUnits - 1) {
        stage = reader.turn(k_tiles > 1);
        if (k_tiles > 1) load_weights(weights[1 - set], weights[set], stage, 0, places);
      }
    }
    first = false;
  }
  wgmma_wait_group<0>();
  reader.release();
}
