/* Products with weights that stay quantised as GGUF files have them, in as few bits as they came.
 *
 * Weights are whole numbers of 4 to 8 bits with a scale (and a minimum) for each 16 or 32 of them. They are laid out anew
 * once, eight outputs beside one another, so that one vector holds two weights of each of the eight; activations are
 * rounded to 16 bits with a scale for each 32, which is finer than bf16 by 2^7 where a block's numbers are alike. What
 * is multiplied then is exact: pairs of 16-bit numbers added up in 32 bits, scaled and summed in fp32. Each sum is made in
 * the same order whatever the number of rows or threads, so no row's result depends on its neighbours.
 *
 * Part of cpu_layer.c; called by engine/kernels/cpu_quantized.py, which states the arguments. The layouts of GGUF's blocks are those of its
 * specification, the order of bits in them that of the `gguf` package's `quants.py`.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#define OUTPUTS 8
#define BLOCK 32
#define PAIRS (BLOCK / 2)
#define ROWS_MAX 64 /* rows of x at a time, which stay in the second cache while weights pass by */
#define SHARE 4     /* pairs of groups of outputs that a thread takes at a time */
#define AHEAD 4096  /* bytes that are asked of memory before they are needed; what a processor asks for by itself is less */
#define INLINE static inline __attribute__((always_inline))

enum { Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q4_K = 12, Q5_K = 13, Q6_K = 14 };

INLINE float half(const uint8_t *p) {
    _Float16 h;
    memcpy(&h, p, 2);
    return (float)h;
}

/* ---- vectors ---- */

