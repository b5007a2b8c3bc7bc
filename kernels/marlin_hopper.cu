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
// (hopper_mainloop.cuh) and the sums of tiles that several CTAs share are joined in a fixed order (hopper_reduce.cuh).
//
// Numbers that shape it, per SM of an H200: 64 KB in flight reach 4.2 of 4.5 TB/s, stages of 8 KB and more; a 64x16xN product
// takes max(13, N/2) clocks; 8 weights are dequantised in 9 instructions.
#include "hopper_config.cuh"
#include "hopper_mainloop.cuh"
#include "hopper_pipeline.cuh"
#include "hopper_reduce.cuh"
#include "hopper_schedule.cuh"

extern __shared__ __align__(1024) unsigned char shared_memory[];

// activations: tensor map of half or bfloat16 A[M,K], see produce_activations
// packed:      uint8 [strips][k_tiles][2][kBlockBytes], see layouts/marlin_hopper.py
// output:      half or bfloat16 C[M,N], column factors and bias
// workspace:   see hopper_reduce.cuh; unused by split clusters
extern "C" __global__ void __launch_bounds__(kThreads, kCtasPerSm)
    marlin_hopper(const __grid_constant__ TensorMap activations, const unsigned char* __restrict__ packed,
                  const __grid_constant__ Output output, const __grid_constant__ Workspace workspace,
                  const __grid_constant__ Schedule schedule, int strips, int k_tiles) {
  const Ring ring{shared_address(shared_memory)};
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
  const int lane = threadIdx.x % 32;
  const u32 rank = kCluster > 1 ? cluster_ctarank() : 0;

  if (threadIdx.x == 0) {
    if constexpr (kEarlyTrigger) griddepcontrol_launch_dependents();
    ring.initialize();
  }
  if (threadIdx.x == kConsumerThreads + 32) prefetch_tensormap(&activations);
  __syncthreads();
  if constexpr (kCluster > 1) barrier_cluster_arrive();
  if constexpr (kTeam > 1) barrier_cluster_wait();

  if (warp >= kConsumerWarps) {
    if constexpr (kReallocate) setmaxnreg_dec<kProducerRegisters>();
    if (lane == 0 && warp == kConsumerWarps) {
      produce_weights(ring, schedule, packed, strips, k_tiles);
      if constexpr (!kEarlyTrigger) griddepcontrol_launch_dependents();
    } else if (lane == 0 && warp == kConsumerWarps + 1) {
      griddepcontrol_wait();
      produce_activations(ring, schedule, &activations);
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
    const ConsumerPosition at{warpgroup / kRowWarpgroups, warpgroup % kRowWarpgroups, warp % 4, lane};
    const u32 staging = ring.base + kStagingAt + warp * kStagingBytes;
    Segments segments(schedule);
    Segment segment;
    Mainloop mainloop(ring, at);
    bool first = true;
    while (segments.next(segment)) {
      Sums sums;
      mainloop.run(sums, segment.last - segment.first);
      // Outputs and workspace may still be read by the previous kernel until here.
      if (first) griddepcontrol_wait();
      first = false;
      const TilePosition position = tile_position(schedule, segment.tile);
      const int tile_feature = position.row_tile * kTileRows;
      const int first_row = position.batch_tile * kBatchTile;
      if constexpr (kSplitCluster) {
        barrier_cluster_wait();  // the other CTAs run: their shared memory may be written
        send_to_cluster(sums, ring.base + kExchangeAt, rank, at.split, at.row_warpgroup, at.warp_in_group, lane);
        barrier_cluster_arrive();
        barrier_cluster_wait();
        finish_groups(output, ring.base + kExchangeAt, rank, tile_feature, first_row, staging, warp, lane);
      } else {
        const bool whole = segment.last - segment.first == schedule.units_per_tile;
        if (whole || join_stripes(schedule, workspace, segment, sums, ring.base + kBroadcastAt)) {
          const int warp_feature = tile_feature + at.row_warpgroup * kBlocks * kBlockRows + at.warp_in_group * 16;
          store_tile(output, sums, warp_feature, first_row, staging, lane);
        }
      }
    }
  }
  if constexpr (kTeam > 1) {
    // The other CTA may still copy into this one's shared memory or arrive at its barriers.
    barrier_cluster_arrive();
    barrier_cluster_wait();
  }
}
