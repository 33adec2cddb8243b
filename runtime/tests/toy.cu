// Kernels of tests/toy, by hand. WAIT and RELEASE are empty before sm_90, which has no programmatic launch.
#if __CUDA_ARCH__ >= 900
#define WAIT asm volatile("griddepcontrol.wait;" ::: "memory")
#define RELEASE asm volatile("griddepcontrol.launch_dependents;" ::: "memory")
#else
#define WAIT
#define RELEASE
#endif
#define WIDTH 4
#define VOCAB 8
// Late writers: a kernel that did not wait would read stale values.
#define LATE __nanosleep(20000)

__device__ float bf16(unsigned short h) { return __uint_as_float((unsigned)h << 16); }
__device__ int at() { return blockIdx.x * blockDim.x + threadIdx.x; }

extern "C" __global__ void toy_embed(const int* ids, const unsigned short* table, float* x, int tokens) {
    RELEASE; WAIT; LATE;
    int i = at();
    if (i < tokens * WIDTH) x[i] = bf16(table[ids[i / WIDTH] * WIDTH + i % WIDTH]);
}
extern "C" __global__ void toy_keep(const int* slots, const float* x, const float* old, float* cache, int tokens) {
    RELEASE; WAIT; LATE;
    int i = at();
    if (i < tokens * WIDTH && slots[i / WIDTH] >= 0) cache[slots[i / WIDTH] * WIDTH + i % WIDTH] = x[i];
}
extern "C" __global__ void toy_sum(const int* positions, const int* sequences, const int* slot_base,
                                   const float* cache, float* h, int tokens, int context) {
    RELEASE; WAIT; LATE;
    int i = at();
    if (i >= tokens * WIDTH) return;
    int t = i / WIDTH;
    float sum = 0;
    for (int j = 0; j < context; ++j)
        if (j <= positions[t]) sum += cache[(slot_base[sequences[t]] + j) * WIDTH + i % WIDTH];
    h[i] = sum;
}
extern "C" __global__ void toy_position(const int* positions, const int* rows_of, int* out, int rows) {
    RELEASE; WAIT; LATE;
    int r = at();
    if (r < rows) out[r] = positions[rows_of[r]];
}
extern "C" __global__ void toy_head(const float* h, const int* rows_of, const unsigned short* table, float* logits,
                                    int rows) {
    // More than the static limit, to see that the limit is raised.
    extern __shared__ float tile[];
    RELEASE; WAIT; LATE;
    int i = at();
    if (i >= rows * VOCAB) return;
    float sum = 0;
    for (int k = 0; k < WIDTH; ++k) sum += h[rows_of[i / VOCAB] * WIDTH + k] * bf16(table[i % VOCAB * WIDTH + k]);
    tile[threadIdx.x * 400] = sum;
    logits[i] = tile[threadIdx.x * 400];
}
extern "C" __global__ void toy_sample(const float* logits, const int* position, const float* temperature,
                                      const int* top_k, const float* top_p, const float* min_p,
                                      const unsigned* seed, int* out, int rows) {
    RELEASE; WAIT; LATE;
    int r = at();
    if (r >= rows) return;
    int best = 0;
    for (int v = 1; v < VOCAB; ++v)
        if (logits[r * VOCAB + v] > logits[r * VOCAB + best]) best = v;
    out[r] = best;
}
