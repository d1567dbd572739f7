/* The small operations of a decoding step on a CPU: what is left of a layer beside its matrix products.
 *
 * Written for the vectoriser of the system's C compiler; engine/kernels/build.py builds it, once per machine, and
 * engine/kernels/cpu.py states every argument's shape. This file is compiled twice, for element type T = bfloat16 (unless
 * ONLY_F32 is defined) and T = float; sums are in fp32. Attention is in cpu_queries.c and cpu_prompt.c.
 */
#ifndef SUFFIX

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>

typedef uint16_t bf16;

#define KEY_TILE 64 /* keys that are attended with at a time */
#define DIM_MAX 256 /* numbers of a head */
#define QUERY_DIM_MAX 576 /* where queries are taken one by one */
#define WORTH_SHARING 32768 /* elements; below, waking a second thread costs more than it saves */
#define ALONE static __attribute__((noinline)) /* compiled once, so that whoever calls gets the same sums */

static inline float load_bf16(bf16 x) {
    union { uint32_t u; float f; } word = {(uint32_t)x << 16};
    return word.f;
}

/* Round to nearest even; a NaN stays one. */
static inline bf16 store_bf16(float x) {
    union { float f; uint32_t u; } word = {x};
    uint32_t rounded = (word.u + 0x7fff + ((word.u >> 16) & 1)) >> 16;
    return (word.u & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (bf16)rounded;
}

/* e^r for r of at most half of ln 2, of numbers and of vectors. */
#define EXP_OF_REST(r)                                                                                               \
    ((((((1.9875691500e-4f * (r) + 1.3981999507e-3f) * (r) + 8.3334519073e-3f) * (r) + 4.1665795894e-2f) * (r) +     \
       1.6666665459e-1f) * (r) + 5.0000001201e-1f) * (r) * (r) + (r) + 1.0f)

/* e^x for x <= 0, to 2 ulp: 2^n times a polynomial in the rest (Cody and Waite), without a branch or a call. */
static inline float exp_negative(float x) {
    x = x < -87.0f ? -87.0f : x;
    float n = nearbyintf(x * 1.44269504f);
    float r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    union { int32_t i; float f; } power = {((int32_t)n + 127) << 23};
    return EXP_OF_REST(r) * power.f;
}

#pragma GCC diagnostic ignored "-Wpsabi" /* vectors are passed to nothing that is not inlined */
#define INLINE static inline __attribute__((always_inline))

typedef float eight __attribute__((vector_size(32), aligned(4)));

INLINE eight load_eight_f32(const float *x) {
    return *(const eight *)x;
}

INLINE eight load_eight_bf16(const bf16 *x) {
    typedef uint16_t halves __attribute__((vector_size(16), aligned(2)));
    typedef uint32_t words __attribute__((vector_size(32)));
    return (eight)(__builtin_convertvector(*(const halves *)x, words) << 16);
}

#ifdef __AVX__ /* else the compiler would rather load a vector anew at each use, and loads are what there is too much of */
#define IN_REGISTER(vector) __asm__("" : "+x"(vector))
#else
#define IN_REGISTER(vector)
#endif

typedef int32_t eight_ints __attribute__((vector_size(32)));

/* Of each place a's number where `which` is set, and b's elsewhere. */
INLINE eight pick(eight_ints which, eight a, eight b) {
    return (eight)((which & (eight_ints)a) | (~which & (eight_ints)b));
}

INLINE eight larger_of(eight a, eight b) {
    return pick(a > b, a, b);
}

/* What weighs a score in a softmax: `exp_negative` of what it is below `top`, and 0 where it is minus infinity. */
INLINE eight weights_of(eight score, eight top) {
    const eight seen = score - top, x = pick(seen < -87.0f, (eight){0} - 87.0f, seen);
    const eight_ints n = __builtin_convertvector(x * 1.44269504f - 0.5f, eight_ints); /* cut off: the nearest */
    const eight whole = __builtin_convertvector(n, eight), r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    return pick(score == -INFINITY, (eight){0}, EXP_OF_REST(r) * (eight)((n + 127) << 23));
}

/* Asks memory for bytes that are wanted soon. */
INLINE void ask_for(const void *from, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch((const char *)from + at);
}

#ifndef ONLY_F32
#define SUFFIX bf16
#define T bf16
#define LOAD load_bf16
#define STORE store_bf16
#include "cpu.c"
#undef SUFFIX
#undef T
#undef LOAD
#undef STORE
#endif

#define SUFFIX f32
#define T float
#define LOAD(x) (x)
#define STORE(x) (x)
#include "cpu.c"
#include "cpu_prompt.c"

#else

#define PASTE(name, suffix) name##_##suffix
#define EXPAND(name, suffix) PASTE(name, suffix)
#define NAME(name) EXPAND(name, SUFFIX)

/* x += delta (if any), then y = x / rms(x) * weight, of one row. */
ALONE void NAME(norm_row)(T *y, float *x, const T *delta, const T *weight, int64_t dim, float eps) {
    float sum = 0.0f;
    if (delta)
        for (int64_t i = 0; i < dim; i++) x[i] += LOAD(delta[i]);
    for (int64_t i = 0; i < dim; i++) sum += x[i] * x[i];
    float scale = 1.0f / sqrtf(sum / dim + eps);
    for (int64_t i = 0; i < dim; i++) y[i] = STORE(x[i] * scale * LOAD(weight[i]));
}

/* residual += delta (if any), then out = residual / rms(residual) * weight. */
void NAME(add_rms_norm)(T *out, float *residual, const T *delta, const T *weight, int64_t rows, int64_t dim, float eps) {
#pragma omp parallel for if (rows * dim > WORTH_SHARING)
    for (int64_t row = 0; row < rows; row++)
        NAME(norm_row)(out + row * dim, residual + row * dim, delta ? delta + row * dim : NULL, weight, dim, eps);
}

/* y = silu(gate) * up, of `count` numbers. */
ALONE void NAME(silu_part)(T *y, const T *gate, const T *up, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        float g = LOAD(gate[i]);
        float e = exp_negative(g < 0 ? g : -g); /* sigmoid without overflow */
        y[i] = STORE((g < 0 ? g * e : g) / (1.0f + e) * LOAD(up[i]));
    }
}

