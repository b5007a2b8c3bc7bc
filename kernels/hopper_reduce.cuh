// Sums of one tile that several CTAs computed parts of, always FP32, always added in the same order.
//
// Striped tiles: nobody waits. Each team but the owner (the one with the tile's highest units, which meets the tile last)
// leaves its sums in the workspace, counts itself in and goes on; only when its piece is done does it look whether it was
// the last to come. The owner looks once: if all others are there, as they nearly always are, it adds them to its own and
// stores. If not, it leaves its sums too, and whoever counts in last finishes the tile. So no order or residency of CTAs can
// dead-lock, and the order of the additions (owner first, then downwards) is the same whoever finishes. The finisher sets
// the count back to zero for the next launch.
//
// Where only the last round is striped, a tile has up to as many parts as there are teams, all left at the same time, and whole
// tiles follow. There the parts are added by all who left one, when their whole tiles are done: each finishes its share of
// the tile's squares. Who looks before all have come abandons its share, and the last to come takes what was abandoned
// before. One word counts a tile's arrivals and looks and marks the abandoned shares; the last to look sets it to zero.
//
// Split clusters with a narrow batch tile (for wide ones see hopper_shares.cuh): every CTA sends each other one the sums of the
// 16-row groups that the other finishes, through distributed shared memory, and adds the parts in the order of (CTA, warpgroup).
#pragma once

#include "hopper_config.cuh"
#include "hopper_epilogue.cuh"
#include "hopper_schedule.cuh"

using Sums = float[kBlocks][kBatchTile / 2];

// float [gridDim.x][2][kTileRows * kBatchTile]: a CTA's striped piece has at most two ends inside tiles. With tails laid out
// otherwise, see hopper_tail.cuh.
struct Workspace {
  float4* sums;
  u32* arrivals;  // [gridDim.x], by the owner's CTA; zero between launches

  __device__ __forceinline__ float4* slot(int cta, bool lower_end) const {
    return sums + static_cast<size_t>(2 * cta + (lower_end ? 1 : 0)) * (kTileRows * kBatchTile / 4) + threadIdx.x;
  }
};

constexpr u32 kConsumerBarrier = 1;

__device__ __forceinline__ void post(float4* slot, const Sums& sums) {
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
    for (int i = 0; i < kBatchTile / 8; ++i) {
      const float* s = &sums[block][4 * i];
      __stcg(slot + (block * (kBatchTile / 8) + i) * kConsumerThreads, make_float4(s[0], s[1], s[2], s[3]));
    }
  }
}

template <bool kAdd>
__device__ __forceinline__ void collect(const float4* slot, Sums& sums) {
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
    for (int i = 0; i < kBatchTile / 8; ++i) {
      const float4 part = __ldcg(slot + (block * (kBatchTile / 8) + i) * kConsumerThreads);
      float* s = &sums[block][4 * i];
      s[0] = kAdd ? s[0] + part.x : part.x;
      s[1] = kAdd ? s[1] + part.y : part.y;
      s[2] = kAdd ? s[2] + part.z : part.z;
      s[3] = kAdd ? s[3] + part.w : part.w;
    }
  }
}

// Thread 0's `value` for all consumers.
__device__ __forceinline__ u32 broadcast(u32 value, u32 shared) {
  if (threadIdx.x == 0) st_shared_u32(shared, value);
  bar_sync(kConsumerBarrier, kConsumerThreads);
  const u32 word = ld_shared_u32(shared);
  bar_sync(kConsumerBarrier, kConsumerThreads);
  return word;
}

// One striped tile as one of its CTAs sees it: who shares it, and where their sums are.
class SharedTile {
 public:
  __device__ __forceinline__ SharedTile(const Schedule& schedule, const Workspace& workspace, int tile)
      : workspace_(workspace), rank_(blockIdx.x % kTeam), team_(blockIdx.x / kTeam) {
    const int teams = gridDim.x / kTeam;
    const int begin = tile * schedule.units_per_tile;
    const int end = begin + schedule.units_per_tile;
    lowest_ = owner_ = team_;
    while (stripe_begin(schedule, lowest_, teams) > begin) --lowest_;
    while (stripe_begin(schedule, owner_ + 1, teams) < end) ++owner_;
  }

  __device__ __forceinline__ bool is_owner() const { return team_ == owner_; }
  __device__ __forceinline__ u32 others() const { return owner_ - lowest_; }
  __device__ __forceinline__ u32* arrivals() const { return workspace_.arrivals + owner_ * kTeam + rank_; }

