// Every instruction that CUDA C++ has no name for: one wrapper an instruction, named after it, nothing else.
// Sections: 1 integers, 2 asynchronous copies (sm_80), 3 warp matrix instructions (sm_80), 4 special registers,
// 5 barriers in shared memory (sm_80) and bulk copies and dependent launches
// (sm_90), 6 Hopper's own.
// Shared-memory addresses are 32-bit offsets in the shared window: see shared_address.
#pragma once

using u32 = unsigned int;
using u64 = unsigned long long;

__device__ __forceinline__ u32 shared_address(const void* pointer) {
  return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

// 1 --- integers ------------------------------------------------------------------------------------------------------

// (a & b) | c in one instruction; the compiler does not always find it by itself.
template <u32 b, u32 c>
__device__ __forceinline__ u32 lop3_and_or(u32 a) {
  u32 d;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(d) : "r"(a), "n"(b), "n"(c));  // 0xea = (0xf0 & 0xcc) | 0xaa
  return d;
}

// 2 --- asynchronous copies -------------------------------------------------------------------------------------------

// 16 bytes global -> shared through L2 only. No L2 eviction hint: with one, sm_90 and sm_120 raise an illegal instruction.
__device__ __forceinline__ void cp_async_cg(u32 shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
}

__device__ __forceinline__ void cp_async_commit_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most kPending of this thread's newest groups are still on their way.
template <int kPending>
__device__ __forceinline__ void cp_async_wait_group() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// 3 --- warp matrix instructions --------------------------------------------------------------------------------------

// Four 8x8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8.
__device__ __forceinline__ void ldmatrix_x4(u32 (&d)[4], u32 shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(shared)
               : "memory");
}

// Two such matrices; lanes 0 to 15 give the addresses.
__device__ __forceinline__ void ldmatrix_x2(u32 (&d)[2], u32 shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(d[0]), "=r"(d[1]) : "r"(shared) : "memory");
}

#define MB_MMA(type) "mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "

// d[16x8] += a[16x16] * b[16x8], FP16 in, FP32 out.
__device__ __forceinline__ void mma_m16n8k16_f16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm volatile(MB_MMA("f16") "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d[16x8] += a[16x16] * b[16x8], BF16 in, FP32 out.
__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm volatile(MB_MMA("bf16") "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d[16x8] = a[16x16] * b[16x8]: sums that begin need no registers set to nought.
__device__ __forceinline__ void mma_m16n8k16_f16_new(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm volatile(MB_MMA("f16") "{%10, %10, %10, %10};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(0.f));
}

__device__ __forceinline__ void mma_m16n8k16_bf16_new(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm volatile(MB_MMA("bf16") "{%10, %10, %10, %10};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(0.f));
}

#undef MB_MMA

// d[16x8] += a[16x32] * b[32x8], a 2:4-sparse and compressed to 16x16, FP16 in, FP32 out. Positions of the non-zeros: 4 bits for
// each four of K, in two lanes of every quad: kSelector 0 takes lanes 0 and 1, 1 takes lanes 2 and 3. A lane's low half
// is row lane / 4, its high half row lane / 4 + 8; the first lane has K 0-15, the second K 16-31. The plain form, for compilers
// without `::ordered_metadata`, takes the same operands.
#if __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1205
#define MB_MMA_SP "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32."
#else
#define MB_MMA_SP "mma.sp.sync.aligned.m16n8k32.row.col.f32."
#endif
#define MB_MMA_SP_OPERANDS " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, "

template <int kSelector>
__device__ __forceinline__ void mma_sp_m16n8k32_f16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[4], u32 positions) {
  asm volatile(MB_MMA_SP "f16.f16.f32" MB_MMA_SP_OPERANDS "{%0, %1, %2, %3}, %12, %13;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(positions),
        "n"(kSelector));
}

// d[16x8] = a[16x32] * b[32x8].
template <int kSelector>
__device__ __forceinline__ void mma_sp_m16n8k32_f16_new(float (&d)[4], const u32 (&a)[4], const u32 (&b)[4], u32 positions) {
  asm volatile(MB_MMA_SP "f16.f16.f32" MB_MMA_SP_OPERANDS "{%14, %14, %14, %14}, %12, %13;"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(positions),
        "n"(kSelector), "f"(0.f));
}

// The first with BF16 in.
template <int kSelector>
__device__ __forceinline__ void mma_sp_m16n8k32_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[4], u32 positions) {
  asm volatile(MB_MMA_SP "bf16.bf16.f32" MB_MMA_SP_OPERANDS "{%0, %1, %2, %3}, %12, %13;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(positions),
        "n"(kSelector));
}

#undef MB_MMA_SP
#undef MB_MMA_SP_OPERANDS

// 4 --- special registers ---------------------------------------------------------------------------------------------

// The number of this launch in its context, the same in every CTA of it.
__device__ __forceinline__ u64 gridid() {
  u64 id;
  asm volatile("mov.u64 %0, %%gridid;" : "=l"(id));
  return id;
}

// The SM that this CTA runs on.
__device__ __forceinline__ u32 smid() {
  u32 id;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(id));
  return id;
}

// Nanoseconds of a timer that all SMs share; it advances in steps of 32 ns to about 1 us, by architecture.
__device__ __forceinline__ u64 globaltimer() {
  u64 nanoseconds;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(nanoseconds));
  return nanoseconds;
}

