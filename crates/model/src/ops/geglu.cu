// CUDA kernels of ops/geglu.rs, where formula and shapes are. One block a row: grid `[n]`.

KERNEL(geglu_forward)(const Value *gate_up, Value *y, int f) {
    gate_up += (size_t)blockIdx.x * 2 * f, y += (size_t)blockIdx.x * f;
    for (int i = threadIdx.x; i < f; i += blockDim.x) put(&y[i], gelu_value(get(gate_up[i])) * get(gate_up[f + i]));
}

KERNEL(geglu_backward)(const Value *dy, const Value *gate_up, Value *dx, int f) {
    gate_up += (size_t)blockIdx.x * 2 * f, dx += (size_t)blockIdx.x * 2 * f, dy += (size_t)blockIdx.x * f;
    for (int i = threadIdx.x; i < f; i += blockDim.x) {
        const float gate = get(gate_up[i]), d = get(dy[i]);
        put(&dx[i], d * get(gate_up[f + i]) * gelu_slope(gate));
        put(&dx[f + i], d * gelu_value(gate));
    }
}
