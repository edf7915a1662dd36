// Images to network input in one pass: uint8 → bilinear resize (half-pixel centres, antialiased when shrinking,
// as PIL does) → colour conversion (NV12) → normalise → NCHW, float or half.
//
// The resize is separable. A block makes a tile of output rows and columns, two rows at a time:
//   1. vertically: each thread owns 8 neighbouring bytes of the source row, whatever their channel, and sums
//      them over the source rows in registers. When shrinking, a source row lies in the windows of two output
//      rows; both sums are kept (`carry`), so every byte is read once per tile;
//   2. the two filtered rows meet in shared memory, as pairs;
//   3. horizontally: each thread owns an output column (and channel) and sums its window for both rows at once.
// Where each window begins and ends, and its weights, come from a table (`Tap`) that the host computes once per
// size in double precision: there is no division here.
#include "common.h"

const int THREADS = 256;
const int BYTES = 8;                // of a source row that a thread owns
const int SPAN = THREADS * BYTES;   // bytes of a source row that a block filters at a time
const int BATCH = 5;                // source rows whose loads are in flight together
const int SLOTS = SPAN + SPAN / 16; // of a filtered row in shared memory, see slot()

// The window of one output coordinate: source samples start … end−1, the j-th weighing
// norm × (1 − |first + j × step|).
struct alignas(16) Tap {
    int start, end;
    float first, norm;
};

struct Plane {
    const u8* data;
    long long image_stride;  // bytes from one image to the next
    const Tap* rows;         // one for each output row
    const Tap* columns;      // one for each output column
    float row_step, column_step;
    int pitch;      // bytes from one row to the next
    int row_bytes;  // bytes of a row that hold samples
    int aligned;    // data, image_stride and pitch are multiples of 8
    int reuse;      // a source row lies in at most two output rows' windows: not when enlarging
};

struct Output {
    void* data;  // (images, 3, height, width)
    int width, height;
    int tile;  // columns that a block makes
    int band;  // rows that a block makes, even
    float scale[3], shift[3];
};

struct alignas(8) Pair {  // of values in neighbouring output rows
    float upper, lower;
};

// One slot of padding in every 16 samples: the threads of a warp read about `shrink factor` samples apart, which
// is a power of two often enough, and still hit different banks.
__device__ __forceinline__ int slot(int sample) { return sample + (sample >> 4); }

// Byte i of a word as a float: it becomes the last byte of 2^23's mantissa. Two instructions; converting the
// integer takes three, one of them on a slow unit.
__device__ __forceinline__ float byte_of(unsigned word, int i) {
    return __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440u | i)) - 8388608.0f;
}

// The next 8 bytes of a row, or as many as are `available`: at the end of a row, or where rows aren't aligned.
template <bool WHOLE>
__device__ __forceinline__ uint2 load_bytes(const u8* from, int available) {
    if (WHOLE) return __ldg(reinterpret_cast<const uint2*>(from));
    uint2 bytes = {0, 0};
    for (int i = 0; i < min(available, BYTES); ++i)
        (i < 4 ? bytes.x : bytes.y) |= static_cast<unsigned>(from[i]) << (i % 4 * 8);
    return bytes;
}

// Add source rows from … now.end − 1, weighed for the output row `now` into sum and for the next one, whose norm
// is next_norm, into carry. A row's distance from the next centre is its distance from this one less 1 when
// shrinking; else carry isn't used.
template <bool WHOLE>
__device__ __forceinline__ void filter_rows(const u8* column, const Plane& plane, int available, int from,
                                            const Tap& now, float next_norm, float* sum, float* carry) {
    const int batch = WHOLE ? BATCH : 1;
#pragma unroll 1
    for (int y = from; y < now.end; y += batch) {
        const u8* row = column + static_cast<long long>(y) * plane.pitch;
        uint2 bytes[batch];
#pragma unroll
        for (int i = 0; i < batch; ++i)
            if (y + i < now.end) bytes[i] = load_bytes<WHOLE>(row + i * plane.pitch, available);
        const float distance = now.first + static_cast<float>(y - now.start) * plane.row_step;
#pragma unroll
        for (int i = 0; i < batch; ++i) {
            if (y + i >= now.end) break;
            const float at = distance + static_cast<float>(i) * plane.row_step;
            const float to_sum = now.norm - now.norm * fabsf(at);
            const float to_carry = next_norm * fmaxf(at, 0.0f);
#pragma unroll
            for (int j = 0; j < BYTES; ++j) {
                const float value = byte_of(j < 4 ? bytes[i].x : bytes[i].y, j % 4);
                sum[j] += to_sum * value;
                carry[j] += to_carry * value;
            }
        }
    }
}

