// CUDA's execution model on one thread of a processor, so that the kernels can be tested where there is no GPU.
//
// Every thread of a block is a fiber. A fiber runs until it waits (`__syncthreads`, `__syncwarp`, a shuffle, a tensor-core product)
// or ends; then the next one runs. Blocks run one after the other. What this finds: wrong indices, masks, layouts of fragments,
// barriers in divergent code, uninitialised shared memory (it is filled with NaN before each block) and, by running the threads in
// the reverse order too, barriers that are missing. What it cannot find: anything about speed, registers, the rounding of tensor
// cores and of `expf`, and alignment that only a GPU insists on.
#pragma once
#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>

#define KERNEL(name) extern "C" void name
#define DYNAMIC_SHARED(name) unsigned char *name = cuda_on_cpu::dynamic_shared
#define INFINITE HUGE_VALF
// internal: variables inside of inline functions would be one for all libraries of the process, which tests open several of
#define __device__ static
// in a section of their own, which is filled before each block; used: else the compiler may take what nobody writes for zeros
#define __shared__ static __attribute__((section("cuda_shared"), used))

using std::max;
using std::min;

struct Index3 {
    unsigned x, y, z;
};
static Index3 threadIdx, blockIdx, blockDim, gridDim;

/// The linker's: where the section begins and ends. Hidden: each library has its own.
extern "C" __attribute__((visibility("hidden"))) unsigned char __start_cuda_shared[], __stop_cuda_shared[];

namespace cuda_on_cpu {

constexpr unsigned MOST_THREADS = 1024, WARP = 32;
constexpr size_t STACK = 64 << 10, MOST_SHARED = 232448; // of compute capability 9.0
constexpr size_t GUARD = 4096;                            // behind it: nobody may write there

struct Fiber {
    ucontext_t start;
    jmp_buf waiting;
    bool has_started, is_done;
};

/// Threads that wait for each other: a warp, or the block.
struct Group {
    unsigned arrived, size;
    unsigned long generation;
};

static Fiber fibers[MOST_THREADS];
static unsigned char *stacks = nullptr;
static Group warps[MOST_THREADS / WARP], block;
static jmp_buf scheduler;
static unsigned long progress;
alignas(16) static unsigned char dynamic_shared[MOST_SHARED + GUARD];
static float floats[MOST_THREADS];
static uint32_t fragments[MOST_THREADS][6];

// what the fibers run
static void (*body)(void *, void **);
static void *kernel;
static void **arguments;

static inline void wait_for(Group &group) {
    const unsigned long generation = group.generation;
    if (++group.arrived == group.size) {
        group.arrived = 0;
        group.generation++, progress++;
        return;
    }
    // longjmp instead of swapcontext, which asks the kernel of the operating system for the signal mask each time
    Fiber &self = fibers[threadIdx.x];
    while (group.generation == generation)
        if (!_setjmp(self.waiting)) _longjmp(scheduler, 1);
}

static inline Group &own_warp() { return warps[threadIdx.x / WARP]; }

/// A fiber lives as long as the library: from one kernel to the next it waits as in a barrier.
static void run_fiber() {
    for (;;) {
        body(kernel, arguments);
        Fiber &self = fibers[threadIdx.x];
        self.is_done = true;
        progress++;
        if (!_setjmp(self.waiting)) _longjmp(scheduler, 1);
    }
}

/// Lets a fiber run until it waits or ends.
static void resume(Fiber &fiber, unsigned thread) {
    threadIdx = {thread, 0, 0};
    if (_setjmp(scheduler)) return;
    if (fiber.has_started) _longjmp(fiber.waiting, 1);
    fiber.has_started = true;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = stacks + thread * STACK;
    fiber.start.uc_stack.ss_size = STACK;
    makecontext(&fiber.start, run_fiber, 0);
    setcontext(&fiber.start);
}

/// Runs a block; null, or what went wrong.
static const char *run_block(unsigned threads, size_t shared, bool reversed) {
    memset(dynamic_shared, 0xff, shared + GUARD);
    memset(__start_cuda_shared, 0xff, __stop_cuda_shared - __start_cuda_shared);
    block = {0, threads, 0};
    for (unsigned warp = 0; warp < threads / WARP; warp++) warps[warp] = {0, WARP, 0};
    for (unsigned thread = 0; thread < threads; thread++) fibers[thread].is_done = false;
    for (unsigned live = threads; live > 0;) {
        const unsigned long before = progress;
        for (unsigned turn = 0; turn < threads; turn++) {
            const unsigned thread = reversed ? threads - 1 - turn : turn;
            if (fibers[thread].is_done) continue;
            resume(fibers[thread], thread);
            if (fibers[thread].is_done) live--;
        }
        if (progress == before) {
            // they stay in the middle of the kernel; the next one gets new ones
            for (unsigned thread = 0; thread < threads; thread++) fibers[thread].has_started = false;
            return "its threads wait for each other for ever: a barrier in divergent code";
        }
    }
    for (size_t i = shared; i < shared + GUARD; i++)
        if (dynamic_shared[i] != 0xff) return "it wrote behind its shared memory";
    return nullptr;
}

template <typename... A, size_t... I>
static void call(void (*function)(A...), void **values, std::index_sequence<I...>) {
    function(*static_cast<std::remove_reference_t<A> *>(values[I])...);
}

template <typename F> struct Body;
template <typename... A> struct Body<void (*)(A...)> {
    static void run(void *function, void **values) {
        call(reinterpret_cast<void (*)(A...)>(function), values, std::index_sequence_for<A...>{});
    }
};

struct Known {
    const char *name;
    void *kernel;
    void (*body)(void *, void **);
};

static const char *launch(const Known &known, const unsigned *grid, unsigned threads, size_t shared, void **values,
                          bool reversed) {
    if (threads == 0 || threads > MOST_THREADS || threads % WARP != 0) return "threads must be a multiple of 32";
    if (shared > MOST_SHARED) return "more shared memory than a block can have";
    if (!stacks) stacks = static_cast<unsigned char *>(malloc(MOST_THREADS * STACK));
    body = known.body, kernel = known.kernel, arguments = values;
    gridDim = {grid[0], grid[1], 1}, blockDim = {threads, 1, 1};
    for (unsigned y = 0; y < grid[1]; y++)
        for (unsigned x = 0; x < grid[0]; x++) {
            blockIdx = {x, y, 0};
            if (const char *failure = run_block(threads, shared, reversed)) return failure;
        }
    return nullptr;
}

} // namespace cuda_on_cpu

