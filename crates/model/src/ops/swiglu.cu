// CUDA kernels of ops/swiglu.rs, where formula and shapes are. One block a row: grid `[n]`.

KERNEL(swiglu_forward)(const Value *gate_up, Value *y, int f) {
    gate_up += (size_t)blockIdx.x * 2 * f, y += (size_t)blockIdx.x * f;
    for (int i = threadIdx.x; i < f; i += blockDim.x) {
        const float gate = get(gate_up[i]);
        put(&y[i], gate * sigmoid(gate) * get(gate_up[f + i]));
    }
}

KERNEL(swiglu_backward)(const Value *dy, const Value *gate_up, Value *dx, int f) {
    gate_up += (size_t)blockIdx.x * 2 * f, dx += (size_t)blockIdx.x * 2 * f, dy += (size_t)blockIdx.x * f;
    for (int i = threadIdx.x; i < f; i += blockDim.x) {
        const float gate = get(gate_up[i]), up = get(gate_up[f + i]), d = get(dy[i]), s = sigmoid(gate);
        put(&dx[i], d * up * s * (1.0f + gate * (1.0f - s)));
        put(&dx[f + i], d * gate * s);
    }
}