  // Leaves this CTA's sums and counts it in. Thread 0 gets the count before; nobody waits for that here.
  __device__ __forceinline__ u32 leave(const Sums& sums) const {
    post(slot(team_), sums);
    bar_sync(kConsumerBarrier, kConsumerThreads);  // thread 0 releases what all threads wrote
    return threadIdx.x == 0 ? atom_add_acq_rel_gpu(arrivals(), 1) : 0;
  }

  // sums = the owner's, unless they are there already, + the others', from the highest to the lowest.
  __device__ __forceinline__ void finish(Sums& sums, bool has_owners) const {
    if (!has_owners) collect<false>(slot(owner_), sums);
    for (int team = owner_ - 1; team >= lowest_; --team) collect<true>(slot(team), sums);
    if (threadIdx.x == 0) st_relaxed_gpu(arrivals(), 0);
  }

 private:
  // A team's sums of this tile: at the upper end of its piece, unless it owns the tile.
  __device__ __forceinline__ float4* slot(int team) const {
    return workspace_.slot(team * kTeam + rank_, team == owner_);
  }

  const Workspace& workspace_;
  int rank_, team_, lowest_, owner_;

  friend class SharedEnd;
};

// The end of a tile that is finished in shares, as one of its CTAs sees it. A share is a run of squares, 16 batch rows of a
// 64-row block each; share 0 is the owner's, and so downwards.
class SharedEnd {
 public:
  __device__ __forceinline__ SharedEnd(const SharedTile& tile) : tile_(tile) {}

  // The shares that are this CTA's to finish, as a mask; thread 0's `before` is what `leave` returned.
  __device__ __forceinline__ u32 look(u32 before, u32 word) const {
    u32 shares = 0;
    if (threadIdx.x == 0) {
      const u32 sharers = tile_.others() + 1;
      const int own = tile_.owner_ - tile_.team_;
      const u32 own_share = own < count() ? 1u << own : 0;
      const u32 found = atom_add_acq_rel_gpu(tile_.arrivals(), kLook + own_share * kAbandoned);
      if (found % kLook == sharers) {
        shares = own_share;
        if (before % kLook == sharers - 1) shares |= before / kAbandoned;
      }
      if (found / kLook % kLook == sharers - 1) st_relaxed_gpu(tile_.arrivals(), 0);
    }
    return broadcast(shares, word);
  }

  // Adds all parts of one share, from the owner's to the lowest, and stores it.
  __device__ __forceinline__ void finish(int share, const Output& output, const ColumnFactors<kBlocks>& factors,
                                         int first_feature, int first_row, u32 staging, int lane) const {
    const int first = kSquaresOfTile * share / count();
    const int last = kSquaresOfTile * (share + 1) / count();
    const int rows = min(output.M - first_row, kBatchTile);
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const int feature = first_feature + block * kBlockRows;
      if (feature >= output.N) continue;
      const FeaturePair features = factors.features(output, block, feature, lane);
#pragma unroll 1
      for (int square = max(first - block * kSquareColumns, 0); square < min(last - block * kSquareColumns, kSquareColumns);
           ++square) {
        float left[4] = {}, right[4] = {};
        add_parts(left, right, block * (kBatchTile / 8) + 2 * square, 2 * square + 1 < kBatchTile / 8);
        stage_16x16(features, left, right, staging, lane);
        __syncwarp();
        store_16x16(output, staging, feature, first_row + 16 * square, rows - 16 * square, lane);
        __syncwarp();
      }
    }
  }

 private:
  static constexpr u32 kLook = 1 << 8, kAbandoned = 1 << 16;
  static constexpr int kPartsAtOnce = 8;
  static constexpr int kSquaresOfTile = kBlocks * kSquareColumns;
  static constexpr int kMostShares = kSquaresOfTile < 16 ? kSquaresOfTile : 16;

  __device__ __forceinline__ int count() const { return min(tile_.owner_ - tile_.lowest_ + 1, kMostShares); }

  __device__ __forceinline__ void add_parts(float (&left)[4], float (&right)[4], int n8, bool has_right) const {
#pragma unroll 1
    for (int team = tile_.owner_; team >= tile_.lowest_; team -= kPartsAtOnce) {
      float4 parts[kPartsAtOnce][2];
#pragma unroll
      for (int i = 0; i < kPartsAtOnce; ++i) {
        const bool is_there = team - i >= tile_.lowest_;
        const float4* part = tile_.slot(is_there ? team - i : team) + n8 * kConsumerThreads;
        parts[i][0] = is_there ? __ldcg(part) : make_float4(0.f, 0.f, 0.f, 0.f);
        parts[i][1] = is_there && has_right ? __ldcg(part + kConsumerThreads) : make_float4(0.f, 0.f, 0.f, 0.f);
      }
#pragma unroll
      for (int i = 0; i < kPartsAtOnce; ++i) {
        const float4 a = parts[i][0], b = parts[i][1];
        left[0] += a.x, left[1] += a.y, left[2] += a.z, left[3] += a.w;
        right[0] += b.x, right[1] += b.y, right[2] += b.z, right[3] += b.w;
      }
    }
  }

  const SharedTile& tile_;
};

