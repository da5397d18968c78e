// CUDA kernels of ops/gelu.rs, where formula and shapes are. One block a row: grid `[n]`.

__device__ inline float gelu_inner(float x) { return 0.7978846f * (x + 0.044715f * x * x * x); }

__device__ inline float gelu_value(float x) { return x * sigmoid(2.0f * gelu_inner(x)); }

__device__ inline float gelu_slope(float x) {
    const float s = sigmoid(2.0f * gelu_inner(x));
    return s + 2.0f * x * s * (1.0f - s) * 0.7978846f * (1.0f + 3.0f * 0.044715f * x * x);
}

KERNEL(gelu_forward)(const Value *x, Value *y, int f) {
    x += (size_t)blockIdx.x * f, y += (size_t)blockIdx.x * f;
    for (int i = threadIdx.x; i < f; i += blockDim.x) put(&y[i], gelu_value(get(x[i])));
}

KERNEL(gelu_backward)(const Value *dy, const Value *x, Value *dx, int f) {
    dy += (size_t)blockIdx.x * f, x += (size_t)blockIdx.x * f, dx += (size_t)blockIdx.x * f;
    for (int i = threadIdx.x; i < f; i += blockDim.x) put(&dx[i], get(dy[i]) * gelu_slope(get(x[i])));
}
