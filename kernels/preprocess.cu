// Images to network input in one pass: uint8 → bilinear resize (half-pixel centres, antialiased when shrinking,
// as PIL does) → colour conversion (from NV12, to gray) → normalise → NCHW, float or half.
//
// The resize is separable. A block makes a tile of output rows and columns, two rows at a time:
//   1. vertically: each thread owns 16 neighbouring bytes of the source row, whatever their channel, and sums
//      them over the source rows in registers. When shrinking, a source row lies in the windows of two output
//      rows; both sums are kept (`carry`), so every byte is read once per tile. Two rows at a time: a 16-bit
//      weight each, in one dot product a byte;
//   2. the two filtered rows meet in shared memory, as pairs;
//   3. horizontally: each thread owns an output column (and channel) and sums its window for both rows at once.
// Where each window begins and ends, and its weights, come from a table (`Tap`) that the host computes once per
// size in double precision: there is no division here.
#include "common.h"

const int THREADS = 256;
const int BYTES = 16;               // of a source row that a thread owns
const int SPAN = THREADS * BYTES;   // bytes of source rows that a block filters at a time, of all planes together
const int BATCH = 6;                // source rows whose loads are in flight together, even
const int SLOTS = SPAN + SPAN / 16; // of a filtered row in shared memory, see slot()

// The window of one output coordinate: source samples start … end − 1, the j-th weighing
// norm × (1 − |first + j × step|).
struct alignas(16) Tap {
    int start, end;
    float first, norm;
};

struct Plane {
    const u8* data;
    long long image_stride;  // bytes from one image to the next
    const Tap* rows;         // one for each output row; their weights are norm × round(peak × (1 − …))
    const Tap* columns;      // one for each output column
    float row_step, column_step;
    float peak;     // weights of rows are whole numbers up to this, 65535 or what keeps sums within 32 bits
    int pitch;      // bytes from one row to the next
    int row_bytes;  // bytes of a row that hold samples
    int aligned;    // data, image_stride and pitch are multiples of 16
    int reuse;      // a source row lies in at most two output rows' windows: not when enlarging
};

struct Output {
    void* data;  // (images, 3, height, width), or (images, 1, height, width) for gray
    int width, height;
    int tile;  // columns that a block makes
    int band;  // rows that a block makes, even
    float scale[3], shift[3];
    float gray[3];  // weights of the colours, in the order of the source
};

struct alignas(8) Pair {  // of values in neighbouring output rows
    float upper, lower;
};

__device__ __forceinline__ Pair add(Pair a, Pair b, float scale) {
    a.upper += b.upper * scale;
    a.lower += b.lower * scale;
    return a;
}

// One slot of padding in every 16 samples: the threads of a warp read about `shrink factor` samples apart, which
// is a power of two often enough, and still hit different banks.
__device__ __forceinline__ int slot(int sample) { return sample + (sample >> 4); }

// The bytes of a plane's rows that a tile needs, in goes of `span`.
struct Range {
    int start, end, goes;
};

__device__ __forceinline__ Range tile_bytes(const Plane& plane, const Output& out, int channels, int span) {
    const int first = blockIdx.x * out.tile, last = min(first + out.tile, out.width) - 1;
    Range range;
    range.start = plane.columns[first].start * channels / BYTES * BYTES;
    range.end = plane.columns[last].end * channels;
    range.goes = (range.end - range.start + span - 1) / span;
    return range;
}

// The next 16 bytes of a row, or as many as are `available`: at the end of a row, or where rows aren't aligned.
template <bool WHOLE>
__device__ __forceinline__ uint4 load_bytes(const u8* from, int available) {
    if (WHOLE) return __ldg(reinterpret_cast<const uint4*>(from));
    uint4 bytes = {0, 0, 0, 0};
#pragma unroll 1
    for (int i = 0; i < min(available, BYTES); ++i) {
        unsigned& word = i < 8 ? (i < 4 ? bytes.x : bytes.y) : (i < 12 ? bytes.z : bytes.w);
        word |= static_cast<unsigned>(from[i]) << (i % 4 * 8);
    }
    return bytes;
}

__device__ __forceinline__ unsigned word_of(const uint4& bytes, int i) {
    return i == 0 ? bytes.x : i == 1 ? bytes.y : i == 2 ? bytes.z : bytes.w;
}

