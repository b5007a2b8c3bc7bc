// Partial sums -> one sum, in FP32 and in a fixed order (paper 3.4 "Warp Layout" and "Striped Partitioning").
//
// The unit is an output vector: one row and eight consecutive columns of a lane (fragments.cuh). The header of the tile,
// which comes first (tile.cuh or sparse_tile.cuh), says which of a lane's kVectors is which.
//
// 1. Inside the CTA, kWarpsK warps hold sums of the same outputs. Warp k keeps the vectors with u % kWarpsK = k, gives
//    the others away through shared memory, and adds what it is given: every warp works, nothing is added twice.
// 2. Across CTAs, each slice of a tile posts its sums in the workspace and counts itself; the one that comes last reads
//    the others and adds all slices in the order 0, 1, 2 …, its own in its turn. Nobody waits, so it does not matter
//    which CTAs are resident, and the sum is bitwise the same whoever is last.
//
// A counter is {launch number, arrivals}: whatever an earlier launch left behind, even one that died half-way, carries
// another number and counts as none, so the workspace is never cleared. The last arrival writes 0.
#pragma once
#include "fragments.cuh"
#include "ptx.cuh"
#include "stripes.cuh"

#ifdef ABLATE_REDUCTION
constexpr bool kReductionAblated = true;
#else
constexpr bool kReductionAblated = false;
#endif
constexpr int kOwners = kThreads / kWarpsK;  // threads that hold the vectors number u of one tile

// Hands the vectors that this warp owns to `write(u, sum)`.
template <typename Write>
__device__ __forceinline__ void for_each_owned(const Sums& sums, const Position& at,
                                               const Write& write) {
#pragma unroll
  for (int u = 0; u < kVectors; ++u) {
    if (at.warp_k == u % kWarpsK) write(u, vector_of(sums, u));
  }
}

// Step 1. Afterwards a warp's vectors with u % kWarpsK = warp_k are the CTA's sums. `shared` takes kAtATime vectors of each
// thread that gives them away, 32 bytes each.
template <int kAtATime = kVectors>
__device__ __forceinline__ void reduce_over_warps(Sums& sums, const Position& at, float4* shared) {
  if (kWarpsK == 1) return;
  constexpr int kGivers = kWarpsK > 1 ? kWarpsK - 1 : 1;
  const auto place = [&](int u, int giver) {
    const int tile = at.warp_m * kWarpsN + at.warp_n;
    return shared + ((tile * kAtATime + u % kAtATime) * kGivers + giver) * 64 + at.lane;
  };
#pragma unroll
  for (int first = 0; first < kVectors; first += kAtATime) {
#pragma unroll
    for (int u = first; u < first + kAtATime && u < kVectors; ++u) {
      const int owner = u % kWarpsK;
      if (at.warp_k != owner) {
        const OutputVector mine = vector_of(sums, u);
        float4* to = place(u, (at.warp_k + kWarpsK - owner - 1) % kWarpsK);
        to[0] = mine.low, to[32] = mine.high;
      }
    }
    sync_computing();
#pragma unroll
    for (int u = first; u < first + kAtATime && u < kVectors; ++u) {
      if (at.warp_k == u % kWarpsK) {
        OutputVector sum = vector_of(sums, u);
#pragma unroll
        for (int giver = 0; giver < kGivers; ++giver) {
          const float4* from = place(u, giver);
          sum = sum + OutputVector{from[0], from[32]};
        }
        put_vector(sums, u, sum);
      }
    }
    sync_computing();
  }
}

// Step 2's memory: places of kTileM x kTileN sums, each in the order of its writers' threads, and the counters.
struct Workspace {
  float4* sums;    // [places][kVectors][2][kOwners]
  u64* arrivals;   // [striped tiles]

  __device__ __forceinline__ float4* vector(int place, int u, const Position& at) const {
    const int writer = (at.warp_m * kWarpsN + at.warp_n) * 32 + at.lane;
    return sums + (static_cast<size_t>(place) * kVectors + u) * 2 * kOwners + writer;
  }
};