// The window of one output column and channel, over the part of the filtered rows that starts at byte `base`.
template <int CHANNELS>
__device__ __forceinline__ Pair filter_columns(const Pair* filtered, const Plane& plane, const Tap& tap, int channel,
                                               int base) {
    const int first = max(tap.start, (base - channel + CHANNELS - 1) / CHANNELS);
    const int last = min(tap.end, (base + SPAN - channel + CHANNELS - 1) / CHANNELS);
    int sample = first * CHANNELS + channel - base;
    float position = static_cast<float>(first - tap.start);
    Pair sum = {0, 0};
#pragma unroll 4
    for (int x = first; x < last; ++x, sample += CHANNELS, position += 1.0f) {
        const float weight = 1.0f - fabsf(tap.first + position * plane.column_step);
        const Pair value = filtered[slot(sample)];
        sum.upper += weight * value.upper;
        sum.lower += weight * value.lower;
    }
    return sum;
}

// Resize one plane for output rows `row` and `row + 1` of the tile. RESULTS values a thread: channels
// channel … channel + RESULTS − 1 of the column. All threads of the block take part.
template <int CHANNELS, int RESULTS>
__device__ __forceinline__ void resize_pair(const Plane& plane, const Output& out, int row, int band_start, const Tap& column,
                                   bool active, int channel, Pair* filtered, float* carry, Pair* results) {
    const int tile_start = blockIdx.x * out.tile;
    const int tile_last = min(tile_start + out.tile, out.width) - 1;
    const int bytes_start = plane.columns[tile_start].start * CHANNELS / BYTES * BYTES;
    const int bytes_end = plane.columns[tile_last].end * CHANNELS;
    const bool reuse = plane.reuse && bytes_end - bytes_start <= SPAN;
    for (int r = 0; r < RESULTS; ++r) results[r].upper = results[r].lower = 0;

    for (int base = bytes_start; base < bytes_end; base += SPAN) {
        const int offset = base + static_cast<int>(threadIdx.x) * BYTES;
        const u8* bytes = plane.data + blockIdx.z * plane.image_stride + offset;
#pragma unroll 1
        for (int i = 0; i < 2; ++i) {
            const int y = row + i;
            float sum[BYTES];
#pragma unroll
            for (int j = 0; j < BYTES; ++j) {
                sum[j] = reuse ? carry[j] : 0;
                carry[j] = 0;
            }
            if (y < out.height && offset < bytes_end) {
                const Tap now = plane.rows[y];
                const float next_norm = plane.rows[min(y + 1, out.height - 1)].norm;
                const int from = reuse && y > band_start ? plane.rows[y - 1].end : now.start;
                const int available = plane.row_bytes - offset;
                if (plane.aligned && available >= BYTES)
                    filter_rows<true>(bytes, plane, available, from, now, next_norm, sum, carry);
                else
                    filter_rows<false>(bytes, plane, available, from, now, next_norm, sum, carry);
            }
#pragma unroll
            for (int j = 0; j < BYTES; ++j) {
                Pair& to = filtered[slot(threadIdx.x * BYTES + j)];
                (i == 0 ? to.upper : to.lower) = sum[j];
            }
        }
        SYNC();
        if (active) {
#pragma unroll
            for (int r = 0; r < RESULTS; ++r) {
                const Pair part = filter_columns<CHANNELS>(filtered, plane, column, channel + r, base);
                results[r].upper += part.upper * column.norm;
                results[r].lower += part.lower * column.norm;
            }
        }
        SYNC();  // filtered is written again
    }
}

// Not values[channel]: a parameter that is indexed at run time is copied to local memory first.
__device__ __forceinline__ float of_channel(const float* values, int channel) {
    return channel == 0 ? values[0] : channel == 1 ? values[1] : values[2];
}

