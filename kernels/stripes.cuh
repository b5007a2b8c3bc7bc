// Which CTA computes what (paper 3.4 "Striped Partitioning"), without one CTA ever waiting for another.
//
// An output tile costs k_tiles steps down K. Whole waves of tiles go to the CTAs round-robin, all starting at k = 0, so
// that neighbours read the same activations and weights at the same time and L2 serves all but the first. What is left
// (all of it when there are fewer tiles than CTAs; else between one and two tiles a CTA) is laid out as one line,
// column after column, and cut into equal stripes. Three tiles of three steps over five CTAs:
//
//      tile 0   0 1 1        owner of step x      floor(((x + 1) · ctas - 1) / steps)
//      tile 1   2 2 3        first step of CTA b  floor(b · steps / ctas)
//      tile 2   3 4 4
//
// A tile cut into several slices is added up by the CTA that finishes last, always in the order of the slices, so the
// sum does not depend on who that was (reduction.cuh). The slices of all tiles make a staircase in (tile, CTA): one of
// the two grows at each step, so tile + CTA is a place of its own in the workspace.
#pragma once
#include "ptx.cuh"

constexpr int kRasterRows = 8;  // row tiles that are walked together, so that a wave is about as high as it is wide

// A run of k steps of one output tile.
struct Segment {
  int tile;
  int k_begin, k_end;  // in k tiles
  int slices;          // how many CTAs share the tile
  int slice;           // which of them this is, counted down K
  int place;           // of slice 0's partial sums in the workspace; slice i lies at place + i
  int counter;         // of arrivals, one for each striped tile
};

struct Stripes {
  int k_tiles, tiles, whole_tiles, ctas, cta;

  __device__ Stripes(int k_tiles, int tiles) : k_tiles(k_tiles), tiles(tiles), ctas(gridDim.x), cta(blockIdx.x) {
    const int waves = tiles / ctas;
    whole_tiles = tiles % ctas == 0 ? tiles : (waves > 1 ? waves - 1 : 0) * ctas;
  }

  __device__ u64 steps() const { return static_cast<u64>(tiles - whole_tiles) * k_tiles; }
  __device__ int first_step(int b) const { return static_cast<int>(b * steps() / ctas); }
  __device__ int owner(int step) const { return static_cast<int>(((step + 1ull) * ctas - 1) / steps()); }

  // The segment that begins at `step` of the striped line, for this CTA.
  __device__ Segment striped(int step) const {
    const int column = step / k_tiles;
    const int first = owner(column * k_tiles);
    const int end = first_step(cta + 1);
    Segment segment;
    segment.tile = whole_tiles + column;
    segment.k_begin = step - column * k_tiles;
    segment.k_end = min(k_tiles, end - column * k_tiles);
    segment.slices = owner(column * k_tiles + k_tiles - 1) - first + 1;
    segment.slice = cta - first;
    segment.place = column + first;
    segment.counter = column;
    return segment;
  }

  __device__ Segment whole(int tile) const { return {tile, 0, k_tiles, 1, 0, 0, 0}; }
};

// Hands this CTA's segments to `visit`, in the order in which they are computed. `visit` is called in one place, so that
// it is compiled once.
template <typename Visit>
__device__ __forceinline__ void for_each_segment(const Stripes& stripes, const Visit& visit) {
  int tile = stripes.cta;
  int step = stripes.first_step(stripes.cta);
  const int end = stripes.first_step(stripes.cta + 1);
  while (tile < stripes.whole_tiles || step < end) {
    const bool whole = tile < stripes.whole_tiles;
    const Segment segment = whole ? stripes.whole(tile) : stripes.striped(step);
    visit(segment);
    if (whole) {
      tile += stripes.ctas;
    } else {
      step += segment.k_end - segment.k_begin;
    }
  }
}

struct TileCoordinates {
  int row, column;
};

// Tiles are numbered down `kRasterRows` rows, then along the columns, then on to the next rows.
__device__ inline TileCoordinates tile_coordinates(int tile, int row_tiles, int column_tiles) {
  const int band = tile / (kRasterRows * column_tiles);
  const int height = min(kRasterRows, row_tiles - band * kRasterRows);
  const int within = tile - band * kRasterRows * column_tiles;
  return {band * kRasterRows + within % height, within / height};
}
