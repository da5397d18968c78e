// CUDA kernels of ops/layer_norm.rs, where formula and shapes are. One block a row.

/// `y` and the statistics `μ`, `r`; grid `[n]`.
KERNEL(layer_norm_forward)
(const Value *x, const float *w, const float *b, Value *y, float *statistics, int h, float eps) {
    const size_t row = blockIdx.x;
    x += row * h, y += row * h;
    float sum = 0.0f, squares = 0.0f;
    for (int i = threadIdx.x; i < h; i += blockDim.x) sum += get(x[i]);
    const float mean = block_sum(sum) / h;
    for (int i = threadIdx.x; i < h; i += blockDim.x) squares += (get(x[i]) - mean) * (get(x[i]) - mean);
    const float r = 1.0f / sqrtf(block_sum(squares) / h + eps);
    for (int i = threadIdx.x; i < h; i += blockDim.x) put(&y[i], w[i] * ((get(x[i]) - mean) * r) + b[i]);
    if (threadIdx.x == 0) statistics[2 * row] = mean, statistics[2 * row + 1] = r;
}

/// `dx`, plus `residual` where that is not null; grid `[n]`.
KERNEL(layer_norm_backward)
(const Value *dy, const Value *x, const float *w, const float *statistics, const Value *residual, Value *dx, int h) {
    const size_t row = blockIdx.x;
    x += row * h, dy += row * h, dx += row * h;
    if (residual) residual += row * h;
    const float mean = statistics[2 * row], r = statistics[2 * row + 1];
    float sum = 0.0f, pull = 0.0f;
    for (int i = threadIdx.x; i < h; i += blockDim.x) {
        const float g = w[i] * get(dy[i]);
        sum += g, pull += g * ((get(x[i]) - mean) * r);
    }
    const float mean_g = block_sum(sum) / h, mean_pull = block_sum(pull) / h;
    for (int i = threadIdx.x; i < h; i += blockDim.x) {
        const float past = residual ? get(residual[i]) : 0.0f, normal = (get(x[i]) - mean) * r;
        put(&dx[i], past + r * (w[i] * get(dy[i]) - mean_g - normal * mean_pull));
    }
}
