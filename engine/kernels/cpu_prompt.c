/* Attention of a prompt's tokens in fp32 on a CPU: tiles of queries with tiles of keys. Part of cpu.c.
 *
 * The queries of a KV head's group are packed as rows, and turned once so that a vector holds one number of several rows.
 * Then both products are sums of vectors times numbers, which is what a processor does fastest, and keys and values are
 * read where they are. Tiles of keys begin at multiples of KEY_TILE and each row has its own maximum and sum, so what a row
 * gets does not depend on the rows that are computed with it.
 *
 * Called by engine/kernels/cpu.py, which states the arguments.
 */
#define ROWS 72    /* of a task: queries times heads of a group; a multiple of three vectors */
#define STRIP 4    /* keys, or rows, that are computed together */
#define VECTORS 3  /* of rows, or of numbers of values, at most */

typedef struct {
    const float *q, *k_cache, *v_cache;
    const int32_t *table;
    int64_t token_stride, head_stride;
    int64_t queries, context, heads, kv_heads, k_dim, v_dim, num_slots, block_size, window;
    float scale, softcap;
} Prompt;

/* A task's numbers, and where the keys and values of a tile are. */
typedef struct {
    float query[DIM_MAX][ROWS], scores[KEY_TILE][ROWS], sums[ROWS][DIM_MAX];
    float best[ROWS], total[ROWS], shrink[ROWS];
    int32_t low[ROWS], high[ROWS]; /* what each row sees of a tile: from low on, below high */
    Tile_f32 tile, next;
} Work;

/* Sums of vectors, each times a number of its own for each of STRIP results. */
typedef struct {
    eight sum[STRIP][VECTORS];
} Strip;

INLINE void add_products_to(Strip *strip, const int width, const float *vectors, const float *const *numbers) {
    eight x[VECTORS];
    for (int v = 0; v < width; v++) {
        x[v] = *(const eight *)(vectors + 8 * v);
        IN_REGISTER(x[v]);
    }
    for (int r = 0; r < STRIP; r++)
        for (int v = 0; v < width; v++) strip->sum[r][v] += *numbers[r] * x[v];
}

INLINE void store_strip(const Strip *strip, const int width, float *to, int64_t stride) {
    for (int r = 0; r < STRIP; r++)
        for (int v = 0; v < width; v++) *(eight *)(to + r * stride + 8 * v) = strip->sum[r][v];
}

/* Scores of `width` vectors of rows, from `row` on, with STRIP keys from `t` on. */
INLINE void score_strip(Work *work, int64_t row, const int width, int64_t t, int64_t k_dim) {
    Strip strip = {0};
    for (int64_t i = 0; i < k_dim; i++) {
        const float *const numbers[] = {work->tile.keys[t] + i, work->tile.keys[t + 1] + i, work->tile.keys[t + 2] + i,
                                        work->tile.keys[t + 3] + i};
        add_products_to(&strip, width, &work->query[i][row], numbers);
    }
    store_strip(&strip, width, &work->scores[t][row], ROWS);
}

/* Calls `call` for so many vectors, `width` of them from `at` on, a number that the compiler knows. */
#define FOR_VECTORS(count, call)                               \
    for (int64_t at = 0; at < (count); at += VECTORS) {        \
        if ((count) - at >= 3) {                               \
            const int width = 3;                               \
            call;                                              \
        } else if ((count) - at == 2) {                        \
            const int width = 2;                               \
            call;                                              \
        } else {                                               \
            const int width = 1;                               \
            call;                                              \
        }                                                      \
    }

/* Scores of a tile's keys with all vectors of rows. Asks for the tile's values meanwhile. */
static void score_keys(Work *work, int64_t vectors, int64_t k_dim, int64_t v_dim, int64_t count) {
    for (int64_t t = 0; t < count; t += STRIP) {
        for (int k = 0; k < STRIP; k++) ask_for(work->tile.values[t + k], v_dim * sizeof(float));
        FOR_VECTORS(vectors, score_strip(work, 8 * at, width, t, k_dim))
    }
}

static void cap(Work *work, int64_t vectors, int64_t count, float softcap) {
    for (int64_t t = 0; t < count; t++)
        for (int64_t row = 0; row < 8 * vectors; row++)
            work->scores[t][row] = softcap * tanhf(work->scores[t][row] / softcap);
}

/* What a row does not see of a tile is as if it were not there. */
static void hide(Work *work, int64_t vectors, int64_t count) {
    for (int32_t t = 0; t < count; t++)
        for (int64_t row = 0; row < 8 * vectors; row++)
            if (t < work->low[row] || t >= work->high[row]) work->scores[t][row] = -INFINITY;
}

/* Turns the scores of eight rows into weights. */
static void weigh(Work *work, int64_t row, int64_t count) {
    eight *best = (eight *)(work->best + row), *total = (eight *)(work->total + row), top = *best, sum = {0};
    for (int64_t t = 0; t < count; t++) top = larger_of(*(const eight *)&work->scores[t][row], top);
    const eight from = pick(top == -INFINITY, (eight){0}, top), shrink = weights_of(*best, from);
    for (int64_t t = 0; t < count; t++) {
        eight *score = (eight *)&work->scores[t][row];
        sum += *score = weights_of(*score, from);
    }
    *best = top;
    *total = *total * shrink + sum;
    *(eight *)(work->shrink + row) = shrink;
}