#ifdef __AVX2__
typedef __m256i pairs; /* two 16-bit numbers of each of eight outputs */
typedef __m256i sums;
typedef __m256 vec;
INLINE pairs load_pairs(const void *p) { return _mm256_loadu_si256(p); }
INLINE void store_pairs(void *p, pairs v) { _mm256_storeu_si256(p, v); }
INLINE pairs widened(const void *p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128(p)); }
INLINE pairs masked(pairs v, int bits) { return _mm256_and_si256(v, _mm256_set1_epi16((short)bits)); }
INLINE pairs right(pairs v, int by) { return _mm256_srli_epi16(v, by); }
INLINE pairs left(pairs v, int by) { return _mm256_slli_epi16(v, by); }
INLINE pairs both(pairs a, pairs b) { return _mm256_or_si256(a, b); }
INLINE pairs less(pairs v, int by) { return _mm256_sub_epi16(v, _mm256_set1_epi16((short)by)); }
INLINE sums no_sums(void) { return _mm256_setzero_si256(); }
INLINE pairs both_of(const int16_t *x) { /* for all outputs */
    int32_t two;
    memcpy(&two, x, 4);
    return _mm256_set1_epi32(two);
}
INLINE sums add_products(sums s, pairs w, pairs x) {
#if defined(__AVXVNNI__)
    return _mm256_dpwssd_avx_epi32(s, w, x);
#elif defined(__AVX512VNNI__) && defined(__AVX512VL__)
    return _mm256_dpwssd_epi32(s, w, x);
#else
    return _mm256_add_epi32(s, _mm256_madd_epi16(w, x));
#endif
}
INLINE vec as_float(sums s) { return _mm256_cvtepi32_ps(s); }
INLINE vec zero(void) { return _mm256_setzero_ps(); }
INLINE vec all(float x) { return _mm256_set1_ps(x); }
INLINE vec times(vec a, vec b) { return _mm256_mul_ps(a, b); }
INLINE vec plus_product(vec s, vec a, vec b) { return _mm256_fmadd_ps(a, b, s); }
INLINE vec halves(const void *p) { return _mm256_cvtph_ps(_mm_loadu_si128(p)); }
INLINE vec unsigned_bytes(const void *p) { return as_float(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p))); }
INLINE vec signed_bytes(const void *p) { return as_float(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p))); }
INLINE void store(float *p, vec v) { _mm256_storeu_ps(p, v); }
#else /* the same in vectors that the compiler makes of whatever the processor has */
#pragma GCC diagnostic ignored "-Wpsabi" /* all of these are inlined */
typedef int16_t pairs __attribute__((vector_size(32)));
typedef int32_t sums __attribute__((vector_size(32)));
typedef float vec __attribute__((vector_size(32)));
typedef uint16_t unsigned_pairs __attribute__((vector_size(32)));
typedef int8_t bytes16 __attribute__((vector_size(16)));
typedef int8_t bytes8 __attribute__((vector_size(8)));
typedef uint8_t unsigned_bytes8 __attribute__((vector_size(8)));
#define LOADED(type, p) ({ type loaded; memcpy(&loaded, p, sizeof loaded); loaded; })
INLINE pairs load_pairs(const void *p) { return LOADED(pairs, p); }
INLINE void store_pairs(void *p, pairs v) { memcpy(p, &v, sizeof v); }
INLINE pairs widened(const void *p) { return __builtin_convertvector(LOADED(bytes16, p), pairs); }
INLINE pairs masked(pairs v, int bits) { return v & (int16_t)bits; }
INLINE pairs right(pairs v, int by) { return (pairs)((unsigned_pairs)v >> (uint16_t)by); }
INLINE pairs left(pairs v, int by) { return (pairs)((unsigned_pairs)v << (uint16_t)by); }
INLINE pairs both(pairs a, pairs b) { return a | b; }
INLINE pairs less(pairs v, int by) { return v - (int16_t)by; }
INLINE sums no_sums(void) { return (sums){0}; }
INLINE pairs both_of(const int16_t *x) {
    int32_t two;
    memcpy(&two, x, 4);
    return (pairs)(sums){two, two, two, two, two, two, two, two};
}
INLINE sums lower(pairs v) { return (sums)v << 16 >> 16; }
INLINE sums upper(pairs v) { return (sums)v >> 16; }
INLINE sums add_products(sums s, pairs w, pairs x) { return s + lower(w) * lower(x) + upper(w) * upper(x); }
INLINE vec as_float(sums s) { return __builtin_convertvector(s, vec); }
INLINE vec zero(void) { return (vec){0}; }
INLINE vec all(float x) { return (vec){x, x, x, x, x, x, x, x}; }
INLINE vec times(vec a, vec b) { return a * b; }
INLINE vec plus_product(vec s, vec a, vec b) { return s + a * b; }
INLINE vec halves(const void *p) {
    vec v;
    for (int i = 0; i < 8; i++) v[i] = half((const uint8_t *)p + 2 * i);
    return v;
}
INLINE vec unsigned_bytes(const void *p) { return __builtin_convertvector(LOADED(unsigned_bytes8, p), vec); }
INLINE vec signed_bytes(const void *p) { return __builtin_convertvector(LOADED(bytes8, p), vec); }
INLINE void store(float *p, vec v) { memcpy(p, &v, sizeof v); }
#endif

/* ---- our layout ----
 *
 * A record holds one GGUF block of each of eight outputs: fields as below, each for the eight outputs in turn, and for
 * each 32 weights a piece with their bits. In a piece, pair i of an output is weights 2i and 2i + 1, the two halves of a
 * 32-bit lane; of the 4 lowest bits, pair i stands in bits 4 (i % 4) of vector i / 4; a fifth bit of pair i is bit i of a
 * vector; the two highest of six are bits 2 (i % 8) of vector i / 8; eight bits stand alone.
 *
 *   Q4_0  scale f16 | 128 bytes            Q4_1  scale f16, minimum f16 | 128 bytes       Q8_0  scale f16 | 256 bytes
 *   Q5_0  as Q4_0, and 32 bytes of fifth bits            Q5_1  as Q4_1, and 32 bytes of fifth bits
 *   Q4_K  d f16, dmin f16 | 8 x (scale u8, minimum u8, 128 bytes)
 *   Q5_K  as Q4_K, and 32 bytes of fifth bits a piece
 *   Q6_K  d f16 | 8 x (scale i8 of the first 16, of the last 16, 128 bytes, 64 bytes of two bits)
 */

