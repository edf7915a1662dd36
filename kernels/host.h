// Runs a CUDA grid as loops on the host, so that g++ compiles the very kernels that nvcc does and their numbers
// can be checked with no GPU. Included before the kernel's source.
//
// What this emulation checks: the threads of a block are fibers that switch at SYNC() only, shared memory holds NaN
// when a block begins, and a barrier that not all threads reach is an error. Threads run in ascending order
// or, with SLIMDEPLOY_REVERSED set in the environment, in descending: a result that depends on it is a race.
// Compiled with -DSLIMDEPLOY_THREADS they are real threads, for the sanitizers to watch.
#pragma once
#define SLIMDEPLOY_HOST

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __device__
#define __forceinline__ inline

using std::max;
using std::min;

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct Index {
    unsigned x, y, z;
};

template <typename T>
T __ldg(const T* from) {
    if (reinterpret_cast<std::size_t>(from) % sizeof(T)) std::abort();  // as a GPU would: misaligned address
    return *from;
}

inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline unsigned __dp2a_lo(unsigned words, unsigned bytes, unsigned sum) {
    return sum + (words & 65535u) * (bytes & 255u) + (words >> 16) * (bytes >> 8 & 255u);
}

inline unsigned __dp2a_hi(unsigned words, unsigned bytes, unsigned sum) { return __dp2a_lo(words, bytes >> 16, sum); }

inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) {
        const unsigned from = selector >> 4 * i & 7;
        result |= ((from < 4 ? low : high) >> from % 4 * 8 & 255u) << 8 * i;
    }
    return result;
}

namespace host {
thread_local Index thread, block;
Index block_size, grid_size;
unsigned block_serial;  // counts the blocks run so far; 0 is none
void sync();
void poison(void* memory, std::size_t size, unsigned& poisoned_for);
const char* run(const Index& grid, const Index& size, const std::function<void()>& kernel);
}  // namespace host

#define threadIdx host::thread
#define blockIdx host::block
#define blockDim host::block_size
#define gridDim host::grid_size
#define SYNC() host::sync()
#define SHARED(Type, name, count)              \
    static Type name[count];                   \
    static unsigned name##_poisoned;           \
    host::poison(name, sizeof name, name##_poisoned)
#define KERNEL(name, Parameters, threads, blocks)                                                             \
    static void name(const Parameters& p);                                                                    \
    extern "C" int size_##name() { return sizeof(Parameters); }                                               \
    extern "C" const char* launch_##name(const unsigned* grid, const unsigned* block, const void* parameters) { \
        if (block[0] * block[1] * block[2] > threads) return "more threads a block than the kernel allows";   \
        return host::run({grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]},                         \
                         [=] { name(*static_cast<const Parameters*>(parameters)); });                         \
    }                                                                                                         \
    static void name(const Parameters& p)

inline void atomicAdd(unsigned* to, unsigned value) { __atomic_fetch_add(to, value, __ATOMIC_RELAXED); }

// Halves, rounded to nearest even as the GPU does.
inline float load(const unsigned short* values, int i) {
    const unsigned half = values[i], exponent = half >> 10 & 31, fraction = half & 1023;
    float magnitude;
    if (exponent == 31)
        magnitude = fraction ? NAN : INFINITY;
    else
        magnitude = exponent ? std::ldexp(1024.0f + fraction, static_cast<int>(exponent) - 25)
                             : std::ldexp(static_cast<float>(fraction), -24);
    return half >> 15 ? -magnitude : magnitude;
}

inline void store(unsigned short* values, long long i, float value) {
    const unsigned sign = std::signbit(value) ? 0x8000u : 0u;
    const float magnitude = std::fabs(value);
    unsigned bits;
    if (std::isnan(value))
        bits = 0x7fffu;
    else if (magnitude >= 65520.0f)
        bits = 0x7c00u;
    else {
        int exponent = magnitude > 0 ? std::ilogb(magnitude) : -14;
        exponent = max(exponent, -14);  // below it halves are subnormal and evenly spaced
        const unsigned steps = static_cast<unsigned>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
        bits = steps < 1024 ? steps : (static_cast<unsigned>(exponent + 14) << 10) + steps;
    }
    values[i] = static_cast<unsigned short>(sign | bits);
}

