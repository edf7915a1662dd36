// What every kernel here shares: types, launching, half precision and the order of logits. No CUDA header
// is needed, so NVRTC compiles the same text as nvcc; host.h makes g++ compile it too.
#ifndef SLIMDEPLOY_COMMON
#define SLIMDEPLOY_COMMON

typedef unsigned char u8;
typedef unsigned short half_bits;  // an IEEE half as its bits

#ifndef SLIMDEPLOY_HOST
// A kernel with one parameter, the struct p: at most `threads` a block, registers for `blocks` of them on a
// multiprocessor.
#define KERNEL(name, Parameters, threads, blocks) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const Parameters p)
#define SHARED(Type, name, count) __shared__ Type name[count]
#define SYNC() __syncthreads()
#endif

__device__ inline float load(const float* values, int i) { return values[i]; }
__device__ inline void store(float* values, long long i, float value) { values[i] = value; }

#ifndef SLIMDEPLOY_HOST
__device__ inline float load(const half_bits* values, int i) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(values[i]));
    return value;
}
__device__ inline void store(half_bits* values, long long i, float value) {
    half_bits bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    values[i] = bits;
}
#endif

// A class and its logit. `before` is a strict total order, the best first: NaN counts as the largest, as in
// torch, and of equal logits the lower class comes first.
struct Ranked {
    float value;
    int index;
};

__device__ inline bool before(Ranked a, Ranked b) {
    const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
    if (a_nan || b_nan) return a_nan && (!b_nan || a.index < b.index);
    return a.value > b.value || (a.value == b.value && a.index < b.index);
}

// Worse than every logit: −∞ at a class that doesn't exist.
__device__ inline Ranked worst() {
    Ranked ranked;
    ranked.value = __uint_as_float(0xff800000u);
    ranked.index = 0x7fffffff;
    return ranked;
}

// The best of all threads' candidates, in every thread. `scratch` holds blockDim.x entries; the number of
// threads is a power of two.
__device__ inline Ranked block_best(Ranked mine, Ranked* scratch) {
    scratch[threadIdx.x] = mine;
    SYNC();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half && before(scratch[threadIdx.x + half], scratch[threadIdx.x]))
            scratch[threadIdx.x] = scratch[threadIdx.x + half];
        SYNC();
    }
    const Ranked best = scratch[0];
    SYNC();  // scratch may be written again
    return best;
}

#endif
