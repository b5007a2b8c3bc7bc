// The tail: the lowest units of every tile, handed out piece by piece to whichever CTA comes free.
//
//   Equal work is not equal time: SMs get unequal shares of the memory bandwidth. So only the upper units of the tiles are
//   striped (hopper_schedule.cuh); the rest of each tile is cut into fixed pieces, the large ones first, and a CTA that is
//   done with its stripe draws pieces until none is left:
//
//     tile A   | p0 |p1|p2|   stripe of team 0   | stripe of team 1        ticket n: piece n / tiles of tile n mod tiles
//
//   What a piece is never changes, only who computes it. Every part of a tile (stripes and pieces) leaves its sums in the
//   workspace and counts itself in; whoever counts in last adds all parts, always in the same order (stripes from the owner
//   downwards, then pieces), and stores the tile. Nobody waits for another CTA.
//
//   The weights' producer draws, as a ticket is due before a stage is free to fill, and hands it on with the stage:
//   ticket[s] is valid for the first stage of a piece once it is full. Tickets are drawn after griddepcontrol.wait. Each CTA
//   draws until one ticket is too high, so that the last ticket of a launch is known, and whoever draws it sets the counter
//   back to zero.
#pragma once

#include "hopper_pipeline.cuh"
#include "hopper_reduce.cuh"

constexpr u32 kNoPiece = 0xffffffff;
constexpr int kNoTile = 0x7fffffff;

__device__ __forceinline__ int tiles_of(const Schedule& schedule) { return schedule.row_tiles * schedule.batch_tiles; }

// u32 [tiles] counts of parts that are there, then the counter of tickets; all zero between launches.
__device__ __forceinline__ u32* part_count(const Workspace& workspace, int tile) { return workspace.arrivals + tile; }
__device__ __forceinline__ u32* ticket_counter(const Schedule& schedule, const Workspace& workspace) {
  return workspace.arrivals + tiles_of(schedule);
}

struct Piece {
  int tile;
  int index;  // among the tile's pieces

  __device__ __forceinline__ Piece(const Schedule& schedule, u32 ticket)
      : tile(ticket % tiles_of(schedule)), index(ticket / tiles_of(schedule)) {}
  __device__ __forceinline__ int first(const Schedule& schedule) const { return schedule.piece_begins[index]; }
  __device__ __forceinline__ int last(const Schedule& schedule) const { return schedule.piece_begins[index + 1]; }
};

// Draws pieces and asks for their weights and activations, from `cursor` on. One thread runs this.
__device__ __forceinline__ void produce_tail(const Ring& ring, const Schedule& schedule, const Workspace& workspace,
                                             const unsigned char* __restrict__ packed, int strips, int k_tiles,
                                             const TensorMap* activations, StageCursor cursor) {
  const u32 tickets = tiles_of(schedule) * schedule.pieces;
  u32* const counter = ticket_counter(schedule, workspace);
  for (;;) {
    const u32 ticket = atom_add_relaxed_gpu(counter, 1);
    ring.wait_empty(cursor);
    if (ticket >= tickets) {
      if (ticket == tickets + gridDim.x - 1) st_relaxed_gpu(counter, 0);
      st_shared_u32(ring.ticket(cursor.index), kNoPiece);
      mbarrier_arrive(ring.full(cursor.index));
      mbarrier_arrive(ring.full(cursor.index));
      return;
    }
    st_shared_u32(ring.ticket(cursor.index), ticket);
    const Piece piece(schedule, ticket);
    const TilePosition position = tile_position(schedule, piece.tile);
    const int first = piece.first(schedule);
    for (int unit = piece.last(schedule) - 1;; --unit) {
      copy_weights(ring, cursor.index, packed, strips, k_tiles, position.row_tile, unit);
      copy_activations(ring, cursor.index, activations, 0, position.batch_tile * kBatchTile, unit);
      cursor.advance();
      if (unit == first) break;
      ring.wait_empty(cursor);
    }
  }
}

// One tile and its parts, numbered in the order in which they are added: stripes from the owner's downwards, then pieces.
// Sums in the workspace: float [tiles][most_parts][kTileRows * kBatchTile].
class TailTile {
 public:
  __device__ __forceinline__ TailTile(const Schedule& schedule, const Workspace& workspace, int tile)
      : owner_(team_at(schedule, (tile + 1) * striped_units(schedule) - 1, gridDim.x)),
        stripes_(owner_ - team_at(schedule, tile * striped_units(schedule), gridDim.x) + 1),
        parts_(stripes_ + schedule.pieces),
        first_slot_(workspace.sums + static_cast<size_t>(tile) * schedule.most_parts * kSlotWords + threadIdx.x) {}

  __device__ __forceinline__ int parts() const { return parts_; }

