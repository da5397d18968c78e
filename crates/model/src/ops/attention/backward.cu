// CUDA kernels of ops/attention: backward pass in the form of FlashAttention-2 (Dao 2023), without atomic additions.
//
// Scores are computed twice, once by blocks that own queries (for `dQ`) and once by blocks that own keys (for `dK`, `dV`): each
// result is then the sum of one block in one order, the same to the bit in every run. That is two products in seven.

/// `D = rowsum(dO ∘ O)`, `[n, H]`; one warp a head: grid `[n]`.
KERNEL(attention_delta)(const Value *d_out, const Value *out, float *delta, int num_heads, int d) {
    const size_t row = blockIdx.x;
    for (int head = threadIdx.x / 32; head < num_heads; head += blockDim.x / 32) {
        const size_t from = (row * num_heads + head) * d;
        float sum = 0.0f;
        for (int c = threadIdx.x % 32; c < d; c += 32) sum += get(d_out[from + c]) * get(out[from + c]);
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0) delta[row * num_heads + head] = sum;
    }
}

/// `P` and `dS` of one score before scale and cap, from `dP`; zero where the key is not seen.
__device__ inline void score_gradient(float product, float d_p, float log_sum, float delta, float scale, float cap,
                                      bool is_seen, float &p, float &d_s) {
    const float score = capped(scale * product, cap);
    p = is_seen ? exponential(score - log_sum) : 0.0f;
    d_s = is_seen ? p * (d_p - delta) * scale * cap_slope(score, cap) : 0.0f;
}

/// `dQ` into the query columns of `d_qkv`; tiles and grid as in the forward pass.
KERNEL(attention_backward_queries)
(const Value *qkv, const Value *d_out, const float *log_sums, const float *delta, const int *tiles, Value *d_qkv,
 int num_heads, int num_kv_heads, int d, float scale, float cap, int window) {
    DYNAMIC_SHARED(memory);
    const int rows = blockDim.x / 2, warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    Value *q = (Value *)memory, *d_o = q + rows * HEAD_STRIDE;
    Value *k = d_o + rows * HEAD_STRIDE, *v = k + STEP * HEAD_STRIDE;
    Value *k_columns = v + STEP * HEAD_STRIDE;                                            // transposed
    Value *d_s = k_columns + HEAD * STEP_STRIDE + warp * 16 * STEP_STRIDE;                // of this warp
    const Tile tile = tile_of(tiles);
    const int head = blockIdx.y, kv = head / (num_heads / num_kv_heads), width = (num_heads + 2 * num_kv_heads) * d;
    const Value *keys = qkv + (size_t)(num_heads + kv) * d, *values = keys + (size_t)num_kv_heads * d;

    load_rows(q, rows, qkv + (size_t)head * d, width, tile.first, tile.end, d);
    load_rows(d_o, rows, d_out + (size_t)head * d, num_heads * d, tile.first, tile.end, d);
    float log_sum[2], own_delta[2], d_q[HEAD / 8][4] = {};
    for (int half = 0; half < 2; half++) {
        const int row = min(tile.first + warp * 16 + g + 8 * half, tile.end - 1);
        log_sum[half] = log_sums[(size_t)row * num_heads + head], own_delta[half] = delta[(size_t)row * num_heads + head];
    }
    const int last = min(tile.first + rows, tile.end);
    for (int at = first_key(tile.first, tile, window); at < last; at += STEP) {
        __syncthreads(); // the tiles before are still in use
        load_rows(k, STEP, keys, width, at, last, d);
        load_columns(k_columns, keys, width, at, last, d);
        load_rows(v, STEP, values, width, at, last, d);
        __syncthreads();
        if (at > tile.first + warp * 16 + 15) continue; // behind all queries of this warp
        float s[STEP / 8][4] = {}, d_p[STEP / 8][4] = {};
        multiply(s, q + warp * 16 * HEAD_STRIDE, HEAD_STRIDE, k, HEAD_STRIDE, HEAD);
        multiply(d_p, d_o + warp * 16 * HEAD_STRIDE, HEAD_STRIDE, v, HEAD_STRIDE, HEAD);
#pragma unroll
        for (int j = 0; j < STEP / 8; j++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int row = g + 8 * half, column = 8 * j + 2 * t;
                float p, d_scores[2];
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const bool is_seen = seen(tile.first + warp * 16 + row, at + column + e, tile, window);
                    score_gradient(s[j][2 * half + e], d_p[j][2 * half + e], log_sum[half], own_delta[half], scale, cap,
                                   is_seen, p, d_scores[e]);
                }
                put_pair(&d_s[row * STEP_STRIDE + column], d_scores[0], d_scores[1]);
            }
        __syncwarp();
        multiply(d_q, d_s, STEP_STRIDE, k_columns, STEP_STRIDE, STEP);
    }
