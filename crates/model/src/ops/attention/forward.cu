// CUDA kernel of ops/attention: forward pass in the form of FlashAttention-2 (Dao 2023).
//
// A block has 16 queries of one head for each of its warps, and walks over the keys that they see, `STEP` at a time. It keeps, per
// query, the largest score `m` so far, the sum `l` of `exp(S − m)` and `O · l`; when `m` grows both shrink by `exp(m_old − m_new)`.

/// `O` and `L`. `tiles` holds start and end of a sequence and a tile's first row, three numbers for each of `gridDim.x`; grid
/// `[tiles, H]`. A soft cap or window of 0 is none.
KERNEL(attention_forward)
(const Value *qkv, const int *tiles, Value *out, float *log_sums, int num_heads, int num_kv_heads, int d, float scale,
 float cap, int window) {
    DYNAMIC_SHARED(memory);
    const int rows = blockDim.x / 2, warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    Value *q = (Value *)memory, *k = q + rows * HEAD_STRIDE;
    Value *v = k + STEP * HEAD_STRIDE;                                                    // transposed
    Value *p = v + HEAD * STEP_STRIDE + warp * 16 * STEP_STRIDE;                          // of this warp
    const Tile tile = tile_of(tiles);
    const int head = blockIdx.y, kv = head / (num_heads / num_kv_heads), width = (num_heads + 2 * num_kv_heads) * d;
    const Value *keys = qkv + (size_t)(num_heads + kv) * d, *values = keys + (size_t)num_kv_heads * d;

    load_rows(q, rows, qkv + (size_t)head * d, width, tile.first, tile.end, d);
    float o[HEAD / 8][4] = {}, most[2] = {-INFINITE, -INFINITE}, sum[2] = {0.0f, 0.0f};
    const int last = min(tile.first + rows, tile.end);
    for (int at = first_key(tile.first, tile, window); at < last; at += STEP) {
        __syncthreads(); // the tiles before are still in use
        load_rows(k, STEP, keys, width, at, last, d);
        load_columns(v, values, width, at, last, d);
        __syncthreads();
        if (at > tile.first + warp * 16 + 15) continue; // behind all queries of this warp
        float s[STEP / 8][4] = {};
        multiply(s, q + warp * 16 * HEAD_STRIDE, HEAD_STRIDE, k, HEAD_STRIDE, HEAD);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = warp * 16 + g + 8 * half;
            float now = most[half];
#pragma unroll
            for (int j = 0; j < STEP / 8; j++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float &score = s[j][2 * half + e];
                    const bool is_seen = seen(tile.first + row, at + 8 * j + 2 * t + e, tile, window);
                    score = is_seen ? capped(scale * score, cap) : -INFINITE;
                    now = fmaxf(now, score);
                }
            now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 1));
            now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 2));
            const float shrink = now == -INFINITE ? 1.0f : exponential(most[half] - now);
            most[half] = now, sum[half] *= shrink;
#pragma unroll
            for (int j = 0; j < STEP / 8; j++) {
                const float left = s[j][2 * half], right = s[j][2 * half + 1];
                const float first = left == -INFINITE ? 0.0f : exponential(left - now);
                const float second = right == -INFINITE ? 0.0f : exponential(right - now);
                sum[half] += first + second;
                put_pair(&p[(g + 8 * half) * STEP_STRIDE + 8 * j + 2 * t], first, second);
            }
#pragma unroll
            for (int j = 0; j < HEAD / 8; j++) o[j][2 * half] *= shrink, o[j][2 * half + 1] *= shrink;
        }
        __syncwarp();
        multiply(o, p, STEP_STRIDE, v, STEP_STRIDE, STEP);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float total = sum[half]; // each lane has seen its own keys
        total += __shfl_xor_sync(0xffffffffu, total, 1);
        total += __shfl_xor_sync(0xffffffffu, total, 2);
        const size_t row = tile.first + warp * 16 + g + 8 * half;
        if (row >= tile.end) continue;
        if (t == 0) log_sums[row * num_heads + head] = most[half] + logf(total);
#pragma unroll
        for (int j = 0; j < HEAD / 8; j++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const int c = 8 * j + 2 * t + e;
                if (c < d) put(&out[(row * num_heads + head) * d + c], o[j][2 * half + e] / total);
            }
    }
}