// Whole numbers nearest to two values of 0 … 65535, as halves of a word; the second is 0 unless `both`. The sum
// with 2^23 has them as its last bits: converting is slower.
__device__ __forceinline__ unsigned whole_pair(float first, float second, bool both) {
    const unsigned low = __float_as_uint(first + 8388608.0f), high = __float_as_uint(second + 8388608.0f);
    return __byte_perm(low, both ? high : 0u, 0x5410u);
}

// Add source rows from … now.end − 1, weighed for the output row `now` into sum and for the next one into carry,
// up to carry_peak. A row's distance from the next centre is its distance from this one less 1 when shrinking;
// else carry_peak is 0.
template <bool WHOLE>
__device__ __forceinline__ void add_rows(const u8* column, const Plane& plane, float carry_peak, int available,
                                         int from, const Tap& now, unsigned* sum, unsigned* carry) {
    const int batch = WHOLE ? BATCH : 2;
#pragma unroll 1
    for (int y = from; y < now.end; y += batch) {
        const u8* row = column + static_cast<long long>(y) * plane.pitch;
        const int last = now.end - 1 - y;
        uint4 bytes[batch];
#pragma unroll
        for (int i = 0; i < batch; i += 2) {
            if (i > last) break;
            bytes[i] = load_bytes<WHOLE>(row + i * plane.pitch, available);
            bytes[i + 1] = load_bytes<WHOLE>(row + min(i + 1, last) * plane.pitch, available);  // weighs 0 past it
        }
        const float distance = now.first + static_cast<float>(y - now.start) * plane.row_step;
#pragma unroll
        for (int i = 0; i < batch; i += 2) {
            if (i > last) break;
            const bool both = i < last;
            const float a = distance + static_cast<float>(i) * plane.row_step, b = a + plane.row_step;
            const unsigned to_sum = whole_pair(plane.peak - plane.peak * fabsf(a), plane.peak - plane.peak * fabsf(b), both);
            const unsigned to_carry = whole_pair(carry_peak * fmaxf(a, 0.0f), carry_peak * fmaxf(b, 0.0f), both);
#pragma unroll
            for (int j = 0; j < BYTES; j += 4) {
                const unsigned upper = word_of(bytes[i], j / 4), lower = word_of(bytes[i + 1], j / 4);
                const unsigned left = __byte_perm(upper, lower, 0x5140u);  // bytes 0 and 1 of both rows
                const unsigned right = __byte_perm(upper, lower, 0x7362u);
                sum[j] = __dp2a_lo(to_sum, left, sum[j]);
                sum[j + 1] = __dp2a_hi(to_sum, left, sum[j + 1]);
                sum[j + 2] = __dp2a_lo(to_sum, right, sum[j + 2]);
                sum[j + 3] = __dp2a_hi(to_sum, right, sum[j + 3]);
                carry[j] = __dp2a_lo(to_carry, left, carry[j]);
                carry[j + 1] = __dp2a_hi(to_carry, left, carry[j + 1]);
                carry[j + 2] = __dp2a_lo(to_carry, right, carry[j + 2]);
                carry[j + 3] = __dp2a_hi(to_carry, right, carry[j + 3]);
            }
        }
    }
}

// Filter output rows `row` and `row + 1` vertically: the thread's 16 bytes, the `thread`-th from `base` on.
// `carry` holds, from one call to the next within a band, what source rows read so far add to the next row.
__device__ __forceinline__ void filter_rows(const Plane& plane, const Output& out, const Range& range, int base,
                                            int thread, int row, int band_start, unsigned* carry, Pair* filtered) {
    const bool reuse = plane.reuse && range.goes == 1;
    const float carry_peak = reuse ? plane.peak : 0.0f;
    const int offset = base + thread * BYTES, available = plane.row_bytes - offset;
    const u8* bytes = plane.data + blockIdx.z * plane.image_stride + offset;
#pragma unroll 1
    for (int i = 0; i < 2; ++i) {
        const int y = row + i;
        float norm = 0;
        unsigned sum[BYTES];
#pragma unroll
        for (int j = 0; j < BYTES; ++j) {
            sum[j] = carry[j];
            carry[j] = 0;
        }
        if (y < out.height && offset < range.end) {
            const Tap now = plane.rows[y];
            const int from = reuse && y > band_start ? plane.rows[y - 1].end : now.start;
            norm = now.norm;
            if (plane.aligned && available >= BYTES)
                add_rows<true>(bytes, plane, carry_peak, available, from, now, sum, carry);
            else
                add_rows<false>(bytes, plane, carry_peak, available, from, now, sum, carry);
        }
        float* to = &filtered[slot(thread * BYTES)].upper + i;
#pragma unroll
        for (int j = 0; j < BYTES; ++j) to[2 * j] = static_cast<float>(sum[j]) * norm;
    }
}

