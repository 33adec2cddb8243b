// Device code of gpu.rs, compiled by NVRTC at run time; nvrtc.rs compiles it too, where there is no GPU.
// WAIT and RELEASE are empty before sm_90, which has no programmatic launch.
#if __CUDA_ARCH__ >= 900
#define WAIT asm volatile("griddepcontrol.wait;" ::: "memory")
#define RELEASE asm volatile("griddepcontrol.launch_dependents;" ::: "memory")
#else
#define WAIT
#define RELEASE
#endif
extern "C" __device__ void cudaGraphSetConditional(unsigned long long handle, unsigned int value);

extern "C" __global__ void add(const float* a, const float* b, float* c, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    RELEASE;
    // The last blocks are late: a dependent that did not wait would read stale values.
    if (blockIdx.x + 64 >= gridDim.x) __nanosleep(200000);
    WAIT;
    if (i < n) c[i] = a[i] + b[i];
}
extern "C" __global__ void scale(float* c, float factor, int n) {
    // From the far end, so that every block depends on another block of `add`.
    int i = n - 1 - (int)(blockIdx.x * blockDim.x + threadIdx.x);
    RELEASE;
    WAIT;
    if (i >= 0) c[i] *= factor;
}
extern "C" __global__ void big_shared(float* out) {
    extern __shared__ float tile[];
    tile[threadIdx.x * 64] = (float)threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = tile[(blockDim.x - 1 - threadIdx.x) * 64];
}
extern "C" __global__ void count(unsigned int* n, unsigned int limit, volatile unsigned int* host, unsigned long long loop) {
    unsigned int now = ++*n;
    host[now] = now * 10;
    __threadfence_system();
    host[0] = now;
    cudaGraphSetConditional(loop, now < limit);
}
struct Pair { int first; float second; };
extern "C" __global__ void by_value(const __grid_constant__ Pair pair, float* out) { out[0] = pair.first + pair.second; }