typedef struct {
    int64_t weights;      /* in a GGUF block */
    int64_t block_bytes;  /* of a GGUF block */
    int64_t head, piece;  /* bytes of our record: before the pieces, and of each */
} Layout;

static const Layout *layout_of(int64_t format) {
    static const Layout q4_0 = {32, 18, 16, 128}, q4_1 = {32, 20, 32, 128}, q5_0 = {32, 22, 16, 160},
                        q5_1 = {32, 24, 32, 160}, q8_0 = {32, 34, 16, 256},
                        q4_k = {256, 144, 32, 144}, q5_k = {256, 176, 32, 176}, q6_k = {256, 210, 16, 208};
    switch (format) {
    case Q4_0: return &q4_0;
    case Q4_1: return &q4_1;
    case Q5_0: return &q5_0;
    case Q5_1: return &q5_1;
    case Q8_0: return &q8_0;
    case Q4_K: return &q4_k;
    case Q5_K: return &q5_k;
    case Q6_K: return &q6_k;
    }
    return NULL;
}

static int64_t record_bytes(const Layout *layout) {
    return layout->head + layout->weights / BLOCK * layout->piece;
}

/* Bytes of a weight `[outputs, size]` in our layout; 0 for a format or a size that is not known here. */
int64_t packed_bytes(int64_t format, int64_t outputs, int64_t size) {
    const Layout *layout = layout_of(format);
    if (!layout || size % layout->weights) return 0;
    return (outputs + OUTPUTS - 1) / OUTPUTS * (size / layout->weights) * record_bytes(layout);
}

/* The whole numbers of 32 weights of a GGUF block, without what is taken off them. */
static void numbers_of(int64_t format, const uint8_t *block, int64_t piece, uint8_t *to) {
    if (format == Q8_0) {
        memcpy(to, block + 2, BLOCK);
    } else if (format == Q4_0 || format == Q4_1) {
        const uint8_t *q = block + (format == Q4_0 ? 2 : 4);
        for (int j = 0; j < 16; j++) to[j] = q[j] & 15, to[16 + j] = q[j] >> 4;
    } else if (format == Q5_0 || format == Q5_1) {
        const uint8_t *fifth = block + (format == Q5_0 ? 2 : 4), *q = fifth + 4;
        for (int j = 0; j < 16; j++) {
            to[j] = (uint8_t)((q[j] & 15) | (fifth[j / 8] >> j % 8 & 1) << 4);
            to[16 + j] = (uint8_t)(q[j] >> 4 | (fifth[2 + j / 8] >> j % 8 & 1) << 4);
        }
    } else if (format == Q4_K || format == Q5_K) {
        const uint8_t *q = block + (format == Q4_K ? 16 : 48) + piece / 2 * 32, *fifth = block + 16;
        for (int j = 0; j < 32; j++) {
            to[j] = piece % 2 ? q[j] >> 4 : q[j] & 15;
            if (format == Q5_K) to[j] |= (fifth[j] >> piece & 1) << 4;
        }
    } else {
        int64_t quarter = piece % 4;
        const uint8_t *low = block + piece / 4 * 64 + quarter % 2 * 32, *top = block + 128 + piece / 4 * 32;
        for (int j = 0; j < 32; j++)
            to[j] = (quarter < 2 ? low[j] & 15 : low[j] >> 4) | (top[j] >> (2 * quarter) & 3) << 4;
    }
}

/* The 6-bit scale and minimum of one of the eight pieces of a K-block. */
static void scale_of(const uint8_t *packed, int64_t piece, uint8_t *scale, uint8_t *minimum) {
    if (piece < 4) {
        *scale = packed[piece] & 63;
        *minimum = packed[piece + 4] & 63;
    } else {
        *scale = (uint8_t)((packed[piece + 4] & 15) | packed[piece - 4] >> 6 << 4);
        *minimum = (uint8_t)(packed[piece + 4] >> 4 | packed[piece] >> 6 << 4);
    }
}

