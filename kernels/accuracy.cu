// How many images have their label as the largest logit: evaluation copies back one number. One block an
// image; blockDim.x is a power of two. The count is added to, so one buffer serves a whole data set.
#include "common.h"

const int MAX_THREADS = 256;

struct AccuracyParameters {
    const void* logits;  // (images, classes)
    const int* labels;   // (images)
    unsigned* correct;
    int classes;
};

template <typename T>
__device__ void accuracy(const AccuracyParameters& p) {
    SHARED(Ranked, ranks, MAX_THREADS);
    const T* logits = static_cast<const T*>(p.logits) + static_cast<long long>(blockIdx.x) * p.classes;
    Ranked best = worst();
    for (int i = threadIdx.x; i < p.classes; i += blockDim.x) {
        Ranked candidate;
        candidate.value = load(logits, i);
        candidate.index = i;
        if (before(candidate, best)) best = candidate;
    }
    best = block_best(best, ranks);
    if (threadIdx.x == 0 && best.index == p.labels[blockIdx.x]) atomicAdd(p.correct, 1u);
}

KERNEL(accuracy_fp32, AccuracyParameters, MAX_THREADS, 1) { accuracy<float>(p); }
KERNEL(accuracy_fp16, AccuracyParameters, MAX_THREADS, 1) { accuracy<half_bits>(p); }
