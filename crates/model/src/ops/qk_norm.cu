// CUDA kernels of ops/qk_norm.rs, where formula and shapes are. One block a row, one warp a head: grid `[n]`.

/// Queries and keys of `raw` normalised into `y`, values copied.
KERNEL(qk_norm_forward)
(const Value *raw, const float *w_query, const float *w_key, Value *y, int num_heads, int num_kv_heads, int d, float eps) {
    const int lane = threadIdx.x % 32, all = num_heads + 2 * num_kv_heads;
    raw += (size_t)blockIdx.x * all * d, y += (size_t)blockIdx.x * all * d;
    for (int head = threadIdx.x / 32; head < all; head += blockDim.x / 32) {
        const Value *x = raw + head * d;
        const float *w = head < num_heads ? w_query : w_key;
        const bool is_value = head >= num_heads + num_kv_heads;
        float squares = 0.0f;
        for (int c = lane; c < d; c += 32) squares += get(x[c]) * get(x[c]);
        const float r = 1.0f / sqrtf(warp_sum(squares) / d + eps);
        for (int c = lane; c < d; c += 32) put(&y[head * d + c], is_value ? get(x[c]) : w[c] * (get(x[c]) * r));
    }
}

/// Turns the gradient of queries and keys into that of the raw ones, in place; values stay.
KERNEL(qk_norm_backward)
(Value *d_qkv, const Value *raw, const float *w_query, const float *w_key, int num_heads, int num_kv_heads, int d, float eps) {
    const int lane = threadIdx.x % 32, all = num_heads + 2 * num_kv_heads;
    raw += (size_t)blockIdx.x * all * d, d_qkv += (size_t)blockIdx.x * all * d;
    for (int head = threadIdx.x / 32; head < num_heads + num_kv_heads; head += blockDim.x / 32) {
        const Value *x = raw + head * d;
        Value *dy = d_qkv + head * d;
        const float *w = head < num_heads ? w_query : w_key;
        float squares = 0.0f, product = 0.0f;
        for (int c = lane; c < d; c += 32) {
            squares += get(x[c]) * get(x[c]);
            product += get(dy[c]) * get(x[c]) * w[c];
        }
        const float r = 1.0f / sqrtf(warp_sum(squares) / d + eps), pull = r * r * (warp_sum(product) / d);
        for (int c = lane; c < d; c += 32) put(&dy[c], r * (w[c] * get(dy[c]) - get(x[c]) * pull));
    }
}