// The window of one output column over the `span` bytes of the filtered rows that start at `base`: SUMS of the
// CHANNELS that a sample has, from `channel` on, added to `sums`.
template <int CHANNELS, int SUMS>
__device__ __forceinline__ void filter_columns(const Pair* filtered, const Tap& tap, float step, int channel, int base,
                                               int span, Pair* sums) {
    static_assert(SUMS == 1 || BYTES % CHANNELS == 0, "the channels of a sample must be neighbours, see slot()");
    const int first = max(tap.start, (base - channel + CHANNELS - 1) / CHANNELS);
    const int last = min(tap.end, (base + span - channel + CHANNELS - 1) / CHANNELS);
    int sample = first * CHANNELS + channel - base;
    float position = static_cast<float>(first - tap.start);
    Pair own[SUMS] = {};
#pragma unroll 4
    for (int x = first; x < last; ++x, sample += CHANNELS, position += 1.0f) {
        const Pair* from = filtered + slot(sample);
        const float weight = 1.0f - fabsf(tap.first + position * step);
#pragma unroll
        for (int i = 0; i < SUMS; ++i) own[i] = add(own[i], from[i], weight);
    }
#pragma unroll
    for (int i = 0; i < SUMS; ++i) sums[i] = add(sums[i], own[i], tap.norm);
}

// Not values[channel]: a parameter that is indexed at run time is copied to local memory first.
__device__ __forceinline__ float of_channel(const float* values, int channel) {
    return channel == 0 ? values[0] : channel == 1 ? values[1] : values[2];
}

template <typename T, int CHANNELS>
__device__ __forceinline__ void write_pair(const Output& out, int row, int x, int channel, Pair value) {
    const float scale = of_channel(out.scale, channel), shift = of_channel(out.shift, channel);
    const long long at = ((blockIdx.z * static_cast<long long>(CHANNELS) + channel) * out.height + row) * out.width + x;
    T* data = static_cast<T*>(out.data);
    store(data, at, value.upper * scale + shift);
    if (row + 1 < out.height) store(data, at + out.width, value.lower * scale + shift);
}

struct HwcParameters {
    Plane image;  // red, green, blue interleaved, or blue first
    Output out;
    int bgr;
};

// All threads filter the one plane, then each makes channels of columns; for gray, a column from all three colours.
template <typename T, bool GRAY>
__device__ __forceinline__ void preprocess_hwc(const HwcParameters& p) {
    const int channels = GRAY ? 1 : 3;
    SHARED(Pair, filtered, SLOTS);
    const Range range = tile_bytes(p.image, p.out, 3, SPAN);
    const int tile_start = blockIdx.x * p.out.tile, band_start = blockIdx.y * p.out.band;
    const int columns = min(p.out.tile, p.out.width - tile_start);
    const int band_end = min(band_start + p.out.band, p.out.height);
    unsigned carry[BYTES] = {};
    for (int row = band_start; row < band_end; row += 2) {
        Pair sum = {0, 0};  // of all goes: a tile that needs several has one column, so a thread has one sum
        for (int go = 0; go < range.goes; ++go) {
            const int base = range.start + go * SPAN;
            filter_rows(p.image, p.out, range, base, threadIdx.x, row, band_start, carry, filtered);
            SYNC();
            for (int i = threadIdx.x; i < channels * columns; i += THREADS) {
                const int x = tile_start + i / channels, channel = i % channels;
                const Tap column = p.image.columns[x];
                if (GRAY) {
#pragma unroll
                    for (int c = 0; c < 3; ++c) {
                        Pair colour = {0, 0};
                        filter_columns<3, 1>(filtered, column, p.image.column_step, c, base, SPAN, &colour);
                        sum = add(sum, colour, p.out.gray[c]);
                    }
                } else {
                    filter_columns<3, 1>(filtered, column, p.image.column_step, channel, base, SPAN, &sum);
                }
                if (go + 1 < range.goes) continue;
                write_pair<T, channels>(p.out, row, x, !GRAY && p.bgr ? 2 - channel : channel, sum);
                sum.upper = sum.lower = 0;
            }
            SYNC();  // filtered is written again
        }
    }
}