static inline void __syncthreads() { cuda_on_cpu::wait_for(cuda_on_cpu::block); }

static inline void __syncwarp() { cuda_on_cpu::wait_for(cuda_on_cpu::own_warp()); }

static inline float __shfl_xor_sync(unsigned, float value, int mask) {
    using namespace cuda_on_cpu;
    floats[threadIdx.x] = value;
    __syncwarp();
    const float other = floats[threadIdx.x ^ mask];
    __syncwarp(); // nobody may write the next value before everybody has read this one
    return other;
}

static inline float __uint_as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t __float_as_uint(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float __fmul_rn(float a, float b) { return a * b; }

static inline float __fadd_rn(float a, float b) { return a + b; }

/// `mma.sync.m16n8k16` with bf16 operands; the places of the elements are those of the PTX manual, "Matrix Fragments for
/// mma.m16n8k16 with floating point type".
static inline void mma_bf16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    using namespace cuda_on_cpu;
    uint32_t *own = fragments[threadIdx.x];
    own[0] = a[0], own[1] = a[1], own[2] = a[2], own[3] = a[3], own[4] = b[0], own[5] = b[1];
    __syncwarp();
    const unsigned warp = threadIdx.x / WARP * WARP, lane = threadIdx.x % WARP;
    const auto half = [](uint32_t pair, int k) { return __uint_as_float(k % 2 == 0 ? pair << 16 : pair & 0xffff0000u); };
    for (int element = 0; element < 4; element++) {
        const int i = lane / 4 + 8 * (element / 2), j = 2 * (lane % 4) + element % 2;
        for (int k = 0; k < 16; k++) {
            const uint32_t left = fragments[warp + i % 8 * 4 + k % 8 / 2][i / 8 + k / 8 * 2];
            const uint32_t right = fragments[warp + j * 4 + k % 8 / 2][4 + k / 8];
            c[element] += half(left, k) * half(right, k);
        }
    }
    __syncwarp();
}
