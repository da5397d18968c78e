// Tiles of attention in shared memory, and the product of two of them. Formulas: ops/attention/mod.rs.
//
// A warp owns 16 rows of a tile. Every product has the one form C[i][j] += Σ_k A[i][k] · B[j][k], with both operands row-major in
// shared memory; what has to be read the other way round is stored transposed once more. bf16 goes through the tensor cores
// (`mma.sync.m16n8k16`), f32 through plain multiplications, since TF32 would lose 13 bits. Both leave the results in the same places:
// lane `4g + t` holds of every 16 × 8 tile the elements (g, 2t), (g, 2t+1), (g + 8, 2t), (g + 8, 2t+1).

#ifndef HEAD
#define HEAD 128
#endif
/// Keys (or queries) that a block walks over at a time.
#define STEP 32
/// 16 bytes that spread the rows of a tile over the banks of shared memory.
#define PAD ((int)(16 / sizeof(Value)))
#define HEAD_STRIDE (HEAD + PAD)
#define STEP_STRIDE (STEP + PAD)

/// What one instruction moves.
struct alignas(16) Chunk {
    Value values[16 / sizeof(Value)];
};

/// `from[row]`'s values from `c` on, as many as a chunk has; zero from row `end` and from value `d` on.
__device__ inline Chunk chunk_of(const Value *from, int width, int row, int end, int c, int d) {
    Chunk chunk;
    from += (size_t)row * width + c;
    if (row < end && c < d && d % PAD == 0) return *(const Chunk *)from; // rows of whole chunks are aligned
#pragma unroll
    for (int i = 0; i < PAD; i++) {
        if (row < end && c + i < d) chunk.values[i] = from[i];
        else put(&chunk.values[i], 0.0f);
    }
    return chunk;
}

/// Rows `first..` of one head's columns: `tile[row][value]`.
__device__ inline void load_rows(Value *tile, int count, const Value *from, int width, int first, int end, int d) {
    for (int i = threadIdx.x; i < count * (HEAD / PAD); i += blockDim.x) {
        const int row = i / (HEAD / PAD), c = i % (HEAD / PAD) * PAD;
        *(Chunk *)&tile[row * HEAD_STRIDE + c] = chunk_of(from, width, first + row, end, c, d);
    }
}

/// The same transposed: `tile[value][row]`, `STEP` rows. Neighbouring threads take neighbouring rows, which lie in different banks.
__device__ inline void load_columns(Value *tile, const Value *from, int width, int first, int end, int d) {
    for (int i = threadIdx.x; i < STEP * (HEAD / PAD); i += blockDim.x) {
        const int row = i % STEP, c = i / STEP * PAD;
        const Chunk chunk = chunk_of(from, width, first + row, end, c, d);
#pragma unroll
        for (int k = 0; k < PAD; k++) tile[(c + k) * STEP_STRIDE + row] = chunk.values[k];
    }
}

#ifndef CUDA_ON_CPU
/// One product of the tensor cores, 16 × 8 × 16.
__device__ inline void mma_bf16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif defined(STORE_BF16)
#error "bf16 wants compute capability 8.0 or newer"
#endif
}
#endif

/// Two neighbouring bf16 values; `at` is even.
__device__ inline unsigned pair_at(const bf16 *at) { return *(const unsigned *)at; }

/// `c += A Bᵀ` of a warp: `A` 16 rows, `B` 8·N rows, `depth` values each, a multiple of 16.
template <int N>
__device__ inline void multiply(float (&c)[N][4], const bf16 *a, int a_stride, const bf16 *b, int b_stride, int depth) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (int k = 0; k < depth; k += 16) {
        const bf16 *upper = a + g * a_stride + k + 2 * t, *lower = upper + 8 * a_stride;
        const unsigned left[4] = {pair_at(upper), pair_at(lower), pair_at(upper + 8), pair_at(lower + 8)};
#pragma unroll
        for (int j = 0; j < N; j++) {
            const bf16 *column = b + (8 * j + g) * b_stride + k + 2 * t;
            const unsigned right[2] = {pair_at(column), pair_at(column + 8)};
            mma_bf16(c[j], left, right);
        }
    }
}

template <int N>
__device__ inline void multiply(float (&c)[N][4], const float *a, int a_stride, const float *b, int b_stride, int depth) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const float *upper = a + g * a_stride, *lower = upper + 8 * a_stride;
    for (int k = 0; k < depth; k++) {
        const float x = upper[k], y = lower[k];
#pragma unroll
        for (int j = 0; j < N; j++) {
            const float *column = b + (8 * j + 2 * t) * b_stride + k;
            const float left = column[0], right = column[b_stride];
            c[j][0] += x * left, c[j][1] += x * right;
            c[j][2] += y * left, c[j][3] += y * right;
        }
    }
}

/// What a block of attention works on: rows `first..` of the sequence `start..end`.
struct Tile {
    int start, end, first;
};

__device__ inline Tile tile_of(const int *tiles) {
    const int *tile = tiles + 3 * blockIdx.x;
    Tile found = {tile[0], tile[1], tile[2]};
    return found;
}

/// Whether the query sees the key; both are rows. A window of 0 is none.
__device__ inline bool seen(int query, int key, const Tile &tile, int window) {
    return query < tile.end && key <= query && (window == 0 || query - key < window);
}

/// First key that any query from `query` on sees.
__device__ inline int first_key(int query, const Tile &tile, int window) {
    return window == 0 ? tile.start : max(tile.start, query - window + 1);
}
