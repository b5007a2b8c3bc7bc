// Launches that overlap (sm_90 and later; before, one begins when the other has ended).
#pragma once
#include "ptx.cuh"

// From here on the next launch of the stream may take SMs that this one has left.
__device__ __forceinline__ void launch_dependents() {
#if __CUDA_ARCH__ >= 900
  griddepcontrol_launch_dependents();
#endif
}

// A dependent launch starts while its predecessor still runs; from here on the predecessor's results are in memory.
__device__ __forceinline__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  griddepcontrol_wait();
#endif
}
