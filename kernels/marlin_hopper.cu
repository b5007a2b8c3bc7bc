// C[M,N] = A[M,K] @ W[K,N] on Hopper (sm_90a): FP16 or BF16 activations, 4-bit weights, FP32 sums.
//
//                        batch tile (8 … 192 rows of A)
//                        ┌──────┐
//            kTileRows   │      │  warpgroup 0: rows 0 … 64·kBlocks of the tile      C^T tile = W^T tile · A^T tile
//            output      ├──────┤
//            features    │      │  warpgroup 1: …                      K in stages of kStageTiles · 128
//                        └──────┘
//
// Weights are wgmma's left operand and come from registers, straight out of dequantisation; activations are the right one
// and are read from shared memory. So the batch is padded to 8, not to 64, and no weight is written to shared memory twice.
// One warp copies packed weights, one copies activations (hopper_pipeline.cuh), the consumer warpgroups multiply
// (hopper_mainloop.cuh) and the sums of tiles that several CTAs share are joined in a fixed order (hopper_reduce.cuh); on
// the largest layers the last of the work goes to whichever CTA comes free (hopper_tail.cuh).
//
// Numbers that shape it, per SM of an H200: 64 KB in flight reach 4.2 of 4.5 TB/s, stages of 8 KB and more; a 64x16xN product
// takes max(13, N/2) clocks; 8 weights are dequantised in 9 instructions.
#include "hopper_config.cuh"
#include "hopper_mainloop.cuh"
#include "hopper_pipeline.cuh"
#include "hopper_reduce.cuh"
#include "hopper_schedule.cuh"
#include "hopper_shares.cuh"
#include "hopper_tail.cuh"
#include "hopper_warp_loop.cuh"

// Finishes a tile that this CTA left its sums of, if all the others had come before.
template <typename Store>
__device__ __forceinline__ void finish_if_last(const Schedule& schedule, const Workspace& workspace, int tile,
                                               u32 arrived_before, u32 word, const Store& store) {
  const SharedTile shared_tile(schedule, workspace, tile);
  if (broadcast(arrived_before, word) != shared_tile.others()) return;
  Sums sums;
  shared_tile.finish(sums, false);
  store(sums, tile_position(schedule, tile));
}

extern __shared__ __align__(1024) unsigned char shared_memory[];

