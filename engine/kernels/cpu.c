/* The small operations of a decoding step on a CPU: what is left of a layer beside its matrix products.
 *
 * Written for the vectoriser of the system's C compiler; engine/kernels/build.py builds it, once per machine, and
 * engine/kernels/cpu.py states every argument's shape. This file is compiled twice, for element type T = bfloat16 and
 * T = float; sums are in fp32.
 */
#ifndef SUFFIX

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>

typedef uint16_t bf16;

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

/* e^x for x <= 0, to 2 ulp: 2^n times a polynomial in the rest (Cody and Waite), without a branch or a call. */
static inline float exp_negative(float x) {
    x = x < -87.0f ? -87.0f : x;
    float n = nearbyintf(x * 1.44269504f);
    float r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    union { int32_t i; float f; } power = {((int32_t)n + 127) << 23};
    return p * power.f;
}

#define SUFFIX bf16
#define T bf16
#define LOAD load_bf16
#define STORE store_bf16
#include "cpu.c"
#undef SUFFIX
#undef T
#undef LOAD
#undef STORE

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

#define GROUP_MAX 16
#define TILE 64

/* One sequence, one KV head, up to GROUP_MAX of its query heads: online softmax over tiles of keys. */
static inline __attribute__((always_inline)) void NAME(attend)(
    T *out, const T *q, int64_t q_stride, const T *k_cache, const T *v_cache, const int32_t *table, int64_t block_size,
    int64_t first, int64_t last, int64_t group, const int64_t k_dim, const int64_t v_dim, float scale, float softcap) {
    float query[GROUP_MAX][256], sum[GROUP_MAX], best[GROUP_MAX], acc[GROUP_MAX][256], scores[GROUP_MAX][TILE];
    for (int64_t h = 0; h < group; h++) {
        sum[h] = 0.0f;
        best[h] = -INFINITY;
        for (int64_t i = 0; i < k_dim; i++) query[h][i] = LOAD(q[h * q_stride + i]) * scale;
        for (int64_t i = 0; i < v_dim; i++) acc[h][i] = 0.0f;
    }
    for (int64_t start = first; start < last; start += TILE) {
        int64_t count = last - start < TILE ? last - start : TILE;
        for (int64_t t = 0; t < count; t++) {
            int64_t position = start + t;
            int64_t slot = (int64_t)table[position / block_size] * block_size + position % block_size;
            const T *key = k_cache + slot * k_dim;
            for (int64_t h = 0; h < group; h++) {
                float dot = 0.0f;
                for (int64_t i = 0; i < k_dim; i++) dot += query[h][i] * LOAD(key[i]);
                scores[h][t] = softcap > 0 ? softcap * tanhf(dot / softcap) : dot;
            }
        }
        for (int64_t h = 0; h < group; h++) {
            float top = best[h], total = 0.0f;
            for (int64_t t = 0; t < count; t++) top = scores[h][t] > top ? scores[h][t] : top;
            float shrink = best[h] == -INFINITY ? 0.0f : exp_negative(best[h] - top);
            for (int64_t t = 0; t < count; t++) {
                scores[h][t] = exp_negative(scores[h][t] - top);
                total += scores[h][t];
            }
            sum[h] = sum[h] * shrink + total;
            best[h] = top;
            for (int64_t i = 0; i < v_dim; i++) acc[h][i] *= shrink;
        }
        for (int64_t t = 0; t < count; t++) {
            int64_t position = start + t;
            int64_t slot = (int64_t)table[position / block_size] * block_size + position % block_size;
            const T *value = v_cache + slot * v_dim;
            for (int64_t h = 0; h < group; h++) {
                float weight = scores[h][t];
                for (int64_t i = 0; i < v_dim; i++) acc[h][i] += weight * LOAD(value[i]);
            }
        }
    }
    for (int64_t h = 0; h < group; h++)
        for (int64_t i = 0; i < v_dim; i++) out[h * v_dim + i] = STORE(acc[h][i] / sum[h]);
}

/* What all queries of a step have in common. window > 0 shows the newest `window` keys only. */
typedef struct {
    const T *k_cache, *v_cache;
    const int32_t *tables, *lens;
    int64_t table_stride, heads, kv_heads, k_dim, v_dim, num_slots, block_size, window;
    float scale, softcap;
} NAME(Keys);

/* How many parts the heads of one KV head's group are taken in. */
static inline int64_t NAME(parts_of)(const NAME(Keys) *keys) {
    return (keys->heads / keys->kv_heads + GROUP_MAX - 1) / GROUP_MAX;
}

/* One row's query `[heads, k_dim]` with one part of a KV head's group. */
ALONE void NAME(attend_part)(T *out, const T *q, int64_t head_stride, const NAME(Keys) *keys, int64_t row, int64_t kv,
                             int64_t part) {
    int64_t group = keys->heads / keys->kv_heads, head = kv * group + part * GROUP_MAX;
    int64_t count = group - part * GROUP_MAX < GROUP_MAX ? group - part * GROUP_MAX : GROUP_MAX;
    int64_t last = keys->lens[row], first = keys->window > 0 && last > keys->window ? last - keys->window : 0;
    const int64_t k_dim = keys->k_dim, v_dim = keys->v_dim, size = keys->block_size;
    const T *k = keys->k_cache + kv * keys->num_slots * k_dim, *v = keys->v_cache + kv * keys->num_slots * v_dim;
    const int32_t *table = keys->tables + row * keys->table_stride;
    const float scale = keys->scale, softcap = keys->softcap;
    T *o = out + head * v_dim;
    q += head * head_stride;
    /* Constant widths let the compiler keep a head in registers. */
    if (k_dim == 64 && v_dim == 64)
        NAME(attend)(o, q, head_stride, k, v, table, size, first, last, count, 64, 64, scale, softcap);
    else if (k_dim == 128 && v_dim == 128)
        NAME(attend)(o, q, head_stride, k, v, table, size, first, last, count, 128, 128, scale, softcap);
    else
        NAME(attend)(o, q, head_stride, k, v, table, size, first, last, count, k_dim, v_dim, scale, softcap);
}

/* One query per sequence over its blocks. */
void NAME(paged_decode)(T *out, const T *q, int64_t row_stride, int64_t head_stride, const T *k_cache, const T *v_cache,
                        const int32_t *tables, int64_t table_stride, const int32_t *lens, int64_t rows, int64_t heads,
                        int64_t kv_heads, int64_t k_dim, int64_t v_dim, int64_t num_slots, int64_t block_size,
                        int64_t window, float scale, float softcap) {
    const NAME(Keys) keys = {k_cache, v_cache, tables, lens, table_stride, heads, kv_heads, k_dim, v_dim, num_slots,
                             block_size, window, scale, softcap};
    int64_t parts = NAME(parts_of)(&keys);
#pragma omp parallel for collapse(3) schedule(dynamic, 1) if (rows * kv_heads > 1)
    for (int64_t row = 0; row < rows; row++)
        for (int64_t kv = 0; kv < kv_heads; kv++)
            for (int64_t part = 0; part < parts; part++)
                NAME(attend_part)(out + row * heads * v_dim, q + row * row_stride, head_stride, &keys, row, kv, part);
}

#undef GROUP_MAX
#undef TILE
#undef NAME
#undef EXPAND
#undef PASTE

#endif
