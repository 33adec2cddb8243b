// What a step of dependent small products costs a product, by how they are told of each other:
//   edges    a kernel each, programmatic edges in a CUDA graph, loads before the wait
//   barrier  one persistent kernel, a counter that all blocks reach; the next weights' loads before the wait
//   packets  one persistent kernel, each result stored beside the number of the run, readers poll the values
// Each product is 132 blocks of WARPS warps with COLUMNS rows of 576 bf16 a warp, RMSNorm of its input included.
//
//   nvcc -O3 -std=c++17 -arch=sm_90 -o phases testsuite/peers/phases.cu && ./phases
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <vector>

#define CHECK(call)                                                                                        \
    do {                                                                                                   \
        cudaError_t e = (call);                                                                            \
        if (e != cudaSuccess) {                                                                            \
            printf("%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(e));                              \
            exit(1);                                                                                       \
        }                                                                                                  \
    } while (0)

constexpr int K = 576, VECTORS = K / 8, TURNS = (VECTORS + 31) / 32, BLOCKS = 132, PHASES = 150;

__device__ __forceinline__ uint4 load_once(const uint4* p) {
    uint4 v;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}

template <int WARPS, int COLUMNS> struct Product {
    uint4 w[COLUMNS * TURNS];

    __device__ __forceinline__ static int first() { return (blockIdx.x * WARPS + threadIdx.x / 32) * COLUMNS; }

    __device__ __forceinline__ void load(const uint4* weights) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c)
#pragma unroll
            for (int t = 0; t < TURNS; ++t) {
                const int k = lane + 32 * t;
                w[c * TURNS + t] = k < VECTORS ? load_once(weights + (size_t)(first() + c) * VECTORS + k) : uint4{};
            }
    }

    // 1/rms of the row whose squares this thread added up: a block barrier, so x is complete behind it.
    __device__ __forceinline__ static float scale(float squares, float* partial) {
        for (int d = 16; d; d >>= 1) squares += __shfl_xor_sync(~0u, squares, d);
        if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = squares;
        __syncthreads();
        float sum = 0;
        for (int i = 0; i < WARPS; ++i) sum += partial[i];
        return rsqrtf(sum / K + 1e-5f);
    }

    __device__ __forceinline__ float column(int c, const float* x, float scale) const {
        const int lane = threadIdx.x % 32;
        float sum = 0;
#pragma unroll
        for (int t = 0; t < TURNS; ++t) {
            const int k = lane + 32 * t;
            if (k >= VECTORS) continue;
            const __nv_bfloat162* pairs = reinterpret_cast<const __nv_bfloat162*>(&w[c * TURNS + t]);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float2 f = __bfloat1622float2(pairs[i]);
                sum = fmaf(f.y, x[k * 8 + 2 * i + 1], fmaf(f.x, x[k * 8 + 2 * i], sum));
            }
        }
        for (int d = 16; d; d >>= 1) sum += __shfl_xor_sync(~0u, sum, d);
        return sum * scale;
    }
};

template <int WARPS, int COLUMNS>
__global__ void __launch_bounds__(WARPS * 32) edges(const uint4* weights, const float* x, float* y) {
    __shared__ float row[K], partial[WARPS];
    asm volatile("griddepcontrol.launch_dependents;");
    Product<WARPS, COLUMNS> p;
    p.load(weights);
    asm volatile("griddepcontrol.wait;" ::: "memory");
    float squares = 0;
    for (int i = threadIdx.x; i < K; i += WARPS * 32) row[i] = __ldcg(x + i), squares += row[i] * row[i];
    const float scale = p.scale(squares, partial);
    for (int c = 0; c < COLUMNS; ++c) {
        const float value = p.column(c, row, scale);
        if (threadIdx.x % 32 == 0) y[p.first() + c] = value;
    }
}

template <int WARPS, int COLUMNS>
__global__ void __launch_bounds__(WARPS * 32)
barrier(const uint4* weights, float* values, int n, unsigned* counter, unsigned run) {
    __shared__ float row[2][K], partial[2][WARPS];
    Product<WARPS, COLUMNS> p;
    p.load(weights);
    for (int phase = 0; phase < PHASES; ++phase) {
        if (phase && threadIdx.x == 0) {
            const unsigned all = gridDim.x * (run * (PHASES - 1) + phase);
            unsigned seen;
            do asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
            while ((int)(seen - all) < 0);
        }
        __syncthreads();
        float *x = row[phase & 1], squares = 0;
        for (int i = threadIdx.x; i < K; i += WARPS * 32)
            x[i] = __ldcg(values + (size_t)phase * n + i), squares += x[i] * x[i];
        const float scale = p.scale(squares, partial[phase & 1]);
        for (int c = 0; c < COLUMNS; ++c) {
            const float value = p.column(c, x, scale);
            if (threadIdx.x % 32 == 0) values[(size_t)(phase + 1) * n + p.first() + c] = value;
        }
        if (phase + 1 == PHASES) break;
        __syncthreads();
        if (threadIdx.x == 0) asm volatile("red.release.gpu.add.u32 [%0], 1;" ::"l"(counter) : "memory");
        p.load(weights + (size_t)(phase + 1) * n * VECTORS);
    }
}

