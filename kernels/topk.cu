// The k most probable classes of each image and their softmax probabilities: logits are read, and nothing but
// the result is written. One block an image; blockDim.x is a power of two.
//
// k rounds of "the best class that comes after the last one found". The first round's logit is also the
// maximum that softmax subtracts.
#include "common.h"

const int MAX_THREADS = 256;

struct TopKParameters {
    const void* logits;    // (images, classes)
    float* probabilities;  // (images, k), descending
    int* indices;          // (images, k)
    int classes;
    int k;
};

template <typename T>
__device__ void topk(const TopKParameters& p) {
    SHARED(Ranked, ranks, MAX_THREADS);
    SHARED(float, sums, MAX_THREADS);
    const T* logits = static_cast<const T*>(p.logits) + static_cast<long long>(blockIdx.x) * p.classes;
    const int thread = threadIdx.x, threads = blockDim.x;
    float maximum = 0, scale = 0;
    Ranked last = worst();
    for (int round = 0; round < p.k; ++round) {
        Ranked best = worst();
        for (int i = thread; i < p.classes; i += threads) {
            Ranked candidate;
            candidate.value = load(logits, i);
            candidate.index = i;
            if ((round == 0 || before(last, candidate)) && before(candidate, best)) best = candidate;
        }
        last = block_best(best, ranks);
        if (round == 0) {
            maximum = last.value;
            float sum = 0;
            for (int i = thread; i < p.classes; i += threads) sum += expf(load(logits, i) - maximum);
            sums[thread] = sum;
            SYNC();
            for (int half = threads / 2; half > 0; half /= 2) {
                if (thread < half) sums[thread] += sums[thread + half];
                SYNC();
            }
            scale = 1 / sums[0];
        }
        if (thread == 0) {
            const long long at = static_cast<long long>(blockIdx.x) * p.k + round;
            p.probabilities[at] = expf(last.value - maximum) * scale;
            p.indices[at] = last.index;
        }
    }
}

KERNEL(topk_fp32, TopKParameters, MAX_THREADS, 1) { topk<float>(p); }
KERNEL(topk_fp16, TopKParameters, MAX_THREADS, 1) { topk<half_bits>(p); }
