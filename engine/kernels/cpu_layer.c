/* A whole decoder layer with quantised weights, at once: its threads meet between its products, and nothing else waits.
 *
 * At one row a layer is some 0.2 ms of reading weights; nine calls of its operations one by one, each of which wakes the
 * threads anew, would take as long again. What is computed for a row is what those operations compute, to the bit.
 *
 * Called by engine/kernels/cpu_layer.py, which states the arguments.
 */
#include "cpu.c"
#include "cpu_quantized.c"

#define PART (8 * BLOCK) /* numbers of the MLP that are activated and rounded together */

typedef struct {
    const float *input_norm, *mlp_norm;
    const Linear *qkv, *output, *gate_up, *down; /* qkv and gate_up rounded alike */
    int64_t heads, kv_heads, head_dim, window;
    float input_eps, mlp_eps, scaling;
} Layer;

/* What the layers of a step have in common, for at most ROWS_MAX rows. */
typedef struct {
    const float *cos, *sin;      /* [rows, head_dim] */
    const int64_t *slots;        /* [rows] */
    const int32_t *tables, *lens; /* [rows, table_stride] and [rows] */
    int64_t rows, table_stride, num_slots, block_size;
} Step;

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
    const Keys_f32 keys = {k_cache, v_cache, step->tables, step->lens, step->table_stride, heads, kv_heads, dim, dim,
                           step->num_slots, step->block_size, layer->window, layer->scaling, 0.0f};
    const Rounded of_stream = rounded_in(room, rows, layer->qkv), of_heads = rounded_in(room, rows, layer->output),
                  of_mlp = rounded_in(room, rows, layer->down);
    const int64_t head_parts = parts_of_f32(&keys);
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
#pragma omp for collapse(3) schedule(dynamic, 1)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t kv = 0; kv < kv_heads; kv++)
                for (int64_t part = 0; part < head_parts; part++)
                    attend_part_f32(narrow + r * attended, product + r * qkv_size, dim, &keys, r, kv, part);
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
