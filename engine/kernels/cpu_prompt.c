/* Attention of a prompt's tokens in fp32 on a CPU: tiles of queries with tiles of keys. Part of cpu.c.
 *
 * The queries of a KV head's group are packed as rows, and turned once so that a vector holds one number of several rows.
 * Then both products are sums of vectors times numbers, which is what a processor does fastest, and keys and values are
 * read where they are. Tiles of keys begin at multiples of KEYS and each row has its own maximum and sum, so what a row
 * gets does not depend on the rows that are computed with it.
 *
 * Called by engine/kernels/cpu.py, which states the arguments.
 */
#pragma GCC diagnostic ignored "-Wpsabi" /* vectors are passed to nothing that is not inlined */

#define KEYS 64
#define ROWS 64 /* of a task: queries times heads of a group */
#define STRIP 4 /* rows that are computed together, */
#define WIDTH 16 /* with so many keys or numbers of values */
#define DIM_MAX 256

typedef float eight __attribute__((vector_size(32), aligned(4)));

typedef struct {
    const float *q, *k_cache, *v_cache;
    const int32_t *table;
    int64_t token_stride, head_stride;
    int64_t queries, context, heads, kv_heads, k_dim, v_dim, num_slots, block_size, window;
    float scale, softcap;
} Prompt;

/* A task's numbers, and where the keys and values of a tile are. */
typedef struct {
    float query[DIM_MAX][ROWS], scores[KEYS][ROWS], sums[ROWS][DIM_MAX];
    float best[ROWS], total[ROWS], shrink[ROWS];
    int32_t low[ROWS], high[ROWS]; /* what each row sees of a tile: from low on, below high */
    const float *keys[KEYS], *values[KEYS];
} Work;

/* Adds up to WIDTH numbers of `count` vectors, each times a number of its own for each of STRIP results. */
typedef struct {
    eight sum[STRIP][2];
} Strip;

static inline __attribute__((always_inline)) void add_products_to(Strip *strip, const float *vectors, const float *x,
                                                                  const float *y, const float *z, const float *w) {
    const eight a = *(const eight *)vectors, b = *(const eight *)(vectors + 8);
    strip->sum[0][0] += *x * a, strip->sum[0][1] += *x * b;
    strip->sum[1][0] += *y * a, strip->sum[1][1] += *y * b;
    strip->sum[2][0] += *z * a, strip->sum[2][1] += *z * b;
    strip->sum[3][0] += *w * a, strip->sum[3][1] += *w * b;
}

static inline __attribute__((always_inline)) void store_strip(const Strip *strip, float *to, int64_t stride) {
    for (int r = 0; r < STRIP; r++)
        for (int v = 0; v < 2; v++) *(eight *)(to + r * stride + 8 * v) = strip->sum[r][v];
}

/* Scores of a tile's keys, STRIP of them at a time, with all rows. */
static void score_keys(Work *work, int64_t rows, int64_t k_dim, int64_t count) {
    for (int64_t t = 0; t < count; t += STRIP) {
        const float **key = work->keys + t;
        for (int64_t row = 0; row < rows; row += WIDTH) {
            Strip strip = {0};
            for (int64_t i = 0; i < k_dim; i++)
                add_products_to(&strip, &work->query[i][row], key[0] + i, key[1] + i, key[2] + i, key[3] + i);
            store_strip(&strip, &work->scores[t][row], ROWS);
        }
    }
}

/* Turns the scores of WIDTH rows into weights of what each has seen so far; what it does not see weighs nothing. Loops of
 * that constant length are all vectors, so that every row's sums are made in one way. */
static void weigh(Work *work, int64_t row, int64_t count, float softcap) {
    float top[WIDTH], sum[WIDTH];
    if (softcap > 0)
        for (int64_t t = 0; t < count; t++)
            for (int r = 0; r < WIDTH; r++)
                work->scores[t][row + r] = softcap * tanhf(work->scores[t][row + r] / softcap);
    memcpy(top, work->best + row, sizeof top);
    for (int32_t t = 0; t < count; t++) {
        float *score = &work->scores[t][row];
        for (int r = 0; r < WIDTH; r++) {
            score[r] = (t >= work->low[row + r]) & (t < work->high[row + r]) ? score[r] : -INFINITY;
            top[r] = score[r] > top[r] ? score[r] : top[r];
        }
    }
    for (int r = 0; r < WIDTH; r++) {
        float *best = work->best + row + r;
        work->shrink[row + r] = *best == -INFINITY ? 0.0f : exp_negative(*best - top[r]);
        *best = top[r];
        top[r] = top[r] == -INFINITY ? 0.0f : top[r];
        sum[r] = 0.0f;
    }
    for (int64_t t = 0; t < count; t++) {
        float *score = &work->scores[t][row];
        for (int r = 0; r < WIDTH; r++) {
            score[r] = score[r] == -INFINITY ? 0.0f : exp_negative(score[r] - top[r]);
            sum[r] += score[r];
        }
    }
    for (int r = 0; r < WIDTH; r++)
        work->total[row + r] = work->total[row + r] * work->shrink[row + r] + sum[r];
}

