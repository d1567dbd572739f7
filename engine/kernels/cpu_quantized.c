/* Products with weights that stay quantised as GGUF files have them, in as few bits as they came.
 *
 * Weights are whole numbers of 4 to 8 bits with a scale (and a minimum) for each 16 or 32 of them. They are laid out anew
 * once, eight outputs beside one another, or sixteen where vectors are as wide, so that one vector holds some weights of
 * each of them; activations are
 * rounded to 16 or to 8 bits with a scale for each 32, 16 being finer than bf16 by 2^7 where a block's numbers are alike.
 * What is multiplied then is exact: whole numbers added up, scaled and summed in fp32. Each sum is made in the same order
 * whatever the number of rows or threads, so no row's result depends on its neighbours.
 *
 * Part of cpu_layer.c; called by engine/kernels/cpu_quantized.py, which states the arguments. The layouts of GGUF's blocks
 * are those of its specification, the order of bits in them that of the `gguf` package's `quants.py`.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#if defined(__AVX512BW__) && defined(__AVX512VNNI__) /* without the latter, wide vectors gain too little for their heat */
#define OUTPUTS 16
#else
#define OUTPUTS 8
#endif
#define VECTOR (4 * OUTPUTS) /* bytes */
#define BLOCK 32
#define PAIRS (BLOCK / 2)
#define ROWS_MAX 64 /* rows of x at a time, which stay in the second cache while weights pass by */
#define SHARE (32 / OUTPUTS) /* pairs of groups of outputs that a thread takes at a time */
#define AHEAD 4096  /* bytes that are asked of memory before they are needed; what a processor asks for by itself is less */

enum { Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q4_K = 12, Q5_K = 13, Q6_K = 14 };

INLINE float half(const uint8_t *p) {
    _Float16 h;
    memcpy(&h, p, 2);
    return (float)h;
}

#include "cpu_vectors.c"
#include "cpu_layout.c"
#include "cpu_products.c"

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
    int64_t bits; /* that its activations are rounded to: 8 or 16 */
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
                         const Rounded *x, int64_t rows, int how) {
    int64_t first = task * TOGETHER, left_over = part->outputs - first;
    int64_t width = left_over < TOGETHER ? left_over : TOGETHER, groups = (width + OUTPUTS - 1) / OUTPUTS;
    vec sums_of[2][ROWS_MAX];
    for (int64_t r = 0; r < rows; r++) sums_of[0][r] = sums_of[1][r] = zero();
    product_of(part->format, part->packed + 2 * task * group_bytes(part->format, x->size), groups, x, rows, sums_of);
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
        compute_task(out + before, width, bias, part, number, x, rows, how);
    }
}

/* Rows that `rounded_in` has room for: of one row, or whole tiles. */
static int64_t tiled(int64_t rows) {
    return rows == 1 ? 1 : (rows + LANES - 1) / LANES * LANES;
}

/* Floats that `rounded_in` wants for rows of a size. */
static int64_t rounded_floats(int64_t rows, int64_t size) {
    return tiled(rows) * (2 * (size / BLOCK) + size / 2);
}

static Rounded rounded_in(float *room, int64_t rows, const Linear *linear) {
    int64_t numbers = tiled(rows) * (linear->size / BLOCK);
    return (Rounded){(int32_t *)(room + 2 * numbers), room, room + numbers, linear->size, linear->bits,
                     rows == 1 ? 1 : LANES};
}

/* out `[rows, all outputs]` = x `[rows, size]` times the parts' weights, plus bias unless that is NULL. 0, or 1 for want
 * of memory. */
int quantized_linear(float *out, const float *x, const Linear *linear, int64_t rows) {
    int64_t size = linear->size, width = outputs_of(linear), at_once = rows < ROWS_MAX ? rows : ROWS_MAX;
    float *room = malloc(rounded_floats(at_once, size) * sizeof(float));
    if (!room) return 1;
    for (int64_t row = 0; row < rows; row += ROWS_MAX) {
        int64_t count = rows - row < ROWS_MAX ? rows - row : ROWS_MAX;
        const Rounded rounded = rounded_in(room, count, linear);
#pragma omp parallel
        {
#pragma omp for
            for (int64_t r = 0; r < count; r++) round_part(&rounded, r, 0, size, x + (row + r) * size);
            compute_linear(out + row * width, linear, &rounded, count, SET);
        }
    }
    free(room);
    return 0;
}