#pragma unroll
    for (int j = 0; j < HEAD / 8; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int row = tile.first + warp * 16 + g + 8 * (e / 2), c = 8 * j + 2 * t + e % 2;
            if (row < tile.end && c < d) put(&d_qkv[(size_t)row * width + head * d + c], d_q[j][e]);
        }
}

/// `dK` and `dV` into their columns of `d_qkv`, summed over the query heads of a group. A block has 16 keys of one key head for each
/// of its warps; grid `[tiles, K]`.
KERNEL(attention_backward_keys)
(const Value *qkv, const Value *d_out, const float *log_sums, const float *delta, const int *tiles, Value *d_qkv,
 int num_heads, int num_kv_heads, int d, float scale, float cap, int window) {
    DYNAMIC_SHARED(memory);
    const int rows = blockDim.x / 2, warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    Value *k = (Value *)memory, *v = k + rows * HEAD_STRIDE;
    Value *q = v + rows * HEAD_STRIDE, *d_o = q + STEP * HEAD_STRIDE;
    Value *q_columns = d_o + STEP * HEAD_STRIDE, *d_o_columns = q_columns + HEAD * STEP_STRIDE; // transposed
    Value *p = d_o_columns + HEAD * STEP_STRIDE + warp * 32 * STEP_STRIDE, *d_s = p + 16 * STEP_STRIDE; // of this warp
    const Tile tile = tile_of(tiles);
    const int kv = blockIdx.y, group = num_heads / num_kv_heads, width = (num_heads + 2 * num_kv_heads) * d;
    const size_t k_column = (size_t)(num_heads + kv) * d, v_column = k_column + (size_t)num_kv_heads * d;

    load_rows(k, rows, qkv + k_column, width, tile.first, tile.end, d);
    load_rows(v, rows, qkv + v_column, width, tile.first, tile.end, d);
    float d_k[HEAD / 8][4] = {}, d_v[HEAD / 8][4] = {};
    __shared__ float step_log_sums[STEP], step_deltas[STEP];
    // one past the last query that sees any of the keys
    const int last = window == 0 ? tile.end : min(tile.end, tile.first + rows - 1 + window);
    for (int head = kv * group; head < (kv + 1) * group; head++) {
        for (int at = tile.first; at < last; at += STEP) {
            __syncthreads(); // the tiles before are still in use
            load_rows(q, STEP, qkv + (size_t)head * d, width, at, last, d);
            load_columns(q_columns, qkv + (size_t)head * d, width, at, last, d);
            load_rows(d_o, STEP, d_out + (size_t)head * d, num_heads * d, at, last, d);
            load_columns(d_o_columns, d_out + (size_t)head * d, num_heads * d, at, last, d);
            if (threadIdx.x < STEP) {
                const size_t of = (size_t)min(at + (int)threadIdx.x, tile.end - 1) * num_heads + head;
                step_log_sums[threadIdx.x] = log_sums[of], step_deltas[threadIdx.x] = delta[of];
            }
            __syncthreads();
            if (at + STEP <= tile.first + warp * 16) continue; // before all keys of this warp
            float s[STEP / 8][4] = {}, d_p[STEP / 8][4] = {}; // transposed: a row is a key
            multiply(s, k + warp * 16 * HEAD_STRIDE, HEAD_STRIDE, q, HEAD_STRIDE, HEAD);
            multiply(d_p, v + warp * 16 * HEAD_STRIDE, HEAD_STRIDE, d_o, HEAD_STRIDE, HEAD);
#pragma unroll
            for (int j = 0; j < STEP / 8; j++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const int row = g + 8 * half, column = 8 * j + 2 * t;
                    float weights[2], d_scores[2];
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        const bool is_seen = seen(at + column + e, tile.first + warp * 16 + row, tile, window);
                        score_gradient(s[j][2 * half + e], d_p[j][2 * half + e], step_log_sums[column + e],
                                       step_deltas[column + e], scale, cap, is_seen, weights[e], d_scores[e]);
                    }
                    put_pair(&p[row * STEP_STRIDE + column], weights[0], weights[1]);
                    put_pair(&d_s[row * STEP_STRIDE + column], d_scores[0], d_scores[1]);
                }
            __syncwarp();
            multiply(d_v, p, STEP_STRIDE, d_o_columns, STEP_STRIDE, STEP);
            multiply(d_k, d_s, STEP_STRIDE, q_columns, STEP_STRIDE, STEP);
        }
    }
#pragma unroll
    for (int j = 0; j < HEAD / 8; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int row = tile.first + warp * 16 + g + 8 * (e / 2), c = 8 * j + 2 * t + e % 2;
            if (row >= tile.end || c >= d) continue;
            put(&d_qkv[(size_t)row * width + k_column + c], d_k[j][e]);
            put(&d_qkv[(size_t)row * width + v_column + c], d_v[j][e]);
        }
}