/* Adds a tile's values by their weights. */
static void add_values(Work *work, int64_t rows, int64_t v_dim, int64_t count) {
    for (int64_t row = 0; row < rows; row += STRIP)
        for (int64_t i = 0; i < v_dim; i += WIDTH) {
            Strip strip;
            for (int r = 0; r < STRIP; r++)
                for (int v = 0; v < 2; v++)
                    strip.sum[r][v] = *(const eight *)&work->sums[row + r][i + 8 * v] * work->shrink[row + r];
            for (int64_t t = 0; t < count; t++) {
                const float *weights = &work->scores[t][row];
                add_products_to(&strip, work->values[t] + i, weights, weights + 1, weights + 2, weights + 3);
            }
            store_strip(&strip, &work->sums[row][i], DIM_MAX);
        }
}

/* All rows of a task with the keys from `start` on; `first` is the position of its first query. */
static void attend_keys(Work *work, const Prompt *prompt, int64_t kv, int64_t rows, int64_t first, int64_t start,
                        int64_t count) {
    const int64_t group = prompt->heads / prompt->kv_heads, padded = (rows + WIDTH - 1) / WIDTH * WIDTH;
    const int64_t window = prompt->window > 0 ? prompt->window : prompt->context;
    for (int64_t t = 0; t < KEYS; t++) {
        const int64_t position = start + (t < count ? t : count - 1), size = prompt->block_size;
        const int64_t slot = (int64_t)prompt->table[position / size] * size + position % size;
        work->keys[t] = prompt->k_cache + (kv * prompt->num_slots + slot) * prompt->k_dim;
        work->values[t] = prompt->v_cache + (kv * prompt->num_slots + slot) * prompt->v_dim;
    }
    for (int64_t row = 0; row < padded; row++) {
        const int64_t high = first + row / group + 1 - start, low = high - window;
        work->low[row] = low > 0 ? (low < KEYS ? (int32_t)low : KEYS) : 0;
        work->high[row] = row < rows ? (high < KEYS ? (int32_t)high : KEYS) : 0;
    }
    score_keys(work, padded, prompt->k_dim, count);
    for (int64_t row = 0; row < padded; row += WIDTH) weigh(work, row, count, prompt->softcap);
    add_values(work, rows, prompt->v_dim, count);
}

/* Some queries, from `query` on, of one KV head's group. */
static void attend_queries(float *out, const Prompt *prompt, int64_t kv, int64_t query, int64_t queries) {
    const int64_t group = prompt->heads / prompt->kv_heads, rows = queries * group, v_dim = prompt->v_dim;
    const int64_t first = prompt->context - prompt->queries + query, last = first + queries;
    Work work;
    memset(work.query, 0, prompt->k_dim * sizeof work.query[0]);
    memset(work.sums, 0, sizeof work.sums);
    for (int64_t row = 0; row < ROWS; row++) work.best[row] = -INFINITY, work.total[row] = 0.0f;
    for (int64_t row = 0; row < rows; row++) {
        const float *q = prompt->q + (query + row / group) * prompt->token_stride +
                         (kv * group + row % group) * prompt->head_stride;
        for (int64_t i = 0; i < prompt->k_dim; i++) work.query[i][row] = q[i] * prompt->scale;
    }
    const int64_t oldest = prompt->window > 0 && first >= prompt->window ? first - prompt->window + 1 : 0;
    for (int64_t start = oldest / KEYS * KEYS; start < last; start += KEYS)
        attend_keys(&work, prompt, kv, rows, first, start, last - start < KEYS ? last - start : KEYS);
    for (int64_t row = 0; row < rows; row++) {
        float *to = out + ((query + row / group) * prompt->heads + kv * group + row % group) * v_dim;
        for (int64_t i = 0; i < v_dim; i++) to[i] = work.sums[row][i] / work.total[row];
    }
}

/* The newest `queries` tokens of one sequence. A group has at most ROWS heads, a head at most DIM_MAX numbers, and those
 * of its values are a multiple of WIDTH. */
void attend_prompt(float *out, const Prompt *prompt) {
    const int64_t group = prompt->heads / prompt->kv_heads, at_once = ROWS / group;
    const int64_t tasks = (prompt->queries + at_once - 1) / at_once;
#pragma omp parallel for collapse(2) schedule(dynamic, 1)
    for (int64_t task = tasks - 1; task >= 0; task--) /* those that see most first */
        for (int64_t kv = 0; kv < prompt->kv_heads; kv++) {
            const int64_t query = task * at_once, left = prompt->queries - query;
            attend_queries(out, prompt, kv, query, left < at_once ? left : at_once);
        }
}