/* Where the scales of an output's block go; the halves before the pieces. */
static void pack_head(int64_t format, const uint8_t *block, int64_t output, uint8_t *record) {
    memcpy(record + 2 * output, block + (format == Q6_K ? 208 : 0), 2);
    if (format == Q4_1 || format == Q5_1 || format == Q4_K || format == Q5_K) memcpy(record + 16 + 2 * output, block + 2, 2);
}

static void pack_piece(int64_t format, const uint8_t *block, int64_t number, int64_t output, uint8_t *piece) {
    uint8_t numbers[BLOCK];
    numbers_of(format, block, number, numbers);
    if (format == Q4_K || format == Q5_K) {
        scale_of(block + 4, number, piece + output, piece + 8 + output);
        piece += 16;
    } else if (format == Q6_K) {
        const uint8_t *scales = block + 192 + number / 4 * 8 + number % 4 * 2;
        piece[output] = scales[0], piece[8 + output] = scales[1];
        piece += 16;
    }
    for (int k = 0; k < BLOCK; k++) {
        int pair = k / 2, lane = 2 * (int)output + k % 2;
        if (format == Q8_0) {
            piece[pair * 16 + lane] = numbers[k];
            continue;
        }
        uint16_t bits = (uint16_t)((numbers[k] & 15) << pair % 4 * 4), more = 0;
        uint16_t *low = (uint16_t *)piece + pair / 4 * 16 + lane, *high = (uint16_t *)(piece + 128) + lane;
        if (format == Q5_K || format == Q5_0 || format == Q5_1) more = (uint16_t)(numbers[k] >> 4 << pair);
        if (format == Q6_K) more = (uint16_t)(numbers[k] >> 4 << pair % 8 * 2), high += pair / 8 * 16;
        *low |= bits;
        if (more) *high |= more;
    }
}

/* Lay out `[outputs, size]` of GGUF blocks anew. */
void pack_quantized(uint8_t *packed, const uint8_t *blocks, int64_t format, int64_t outputs, int64_t size) {
    const Layout *layout = layout_of(format);
    int64_t count = size / layout->weights, pieces = layout->weights / BLOCK, bytes = record_bytes(layout);
#pragma omp parallel for
    for (int64_t group = 0; group < (outputs + OUTPUTS - 1) / OUTPUTS; group++) {
        memset(packed + group * count * bytes, 0, count * bytes);
        for (int64_t output = 0; output < OUTPUTS && group * OUTPUTS + output < outputs; output++) {
            const uint8_t *block = blocks + (group * OUTPUTS + output) * count * layout->block_bytes;
            for (int64_t at = 0; at < count; at++, block += layout->block_bytes) {
                uint8_t *record = packed + (group * count + at) * bytes;
                pack_head(format, block, output, record);
                for (int64_t piece = 0; piece < pieces; piece++)
                    pack_piece(format, block, piece, output, record + layout->head + piece * layout->piece);
            }
        }
    }
}

/* ---- activations ---- */

typedef struct {
    int16_t *x;    /* [rows, size] */
    float *scales; /* [rows, size / BLOCK] */
    float *totals; /* [rows, size / BLOCK]: the sum of a block's rounded numbers, scaled; for minima */
} Rounded;

static __attribute__((noinline)) void round_row(const float *x, int64_t size, int16_t *to, float *scales, float *totals) {
    for (int64_t block = 0; block < size / BLOCK; block++, x += BLOCK, to += BLOCK) {
        int32_t bits[BLOCK], top = 0; /* floats without a sign are ordered as the integers of their bits */
        memcpy(bits, x, sizeof bits);
        for (int i = 0; i < BLOCK; i++) {
            int32_t size_of = bits[i] & 0x7fffffff;
            top = size_of > top ? size_of : top;
        }
        float largest;
        memcpy(&largest, &top, sizeof largest);
        const int is_finite = top < 0x7f800000;
        float back = is_finite && largest > 1e-30f ? 32767.0f / largest : 0.0f;
        int32_t total = 0;
        for (int i = 0; i < BLOCK; i++) {
            int32_t n = (int32_t)nearbyintf(is_finite ? x[i] * back : 0.0f);
            to[i] = (int16_t)n;
            total += n;
        }
        scales[block] = is_finite ? largest / 32767.0f : NAN;
        totals[block] = (float)total * scales[block];
    }
}