// 5 --- barriers in shared memory (sm_80), bulk copies (sm_90) ---------------------------------------------------------

__device__ __forceinline__ void bar_sync(u32 barrier, u32 threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Counts in without waiting for the others.
__device__ __forceinline__ void bar_arrive(u32 barrier, u32 threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

__device__ __forceinline__ void mbarrier_init(u32 barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void mbarrier_arrive(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// The barrier's phase of this parity is over; does not wait.
__device__ __forceinline__ bool mbarrier_test_wait_parity(u32 barrier, u32 parity) {
  u32 done;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}

// Arrives at the barrier once this thread's cp.async so far are complete; counts as one of its expected arrivals.
__device__ __forceinline__ void cp_async_mbarrier_arrive_noinc(u32 barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// Words of a pipeline stage. Not marked as touching memory: the mbarrier wait before and the arrival after them are, and
// volatile keeps their order to these.
__device__ __forceinline__ void ld_shared_v4_u32(u32 (&words)[4], u32 shared) {
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared));
}

__device__ __forceinline__ void ld_shared_v2_u32(u32 (&words)[2], u32 shared) {
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(words[0]), "=r"(words[1]) : "r"(shared));
}

__device__ __forceinline__ u32 ld_shared_u32(u32 shared) {
  u32 word;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(shared));
  return word;
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void fence_proxy_async_shared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive_expect_tx(u32 barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ bool mbarrier_try_wait_parity(u32 barrier, u32 parity) {
  u32 done;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}

// 1-D bulk copy global -> shared; `bytes` a multiple of 16, both addresses 16-byte aligned.
__device__ __forceinline__ void cp_async_bulk(u32 shared, const void* global, u32 bytes, u32 barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared),
      "l"(global), "r"(bytes), "r"(barrier)
      : "memory");
}

__device__ __forceinline__ void griddepcontrol_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

__device__ __forceinline__ void griddepcontrol_launch_dependents() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

#endif  // __CUDA_ARCH__ >= 900

// 6 --- Hopper's own (sm_90a): tensor maps, warpgroup products, clusters ----------------------------------------------

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

using u16 = unsigned short;

// Arrives at the barrier at the same offset in CTA `cta` of the cluster. The plain form: `.release.cluster` would cost a
// device-wide membar a stage, and nothing but the order of asynchronous copies is carried by these barriers.
__device__ __forceinline__ void mbarrier_arrive_cluster(u32 barrier, u32 cta) {
  asm volatile(
      "{\n.reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}" ::"r"(barrier),
      "r"(cta)
      : "memory");
}

__device__ __forceinline__ void prefetch_tensormap(const void* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

__device__ __forceinline__ void cp_async_bulk_tensor_3d(u32 shared, const void* map, int x, int y, int z,
                                                        u32 barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::
          "r"(shared),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier)
      : "memory");
}

