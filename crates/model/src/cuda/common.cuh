// What all kernels share. A translation unit is this file and then every `.cu` file (cuda/source.rs); who compiles it chooses
//   STORE_BF16  values are stored as bf16 instead of f32; sums, statistics, norm weights and losses are f32 in either case
//   HEAD        values of an attention head, rounded up to a multiple of 16
// No header of CUDA is needed, so that the runtime compiler alone suffices.
//
// Every sum has one fixed order and there is no atomic operation: a kernel gives the same bits whenever it runs.

#ifdef CUDA_ON_CPU
#include "cuda_on_cpu.h"
#else
#define KERNEL(name) extern "C" __global__ void name
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define INFINITE __int_as_float(0x7f800000)
#endif

/// The upper half of an f32.
struct bf16 {
    unsigned short bits;
};

#ifdef STORE_BF16
typedef bf16 Value;
#else
typedef float Value;
#endif

__device__ inline float get(float value) { return value; }

__device__ inline float get(bf16 value) { return __uint_as_float((unsigned)value.bits << 16); }

__device__ inline void put(float *to, float value) { *to = value; }

/// Rounded to nearest, ties to even; NaN stays NaN.
__device__ inline void put(bf16 *to, float value) {
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to->bits) : "f"(value));
#else
    const unsigned bits = __float_as_uint(value);
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    to->bits = is_nan ? 0x7fffu : (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#endif
}

/// Two neighbours at once; `to` is even.
__device__ inline void put_pair(float *to, float first, float second) { to[0] = first, to[1] = second; }

__device__ inline void put_pair(bf16 *to, float first, float second) {
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(*(unsigned *)to) : "f"(second), "f"(first));
#else
    put(to, first), put(to + 1, second);
#endif
}

/// First index of this thread and the distance to its next, for kernels over `count` independent values.
#define FOR_EACH(index, count)                                                                                         \
    for (size_t index = (size_t)blockIdx.x * blockDim.x + threadIdx.x; index < (count); index += (size_t)gridDim.x * blockDim.x)

__device__ inline float warp_sum(float value) {
    for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
    return value;
}

__device__ inline float warp_max(float value) {
    for (int distance = 16; distance > 0; distance /= 2)
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, distance));
    return value;
}

/// Sum over the threads of a block, whose number is a multiple of 32; every thread gets it.
__device__ inline float block_sum(float value) {
    __shared__ float parts[32];
    value = warp_sum(value);
    __syncthreads(); // an earlier sum may still be read
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncthreads();
    float sum = 0.0f;
    for (unsigned warp = 0; warp < blockDim.x / 32; warp++) sum += parts[warp];
    return sum;
}

/// Largest value over the threads of a block; NaN is passed over.
__device__ inline float block_max(float value) {
    __shared__ float parts[32];
    value = warp_max(value);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncthreads();
    float most = parts[0];
    for (unsigned warp = 1; warp < blockDim.x / 32; warp++) most = fmaxf(most, parts[warp]);
    return most;
}

/// Soft cap (ops/soft_cap.rs); a cap of 0 is none.
__device__ inline float capped(float x, float cap) { return cap > 0.0f ? cap * tanhf(x / cap) : x; }

/// `dy/dx` of the soft cap at the capped value `y`.
__device__ inline float cap_slope(float y, float cap) {
    const float t = cap > 0.0f ? y / cap : 0.0f;
    return 1.0f - t * t;
}

/// `e^x`: as exact as the library's for f32, by the special function unit where bf16 rounds 2¹⁴ times more coarsely.
__device__ inline float exponential(float x) {
#if defined(STORE_BF16) && !defined(CUDA_ON_CPU)
    return __expf(x);
#else
    return expf(x);
#endif
}

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }
