/* Attention of single queries on a CPU, one sequence's KV head and some of its query heads at a time. Part of cpu.c, which
 * compiles it for each element type.
 *
 * Keys and values are read once, where they are, for all heads of the group: a few keys with a few heads, whose sums stay
 * in registers. Tiles of keys are counted from the first that is seen, and sums are made in one order, so what a row gets
 * does not depend on the rows beside it.
 */
#define GROUP_MAX 16
#define HEADS 3 /* at a time, with */
#define KEYS_AT_ONCE 4

/* What all queries of a step have in common. window > 0 shows the newest `window` keys only. */
typedef struct {
    const T *k_cache, *v_cache;
    const int32_t *tables, *lens;
    int64_t table_stride, heads, kv_heads, k_dim, v_dim, num_slots, block_size, window;
    float scale, softcap;
} NAME(Keys);

/* From one slot's values to the next's: their width, or the keys' where values are the first numbers of these. */
INLINE int64_t NAME(value_stride)(const T *k_cache, const T *v_cache, int64_t k_dim, int64_t v_dim) {
    return k_cache == v_cache ? k_dim : v_dim;
}

/* Where a tile's keys and values are; behind its last one, that again. */
typedef struct {
    const T *keys[KEY_TILE], *values[KEY_TILE];
} NAME(Tile);

INLINE void NAME(find_tile)(NAME(Tile) *tile, const T *k_cache, const T *v_cache, const int32_t *table,
                             int64_t block_size, int64_t start, int64_t last, int64_t k_dim, int64_t v_stride) {
    int64_t block = start / block_size, offset = start % block_size, slot = 0;
    for (int64_t t = 0; t < KEY_TILE; t++) {
        if (start + t < last) slot = table[block] * block_size + offset;
        tile->keys[t] = k_cache + slot * k_dim;
        tile->values[t] = v_cache + slot * v_stride;
        if (++offset == block_size) offset = 0, block++;
    }
}

/* One sequence, one KV head, some of its query heads. */
typedef struct {
    NAME(Tile) tile[2]; /* the one at hand, and the next */
    float query[GROUP_MAX][QUERY_DIM_MAX], scores[GROUP_MAX][KEY_TILE], sums[GROUP_MAX][QUERY_DIM_MAX];
    float best[GROUP_MAX], total[GROUP_MAX], shrink[GROUP_MAX];
} NAME(Group);

#ifndef FOLDED
#define FOLDED
/* The sums of four vectors' numbers. */
INLINE void fold_four(const eight *v, float *to) {
    typedef int32_t places __attribute__((vector_size(32)));
    const places even = {0, 8, 2, 10, 4, 12, 6, 14}, odd = {1, 9, 3, 11, 5, 13, 7, 15};
    const places low = {0, 1, 8, 9, 4, 5, 12, 13}, high = {2, 3, 10, 11, 6, 7, 14, 15};
    const eight ab = __builtin_shuffle(v[0], v[1], even) + __builtin_shuffle(v[0], v[1], odd);
    const eight cd = __builtin_shuffle(v[2], v[3], even) + __builtin_shuffle(v[2], v[3], odd);
    const eight all = __builtin_shuffle(ab, cd, low) + __builtin_shuffle(ab, cd, high);
    for (int i = 0; i < 4; i++) to[i] = all[i] + all[i + 4];
}
#endif

/* Scores of a tile's keys with `heads` heads from `head` on. Asks for the tile's values meanwhile. */
INLINE void NAME(score_tile)(NAME(Group) *group, int64_t head, const int heads, int64_t count, const int64_t k_dim,
                              const int64_t v_dim) {
    const NAME(Tile) *tile = &group->tile[0];
    for (int64_t t = 0; t < count; t += KEYS_AT_ONCE) {
        eight sum[HEADS][KEYS_AT_ONCE] = {0};
        int64_t i = 0;
        for (; i + 8 <= k_dim; i += 8)
            for (int k = 0; k < KEYS_AT_ONCE; k++) {
                eight key = NAME(load_eight)(tile->keys[t + k] + i);
                IN_REGISTER(key);
                for (int h = 0; h < heads; h++) sum[h][k] += *(const eight *)&group->query[head + h][i] * key;
            }
        for (int h = 0; h < heads; h++) fold_four(sum[h], &group->scores[head + h][t]);
        for (; i < k_dim; i++)
            for (int k = 0; k < KEYS_AT_ONCE; k++)
                for (int h = 0; h < heads; h++)
                    group->scores[head + h][t + k] += group->query[head + h][i] * LOAD(tile->keys[t + k][i]);
        if (head == 0)
            for (int k = 0; k < KEYS_AT_ONCE; k++) ask_for(tile->values[t + k], v_dim * sizeof(T));
    }
}