__device__ __forceinline__ void cp_async_bulk_tensor_3d_multicast(u32 shared, const void* map, int x, int y, int z,
                                                                  u32 barrier, u16 ctas) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1, {%2, %3, %4}], [%5], %6;" ::"r"(shared),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier), "h"(ctas)
      : "memory");
}

// A box from shared memory to the tensor of `map`; what lies outside is not written.
__device__ __forceinline__ void cp_async_bulk_tensor_3d_store(const void* map, int x, int y, int z, u32 shared) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%1, %2, %3}], [%4];" ::"l"(map), "r"(x),
               "r"(y), "r"(z), "r"(shared)
               : "memory");
}

__device__ __forceinline__ void cp_async_bulk_commit_group() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// This thread's bulk stores have read their shared memory.
__device__ __forceinline__ void cp_async_bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

// Read anew each time, so that no register holds it in between.
__device__ __forceinline__ int lane_id() {
  int lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}

template <int kRegisters>
__device__ __forceinline__ void setmaxnreg_dec() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void setmaxnreg_inc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

__device__ __forceinline__ u32 cluster_ctarank() {
  u32 rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// Orders no memory: costs no device-wide membar.
__device__ __forceinline__ void barrier_cluster_arrive_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
}

__device__ __forceinline__ void barrier_cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}

__device__ __forceinline__ void barrier_cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

__device__ __forceinline__ u32 mapa_shared_cluster(u32 shared, u32 cta) {
  u32 remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(shared), "r"(cta));
  return remote;
}

__device__ __forceinline__ void st_shared_cluster_v4(u32 remote, float4 v) {
  asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(remote), "f"(v.x), "f"(v.y), "f"(v.z),
               "f"(v.w)
               : "memory");
}

__device__ __forceinline__ float4 ld_shared_v4_f32(u32 shared) {
  float4 v;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(shared)
               : "memory");
  return v;
}

__device__ __forceinline__ u32 ld_shared_u16(u32 shared) {
  u16 word;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(word) : "r"(shared));
  return word;
}

__device__ __forceinline__ void st_shared_u32(u32 shared, u32 word) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(shared), "r"(word) : "memory");
}

__device__ __forceinline__ void stmatrix_x4_trans(u32 shared, const u32 (&m)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(m[0]),
               "r"(m[1]), "r"(m[2]), "r"(m[3])
               : "memory");
}

__device__ __forceinline__ u32 ld_acquire_gpu(const u32* global) {
  u32 value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(global) : "memory");
  return value;
}

__device__ __forceinline__ u32 atom_add_acq_rel_gpu(u32* global, u32 addend) {
  u32 old;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;" : "=r"(old) : "l"(global), "r"(addend) : "memory");
  return old;
}

__device__ __forceinline__ u32 atom_add_relaxed_gpu(u32* global, u32 addend) {
  u32 old;
  asm volatile("atom.add.relaxed.gpu.global.u32 %0, [%1], %2;" : "=r"(old) : "l"(global), "r"(addend) : "memory");
  return old;
}

__device__ __forceinline__ void st_relaxed_gpu(u32* global, u32 value) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(global), "r"(value) : "memory");
}