  // Leaves the sums of this CTA's stripe (piece < 0) or of a piece.
  __device__ __forceinline__ void leave_part(const Sums& sums, int piece) const {
    post(slot(piece < 0 ? owner_ - static_cast<int>(blockIdx.x) : stripes_ + piece), sums);
  }

  // sums = all parts' sums, several parts on their way from memory at once.
  __device__ __forceinline__ void add_parts(Sums& sums) const {
    constexpr int kWords = kBlocks * kBatchTile / 8;
    constexpr int kWordsAtOnce = kCtasPerSm > 1 ? 8 : 32;
    constexpr int kAtOnce = kWords < kWordsAtOnce ? kWordsAtOnce / kWords : 1;
#pragma unroll
    for (int word = 0; word < kWords; ++word) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[word / (kBatchTile / 8)][word % (kBatchTile / 8) * 4 + i] = 0.f;
    }
#pragma unroll 1
    for (int begin = 0; begin < parts_; begin += kAtOnce) {
      float4 words[kAtOnce][kWords];
#pragma unroll
      for (int part = 0; part < kAtOnce; ++part) {
        const float4* source = slot(begin + part);
#pragma unroll
        for (int word = 0; word < kWords; ++word) {
          words[part][word] =
              begin + part < parts_ ? __ldcg(source + word * kConsumerThreads) : make_float4(0.f, 0.f, 0.f, 0.f);
        }
      }
#pragma unroll
      for (int part = 0; part < kAtOnce; ++part) {
#pragma unroll
        for (int word = 0; word < kWords; ++word) {
          float* s = &sums[word / (kBatchTile / 8)][word % (kBatchTile / 8) * 4];
          s[0] += words[part][word].x;
          s[1] += words[part][word].y;
          s[2] += words[part][word].z;
          s[3] += words[part][word].w;
        }
      }
    }
  }

 private:
  static constexpr int kSlotWords = kTileRows * kBatchTile / 4;

  __device__ __forceinline__ float4* slot(int part) const { return first_slot_ + static_cast<size_t>(part) * kSlotWords; }

  int owner_, stripes_, parts_;
  float4* first_slot_;
};

// Between the consumers, who leave sums and go on, and the warp that counts them in, as the fence before a count takes long.
// Two parts may be on their way; part n of a CTA uses entry n mod 2.
struct PostBox {
  u32 base;

  __device__ __forceinline__ explicit PostBox(const Ring& ring) : base(ring.base + kPostBoxAt) {}

  // One thread runs this, before the fence of Ring::initialize.
  __device__ __forceinline__ void initialize() const {
    for (u32 n = 0; n < 2; ++n) {
      mbarrier_init(posted(n), kConsumerWarps * (EVERY_LANE_RELEASES ? 32 : 1));
      mbarrier_init(counted(n), 1);
    }
  }

  // Consumer warps: part n, which is of `of_tile`, has been left; kNoTile: there was none, and no more will come.
  __device__ __forceinline__ void post(u32 n, int of_tile, int lane) const {
    if (threadIdx.x == 0) st_shared_u32(tile_address(n), of_tile);
    __syncwarp();
    if (EVERY_LANE_RELEASES || lane == 0) mbarrier_arrive(posted(n));
  }
  // Part n's tile, if this was its last part to come, else kNoTile. Every part must be asked for before part n + 2 is posted.
  __device__ __forceinline__ int wait_complete_tile(u32 n) const {
    while (!mbarrier_try_wait_parity(counted(n), n >> 1 & 1)) {
    }
    return ld_shared_u32(complete_address(n));
  }

  // One thread runs this.
  __device__ __forceinline__ void count_parts(const Schedule& schedule, const Workspace& workspace) const {
    for (u32 n = 0;; ++n) {
      while (!mbarrier_try_wait_parity(posted(n), n >> 1 & 1)) {
      }
      const int tile = ld_shared_u32(tile_address(n));
      if (tile == kNoTile) return;
      u32* const count = part_count(workspace, tile);
      const u32 others = TailTile(schedule, workspace, tile).parts() - 1;
      const bool is_complete = atom_add_acq_rel_gpu(count, 1) == others;
      if (is_complete) st_relaxed_gpu(count, 0);
      st_shared_u32(complete_address(n), is_complete ? tile : kNoTile);
      mbarrier_arrive(counted(n));
    }
  }

 private:
  __device__ __forceinline__ u32 posted(u32 n) const { return base + 8 * (n & 1); }        // consumers left their sums
  __device__ __forceinline__ u32 counted(u32 n) const { return base + 16 + 8 * (n & 1); }  // they are counted in
  __device__ __forceinline__ u32 tile_address(u32 n) const { return base + 32 + 4 * (n & 1); }
  __device__ __forceinline__ u32 complete_address(u32 n) const { return base + 40 + 4 * (n & 1); }
};