/* Turns a head's scores into weights. */
INLINE void NAME(weigh_tile)(NAME(Group) *group, int64_t head, int64_t count, float softcap) {
    float *scores = group->scores[head], top = group->best[head];
    if (softcap > 0)
        for (int64_t t = 0; t < count; t++) scores[t] = softcap * tanhf(scores[t] / softcap);
    for (int64_t t = count; t < KEY_TILE; t++) scores[t] = -INFINITY;
    eight tops = *(const eight *)scores, sums = {0};
    for (int t = 8; t < KEY_TILE; t += 8) tops = larger_of(*(const eight *)(scores + t), tops);
    for (int r = 0; r < 8; r++) top = tops[r] > top ? tops[r] : top;
    for (int t = 0; t < KEY_TILE; t += 8) {
        eight *eights = (eight *)(scores + t);
        sums += *eights = weights_of(*eights, (eight){0} + top);
    }
    float sum = 0.0f;
    for (int r = 0; r < 8; r++) sum += sums[r];
    const float shrink = group->best[head] == -INFINITY ? 0.0f : exp_negative(group->best[head] - top);
    group->shrink[head] = shrink;
    group->best[head] = top;
    group->total[head] = group->total[head] * shrink + sum;
}

/* Adds `width` vectors of numbers of a tile's values, from `first` on, by the weights of `heads` heads. */
INLINE void NAME(add_strip)(NAME(Group) *group, int64_t head, const int heads, int64_t count, int64_t first,
                             const int width) {
    const NAME(Tile) *tile = &group->tile[0];
    eight sum[HEADS][4];
    for (int h = 0; h < heads; h++)
        for (int v = 0; v < width; v++)
            sum[h][v] = *(const eight *)&group->sums[head + h][first + 8 * v] * group->shrink[head + h];
    for (int64_t t = 0; t < count; t++)
        for (int v = 0; v < width; v++) {
            eight value = NAME(load_eight)(tile->values[t] + first + 8 * v);
            IN_REGISTER(value);
            for (int h = 0; h < heads; h++) sum[h][v] += group->scores[head + h][t] * value;
        }
    for (int h = 0; h < heads; h++)
        for (int v = 0; v < width; v++) *(eight *)&group->sums[head + h][first + 8 * v] = sum[h][v];
}

INLINE void NAME(add_tile)(NAME(Group) *group, int64_t head, const int heads, int64_t count, const int64_t k_dim,
                            const int64_t v_dim) {
    int64_t i = 0;
    for (int64_t t = 0; head == 0 && t < KEY_TILE; t++) ask_for(group->tile[1].keys[t], k_dim * sizeof(T));
    for (; i + 32 <= v_dim; i += 32) NAME(add_strip)(group, head, heads, count, i, 4);
    for (; i + 8 <= v_dim; i += 8) NAME(add_strip)(group, head, heads, count, i, 1);
    for (; i < v_dim; i++)
        for (int h = 0; h < heads; h++) {
            float sum = group->sums[head + h][i] * group->shrink[head + h];
            for (int64_t t = 0; t < count; t++) sum += group->scores[head + h][t] * LOAD(group->tile[0].values[t][i]);
            group->sums[head + h][i] = sum;
        }
}

/* Calls what takes several heads for all of them, the number of each call known to the compiler. */
#define FOR_HEADS(count, call)                                  \
    for (int64_t head = 0; head < (count); head += HEADS) {     \
        const int64_t left = (count) - head;                    \
        if (left >= 3) {                                        \
            const int heads = 3;                                \
            call;                                               \
        } else if (left == 2) {                                 \
            const int heads = 2;                                \
            call;                                               \
        } else {                                                \
            const int heads = 1;                                \
            call;                                               \
        }                                                       \
    }