/* ---- products ---- */

/* Pair i of a piece's 32 weights, as whole numbers. */
INLINE pairs pair_of(const int format, const uint8_t *bits, const int i) {
    if (format == Q8_0) return widened(bits + 16 * i);
    pairs v = load_pairs(bits + i / 4 * 32);
    v = i % 4 == 3 ? right(v, 12) : masked(i % 4 ? right(v, i % 4 * 4) : v, 15);
    if (format == Q5_K || format == Q5_0 || format == Q5_1) {
        pairs high = load_pairs(bits + 128);
        v = both(v, masked(i < 4 ? left(high, 4 - i) : right(high, i - 4), 16));
    }
    if (format == Q6_K) {
        pairs high = load_pairs(bits + 128 + i / 8 * 32);
        const int at = 2 * (i % 8);
        v = less(both(v, masked(at < 4 ? left(high, 4 - at) : right(high, at - 4), 48)), 32);
    }
    return v;
}

/* One record's piece: 32 weights of each of eight outputs, and what turns its whole numbers into weights. */
typedef struct {
    const uint8_t *bits;
    int16_t w[16 * PAIRS] __attribute__((aligned(32)));
    vec scale[2], minimum;
} Piece;

/* Adds to out `[groups][rows]` what a piece of each group gives. Several rows meet weights unpacked before. */
INLINE void multiply(vec (*out)[ROWS_MAX], const int format, const Piece *pieces, const int groups, const int rows,
                     const int16_t *x, int64_t x_stride, const float *x_scales, const float *x_totals,
                     int64_t s_stride) {
    const int parts = format == Q6_K ? 2 : 1;
#pragma GCC unroll 2
    for (int part = 0; part < parts; part++) {
        sums s[8];
        for (int i = 0; i < rows * groups; i++) s[i] = no_sums();
        const int first = part * PAIRS / parts, end = (part + 1) * PAIRS / parts;
        if (rows == 1) { /* unpacked in registers */
#pragma GCC unroll 16
            for (int i = first; i < end; i++)
                for (int g = 0; g < groups; g++)
                    s[g] = add_products(s[g], pair_of(format, pieces[g].bits, i), both_of(x + 2 * i));
        } else {
#pragma GCC unroll 4
            for (int i = first; i < end; i++) {
                pairs v[2];
                for (int g = 0; g < groups; g++) v[g] = load_pairs(pieces[g].w + 16 * i);
                for (int r = 0; r < rows; r++) {
                    pairs two = both_of(x + r * x_stride + 2 * i);
                    for (int g = 0; g < groups; g++) s[r * groups + g] = add_products(s[r * groups + g], v[g], two);
                }
            }
        }
        for (int r = 0; r < rows; r++) {
            vec scale = all(x_scales[r * s_stride]);
            for (int g = 0; g < groups; g++)
                out[g][r] = plus_product(out[g][r], as_float(s[r * groups + g]), times(pieces[g].scale[part], scale));
        }
    }
    if (format != Q8_0 && format != Q6_K)
        for (int r = 0; r < rows; r++)
            for (int g = 0; g < groups; g++)
                out[g][r] = plus_product(out[g][r], pieces[g].minimum, all(x_totals[r * s_stride]));
}

