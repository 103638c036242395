// What all our kernels share. NVRTC compiles the kernels at start for the present GPU (sm_80 or later), without any header:
// this text is put in front of each source.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;

__device__ __forceinline__ float wide(u16 bits) { return __uint_as_float((u32)bits << 16); }

__device__ __forceinline__ u16 narrow(float number) {
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(number));
    return bits;
}

__device__ __forceinline__ float wide_half(u16 bits) {
    float number;
    asm("cvt.f32.f16 %0, %1;" : "=f"(number) : "h"(bits));
    return number;
}

__device__ __forceinline__ u16 narrow_half(float number) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(number));
    return bits;
}

__device__ __forceinline__ u32 packed(float low, float high) { return narrow(low) | (u32)narrow(high) << 16; }

__device__ __forceinline__ float warp_sum(float number) {
    for (int distance = 16; distance; distance >>= 1) number += __shfl_xor_sync(0xffffffff, number, distance);
    return number;
}

// From Hopper on, a kernel may begin before the previous one has ended. Until `wait_for_earlier` it may only read what
// existed before the forward began: the weights, and the arena's rows other than those that it appends.
__device__ __forceinline__ void let_next_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}
__device__ __forceinline__ void wait_for_earlier() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ uint4 streamed(const void* address) {  // data that is read only once is not kept in L1
    uint4 got;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(got.x), "=r"(got.y), "=r"(got.z), "=r"(got.w)
                 : "l"(address));
    return got;
}

__device__ __forceinline__ void mma(float (&sum)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