INLINE void NAME(attend)(T *out, const T *q, int64_t q_stride, const NAME(Keys) *all, int64_t kv, const int32_t *table,
                         int64_t first, int64_t last, int64_t members, const int64_t k_dim, const int64_t v_dim) {
    const int64_t v_stride = NAME(value_stride)(all->k_cache, all->v_cache, k_dim, v_dim);
    const T *k_cache = all->k_cache + kv * all->num_slots * k_dim, *v_cache = all->v_cache + kv * all->num_slots * v_stride;
    NAME(Group) group;
    for (int64_t h = 0; h < members; h++) {
        group.best[h] = -INFINITY, group.total[h] = 0.0f;
        for (int64_t i = 0; i < k_dim; i++) group.query[h][i] = LOAD(q[h * q_stride + i]) * all->scale;
        memset(group.sums[h], 0, v_dim * sizeof(float));
    }
    NAME(find_tile)(&group.tile[1], k_cache, v_cache, table, all->block_size, first, last, k_dim, v_stride);
    for (int64_t start = first; start < last; start += KEY_TILE) {
        const int64_t count = last - start < KEY_TILE ? last - start : KEY_TILE;
        group.tile[0] = group.tile[1];
        if (start + KEY_TILE < last)
            NAME(find_tile)(&group.tile[1], k_cache, v_cache, table, all->block_size, start + KEY_TILE, last, k_dim, v_stride);
        FOR_HEADS(members, NAME(score_tile)(&group, head, heads, count, k_dim, v_dim))
        for (int64_t h = 0; h < members; h++) NAME(weigh_tile)(&group, h, count, all->softcap);
        FOR_HEADS(members, NAME(add_tile)(&group, head, heads, count, k_dim, v_dim))
    }
    for (int64_t h = 0; h < members; h++)
        for (int64_t i = 0; i < v_dim; i++) out[h * v_dim + i] = STORE(group.sums[h][i] / group.total[h]);
}

/* How many parts the heads of one KV head's group are taken in. */
static inline int64_t NAME(parts_of)(const NAME(Keys) *keys) {
    return (keys->heads / keys->kv_heads + GROUP_MAX - 1) / GROUP_MAX;
}

/* One row's query `[heads, k_dim]` with one part of a KV head's group. */
ALONE void NAME(attend_part)(T *out, const T *q, int64_t head_stride, const NAME(Keys) *keys, int64_t row, int64_t kv,
                             int64_t part) {
    const int64_t group = keys->heads / keys->kv_heads, head = kv * group + part * GROUP_MAX;
    const int64_t count = group - part * GROUP_MAX < GROUP_MAX ? group - part * GROUP_MAX : GROUP_MAX;
    const int64_t last = keys->lens[row], first = keys->window > 0 && last > keys->window ? last - keys->window : 0;
    const int64_t k_dim = keys->k_dim, v_dim = keys->v_dim;
    const int32_t *table = keys->tables + row * keys->table_stride;
    T *o = out + head * v_dim;
    q += head * head_stride;
    /* Widths that the compiler knows save a third of the time. */
    if (k_dim == 64 && v_dim == 64) NAME(attend)(o, q, head_stride, keys, kv, table, first, last, count, 64, 64);
    else if (k_dim == 128 && v_dim == 128) NAME(attend)(o, q, head_stride, keys, kv, table, first, last, count, 128, 128);
    else NAME(attend)(o, q, head_stride, keys, kv, table, first, last, count, k_dim, v_dim);
}

/* One query per sequence over its blocks. */
void NAME(paged_decode)(T *out, const T *q, int64_t row_stride, int64_t head_stride, const T *k_cache, const T *v_cache,
                        const int32_t *tables, int64_t table_stride, const int32_t *lens, int64_t rows, int64_t heads,
                        int64_t kv_heads, int64_t k_dim, int64_t v_dim, int64_t num_slots, int64_t block_size,
                        int64_t window, float scale, float softcap) {
    const NAME(Keys) keys = {k_cache, v_cache, tables, lens, table_stride, heads, kv_heads, k_dim, v_dim, num_slots,
                             block_size, window, scale, softcap};
    const int64_t parts = NAME(parts_of)(&keys);
#pragma omp parallel for collapse(3) schedule(dynamic, 1) if (rows * kv_heads * parts > 1)
    for (int64_t row = 0; row < rows; row++)
        for (int64_t kv = 0; kv < kv_heads; kv++)
            for (int64_t part = 0; part < parts; part++)
                NAME(attend_part)(out + row * heads * v_dim, q + row * row_stride, head_stride, &keys, row, kv, part);
}

#undef GROUP_MAX
#undef HEADS
#undef KEYS_AT_ONCE
#undef FOR_HEADS