// activations: tensor map of half or bfloat16 A[M,K], see produce_activations
// outputs:     tensor map of the output as (64, M, N/64) with boxes (64, kBatchTile, 1), for bulk stores
// packed:      uint8 [strips][k_tiles][2][kBlockBytes], see layouts/marlin_hopper.py
// output:      half or bfloat16 C[M,N], column factors and bias
// workspace:   see hopper_reduce.cuh and hopper_tail.cuh; unused by split clusters
extern "C" __global__ void __launch_bounds__(kThreads, kCtasPerSm)
    marlin_hopper(const __grid_constant__ TensorMap activations, const __grid_constant__ TensorMap outputs,
                  const unsigned char* __restrict__ packed,
                  const __grid_constant__ Output output, const __grid_constant__ Workspace workspace,
                  const __grid_constant__ Schedule schedule, int strips, int k_tiles) {
  const Ring ring{shared_address(shared_memory)};
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
  const int lane = threadIdx.x % 32;
  const u32 rank = kCluster > 1 ? cluster_ctarank() : 0;

  if constexpr (kSplitCluster) {
    // Clusters without a tile only keep their SMs from taking two CTAs of the next launch.
    if (blockIdx.x / kCluster >= schedule.row_tiles * schedule.batch_tiles) {
      griddepcontrol_launch_dependents();
      griddepcontrol_wait();
      return;
    }
  }
  if (warp == 0) {
    if constexpr (kEarlyTrigger) griddepcontrol_launch_dependents();
    if constexpr (kTail) {
      if (lane == 0) PostBox(ring).initialize();
    }
    if (lane == 0) ring.initialize();
  }
  if (threadIdx.x == kConsumerThreads + 32) prefetch_tensormap(&activations);
  __syncthreads();
  if constexpr (kCluster > 1) {
    // Nothing was written that another CTA reads, except barriers, which have a fence of their own. With a narrow tile the
    // membar of the other form is no loss (docs/kernels/marlin_hopper.md).
    if constexpr (kWideTile) {
      barrier_cluster_arrive_relaxed();
    } else {
      barrier_cluster_arrive();
    }
  }
  if constexpr (kTeam > 1) barrier_cluster_wait();

  if (warp >= kConsumerWarps) {
    if constexpr (kReallocate) setmaxnreg_dec<kProducerRegisters>();
    if (lane == 0 && warp == kConsumerWarps) {
      const StageCursor cursor = produce_weights(ring, schedule, packed, strips, k_tiles);
      if constexpr (kTail) {
        griddepcontrol_wait();
        produce_tail(ring, schedule, workspace, packed, strips, k_tiles, &activations, cursor);
      }
      if constexpr (!kEarlyTrigger) griddepcontrol_launch_dependents();
    } else if (lane == 0 && warp == kConsumerWarps + 1) {
      produce_activations(ring, schedule, &activations);
    } else if (kBulkStore && warp == kConsumerWarps + 2) {
      griddepcontrol_wait();
      store_tiles(ring, schedule, &outputs, output.N, lane);
    } else if (kTail && lane == 0 && warp == kConsumerWarps + 2) {
      griddepcontrol_wait();
      PostBox(ring).count_parts(schedule, workspace);
    }
    __syncwarp();
    if constexpr (kSplitCluster) {
      barrier_cluster_wait();
      barrier_cluster_arrive();
      barrier_cluster_wait();
    }
  } else {
    if constexpr (kReallocate) setmaxnreg_inc<kConsumerRegisters>();
    const int warpgroup = warp / 4;
    const ConsumerPosition at{warpgroup / kRowWarpgroups, warpgroup % kRowWarpgroups, warp % 4, lane_id()};
    const u32 staging = ring.base + kStagingAt + warp * kStagingBytes;
    const u32 word = ring.base + kBroadcastAt;
    // This warp's factors of a tile whose sums it has itself, and the end of such a tile.
    const auto own_feature = [&](const TilePosition& position) {
      return position.row_tile * kTileRows + at.row_warpgroup * kBlocks * kBlockRows + at.warp_in_group * 16;
    };
    const auto own_factors = [&](const TilePosition& position) {
      const int first_feature = own_feature(position);
      return ColumnFactors<kBlocks>(output, [&](int block) { return first_feature + block * kBlockRows; }, lane_id());
    };
    const auto store = [&](const Sums& sums, const ColumnFactors<kBlocks>& factors, const TilePosition& position) {
      store_tile(output, sums, factors, own_feature(position), position.batch_tile * kBatchTile, staging, lane_id());
    };
    Segments segments(schedule);
    Segment segment;
    LoopBy<kWarpProducts>::Type mainloop(ring, at);
    // Tiles that this CTA left its sums of, at most one at each end of its piece. Who had come before stays in shared memory,
    // for thread 0.
    int left_tiles[2] = {kNoTile, kNoTile};
    const auto arrived_before = [&](int end) { return word + 4 + 4 * end; };
    bool first = true;
    if constexpr (kTail) {
      const PostBox box(ring);
      u32 left = 0, asked = 0;  // parts that were left, and that were asked for since
      bool striped = true;
      // Its own stripe, then pieces of tails.
      for (;;) {
        int piece = -1;
        if (striped) striped = segments.next(segment);
        bool more = true;
        if (!striped) {
          const u32 ticket = mainloop.next_ticket();
          more = ticket != kNoPiece;
          if (more) {
            const Piece drawn(schedule, ticket);
            piece = drawn.index;
            segment = {drawn.tile, drawn.first(schedule), drawn.last(schedule)};
          }
        }
        if (more) {
          Sums sums;
          mainloop.run(sums, segment.last - segment.first);
          if (first) griddepcontrol_wait();  // outputs and workspace may still be read by the previous kernel until here
          first = false;
          TailTile(schedule, workspace, segment.tile).leave_part(sums, piece);
        }
        // Tiles that earlier parts of this CTA completed; the counts of the last two may take a while.
        while (more ? asked + 2 <= left : asked < left) {
          const int tile = box.wait_complete_tile(asked++);
          if (tile == kNoTile) continue;
          const TilePosition position = tile_position(schedule, tile);
          const ColumnFactors<kBlocks> factors = own_factors(position);
          Sums sums;
          TailTile(schedule, workspace, tile).add_parts(sums);
          store(sums, factors, position);
        }
        box.post(left++, more ? segment.tile : kNoTile, lane);
        if (!more) break;
      }
    }
    while (!kTail && segments.next(segment)) {
      const TilePosition position = tile_position(schedule, segment.tile);
      Sums sums;
      if constexpr (kSplitCluster && !kBatchShares) {
        const int first_feature = position.row_tile * kTileRows + rank * kGroupsPerCta * 16;
        const ColumnFactors<kSquaresPerWarp> factors(
            output, [&](int i) { return first_feature + SquarePosition(i, warp).group * 16; }, lane);
        mainloop.run(sums, segment.last - segment.first);
        griddepcontrol_wait();  // the previous kernel may read the outputs until here
        barrier_cluster_wait();  // the other CTAs run: their shared memory may be written
        send_to_cluster(sums, ring.base + kExchangeAt, rank, at.split, at.row_warpgroup, at.warp_in_group, lane);
        barrier_cluster_arrive();
        barrier_cluster_wait();
        finish_groups(output, factors, ring.base + kExchangeAt, first_feature, position.batch_tile * kBatchTile, staging,
                      warp, lane);
        break;  // a cluster has one tile
      }
      const ColumnFactors<kBlocks> factors = own_factors(position);
      if constexpr (kBatchShares) {
        const int source = rank * kSplit + at.split;
        mainloop.run(sums, segment.last - segment.first);
        griddepcontrol_wait();
        barrier_cluster_wait();
        send_shares(sums, ring.base + kExchangeAt, source, at.row_warpgroup * 4 + at.warp_in_group, lane);
        barrier_cluster_arrive();
        barrier_cluster_wait();
        finish_share(sums, ring.base + kExchangeAt, source, warp, lane, [&](auto rows) {
          store_tile<rows.kBegin, rows.kEnd>(output, sums, factors, own_feature(position),
                                             position.batch_tile * kBatchTile, staging, lane);
        });
        break;
      }
      const bool is_whole = segment.last - segment.first == schedule.units_per_tile;
      const int stage = mainloop.run_and_keep(sums, segment.last - segment.first);
      if (!kBulkStore || !is_whole) mainloop.release(stage);
      // Outputs and workspace may still be read by the previous kernel until here.
      if (first) griddepcontrol_wait();
      first = false;
      if (kBulkStore && is_whole) {
        bar_sync(kConsumerBarrier, kConsumerThreads);  // the other warpgroups' products have read the activations
        stage_tile(output, sums, factors, own_feature(position),
                   ring.activations(stage) + at.row_warpgroup * kBlocks * kOutputBoxBytes, at.warp_in_group, lane_id());
        fence_proxy_async_shared();
        bar_arrive(kStoreBarrier, kConsumerThreads + 32);
        if constexpr (EVERY_LANE_RELEASES) {
          bar_sync(kStoredBarrier, kConsumerThreads + 32);
          mainloop.release(stage);
        }
      } else if (is_whole) {
        store(sums, factors, position);
      } else {
        const SharedTile shared_tile(schedule, workspace, segment.tile);
        const bool is_owner = shared_tile.is_owner();
        const bool looks = is_owner && !schedule.shared_ends;
        const u32 arrived = looks && threadIdx.x == 0 ? ld_acquire_gpu(shared_tile.arrivals()) : 0;
        if (looks && broadcast(arrived, word) == shared_tile.others()) {
          shared_tile.finish(sums, true);
          store(sums, factors, position);
        } else {
          const u32 before = shared_tile.leave(sums);
          if (threadIdx.x == 0) st_shared_u32(arrived_before(is_owner), before);
          if (is_owner) {
            left_tiles[1] = segment.tile;
          } else {
            left_tiles[0] = segment.tile;
          }
        }
      }
    }
    if constexpr (!kSplitCluster && !kTail) {
#pragma unroll 1
      for (int end = 0; end < 2; ++end) {
        const int tile = end ? left_tiles[1] : left_tiles[0];
        if (tile == kNoTile) continue;
        const u32 before = threadIdx.x == 0 ? ld_shared_u32(arrived_before(end)) : 0;
        if (schedule.shared_ends) {
          const SharedTile shared_tile(schedule, workspace, tile);
          const SharedEnd shared_end(shared_tile);
          const TilePosition position = tile_position(schedule, tile);
          const ColumnFactors<kBlocks> factors = own_factors(position);
          for (u32 shares = shared_end.look(before, word); shares != 0; shares &= shares - 1) {
            shared_end.finish(__ffs(shares) - 1, output, factors, own_feature(position),
                              position.batch_tile * kBatchTile, staging, lane_id());
          }
          continue;
        }
        finish_if_last(schedule, workspace, tile, before, word, [&](const Sums& sums, const TilePosition& position) {
          store(sums, own_factors(position), position);
        });
      }
    }
  }
  if constexpr (kTeam > 1) {
    // The other CTA may still copy into this one's shared memory or arrive at its barriers.
    barrier_cluster_arrive();
    barrier_cluster_wait();
  }
}
