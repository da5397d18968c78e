// CUDA kernels that move or add rows: embedding, residual stream, biases, rows that have a target.

/// `y_i = c · x[rows_i]`: the embedding of tokens, or the rows with a target. One block a row of `y`.
KERNEL(gather_rows)(const Value *x, const int *rows, Value *y, int h, float c) {
    x += (size_t)rows[blockIdx.x] * h, y += (size_t)blockIdx.x * h;
    for (int i = threadIdx.x; i < h; i += blockDim.x) put(&y[i], c * get(x[i]));
}

/// `y[rows_i] = x_i`; no row may be named twice. One block a row of `x`.
KERNEL(scatter_rows)(const Value *x, const int *rows, Value *y, int h) {
    x += (size_t)blockIdx.x * h, y += (size_t)rows[blockIdx.x] * h;
    for (int i = threadIdx.x; i < h; i += blockDim.x) y[i] = x[i];
}

/// `sum += x`, `count` values. Any grid.
KERNEL(add_to)(Value *sum, const Value *x, long long count) {
    FOR_EACH(i, (size_t)count) put(&sum[i], get(sum[i]) + get(x[i]));
}

/// `y_ij += b_j`. One block a row.
KERNEL(add_bias)(Value *y, const float *b, int out) {
    y += (size_t)blockIdx.x * out;
    for (int i = threadIdx.x; i < out; i += blockDim.x) put(&y[i], get(y[i]) + b[i]);
}
