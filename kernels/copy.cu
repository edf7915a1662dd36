// The copy that other kernels' bandwidth is measured against.
#include "common.h"

const int THREADS = 256;

struct CopyParameters {
    const uint4* from;
    uint4* to;
    long long count;  // of 16 bytes
};

KERNEL(copy, CopyParameters, THREADS, 1) {
    const long long step = static_cast<long long>(gridDim.x) * THREADS;
    for (long long i = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x; i < p.count; i += step)
        p.to[i] = p.from[i];
}