// The upper 48 bits of a counter of this launch: the launch number, spread out so that no other content looks like it.
__device__ inline u64 launch_stamp() { return (gridid() + 1) * 0x9e3779b97f4a7c15ull & ~0xffffull; }

// Counts this CTA in and says whether it is the last of `slices` (< 65536). Called by one thread, after a fence.
__device__ inline bool arrive(u64* counter, int slices) {
  const u64 stamp = launch_stamp();
  if (slices == 2) {  // one round trip: whoever finds this launch's stamp comes last
    const bool last = atomicExch(counter, stamp) == stamp;
    if (last) *reinterpret_cast<volatile u64*>(counter) = 0;
    return last;
  }
  u64 seen = 0;  // what the launch before left, as a rule
  while (true) {
    const u64 next = ((seen & ~0xffffull) == stamp ? seen : stamp) + 1;
    const u64 before = atomicCAS(counter, seen, next);
    if (before == seen) {
      const bool last = (next & 0xffff) == slices;
      if (last) *reinterpret_cast<volatile u64*>(counter) = 0;  // a replayed graph keeps its launch number
      return last;
    }
    seen = before;
  }
}

// Whether this CTA is the last of `slices` to count itself; what they posted before is seen after.
__device__ __forceinline__ bool comes_last(u64* counter, int slices) {
  __shared__ bool is_last;
  sync_computing();
  if (threadIdx.x == 0) {
    __threadfence();  // the CTA's sums, which the barrier has ordered before, are seen before its count
    is_last = arrive(counter, slices);
    __threadfence();  // the others' counts are seen before their sums are read
  }
  sync_computing();
  return is_last;
}

// Step 2, first half: posts this slice's sums. True in the CTA that comes last and has to add them up.
__device__ __forceinline__ bool post_slice(const Sums& sums, const Segment& segment,
                                           const Workspace& workspace, const Position& at) {
  for_each_owned(sums, at, [&](int u, const OutputVector& mine) {
    float4* to = workspace.vector(segment.place + segment.slice, u, at);
    __stcg(to, mine.low), __stcg(to + kOwners, mine.high);
  });
  return comes_last(workspace.arrivals + segment.counter, segment.slices);
}

// Step 2, second half: the tile's sums, slice after slice, handed vector by vector to `write(u, sum)`.
template <typename Write>
__device__ __forceinline__ void add_slices(const Segment& segment, const Workspace& workspace, const Position& at,
                                           const Write& write) {
  constexpr int kOwned = (kVectors + kWarpsK - 1) / kWarpsK;             // of a warp, or one less
  constexpr int kBatch = kOwned % 4 == 0 ? 4 : kOwned % 2 == 0 ? 2 : 1;  // vectors, and slices, whose loads are in
  constexpr int kSlices = 8 / kBatch;                                    // flight together
  const auto vector = [&](int i) { return i * kWarpsK + at.warp_k; };
  const auto owns = [&](int i) { return kVectors % kWarpsK == 0 || vector(i) < kVectors; };
#pragma unroll 1
  for (int first = 0; first < kOwned; first += kBatch) {
    OutputVector total[kBatch] = {};
#pragma unroll 1
    for (int slice = 0; slice < segment.slices; slice += kSlices) {
      OutputVector part[kSlices][kBatch] = {};
#pragma unroll
      for (int s = 0; s < kSlices; ++s) {
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          if (slice + s >= segment.slices || !owns(first + i)) continue;
          const float4* from = workspace.vector(segment.place + slice + s, vector(first + i), at);
          part[s][i] = {__ldcg(from), __ldcg(from + kOwners)};
        }
      }
#pragma unroll
      for (int s = 0; s < kSlices; ++s) {
#pragma unroll
        for (int i = 0; i < kBatch; ++i) total[i] = total[i] + part[s][i];
      }
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (owns(first + i)) write(vector(first + i), total[i]);
    }
  }
}
