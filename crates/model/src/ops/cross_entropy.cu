// CUDA kernel of ops/cross_entropy.rs, where the formula is; the products with the head around it are cuBLAS's.

/// Of each row of `logits` `[m, V]`, before the soft cap, its loss and, where `d_logits` is not null, the gradient of
/// `scale · loss`. One block a row: grid `[m]`. Every target is a token.
KERNEL(cross_entropy)
(const float *logits, const int *targets, float *losses, Value *d_logits, int vocabulary, float scale, float cap) {
    const size_t row = blockIdx.x;
    const int target = targets[row];
    logits += row * vocabulary;
    if (d_logits) d_logits += row * vocabulary;
    const float at_target = capped(logits[target], cap);
    float most = -INFINITE, sum = 0.0f;
    for (int i = threadIdx.x; i < vocabulary; i += blockDim.x) most = fmaxf(most, capped(logits[i], cap));
    most = block_max(most);
    for (int i = threadIdx.x; i < vocabulary; i += blockDim.x) sum += expf(capped(logits[i], cap) - most);
    sum = block_sum(sum);
    // a NaN in the row makes the sum NaN, and with it the loss
    if (threadIdx.x == 0) losses[row] = most + logf(sum) - at_target;
    if (!d_logits) return;
    const float factor = scale / sum;
    for (int i = threadIdx.x; i < vocabulary; i += blockDim.x) {
        const float z = capped(logits[i], cap), p = expf(z - most) * factor;
        put(&d_logits[i], (i == target ? p - scale : p) * cap_slope(z, cap));
    }
}