template <int WARPS, int COLUMNS>
__global__ void __launch_bounds__(WARPS * 32) packets(const uint4* weights, uint2* values, int n, unsigned run) {
    __shared__ float row[2][K], partial[2][WARPS];
    Product<WARPS, COLUMNS> p;
    p.load(weights);
    for (int phase = 0; phase < PHASES; ++phase) {
        float *x = row[phase & 1], squares = 0;
        for (int i = threadIdx.x * 2; i < K; i += WARPS * 64) {
            unsigned a, of_a, b, of_b;
            do asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                            : "=r"(a), "=r"(of_a), "=r"(b), "=r"(of_b) : "l"(values + (size_t)phase * n + i) : "memory");
            while (phase && (of_a != run || of_b != run));
            x[i] = __uint_as_float(a), x[i + 1] = __uint_as_float(b);
            squares += x[i] * x[i] + x[i + 1] * x[i + 1];
        }
        const float scale = p.scale(squares, partial[phase & 1]);
        for (int c = 0; c < COLUMNS; ++c) {
            const float value = p.column(c, x, scale);
            if (threadIdx.x % 32 == 0)
                asm volatile("st.volatile.global.v2.u32 [%0], {%1, %2};" ::"l"(
                                 values + (size_t)(phase + 1) * n + p.first() + c), "r"(__float_as_uint(value)), "r"(run)
                             : "memory");
        }
        if (phase + 1 < PHASES) p.load(weights + (size_t)(phase + 1) * n * VECTORS);
    }
}

template <int WARPS, int COLUMNS> void measure() {
    const int n = BLOCKS * WARPS * COLUMNS;
    const size_t bytes = (size_t)n * K * 2;
    std::vector<__nv_bfloat16> host(bytes / 2 * PHASES);
    unsigned state = 1;
    for (auto& v : host) v = __float2bfloat16(((state = state * 1664525 + 1013904223) >> 8) / 16777216.f * 0.1f - 0.05f);
    uint4* weights;
    float* values;
    uint2* stamped;
    unsigned* counter;
    CHECK(cudaMalloc(&weights, bytes * PHASES));
    CHECK(cudaMemcpy(weights, host.data(), bytes * PHASES, cudaMemcpyHostToDevice));
    CHECK(cudaMalloc(&values, 4ull * n * (PHASES + 1)));
    CHECK(cudaMalloc(&stamped, 8ull * n * (PHASES + 1)));
    CHECK(cudaMalloc(&counter, 4));
    CHECK(cudaMemset(stamped, 0, 8ull * n * (PHASES + 1)));
    CHECK(cudaMemset(counter, 0, 4));
    std::vector<float> row(n);
    std::vector<uint2> pairs(n);
    for (int i = 0; i < n; ++i) row[i] = i % 17 - 8.f, pairs[i] = {reinterpret_cast<unsigned&>(row[i]), 0};
    CHECK(cudaMemcpy(values, row.data(), 4 * n, cudaMemcpyHostToDevice));
    CHECK(cudaMemcpy(stamped, pairs.data(), 8 * n, cudaMemcpyHostToDevice));
    cudaStream_t stream;
    cudaEvent_t start, end;
    CHECK(cudaStreamCreate(&stream));
    CHECK(cudaEventCreate(&start));
    CHECK(cudaEventCreate(&end));
    const auto time = [&](const char* name, auto launch) {
        std::vector<float> times;
        for (int i = 0; i < 25; ++i) {
            float ms;
            CHECK(cudaEventRecord(start, stream));
            launch();
            CHECK(cudaEventRecord(end, stream));
            CHECK(cudaEventSynchronize(end));
            CHECK(cudaEventElapsedTime(&ms, start, end));
            times.push_back(ms);
        }
        std::sort(times.begin(), times.end());
        printf("%.2f MB a product, %2d warps: %-8s %.3f us (least %.3f)\n", bytes / 1e6, WARPS, name,
               times[12] * 1e3 / PHASES, times[0] * 1e3 / PHASES);
    };
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    for (int p = 0; p < PHASES; ++p) {
        cudaLaunchAttribute programmatic = {};
        programmatic.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        programmatic.val.programmaticStreamSerializationAllowed = 1;
        cudaLaunchConfig_t config = {};
        config.gridDim = BLOCKS, config.blockDim = WARPS * 32, config.stream = stream;
        config.attrs = &programmatic, config.numAttrs = 1;
        CHECK(cudaLaunchKernelEx(&config, edges<WARPS, COLUMNS>, (const uint4*)(weights + p * bytes / 16),
                                 (const float*)(values + (size_t)p * n), values + (size_t)(p + 1) * n));
    }
    CHECK(cudaStreamEndCapture(stream, &graph));
    CHECK(cudaGraphInstantiate(&exec, graph, 0));
    time("edges", [&] { CHECK(cudaGraphLaunch(exec, stream)); });
    int width = n;
    unsigned run = 0;
    const auto persistent = [&](auto kernel, std::vector<void*> args) {
        CHECK(cudaLaunchCooperativeKernel((void*)kernel, dim3(BLOCKS), dim3(WARPS * 32), args.data(), 0, stream));
        ++run;
    };
    time("barrier", [&] { persistent(barrier<WARPS, COLUMNS>, {&weights, &values, &width, &counter, &run}); });
    run = 1;
    time("packets", [&] { persistent(packets<WARPS, COLUMNS>, {&weights, &stamped, &width, &run}); });
    CHECK(cudaFree(weights));
}

int main() {
    measure<8, 1>();
    measure<16, 1>();
    measure<16, 2>();
    measure<16, 4>();
}
