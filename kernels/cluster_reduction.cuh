// Partial sums -> one sum where two slices of a tile are the two CTAs of a cluster (sm_90a): through distributed shared
// memory, without the round through L2 that reduction.cuh needs.
//
// Every vector has a keeper, every other one of a warp's. Each CTA sends what the other keeps, and adds what it is sent to
// its own. Both run at once, or neither does: nobody waits for a CTA that may not be resident. Where several clusters share a
// tile, each half of it then goes through L2 as in reduction.cuh: half as many slices, of half the sums.
#pragma once
#include "reduction.cuh"

#if CLUSTER > 1 && defined(__CUDA_ARCH_FEAT_SM90_ALL)

// By every thread at the start: add_in_cluster may write to a CTA only once it runs.
__device__ __forceinline__ void announce_to_cluster() { barrier_cluster_arrive(); }

// By the threads that fetch, at their end.
__device__ __forceinline__ void leave_cluster() {
  barrier_cluster_wait();
  barrier_cluster_arrive();
  barrier_cluster_wait();
}

// Adds the other CTA's sums to the vectors that this one keeps, and those of the other clusters that share the tile, and
// hands them to `write(u, sum)`. `exchange`: kTileM x kTileN / 2 floats of shared memory that nothing else uses. Of vectors
// 2i and 2i + 1 each CTA keeps one. Without `kSeveral` a tile has one cluster.
template <bool kSeveral, typename Write>
__device__ __forceinline__ void add_in_cluster(const Sums& sums, float4* exchange, const Segment& segment,
                                               const Workspace& workspace, const Position& at, const Write& write) {
  const u32 rank = cluster_ctarank();
  const auto is_mine = [&](int u) { return (u / kWarpsK + at.warp_k) % 2 == rank; };
  const int writer = (at.warp_m * kWarpsN + at.warp_n) * 32 + at.lane;
  float4* other = static_cast<float4*>(__cluster_map_shared_rank(exchange + writer, rank ^ 1));
  barrier_cluster_wait();
  for_each_owned(sums, at, [&](int u, const OutputVector& mine) {
    if (is_mine(u)) return;
    float4* to = other + u / 2 * 2 * kOwners;
    to[0] = mine.low, to[kOwners] = mine.high;
  });
  barrier_cluster_arrive();
  barrier_cluster_wait();
  const int clusters = kSeveral ? segment.slices / CLUSTER : 1;  // that share the tile
  for_each_owned(sums, at, [&](int u, const OutputVector& mine) {
    if (!is_mine(u)) return;
    const float4* from = exchange + u / 2 * 2 * kOwners + writer;
    const OutputVector sum = mine + OutputVector{from[0], from[kOwners]};
    if (clusters == 1) {
      write(u, sum);
    } else {
      float4* to = workspace.vector(segment.place + segment.slice / CLUSTER, u, at);
      __stcg(to, sum.low), __stcg(to + kOwners, sum.high);
    }
  });
  if (clusters == 1 || !comes_last(workspace.arrivals + segment.counter * CLUSTER + rank, clusters)) return;
  constexpr int kAtATime = 4;  // clusters whose loads are in flight together
  for_each_owned(sums, at, [&](int u, const OutputVector&) {
    if (!is_mine(u)) return;
    OutputVector total = {};
#pragma unroll 1
    for (int first = 0; first < clusters; first += kAtATime) {
      OutputVector part[kAtATime] = {};
#pragma unroll
      for (int i = 0; i < kAtATime; ++i) {
        if (first + i >= clusters) continue;
        const float4* from = workspace.vector(segment.place + first + i, u, at);
        part[i] = {__ldcg(from), __ldcg(from + kOwners)};
      }
#pragma unroll
      for (int i = 0; i < kAtATime; ++i) total = total + part[i];
    }
    write(u, total);
  });
}

#else

__device__ __forceinline__ void announce_to_cluster() {}
__device__ __forceinline__ void leave_cluster() {}
template <bool kSeveral, typename Write>
__device__ __forceinline__ void add_in_cluster(const Sums&, float4*, const Segment&, const Workspace&, const Position&,
                                               const Write&) {}

#endif
