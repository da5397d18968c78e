// CUDA kernels of frozen/nf4.rs, where the format is. `code` holds the 16 code values, `dynamic` the 256 of the dynamic code.

#define NF4_BLOCK 64
#define NF4_SCALES 256

/// `w̃_i`, in f32 to the bit as on the CPU: roundings are spelled out, so that no compiler fuses them.
__device__ inline float nf4_value(const unsigned char *codes, const unsigned char *absmax_codes, const float *absmax_scales,
                                  const float *code, const float *dynamic, float offset, size_t index) {
    const size_t block = index / NF4_BLOCK;
    const float scale = __fadd_rn(__fmul_rn(dynamic[absmax_codes[block]], absmax_scales[block / NF4_SCALES]), offset);
    const unsigned pair = codes[index / 2];
    return __fmul_rn(code[index % 2 == 0 ? pair >> 4 : pair & 15u], scale);
}

/// All `count` values. Any grid.
KERNEL(nf4_dequantise)
(const unsigned char *codes, const unsigned char *absmax_codes, const float *absmax_scales, const float *code,
 const float *dynamic, float offset, long long count, Value *out) {
    FOR_EACH(i, (size_t)count)
    put(&out[i], nf4_value(codes, absmax_codes, absmax_scales, code, dynamic, offset, i));
}

/// Rows of `x` that one block multiplies with: the weights are read once for all of them.
#define NF4_ROWS 8

/// `y = x W̃ᵀ` without `W̃` in memory, for few rows, as in generation: `x` `[n, width]`, `y` `[n, out]` with rows `stride` apart. One
/// warp an output: grid `[⌈out / warps⌉, ⌈n / 8⌉]`. For many rows dequantising a block for cuBLAS is faster.
KERNEL(nf4_multiply)
(const unsigned char *codes, const unsigned char *absmax_codes, const float *absmax_scales, const float *code,
 const float *dynamic, float offset, const Value *x, Value *y, int n, int out, int width, int stride) {
    const int column = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    const int first = blockIdx.y * NF4_ROWS;
    float sums[NF4_ROWS] = {};
    for (int i = lane; i < width && column < out; i += 32) {
        const float w = nf4_value(codes, absmax_codes, absmax_scales, code, dynamic, offset, (size_t)column * width + i);
        for (int row = 0; row < NF4_ROWS; row++)
            if (first + row < n) sums[row] += w * get(x[(size_t)(first + row) * width + i]);
    }
    for (int row = 0; row < NF4_ROWS; row++) {
        const float sum = warp_sum(sums[row]);
        if (lane == 0 && column < out && first + row < n) put(&y[(size_t)(first + row) * stride + column], sum);
    }
}
