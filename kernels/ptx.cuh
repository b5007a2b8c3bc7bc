// Every instruction that CUDA C++ has no name for: one wrapper an instruction, named after it, nothing else.
// Sections: 1 integers, 2 asynchronous copies (sm_80), 3 warp matrix instructions (sm_80), 4 special registers.
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

// d[16x8] += a[16x16] * b[16x8], FP16 in, FP32 out.
__device__ __forceinline__ void mma_m16n8k16_f16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d[16x8] += a[16x16] * b[16x8], BF16 in, FP32 out.
__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// 4 --- special registers ---------------------------------------------------------------------------------------------

// The number of this launch in its context, the same in every CTA of it.
__device__ __forceinline__ u64 gridid() {
  u64 id;
  asm volatile("mov.u64 %0, %%gridid;" : "=l"(id));
  return id;
}