/* out = silu(gate) * up, where a row of gate_up is gate then up. */
void NAME(silu_mul)(T *out, const T *gate_up, int64_t rows, int64_t dim) {
#pragma omp parallel for if (rows * dim > WORTH_SHARING)
    for (int64_t row = 0; row < rows; row++)
        NAME(silu_part)(out + row * dim, gate_up + row * 2 * dim, gate_up + (row * 2 + 1) * dim, dim);
}

static inline void NAME(rotate)(T *out, const T *x, const float *cos, const float *sin, int64_t dim) {
    int64_t half = dim / 2;
    for (int64_t i = 0; i < half; i++) {
        float a = LOAD(x[i]), b = LOAD(x[i + half]);
        float first = a * cos[i] - b * sin[i];
        float second = b * cos[i + half] + a * sin[i + half];
        out[i] = STORE(first);
        out[i + half] = STORE(second);
    }
}

/* Rotate the queries of a packed q|k|v row in place; rotate its keys into the cache's slot, and copy its values there. */
ALONE void NAME(rope_row)(T *q, const float *cos, const float *sin, int64_t slot, T *k_cache, T *v_cache, int64_t heads,
                          int64_t kv_heads, int64_t dim, int64_t num_slots) {
    T *k = q + heads * dim, *v = k + kv_heads * dim;
    for (int64_t h = 0; h < heads; h++) NAME(rotate)(q + h * dim, q + h * dim, cos, sin, dim);
    for (int64_t h = 0; h < kv_heads; h++) {
        int64_t at = (h * num_slots + slot) * dim;
        NAME(rotate)(k_cache + at, k + h * dim, cos, sin, dim);
        memcpy(v_cache + at, v + h * dim, dim * sizeof(T));
    }
}

/* The same of many rows. */
void NAME(rope_and_write)(T *qkv, const float *cos, const float *sin, const int64_t *slots, T *k_cache, T *v_cache,
                          int64_t rows, int64_t heads, int64_t kv_heads, int64_t dim, int64_t num_slots) {
#pragma omp parallel for if (rows * heads * dim > WORTH_SHARING)
    for (int64_t row = 0; row < rows; row++)
        NAME(rope_row)(qkv + row * (heads + 2 * kv_heads) * dim, cos + row * dim, sin + row * dim, slots[row], k_cache,
                       v_cache, heads, kv_heads, dim, num_slots);
}

#include "cpu_queries.c"

#undef NAME
#undef EXPAND
#undef PASTE

#endif