__device__ __forceinline__ u32 add_f16x2(u32 a, u32 b) {
  u32 d;
  asm("add.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}

__device__ __forceinline__ u32 mul_f16x2(u32 a, u32 b) {
  u32 d;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}

__device__ __forceinline__ u32 fma_f16x2(u32 a, u32 b, u32 c) {
  u32 d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

__device__ __forceinline__ u32 add_bf16x2(u32 a, u32 b) {
  u32 d;
  asm("add.rn.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}

__device__ __forceinline__ u32 mul_bf16x2(u32 a, u32 b) {
  u32 d;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}

__device__ __forceinline__ u32 fma_bf16x2(u32 a, u32 b, u32 c) {
  u32 d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

// Bitwise or over the warp. Its result is known to be uniform, so that addresses made from it stay in uniform registers.
__device__ __forceinline__ u32 redux_or(u32 value) {
  u32 d;
  asm("redux.sync.or.b32 %0, %1, 0xffffffff;" : "=r"(d) : "r"(value));
  return d;
}

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void wgmma_commit_group() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int kPending>
__device__ __forceinline__ void wgmma_wait_group() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// wgmma.mma_async m64nNk16, A (weights) from registers, B (activations) from shared memory, FP32 accumulators:
//   d[4j+0,1] = (row lane/4,     columns 8j + 2*(lane%4) + 0,1)      d[4j+2,3] = the same columns of row lane/4 + 8
// `accumulate` adds to d; `start` writes d anew and so needs no zeroed registers. One specialisation a batch tile N.
template <int kN, bool kBf16>
struct WgmmaRs;

// clang-format off
// Registers and operands of the sums grow by four with every 8 columns.
#define MB_D4(c, i) c(d[i]), c(d[i + 1]), c(d[i + 2]), c(d[i + 3])
#define MB_D8(c, i) MB_D4(c, i), MB_D4(c, i + 4)
#define MB_D16(c, i) MB_D8(c, i), MB_D8(c, i + 8)
#define MB_D32(c, i) MB_D16(c, i), MB_D16(c, i + 16)
#define MB_D64(c, i) MB_D32(c, i), MB_D32(c, i + 32)
#define MB_REGISTERS_8 "%0, %1, %2, %3"
#define MB_OPERANDS_8(c) MB_D4(c, 0)
#define MB_REGISTERS_16 MB_REGISTERS_8 ", %4, %5, %6, %7"
#define MB_OPERANDS_16(c) MB_OPERANDS_8(c), MB_D4(c, 4)
#define MB_REGISTERS_24 MB_REGISTERS_16 ", %8, %9, %10, %11"
#define MB_OPERANDS_24(c) MB_OPERANDS_16(c), MB_D4(c, 8)
#define MB_REGISTERS_32 MB_REGISTERS_24 ", %12, %13, %14, %15"
#define MB_OPERANDS_32(c) MB_OPERANDS_24(c), MB_D4(c, 12)
#define MB_REGISTERS_40 MB_REGISTERS_32 ", %16, %17, %18, %19"
#define MB_OPERANDS_40(c) MB_OPERANDS_32(c), MB_D4(c, 16)
#define MB_REGISTERS_48 MB_REGISTERS_40 ", %20, %21, %22, %23"
#define MB_OPERANDS_48(c) MB_OPERANDS_40(c), MB_D4(c, 20)
#define MB_REGISTERS_56 MB_REGISTERS_48 ", %24, %25, %26, %27"
#define MB_OPERANDS_56(c) MB_OPERANDS_48(c), MB_D4(c, 24)
#define MB_REGISTERS_64 MB_REGISTERS_56 ", %28, %29, %30, %31"
#define MB_OPERANDS_64(c) MB_OPERANDS_56(c), MB_D4(c, 28)
#define MB_REGISTERS_72 MB_REGISTERS_64 ", %32, %33, %34, %35"
#define MB_OPERANDS_72(c) MB_OPERANDS_64(c), MB_D4(c, 32)
#define MB_REGISTERS_80 MB_REGISTERS_72 ", %36, %37, %38, %39"
#define MB_OPERANDS_80(c) MB_OPERANDS_72(c), MB_D4(c, 36)
#define MB_REGISTERS_88 MB_REGISTERS_80 ", %40, %41, %42, %43"
#define MB_OPERANDS_88(c) MB_OPERANDS_80(c), MB_D4(c, 40)
#define MB_REGISTERS_96 MB_REGISTERS_88 ", %44, %45, %46, %47"
#define MB_OPERANDS_96(c) MB_OPERANDS_88(c), MB_D4(c, 44)
#define MB_REGISTERS_104 MB_REGISTERS_96 ", %48, %49, %50, %51"
#define MB_OPERANDS_104(c) MB_OPERANDS_96(c), MB_D4(c, 48)
#define MB_REGISTERS_112 MB_REGISTERS_104 ", %52, %53, %54, %55"
#define MB_OPERANDS_112(c) MB_OPERANDS_104(c), MB_D4(c, 52)
#define MB_REGISTERS_120 MB_REGISTERS_112 ", %56, %57, %58, %59"
#define MB_OPERANDS_120(c) MB_OPERANDS_112(c), MB_D4(c, 56)
#define MB_REGISTERS_128 MB_REGISTERS_120 ", %60, %61, %62, %63"
#define MB_OPERANDS_128(c) MB_OPERANDS_120(c), MB_D4(c, 60)
#define MB_REGISTERS_136 MB_REGISTERS_128 ", %64, %65, %66, %67"
#define MB_OPERANDS_136(c) MB_OPERANDS_128(c), MB_D4(c, 64)
#define MB_REGISTERS_144 MB_REGISTERS_136 ", %68, %69, %70, %71"
#define MB_OPERANDS_144(c) MB_OPERANDS_136(c), MB_D4(c, 68)
#define MB_REGISTERS_152 MB_REGISTERS_144 ", %72, %73, %74, %75"
#define MB_OPERANDS_152(c) MB_OPERANDS_144(c), MB_D4(c, 72)
#define MB_REGISTERS_160 MB_REGISTERS_152 ", %76, %77, %78, %79"
#define MB_OPERANDS_160(c) MB_OPERANDS_152(c), MB_D4(c, 76)
#define MB_REGISTERS_168 MB_REGISTERS_160 ", %80, %81, %82, %83"
#define MB_OPERANDS_168(c) MB_OPERANDS_160(c), MB_D4(c, 80)
#define MB_REGISTERS_176 MB_REGISTERS_168 ", %84, %85, %86, %87"
#define MB_OPERANDS_176(c) MB_OPERANDS_168(c), MB_D4(c, 84)
#define MB_REGISTERS_184 MB_REGISTERS_176 ", %88, %89, %90, %91"
#define MB_OPERANDS_184(c) MB_OPERANDS_176(c), MB_D4(c, 88)
#define MB_REGISTERS_192 MB_REGISTERS_184 ", %92, %93, %94, %95"
#define MB_OPERANDS_192(c) MB_OPERANDS_184(c), MB_D4(c, 92)
#define MB_RW(x) "+f"(x)
#define MB_W(x) "=f"(x)
#define MB_WGMMA_RS(N, TYPE, BF16, A0, A1, A2, A3, DESC)                                                                \
  template <>                                                                                                          \
  struct WgmmaRs<N, BF16> {                                                                                            \
    static __device__ __forceinline__ void accumulate(float (&d)[N / 2], const u32 (&a)[4], u64 b) {         \
      asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" MB_REGISTERS_##N "}, {%" #A0   \
                   ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #DESC ", 1, 1, 1, 0;"                                         \
                   : MB_OPERANDS_##N(MB_RW)                                                                            \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                              \
    }                                                                                                                  \
    static __device__ __forceinline__ void start(float (&d)[N / 2], const u32 (&a)[4], u64 b) {              \
      asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" MB_REGISTERS_##N "}, {%" #A0   \
                   ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #DESC ", 0, 1, 1, 0;"                                         \
                   : MB_OPERANDS_##N(MB_W)                                                                             \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                              \
    }                                                                                                                  \
  };
#define MB_WGMMA(N, A0, A1, A2, A3, DESC) \
  MB_WGMMA_RS(N, "f16", false, A0, A1, A2, A3, DESC) MB_WGMMA_RS(N, "bf16", true, A0, A1, A2, A3, DESC)
MB_WGMMA(8, 4, 5, 6, 7, 8)
MB_WGMMA(16, 8, 9, 10, 11, 12)
MB_WGMMA(24, 12, 13, 14, 15, 16)
MB_WGMMA(32, 16, 17, 18, 19, 20)
MB_WGMMA(40, 20, 21, 22, 23, 24)
MB_WGMMA(48, 24, 25, 26, 27, 28)
MB_WGMMA(56, 28, 29, 30, 31, 32)
MB_WGMMA(64, 32, 33, 34, 35, 36)
MB_WGMMA(72, 36, 37, 38, 39, 40)
MB_WGMMA(80, 40, 41, 42, 43, 44)
MB_WGMMA(88, 44, 45, 46, 47, 48)
MB_WGMMA(96, 48, 49, 50, 51, 52)
MB_WGMMA(104, 52, 53, 54, 55, 56)
MB_WGMMA(112, 56, 57, 58, 59, 60)
MB_WGMMA(120, 60, 61, 62, 63, 64)
MB_WGMMA(128, 64, 65, 66, 67, 68)
MB_WGMMA(136, 68, 69, 70, 71, 72)
MB_WGMMA(144, 72, 73, 74, 75, 76)
MB_WGMMA(152, 76, 77, 78, 79, 80)
MB_WGMMA(160, 80, 81, 82, 83, 84)
MB_WGMMA(168, 84, 85, 86, 87, 88)
MB_WGMMA(176, 88, 89, 90, 91, 92)
MB_WGMMA(184, 92, 93, 94, 95, 96)
MB_WGMMA(192, 96, 97, 98, 99, 100)
// wgmma.mma_async.sp m64nNk32: A, 2:4-sparse and compressed to 64x16, from registers, B from shared memory, FP32 sums. A warp's
// rows, operands and positions are those of mma.sp m16n8k32, its sums those of N / 8 such products.
template <int kN, bool kBf16>
struct WgmmaSp;
#define MB_WGMMA_SP_RS(N, TYPE, BF16, A0, A1, A2, A3, DESC, AT, SELECTOR)                                               \
  template <>                                                                                                          \
  struct WgmmaSp<N, BF16> {                                                                                            \
    template <int kSelector>                                                                                           \
    static __device__ __forceinline__ void accumulate(float (&d)[N / 2], const u32 (&a)[4], u64 b, u32 positions) {    \
      asm volatile("wgmma.mma_async.sp.sync.aligned.m64n" #N "k32.f32." TYPE "." TYPE " {" MB_REGISTERS_##N "}, {%" #A0 \
                   ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #DESC ", %" #AT ", %" #SELECTOR ", 1, 1, 1, 0;"                \
                   : MB_OPERANDS_##N(MB_RW)                                                                            \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(positions), "n"(kSelector));              \
    }                                                                                                                  \
  };
#define MB_WGMMA_SP(N, A0, A1, A2, A3, DESC, AT, SELECTOR)                  \
  MB_WGMMA_SP_RS(N, "f16", false, A0, A1, A2, A3, DESC, AT, SELECTOR)       \
  MB_WGMMA_SP_RS(N, "bf16", true, A0, A1, A2, A3, DESC, AT, SELECTOR)
MB_WGMMA_SP(24, 12, 13, 14, 15, 16, 17, 18)
MB_WGMMA_SP(32, 16, 17, 18, 19, 20, 21, 22)
MB_WGMMA_SP(40, 20, 21, 22, 23, 24, 25, 26)
MB_WGMMA_SP(48, 24, 25, 26, 27, 28, 29, 30)
MB_WGMMA_SP(56, 28, 29, 30, 31, 32, 33, 34)
MB_WGMMA_SP(64, 32, 33, 34, 35, 36, 37, 38)
// The same with N = 256, and positions in lanes 0 and 1 of every quad.
#define MB_REGISTERS_256 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define MB_OPERANDS_256(c) MB_D64(c, 0), MB_D64(c, 64)
__device__ __forceinline__ void wgmma_sp_m64n256k32_f16(float (&d)[128], const u32 (&a)[4], u64 b, u32 positions) {
  asm volatile("wgmma.mma_async.sp.sync.aligned.m64n256k32.f32.f16.f16 {" MB_REGISTERS_256 "}, "
               "{%128, %129, %130, %131}, %132, %133, 0, 1, 1, 1, 0;"
               : MB_OPERANDS_256(MB_RW)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(positions));
}
// clang-format on
#undef MB_WGMMA_RS
#undef MB_WGMMA
#undef MB_WGMMA_SP_RS
#undef MB_WGMMA_SP

#endif  // __CUDA_ARCH_FEAT_SM90_ALL