#ifdef SLIMDEPLOY_THREADS
#include <condition_variable>
#include <mutex>
#include <thread>

namespace host {
std::mutex mutex;
std::condition_variable arrived;
unsigned waiting, generation, participants;

void sync() {
    std::unique_lock<std::mutex> lock(mutex);
    const unsigned mine = generation;
    if (++waiting == participants) {
        waiting = 0;
        ++generation;
        arrived.notify_all();
    } else
        arrived.wait(lock, [&] { return generation != mine; });
}

void poison(void* memory, std::size_t size, unsigned& poisoned_for) {
    std::unique_lock<std::mutex> lock(mutex);
    if (poisoned_for != block_serial) std::memset(memory, 0xff, size);
    poisoned_for = block_serial;
}

const char* run(const Index& grid, const Index& size, const std::function<void()>& kernel) {
    block_size = size;
    grid_size = grid;
    participants = size.x * size.y * size.z;
    std::vector<std::thread> threads;
    for (unsigned number = 0; number < participants; ++number)
        threads.emplace_back([&, number] {
            thread = {number % size.x, number / size.x % size.y, number / size.x / size.y};
            for (unsigned z = 0; z < grid.z; ++z)
                for (unsigned y = 0; y < grid.y; ++y)
                    for (unsigned x = 0; x < grid.x; ++x) {
                        sync();  // every thread has left the block before
                        if (number == 0) ++block_serial;
                        sync();
                        block = {x, y, z};
                        kernel();
                    }
        });
    for (std::thread& each : threads) each.join();
    return nullptr;
}
}  // namespace host

#else
#include <ucontext.h>

namespace host {
const std::size_t STACK = 64 * 1024;

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[STACK]};
    bool done;
};

ucontext_t scheduler;
Fiber* current;
const std::function<void()>* body;

void sync() { swapcontext(&current->context, &scheduler); }

void poison(void* memory, std::size_t size, unsigned& poisoned_for) {
    if (poisoned_for != block_serial) std::memset(memory, 0xff, size);
    poisoned_for = block_serial;
}

void enter() {
    (*body)();
    current->done = true;
    swapcontext(&current->context, &scheduler);
}

const char* run_block(std::vector<Fiber>& fibers) {
    const unsigned count = static_cast<unsigned>(fibers.size());
    const bool reversed = std::getenv("SLIMDEPLOY_REVERSED") != nullptr;
    for (Fiber& fiber : fibers) {
        fiber.done = false;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = STACK;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, enter, 0);
    }
    for (unsigned left = count; left > 0;) {  // from one barrier to the next
        for (unsigned i = 0; i < count; ++i) {
            const unsigned number = reversed ? count - 1 - i : i;
            current = &fibers[number];
            thread = {number % block_size.x, number / block_size.x % block_size.y,
                      number / block_size.x / block_size.y};
            swapcontext(&scheduler, &current->context);
            left -= current->done;
        }
        if (left != 0 && left != count) return "some threads of a block ended while others wait at a barrier";
    }
    return nullptr;
}

const char* run(const Index& grid, const Index& size, const std::function<void()>& kernel) {
    std::vector<Fiber> fibers(size.x * size.y * size.z);
    block_size = size;
    grid_size = grid;
    body = &kernel;
    for (block.z = 0; block.z < grid.z; ++block.z)
        for (block.y = 0; block.y < grid.y; ++block.y)
            for (block.x = 0; block.x < grid.x; ++block.x) {
                ++block_serial;
                if (const char* error = run_block(fibers)) return error;
            }
    return nullptr;
}
}  // namespace host
#endif
