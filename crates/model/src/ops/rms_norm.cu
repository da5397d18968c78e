// CUDA kernels of ops/rms_norm.rs, where formula and shapes are. One block a row.

/// `y` and `r`; grid `[n]`.
KERNEL(rms_norm_forward)(const Value *x, const float *w, Value *y, float *inverse_rms, int h, float eps) {
    const size_t row = blockIdx.x;
    x += row * h, y += row * h;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < h; i += blockDim.x) squares += get(x[i]) * get(x[i]);
    const float r = 1.0f / sqrtf(block_sum(squares) / h + eps);
    for (int i = threadIdx.x; i < h; i += blockDim.x) put(&y[i], w[i] * (get(x[i]) * r));
    if (threadIdx.x == 0) inverse_rms[row] = r;
}

/// `dx`, plus `residual` where that is not null; grid `[n]`.
KERNEL(rms_norm_backward)
(const Value *dy, const Value *x, const float *w, const float *inverse_rms, const Value *residual, Value *dx, int h) {
    const size_t row = blockIdx.x;
    x += row * h, dy += row * h, dx += row * h;
    if (residual) residual += row * h;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < h; i += blockDim.x) sum += get(dy[i]) * get(x[i]) * w[i];
    const float r = inverse_rms[row], pull = r * r * (block_sum(sum) / h);
    for (int i = threadIdx.x; i < h; i += blockDim.x) {
        const float past = residual ? get(residual[i]) : 0.0f;
        put(&dx[i], past + r * (w[i] * get(dy[i]) - get(x[i]) * pull));
    }
}