/* Adds `width` vectors of a tile's values, from number `i` on, to STRIP rows by their weights. */
INLINE void add_strip(Work *work, int64_t row, int64_t i, const int width, int64_t count) {
    Strip strip;
    for (int r = 0; r < STRIP; r++)
        for (int v = 0; v < width; v++)
            strip.sum[r][v] = *(const eight *)&work->sums[row + r][i + 8 * v] * work->shrink[row + r];
    for (int64_t t = 0; t < count; t++) {
        const float *weights = &work->scores[t][row];
        const float *const numbers[] = {weights, weights + 1, weights + 2, weights + 3};
        add_products_to(&strip, width, work->tile.values[t] + i, numbers);
    }
    store_strip(&strip, width, &work->sums[row][i], DIM_MAX);
}

/* Adds a tile's values. Asks for the keys of the next meanwhile. */
static void add_values(Work *work, int64_t rows, int64_t k_dim, int64_t v_dim, int64_t count) {
    const int64_t strips = (rows + STRIP - 1) / STRIP, share = (KEY_TILE + strips - 1) / strips;
    for (int64_t strip = 0; strip < strips; strip++) {
        for (int64_t t = strip * share; t < (strip + 1) * share && t < KEY_TILE; t++)
            ask_for(work->next.keys[t], k_dim * sizeof(float));
        FOR_VECTORS(v_dim / 8, add_strip(work, strip * STRIP, 8 * at, width, count))
    }
}

/* All rows of a task with a tile's keys, which begin at `start`; `first` is the position of its first query. */
static void attend_tile(Work *work, const Prompt *prompt, int64_t rows, int64_t first, int64_t start, int64_t count) {
    const int64_t group = prompt->heads / prompt->kv_heads, vectors = (rows + 7) / 8;
    const int64_t window = prompt->window > 0 ? prompt->window : prompt->context;
    const int64_t last = first + (rows - 1) / group;
    score_keys(work, vectors, prompt->k_dim, prompt->v_dim, count);
    if (prompt->softcap > 0) cap(work, vectors, count, prompt->softcap);
    if (start + count > first + 1 || start <= last - window) {
        for (int64_t row = 0; row < 8 * vectors; row++) {
            const int64_t high = first + row / group + 1 - start, low = high - window;
            work->low[row] = low > 0 ? (low < KEY_TILE ? (int32_t)low : KEY_TILE) : 0;
            work->high[row] = high < KEY_TILE ? (int32_t)high : KEY_TILE;
        }
        hide(work, vectors, count);
    }
    for (int64_t vector = 0; vector < vectors; vector++) weigh(work, 8 * vector, count);
    add_values(work, rows, prompt->k_dim, prompt->v_dim, count);
}

INLINE void find_keys(Tile_f32 *tile, const Prompt *prompt, int64_t kv, int64_t start, int64_t last) {
    const int64_t before = kv * prompt->num_slots;
    const int64_t v_stride = value_stride_f32(prompt->k_cache, prompt->v_cache, prompt->k_dim, prompt->v_dim);
    find_tile_f32(tile, prompt->k_cache + before * prompt->k_dim, prompt->v_cache + before * v_stride, prompt->table,
                  prompt->block_size, start, last, prompt->k_dim, v_stride);
}

/* Some queries, from `query` on, of one KV head's group. */
ALONE void attend_queries(float *out, const Prompt *prompt, int64_t kv, int64_t query, int64_t queries) {
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
    find_keys(&work.next, prompt, kv, oldest / KEY_TILE * KEY_TILE, last);
    for (int64_t start = oldest / KEY_TILE * KEY_TILE; start < last; start += KEY_TILE) {
        work.tile = work.next;
        if (start + KEY_TILE < last) find_keys(&work.next, prompt, kv, start + KEY_TILE, last);
        attend_tile(&work, prompt, rows, first, start, last - start < KEY_TILE ? last - start : KEY_TILE);
    }
    for (int64_t row = 0; row < rows; row++) {
        float *to = out + ((query + row / group) * prompt->heads + kv * group + row % group) * v_dim;
        for (int64_t i = 0; i < v_dim; i++) to[i] = work.sums[row][i] / work.total[row];
    }
}

/* Queries that are taken at once, and in how many tasks those of a prompt are. A group has at most ROWS heads. */
static inline int64_t queries_at_once(int64_t heads, int64_t kv_heads) {
    return ROWS / (heads / kv_heads);
}

static inline int64_t prompt_tasks(const Prompt *prompt) {
    const int64_t at_once = queries_at_once(prompt->heads, prompt->kv_heads);
    return (prompt->queries + at_once - 1) / at_once * prompt->kv_heads;
}

/* One of them; those that see most come first. */
static inline void attend_task(float *out, const Prompt *prompt, int64_t task) {
    const int64_t at_once = queries_at_once(prompt->heads, prompt->kv_heads);
    const int64_t query = (prompt->queries - 1) / at_once * at_once - task / prompt->kv_heads * at_once;
    const int64_t left = prompt->queries - query;
    attend_queries(out, prompt, task % prompt->kv_heads, query, left < at_once ? left : at_once);
}

/* The newest `queries` tokens of one sequence. A head has at most DIM_MAX numbers, its values a multiple of 8. */
void attend_prompt(float *out, const Prompt *prompt) {
    const int64_t tasks = prompt_tasks(prompt);
#pragma omp parallel for schedule(dynamic, 1) if (tasks > 1)
    for (int64_t task = 0; task < tasks; task++) attend_task(out, prompt, task);
}