/* What turns the whole numbers of the piece at `bits` into weights; `head` is its record's. */
INLINE void read_piece(const int format, Piece *piece, const uint8_t *head, const uint8_t *bits) {
    vec d = halves(head);
    piece->bits = format == Q4_K || format == Q5_K || format == Q6_K ? bits + 16 : bits;
    piece->scale[0] = d;
    if (format == Q4_0) piece->minimum = times(d, all(-8.0f));
    if (format == Q5_0) piece->minimum = times(d, all(-16.0f));
    if (format == Q4_1 || format == Q5_1) piece->minimum = halves(head + 16);
    if (format == Q4_K || format == Q5_K) {
        piece->scale[0] = times(d, unsigned_bytes(bits));
        piece->minimum = times(times(halves(head + 16), all(-1.0f)), unsigned_bytes(bits + 8));
    }
    if (format == Q6_K) piece->scale[0] = times(d, signed_bytes(bits)), piece->scale[1] = times(d, signed_bytes(bits + 8));
}

/* Up to ROWS_MAX rows with the weights of `groups` times eight outputs, their blocks one after the other. */
INLINE void product(const int format, const int groups, const uint8_t *record, const Rounded *x, int64_t rows,
                    int64_t size, vec (*out)[ROWS_MAX]) {
    const Layout *layout = layout_of(format);
    int64_t blocks = size / BLOCK, count = size / layout->weights, bytes = record_bytes(layout);
    Piece pieces[2];
    for (int64_t at = 0, k = 0; at < count; at++, record += bytes) {
        for (int64_t number = 0; number < layout->weights / BLOCK; number++, k++) {
            for (int g = 0; g < groups; g++) {
                const uint8_t *own = record + g * count * bytes;
                for (int64_t line = 0; line < layout->head + layout->piece; line += 64)
                    __builtin_prefetch(own + layout->head + number * layout->piece + AHEAD + line);
                read_piece(format, pieces + g, own, own + layout->head + number * layout->piece);
                if (rows > 1)
#pragma GCC unroll 16
                    for (int i = 0; i < PAIRS; i++) store_pairs(pieces[g].w + 16 * i, pair_of(format, pieces[g].bits, i));
            }
            const int16_t *from = x->x + k * BLOCK;
            const float *scales = x->scales + k, *totals = x->totals + k;
            int64_t r = 0;
#define ROWS(n)                                                                                                        \
    multiply((vec(*)[ROWS_MAX])&out[0][r], format, pieces, groups, n, from + r * size, size, scales + r * blocks,      \
             totals + r * blocks, blocks)
            for (; r + 4 <= rows; r += 4) ROWS(4);
            if (r + 2 <= rows) { ROWS(2); r += 2; }
            if (r < rows) ROWS(1);
        }
    }
}

#define FORMATS(F) F(Q4_0) F(Q4_1) F(Q5_0) F(Q5_1) F(Q8_0) F(Q4_K) F(Q5_K) F(Q6_K)
#define PRODUCT(format)                                                                                                \
    static void product_##format(const uint8_t *record, int64_t groups, const Rounded *x, int64_t rows, int64_t size,  \
                                 vec (*out)[ROWS_MAX]) {                                                               \
        if (groups == 2) product(format, 2, record, x, rows, size, out);                                               \
        else product(format, 1, record, x, rows, size, out);                                                           \
    }
FORMATS(PRODUCT)

static void product_of(int64_t format, const uint8_t *record, int64_t groups, const Rounded *x, int64_t rows,
                       int64_t size, vec (*out)[ROWS_MAX]) {
#define CASE(format) \
    case format: product_##format(record, groups, x, rows, size, out); break;
    switch (format) { FORMATS(CASE) }
}

typedef struct {
    const uint8_t *packed;
    int64_t outputs;
    int64_t format;
} Part;

#define TOGETHER (2 * OUTPUTS)

static int64_t tasks_of(const Part *part) {
    return (part->outputs + TOGETHER - 1) / TOGETHER;
}

/* A linear: its parts' outputs stand beside one another. `bias` may be NULL. */
typedef struct {
    const Part *parts;
    int64_t num_parts, size;
    const float *bias;
} Linear;

static int64_t outputs_of(const Linear *linear) {
    int64_t outputs = 0;
    for (int64_t p = 0; p < linear->num_parts; p++) outputs += linear->parts[p].outputs;
    return outputs;
}