struct Nv12Parameters {
    Plane luma, chroma;  // chroma: U and V interleaved, half the size
    Output out;
    float to_rgb[3][4];  // RGB in 0 … 255 from Y, U, V and 1
};

// Half of the threads filter luma, the others chroma; then each makes columns.
template <typename T, bool GRAY>
__device__ __forceinline__ void preprocess_nv12(const Nv12Parameters& p) {
    SHARED(Pair, filtered, SLOTS);
    const int half = THREADS / 2, span = SPAN / 2, thread = threadIdx.x;
    Pair* const filtered_chroma = filtered + SLOTS / 2;
    Range luma = tile_bytes(p.luma, p.out, 1, span), chroma = tile_bytes(p.chroma, p.out, 2, span);
    const int goes = luma.goes = chroma.goes = max(luma.goes, chroma.goes);
    const int tile_start = blockIdx.x * p.out.tile, band_start = blockIdx.y * p.out.band;
    const int columns = min(p.out.tile, p.out.width - tile_start);
    const int band_end = min(band_start + p.out.band, p.out.height);
    unsigned carry[BYTES] = {};
    for (int row = band_start; row < band_end; row += 2) {
        Pair y = {0, 0}, uv[2] = {};  // of all goes, see preprocess_hwc
        for (int go = 0; go < goes; ++go) {
            const int luma_base = luma.start + go * span, chroma_base = chroma.start + go * span;
            if (thread < half)
                filter_rows(p.luma, p.out, luma, luma_base, thread, row, band_start, carry, filtered);
            else
                filter_rows(p.chroma, p.out, chroma, chroma_base, thread - half, row, band_start, carry, filtered_chroma);
            SYNC();
            for (int i = thread; i < columns; i += THREADS) {
                const int x = tile_start + i;
                const Tap of_luma = p.luma.columns[x], of_chroma = p.chroma.columns[x];
                filter_columns<1, 1>(filtered, of_luma, p.luma.column_step, 0, luma_base, span, &y);
                filter_columns<2, 2>(filtered_chroma, of_chroma, p.chroma.column_step, 0, chroma_base, span, uv);
                if (go + 1 < goes) continue;
                Pair gray = {0, 0};
#pragma unroll
                for (int c = 0; c < 3; ++c) {
                    Pair rgb = {p.to_rgb[c][3], p.to_rgb[c][3]};
                    rgb = add(add(add(rgb, y, p.to_rgb[c][0]), uv[0], p.to_rgb[c][1]), uv[1], p.to_rgb[c][2]);
                    rgb.upper = fminf(fmaxf(rgb.upper, 0.0f), 255.0f);
                    rgb.lower = fminf(fmaxf(rgb.lower, 0.0f), 255.0f);
                    if (GRAY)
                        gray = add(gray, rgb, p.out.gray[c]);
                    else
                        write_pair<T, 3>(p.out, row, x, c, rgb);
                }
                if (GRAY) write_pair<T, 1>(p.out, row, x, 0, gray);
                y.upper = y.lower = uv[0].upper = uv[0].lower = uv[1].upper = uv[1].lower = 0;
            }
            SYNC();  // filtered is written again
        }
    }
}

KERNEL(preprocess_hwc_fp32, HwcParameters, THREADS, 2) { preprocess_hwc<float, false>(p); }
KERNEL(preprocess_hwc_fp16, HwcParameters, THREADS, 2) { preprocess_hwc<half_bits, false>(p); }
KERNEL(preprocess_nv12_fp32, Nv12Parameters, THREADS, 2) { preprocess_nv12<float, false>(p); }
KERNEL(preprocess_nv12_fp16, Nv12Parameters, THREADS, 2) { preprocess_nv12<half_bits, false>(p); }
KERNEL(preprocess_hwc_gray_fp32, HwcParameters, THREADS, 2) { preprocess_hwc<float, true>(p); }
KERNEL(preprocess_hwc_gray_fp16, HwcParameters, THREADS, 2) { preprocess_hwc<half_bits, true>(p); }
KERNEL(preprocess_nv12_gray_fp32, Nv12Parameters, THREADS, 2) { preprocess_nv12<float, true>(p); }
KERNEL(preprocess_nv12_gray_fp16, Nv12Parameters, THREADS, 2) { preprocess_nv12<half_bits, true>(p); }