template <typename T>
__device__ __forceinline__ void write_pair(const Output& out, int row, int x, int channel, Pair value) {
    const float scale = of_channel(out.scale, channel), shift = of_channel(out.shift, channel);
    const long long at = ((blockIdx.z * 3ll + channel) * out.height + row) * out.width + x;
    T* data = static_cast<T*>(out.data);
    store(data, at, value.upper * scale + shift);
    if (row + 1 < out.height) store(data, at + out.width, value.lower * scale + shift);
}

struct HwcParameters {
    Plane image;  // red, green, blue interleaved, or blue first
    Output out;
    int bgr;
};

// A thread owns one channel of one column.
template <typename T>
__device__ __forceinline__ void preprocess_hwc(const HwcParameters& p) {
    SHARED(Pair, filtered, SLOTS);
    const int in_tile = threadIdx.x / 3, channel = threadIdx.x % 3;
    const int x = blockIdx.x * p.out.tile + in_tile;
    const bool active = in_tile < p.out.tile && x < p.out.width;
    const Tap column = p.image.columns[active ? x : 0];
    const int band_start = blockIdx.y * p.out.band;
    const int band_end = min(band_start + p.out.band, p.out.height);
    float carry[BYTES] = {};
    for (int row = band_start; row < band_end; row += 2) {
        Pair value;
        resize_pair<3, 1>(p.image, p.out, row, band_start, column, active, channel, filtered, carry, &value);
        if (active) write_pair<T>(p.out, row, x, p.bgr ? 2 - channel : channel, value);
    }
}

struct Nv12Parameters {
    Plane luma, chroma;  // chroma: U and V interleaved, half the size
    Output out;
    float to_rgb[3][4];  // RGB in 0 … 255 from Y, U, V and 1
};

// A thread owns one column.
template <typename T>
__device__ __forceinline__ void preprocess_nv12(const Nv12Parameters& p) {
    SHARED(Pair, filtered, SLOTS);
    const int in_tile = threadIdx.x;
    const int x = blockIdx.x * p.out.tile + in_tile;
    const bool active = in_tile < p.out.tile && x < p.out.width;
    const Tap luma_column = p.luma.columns[active ? x : 0], chroma_column = p.chroma.columns[active ? x : 0];
    const int band_start = blockIdx.y * p.out.band;
    const int band_end = min(band_start + p.out.band, p.out.height);
    float luma_carry[BYTES] = {}, chroma_carry[BYTES] = {};
    for (int row = band_start; row < band_end; row += 2) {
        Pair luma, chroma[2];
        resize_pair<1, 1>(p.luma, p.out, row, band_start, luma_column, active, 0, filtered, luma_carry, &luma);
        resize_pair<2, 2>(p.chroma, p.out, row, band_start, chroma_column, active, 0, filtered, chroma_carry, chroma);
        if (!active) continue;
#pragma unroll
        for (int c = 0; c < 3; ++c) {
            const float* m = p.to_rgb[c];
            Pair rgb;
            rgb.upper = m[0] * luma.upper + m[1] * chroma[0].upper + m[2] * chroma[1].upper + m[3];
            rgb.lower = m[0] * luma.lower + m[1] * chroma[0].lower + m[2] * chroma[1].lower + m[3];
            rgb.upper = fminf(fmaxf(rgb.upper, 0.0f), 255.0f);
            rgb.lower = fminf(fmaxf(rgb.lower, 0.0f), 255.0f);
            write_pair<T>(p.out, row, x, c, rgb);
        }
    }
}

KERNEL(preprocess_hwc_fp32, HwcParameters, THREADS, 3) { preprocess_hwc<float>(p); }
KERNEL(preprocess_hwc_fp16, HwcParameters, THREADS, 3) { preprocess_hwc<half_bits>(p); }
KERNEL(preprocess_nv12_fp32, Nv12Parameters, THREADS, 3) { preprocess_nv12<float>(p); }
KERNEL(preprocess_nv12_fp16, Nv12Parameters, THREADS, 3) { preprocess_nv12<half_bits>(p); }