/* Whether a result takes the place of what is in `out`, or is added to it. */
enum { SET, ADD };

/* TOGETHER outputs of a part, or what is left of it. */
static void compute_task(float *out, int64_t out_stride, const float *bias, const Part *part, int64_t task,
                         const Rounded *x, int64_t rows, int64_t size, int how) {
    const Layout *layout = layout_of(part->format);
    int64_t first = task * TOGETHER, left_over = part->outputs - first;
    int64_t width = left_over < TOGETHER ? left_over : TOGETHER, groups = (width + OUTPUTS - 1) / OUTPUTS;
    vec sums_of[2][ROWS_MAX];
    for (int64_t r = 0; r < rows; r++) sums_of[0][r] = sums_of[1][r] = zero();
    product_of(part->format, part->packed + 2 * task * (size / layout->weights) * record_bytes(layout), groups, x, rows,
               size, sums_of);
    for (int64_t r = 0; r < rows; r++) {
        float result[TOGETHER], *to = out + r * out_stride + first;
        store(result, sums_of[0][r]);
        store(result + OUTPUTS, sums_of[1][r]);
        for (int64_t o = 0; o < width; o++) {
            float value = result[o] + (bias ? bias[first + o] : 0.0f);
            to[o] = how == ADD ? to[o] + value : value;
        }
    }
}

/* out `[rows, all outputs]` from at most ROWS_MAX rows. To be called by all threads of a team, which share the work. */
static void compute_linear(float *out, const Linear *linear, const Rounded *x, int64_t rows, int how) {
    int64_t tasks = 0, width = outputs_of(linear);
    for (int64_t p = 0; p < linear->num_parts; p++) tasks += tasks_of(linear->parts + p);
#pragma omp for schedule(dynamic, SHARE)
    for (int64_t task = 0; task < tasks; task++) {
        int64_t before = 0, number = task;
        const Part *part = linear->parts;
        for (; number >= tasks_of(part); part++) {
            number -= tasks_of(part);
            before += part->outputs;
        }
        const float *bias = linear->bias ? linear->bias + before : NULL;
        compute_task(out + before, width, bias, part, number, x, rows, linear->size, how);
    }
}

/* Floats that `rounded_in` wants for rows of a size. */
static int64_t rounded_floats(int64_t rows, int64_t size) {
    return rows * (2 * (size / BLOCK) + size / 2);
}

static Rounded rounded_in(float *room, int64_t rows, int64_t size) {
    int64_t blocks = size / BLOCK;
    return (Rounded){(int16_t *)(room + 2 * rows * blocks), room, room + rows * blocks};
}

/* `count` numbers of a row of rounded ones, from `first`, which begins a block. */
static void round_part(const Rounded *to, int64_t row, int64_t size, int64_t first, int64_t count, const float *x) {
    int64_t blocks = size / BLOCK, block = first / BLOCK;
    round_row(x, count, to->x + row * size + first, to->scales + row * blocks + block, to->totals + row * blocks + block);
}

/* out `[rows, all outputs]` = x `[rows, size]` times the parts' weights, plus bias unless that is NULL. 0, or 1 for want
 * of memory. */
int quantized_linear(float *out, const float *x, const Linear *linear, int64_t rows) {
    int64_t size = linear->size, width = outputs_of(linear), at_once = rows < ROWS_MAX ? rows : ROWS_MAX;
    float *room = malloc(rounded_floats(at_once, size) * sizeof(float));
    if (!room) return 1;
    for (int64_t row = 0; row < rows; row += ROWS_MAX) {
        int64_t count = rows - row < ROWS_MAX ? rows - row : ROWS_MAX;
        const Rounded rounded = rounded_in(room, count, size);
#pragma omp parallel
        {
#pragma omp for
            for (int64_t r = 0; r < count; r++) round_part(&rounded, r, size, 0, size, x + (row + r) * size);
            compute_linear(out + row * width, linear, &rounded, count, SET);
        }
    }
    free(room);
    return 0;
}
