// CUDA kernel of ops/rope.rs, where formula and shapes are.

/// Rotates the first `heads` heads of each row in place; `sign` 1 is the forward pass, −1 the gradient. `cosines` and `sines` are
/// `[positions, half]`. One block a row: grid `[n]`.
KERNEL(rope)
(Value *x, const int *positions, const float *cosines, const float *sines, int width, int heads, int half, float sign) {
    x += (size_t)blockIdx.x * width;
    const size_t from = (size_t)positions[blockIdx.x] * half;
    for (int i = threadIdx.x; i < heads * half; i += blockDim.x) {
        const int pair = i % half, at = i / half * 2 * half + pair;
        const float a = get(x[at]), b = get(x[at + half]);
        const float cosine = cosines[from + pair], sine = sign * sines[from + pair];
        put(&x[at], a * cosine - b * sine);
        put(&x[at + half], b * cosine + a * sine);
    }
}
