/* A whole decoder layer with quantised weights, at once: its threads meet between its products, and nothing else waits.
 *
 * At one row a layer is some 0.2 ms of reading weights; nine calls of its operations one by one, each of which wakes the
 * threads anew, would take as long again. What is computed for a row is what those operations compute, to the bit.
 *
 * Called by engine/kernels/cpu_layer.py, which states the arguments.
 */
#define ONLY_F32
#include "cpu.c"
#include "cpu_quantized.c"

#define PART (8 * BLOCK) /* numbers of the MLP that are activated and rounded together */

typedef struct {
    const float *input_norm, *mlp_norm;
    const Linear *qkv, *output, *gate_up, *down; /* qkv and gate_up rounded alike */
    int64_t heads, kv_heads, head_dim, window;
    float input_eps, mlp_eps, scaling;
} Layer;

/* Consecutive rows of a step that attend in one way: each on its own, or as the newest tokens of one sequence. */
typedef struct {
    int64_t first, rows;
    const int32_t *tables, *lens; /* [rows, table_stride] and [rows]; of a sequence [blocks] and NULL */
    int64_t table_stride, context_len; /* the latter of a sequence, its rows here included */
} Stretch;

/* What the layers of a step have in common, for at most ROWS_MAX rows. */
typedef struct {
    const float *cos, *sin;   /* [rows, head_dim] */
    const int64_t *slots;     /* [rows] */
    const Stretch *stretches; /* of all rows; those whose tasks are the largest first */
    int64_t rows, num_stretches, num_slots, block_size;
} Step;

/* Attention of a step in one layer: from queries within the rows of qkv, to out `[rows, heads * head_dim]`. */
typedef struct {
    float *out;
    const float *qkv, *k_cache, *v_cache;
    const Layer *layer;
    const Step *step;
} Attention;

static Keys_f32 keys_of(const Attention *attention, const Stretch *stretch) {
    const Layer *layer = attention->layer;
    return (Keys_f32){attention->k_cache, attention->v_cache, stretch->tables, stretch->lens, stretch->table_stride,
                      layer->heads, layer->kv_heads, layer->head_dim, layer->head_dim, attention->step->num_slots,
                      attention->step->block_size, layer->window, layer->scaling, 0.0f};
}

static Prompt prompt_of(const Attention *attention, const Stretch *stretch, const float *q, int64_t q_stride) {
    const Layer *layer = attention->layer;
    return (Prompt){q, attention->k_cache, attention->v_cache, stretch->tables, q_stride, layer->head_dim, stretch->rows,
                    stretch->context_len, layer->heads, layer->kv_heads, layer->head_dim, layer->head_dim,
                    attention->step->num_slots, attention->step->block_size, layer->window, layer->scaling, 0.0f};
}

static int64_t stretch_tasks(const Attention *attention, const Stretch *stretch) {
    const Keys_f32 keys = keys_of(attention, stretch);
    const Prompt prompt = prompt_of(attention, stretch, NULL, 0);
    return stretch->lens ? stretch->rows * keys.kv_heads * parts_of_f32(&keys) : prompt_tasks(&prompt);
}

static void attend_stretch(const Attention *attention, const Stretch *stretch, int64_t task) {
    const Layer *layer = attention->layer;
    const int64_t dim = layer->head_dim, attended = layer->heads * dim, stride = attended + 2 * layer->kv_heads * dim;
    float *out = attention->out + stretch->first * attended;
    const float *q = attention->qkv + stretch->first * stride;
    if (stretch->lens) {
        const Keys_f32 keys = keys_of(attention, stretch);
        const int64_t parts = parts_of_f32(&keys), group = task / parts, row = group / layer->kv_heads;
        attend_part_f32(out + row * attended, q + row * stride, dim, &keys, row, group % layer->kv_heads, task % parts);
    } else {
        const Prompt prompt = prompt_of(attention, stretch, q, stride);
        attend_task(out, &prompt, task);
    }
}

/* To be called by all threads of a team, which share the work. */
static void attend_step(const Attention *attention) {
    const Stretch *stretches = attention->step->stretches;
    int64_t tasks = 0;
    for (int64_t s = 0; s < attention->step->num_stretches; s++) tasks += stretch_tasks(attention, stretches + s);
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < tasks; task++) {
        int64_t number = task;
        const Stretch *stretch = stretches;
        for (int64_t before; number >= (before = stretch_tasks(attention, stretch)); stretch++) number -= before;
        attend_stretch(attention, stretch, number);
    }
}

static int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* Changes residual `[rows, size]` as the layer does, and writes its keys and values. 0, or 1 for want of memory. */
int quantized_layer(const Layer *layer, const Step *step, float *residual, float *k_cache, float *v_cache) {
    const int64_t rows = step->rows, dim = layer->head_dim, heads = layer->heads, kv_heads = layer->kv_heads;
    const int64_t size = layer->qkv->size, attended = layer->output->size, inner = layer->down->size;
    const int64_t qkv_size = (heads + 2 * kv_heads) * dim, parts = (inner + PART - 1) / PART;
    const int64_t widest = larger(size, larger(attended, inner)), wide = larger(qkv_size, 2 * inner);
    float *room = malloc((rounded_floats(rows, widest) + rows * (widest + wide)) * sizeof(float));
    if (!room) return 1;
    float *narrow = room + rounded_floats(rows, widest), *product = narrow + rows * widest;
    const Attention attention = {narrow, product, k_cache, v_cache, layer, step};
    const Rounded of_stream = rounded_in(room, rows, layer->qkv), of_heads = rounded_in(room, rows, layer->output),
                  of_mlp = rounded_in(room, rows, layer->down);
#pragma omp parallel
    {
#pragma omp for
        for (int64_t r = 0; r < rows; r++) {
            norm_row_f32(narrow + r * size, residual + r * size, NULL, layer->input_norm, size, layer->input_eps);
            round_part(&of_stream, r, 0, size, narrow + r * size);
        }
        compute_linear(product, layer->qkv, &of_stream, rows, SET);
#pragma omp for
        for (int64_t r = 0; r < rows; r++)
            rope_row_f32(product + r * qkv_size, step->cos + r * dim, step->sin + r * dim, step->slots[r], k_cache,
                         v_cache, heads, kv_heads, dim, step->num_slots);
        attend_step(&attention);
#pragma omp for
        for (int64_t r = 0; r < rows; r++) round_part(&of_heads, r, 0, attended, narrow + r * attended);
        compute_linear(residual, layer->output, &of_heads, rows, ADD);
#pragma omp for
        for (int64_t r = 0; r < rows; r++) {
            norm_row_f32(narrow + r * size, residual + r * size, NULL, layer->mlp_norm, size, layer->mlp_eps);
            round_part(&of_stream, r, 0, size, narrow + r * size);
        }
        compute_linear(product, layer->gate_up, &of_stream, rows, SET);
#pragma omp for collapse(2)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t part = 0; part < parts; part++) {
                const int64_t first = part * PART, count = inner - first < PART ? inner - first : PART;
                const float *gate = product + r * 2 * inner + first;
                silu_part_f32(narrow + r * inner + first, gate, gate + inner, count);
                round_part(&of_mlp, r, first, count, narrow + r * inner + first);
            }
        compute_linear(residual, layer->down, &of_mlp, rows, ADD);
    }
    free(room);
    return 0;
}
