// Who computes what: output tiles, the units they are cut into along K, and each team's share.
//
//   A unit is one pipeline stage of one tile. The first `stream_tiles` tiles are striped: their units form one line that is
//   cut into equal pieces, one a team (the paper's "Striped Partitioning", section 3.4). The other tiles are whole: tile t
//   goes to team t mod teams. Every team walks its piece from the end to the beginning:
//
//     units   0 1 2 3 4 5 6 7 8 9 …        tile A = 0–5, tile B = 6–11
//     team 0  ← ← ← ←                       posts A's low units at once …
//     team 1          ← ← ← ←               … posts B's low units at once, then meets A's high units last: it owns A
//
//   so the team with a tile's highest units meets the tile last, when the others have posted their sums long ago.
#pragma once

#include "hopper_config.cuh"

constexpr int kMostPieces = 15;

struct Schedule {
  int units_per_tile;  // stages along K of one tile
  int row_tiles;       // tiles along the output features (of a whole team)
  int batch_tiles;
  int raster;        // batch tiles that are swept together, so that weights are read from HBM once for all of them
  int stream_tiles;  // striped tiles
  int shared_ends;   // whether all CTAs of a striped tile finish it together, see hopper_reduce.cuh
  // With a tail (hopper_tail.cuh) all tiles are striped, but for their lowest units, which are cut into pieces.
  int tail_units;       // of each tile
  int pieces;           // of each tile's tail
  int most_parts;       // of a tile: its pieces and the stripes that share it
  int piece_begins[kMostPieces + 1];  // first units; piece p ends where p + 1 begins
};

// Units [first, last) of `tile`, to be walked from last - 1 down to first.
struct Segment {
  int tile;
  int first;
  int last;
};

// Units of a striped tile that are striped: all but its tail.
__device__ __forceinline__ int striped_units(const Schedule& schedule) {
  return kTail ? schedule.units_per_tile - schedule.tail_units : schedule.units_per_tile;
}

__device__ __forceinline__ int stripe_begin(const Schedule& schedule, int team, int teams) {
  // At most two tiles a team are striped (with tails all, but of small batches), so that this stays below 2^31 for every K
  // below seven million.
  return static_cast<int>(static_cast<u32>(schedule.stream_tiles * striped_units(schedule) * team) / static_cast<u32>(teams));
}

// The team whose stripe holds a unit of the line.
__device__ __forceinline__ int team_at(const Schedule& schedule, int unit, int teams) {
  return (static_cast<u32>(unit + 1) * teams - 1) / static_cast<u32>(schedule.stream_tiles * striped_units(schedule));
}

// The segments of one team, in order.
class Segments {
 public:
  __device__ __forceinline__ Segments(const Schedule& schedule) : schedule_(schedule) {
    if constexpr (kSplitCluster) {
      const int rank = blockIdx.x % kCluster;
      tile_ = blockIdx.x / kCluster;
      begin_ = schedule.units_per_tile * rank / kCluster;
      end_ = schedule.units_per_tile * (rank + 1) / kCluster;
    } else {
      const int team = blockIdx.x / kTeam;
      const int teams = gridDim.x / kTeam;
      begin_ = end_ = 0;
      if (schedule.stream_tiles != 0) {
        begin_ = stripe_begin(schedule, team, teams);
        end_ = stripe_begin(schedule, team + 1, teams);
      }
      tile_ = schedule.stream_tiles + team;
    }
  }

  __device__ __forceinline__ bool next(Segment& segment) {
    if constexpr (kSplitCluster) {
      segment = {tile_, begin_, end_};
      const bool found = begin_ < end_;
      end_ = begin_;
      return found;
    } else {
      if (begin_ < end_) {
        const int tile = (end_ - 1) / striped_units(schedule_);
        const int base = tile * striped_units(schedule_);
        const int first = max(begin_ - base, 0);
        const int tail = kTail ? schedule_.tail_units : 0;
        segment = {tile, tail + first, tail + end_ - base};
        end_ = base + first;
        return true;
      }
      if (!kTail && tile_ < schedule_.row_tiles * schedule_.batch_tiles) {
        segment = {tile_, 0, schedule_.units_per_tile};
        tile_ += gridDim.x / kTeam;
        return true;
      }
      return false;
    }
  }

 private:
  const Schedule& schedule_;
  int begin_;
  int end_;
  int tile_;
};

// Where a tile lies: its first output feature / kTileRows for this CTA, and its batch tile.
struct TilePosition {
  int row_tile;
  int batch_tile;
};

// A division takes 200 clocks, and a launch's first copies wait for it: skipped where the quotient is 0.
__device__ __forceinline__ int quotient(int dividend, int divisor) { return dividend < divisor ? 0 : dividend / divisor; }

__device__ __forceinline__ TilePosition tile_position(const Schedule& schedule, int tile) {
  const int sweep = schedule.raster * schedule.row_tiles;
  const int band = quotient(tile, sweep);
  const int in_band = tile - band * sweep;
  const int width = min(schedule.raster, schedule.batch_tiles - band * schedule.raster);
  const int row_tile = width == 1 ? in_band : quotient(in_band, width);
  const int rank = kTeam > 1 ? blockIdx.x % kTeam : 0;
  return {row_tile * kTeam + rank, band * schedule.raster + in_band - row_tile * width};
}