// The exchange buffer of a CTA: float4 [source = CTA * kSplit + warpgroup of K][group][n8 block][lane].
constexpr int kGroups = kTileRows / 16;
constexpr int kGroupsPerCta = kGroups / (kSplitCluster ? kCluster : 1);

__device__ __forceinline__ u32 exchange_offset(int source, int group, int n8, int lane) {
  return (((source * kGroupsPerCta + group) * (kBatchTile / 8) + n8) * 32 + lane) * 16;
}

// Sends this warp's sums to the CTAs that finish them. `split` is the warpgroup's share of K, `row_warpgroup` its rows.
__device__ __forceinline__ void send_to_cluster(const Sums& sums, u32 exchange, u32 rank, int split,
                                                int row_warpgroup, int warp_in_group, int lane) {
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
    const int group = (row_warpgroup * kBlocks + block) * 4 + warp_in_group;
    const u32 target = mapa_shared_cluster(exchange, group / kGroupsPerCta);
#pragma unroll
    for (int i = 0; i < kBatchTile / 8; ++i) {
      const float* s = &sums[block][4 * i];
      st_shared_cluster_v4(target + exchange_offset(rank * kSplit + split, group % kGroupsPerCta, i, lane),
                           make_float4(s[0], s[1], s[2], s[3]));
    }
  }
}

__device__ __forceinline__ void add_sources(float (&sums)[4], u32 exchange, int group, int n8, int lane) {
#pragma unroll
  for (int source = 0; source < kSources; ++source) {
    const float4 part = ld_shared_v4_f32(exchange + exchange_offset(source, group, n8, lane));
    sums[0] += part.x;
    sums[1] += part.y;
    sums[2] += part.z;
    sums[3] += part.w;
  }
}

// Squares of 16 features x 16 batch rows that this CTA finishes; the consumer warps take turns.
constexpr int kSquaresPerWarp = (kGroupsPerCta * kSquareColumns + kConsumerWarps - 1) / kConsumerWarps;

struct SquarePosition {
  int group;  // of 16 features, within this CTA's
  int n8;     // first of its two n8 blocks

  __device__ __forceinline__ SquarePosition(int i, int warp)
      : group((warp + i * kConsumerWarps) / kSquareColumns), n8((warp + i * kConsumerWarps) % kSquareColumns * 2) {}
};

// Adds what all CTAs sent for this CTA's groups, the first of which begins at `first_feature`, and stores it.
__device__ __forceinline__ void finish_groups(const Output& output, const ColumnFactors<kSquaresPerWarp>& factors,
                                              u32 exchange, int first_feature, int first_row, u32 staging, int warp,
                                              int lane) {
  const int rows = min(output.M - first_row, kBatchTile);
#pragma unroll
  for (int first = 0; first < kSquaresPerWarp; first += kSquares) {
#pragma unroll
    for (int i = first; i < first + kSquares && i < kSquaresPerWarp; ++i) {
      const SquarePosition at(i, warp);
      const int feature = first_feature + at.group * 16;
      const FeaturePair features = factors.features(output, i, min(feature, output.N - 16), lane);
      if (at.group >= kGroupsPerCta || rows <= at.n8 * 8) continue;
      float left[4] = {}, right[4] = {};
      add_sources(left, exchange, at.group, at.n8, lane);
      if (at.n8 + 1 < kBatchTile / 8) add_sources(right, exchange, at.group, at.n8 + 1, lane);
      stage_16x16(features, left, right, staging + (i - first) * kSquareBytes, lane);
    }
    __syncwarp();
#pragma unroll
    for (int i = first; i < first + kSquares && i < kSquaresPerWarp; ++i) {
      const SquarePosition at(i, warp);
      const int feature = first_feature + at.group * 16;
      if (at.group >= kGroupsPerCta || feature >= output.N) continue;
      store_16x16(output, staging + (i - first) * kSquareBytes, feature, first_row + at.n8 * 8, rows - at.n8 * 8, lane);
    }
    __syncwarp();
  }
}
