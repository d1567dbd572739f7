/* Activations rounded to whole numbers, and their products with the pieces of weights. Part of cpu_quantized.c. */

/* ---- activations ---- */

/* Rows side by side in tiles of `lanes`, so that what a product needs of a tile's rows at once stands together. Of a block
 * of 32 numbers there are 8 or 16 words: four bytes, in the order of a piece's vectors, or two numbers of 16 bits. */
typedef struct {
    int32_t *words; /* [tiles, size / BLOCK, 8 or 16, lanes] */
    float *scales;  /* [tiles, size / BLOCK, lanes] */
    float *totals;  /* the same; the sum of a block's rounded numbers, scaled: for minima */
    int64_t size, bits, lanes;
} Rounded;

#define LANES 4

INLINE int words_of(const int bits) {
    return bits == 8 ? BLOCK / 4 : BLOCK / 2;
}

/* The largest size of a block's numbers; NAN or INFINITY if one of them is. */
INLINE float largest_of(const float *x) {
    int32_t bits[BLOCK], top = 0; /* floats without a sign are ordered as the integers of their bits */
    memcpy(bits, x, sizeof bits);
    for (int i = 0; i < BLOCK; i++) {
        int32_t size_of = bits[i] & 0x7fffffff;
        top = size_of > top ? size_of : top;
    }
    float largest;
    memcpy(&largest, &top, sizeof largest);
    return largest;
}

/* A block's numbers as whole ones up to `limit`; its scale. */
INLINE float round_block(const float *x, const float limit, int32_t *to) {
    const float largest = largest_of(x);
    const int is_finite = isfinite(largest);
    const float back = is_finite && largest > 1e-30f ? limit / largest : 0.0f;
    for (int i = 0; i < BLOCK; i++) to[i] = (int32_t)nearbyintf(is_finite ? x[i] * back : 0.0f);
    return is_finite ? largest / limit : NAN;
}

INLINE int32_t word_of_two(const int32_t *n) {
    return (int32_t)((uint32_t)(n[0] & 65535) | (uint32_t)n[1] << 16);
}

/* Numbers 0, 4, 1 and 5, as a piece's vectors have them. */
INLINE int32_t word_of_four(const int32_t *n) {
    return (int32_t)((uint32_t)(n[0] & 255) | (uint32_t)(n[4] & 255) << 8 | (uint32_t)(n[1] & 255) << 16 | (uint32_t)n[5] << 24);
}

/* `count` numbers of a row, from `first`, which begins a block. */
INLINE void round_blocks(const Rounded *to, const int bits, int64_t row, int64_t first, int64_t count, const float *x) {
    const int64_t blocks = to->size / BLOCK, lanes = to->lanes, lane = row % lanes;
    int64_t block = row / lanes * blocks + first / BLOCK;
    for (int64_t left = count; left > 0; left -= BLOCK, x += BLOCK, block++) {
        int32_t n[BLOCK], total = 0, *words = to->words + block * words_of(bits) * lanes + lane;
        const float scale = round_block(x, bits == 8 ? 127.0f : 32767.0f, n);
        for (int i = 0; i < BLOCK; i++) total += n[i];
        to->scales[block * lanes + lane] = scale;
        to->totals[block * lanes + lane] = (float)total * scale;
        for (int i = 0; i < words_of(bits); i++)
            words[i * lanes] = bits == 8 ? word_of_four(n + i / 2 * 8 + i % 2 * 2) : word_of_two(n + 2 * i);
    }
}

static __attribute__((noinline)) void round_part(const Rounded *to, int64_t row, int64_t first, int64_t count,
                                                 const float *x) {
    if (to->bits == 8) round_blocks(to, 8, row, first, count, x);
    else round_blocks(to, 16, row, first, count, x);
}

/* ---- weights ---- */

INLINE int has_five_bits(const int format) {
    return format == Q5_K || format == Q5_0 || format == Q5_1;
}

/* Vector i of a piece's weights, in bytes as whole numbers. */
INLINE pairs bytes_of(const int format, const uint8_t *bits, const int i) {
    if (format == Q8_0) return load_pairs(bits + VECTOR * i);
    pairs v = load_pairs(bits + i / 2 * VECTOR);
    v = masked(i % 2 ? right(v, 4) : v, 0x0f0f);
    if (has_five_bits(format)) {
        pairs high = load_pairs(bits + 4 * VECTOR);
        v = both(v, masked(i < 4 ? left(high, 4 - i) : right(high, i - 4), 0x1010));
    }
    if (format == Q6_K) {
        pairs high = load_pairs(bits + (4 + i / 4) * VECTOR);
        const int at = 2 * (i % 4);
        v = less_bytes(both(v, masked(at < 4 ? left(high, 4 - at) : right(high, at - 4), 0x3030)), 32);
    }
    return v;
}

/* Pair i of a piece's 32 weights, as whole numbers. */
INLINE pairs pair_of(const int format, const uint8_t *bits, const int i) {
    const int vector = VECTOR_OF(i), high_byte = 8 * IS_HIGH(i);
    if (format == Q8_0) {
        pairs v = load_pairs(bits + VECTOR * vector);
        return high_byte ? high_bytes(v) : low_bytes(v);
    }
    pairs v = load_pairs(bits + i / 4 * VECTOR);
    v = i % 4 == 3 ? right(v, 12) : masked(i % 4 ? right(v, i % 4 * 4) : v, 15);
    if (has_five_bits(format)) {
        pairs high = load_pairs(bits + 4 * VECTOR);
        const int at = vector + high_byte;
        v = both(v, masked(at < 4 ? left(high, 4 - at) : right(high, at - 4), 16));
    }
    if (format == Q6_K) {
        pairs high = load_pairs(bits + (4 + vector / 4) * VECTOR);
        const int at = 2 * (vector % 4) + high_byte;
        v = less(both(v, masked(at < 4 ? left(high, 4 - at) : right(high, at - 4), 48)), 32);
    }
    return v;
}

/* One record's piece: 32 weights of each of OUTPUTS outputs, and what turns its whole numbers into weights. */
typedef struct {
    const uint8_t *bits;
    uint8_t w[PAIRS * VECTOR] __attribute__((aligned(VECTOR))); /* unpacked: 16 pairs, or 8 vectors of bytes */
    vec scale[2], minimum;
} Piece;

/* What turns the whole numbers of the piece at `bits` into weights; `head` is its record's. */
INLINE void read_piece(const int format, Piece *piece, const uint8_t *head, const uint8_t *bits) {
    vec d = halves(head);
    piece->bits = format == Q4_K || format == Q5_K || format == Q6_K ? bits + 2 * OUTPUTS : bits;
    piece->scale[0] = d;
    if (format == Q4_0) piece->minimum = times(d, all(-8.0f));
    if (format == Q5_0) piece->minimum = times(d, all(-16.0f));
    if (format == Q4_1 || format == Q5_1) piece->minimum = halves(head + 2 * OUTPUTS);
    if (format == Q4_K || format == Q5_K) {
        piece->scale[0] = times(d, unsigned_bytes(bits));
        piece->minimum = times(times(halves(head + 2 * OUTPUTS), all(-1.0f)), unsigned_bytes(bits + OUTPUTS));
    }
    if (format == Q6_K) piece->scale[0] = times(d, signed_bytes(bits)), piece->scale[1] = times(d, signed_bytes(bits + OUTPUTS));
}

/* ---- products ---- */

/* What is met of the rounded rows: a block of each of the first `rows` of a tile. */
typedef struct {
    const int32_t *words;
    const float *scales, *totals;
} Met;

/* Adds to out `[groups][rows]` sums of whole numbers, as what they stand for. */
INLINE void add_scaled(vec (*out)[ROWS_MAX], const sums *s, const Piece *pieces, const int groups, const int rows,
                       const int part, const Met *x) {
    for (int r = 0; r < rows; r++) {
        vec scale = all(x->scales[r]);
        for (int g = 0; g < groups; g++)
            out[g][r] = plus_product(out[g][r], as_float(s[r * groups + g]), times(pieces[g].scale[part], scale));
    }
}

/* Adds the sums of products of `words` words of x in 16 bits, from `first`. Weights are unpacked in registers, or have been
 * before, where several tiles of rows meet them. */
INLINE void add_pairs(sums *s, const int format, const Piece *pieces, const int groups, const int rows, const Met *x,
                      const int first, const int words, const int is_unpacked) {
    const int lanes = rows == 1 ? 1 : LANES;
    if (!is_unpacked) {
        UNROLL(16)
        for (int i = first; i < first + words; i++) {
            pairs v[2];
            /* Else the compiler unpacks all before it multiplies any, for which there are too few registers. */
            if (rows > 1 && i % 4 == 0) __asm__ volatile("" ::: "memory");
            for (int g = 0; g < groups; g++) v[g] = pair_of(format, pieces[g].bits, i);
            for (int r = 0; r < rows; r++) {
                pairs two = word(x->words[i * lanes + r]);
                for (int g = 0; g < groups; g++) s[r * groups + g] = add_products(s[r * groups + g], v[g], two);
            }
        }
        return;
    }
    UNROLL(4)
    for (int i = first; i < first + words; i++) {
        pairs v[2];
        for (int g = 0; g < groups; g++) v[g] = load_pairs(pieces[g].w + VECTOR * i);
        for (int r = 0; r < rows; r++) {
            pairs two = word(x->words[i * lanes + r]);
            for (int g = 0; g < groups; g++) s[r * groups + g] = add_products(s[r * groups + g], v[g], two);
        }
    }
}

/* The same in 8 bits, for as many words as `few` hold. */
INLINE void add_fours(sums *s, const int format, const Piece *pieces, const int groups, const int rows, const Met *x,
                      const int first, const int words, const int is_unpacked) {
    const int is_signed = format == Q8_0 || format == Q6_K;
    few f[8];
    for (int i = 0; i < rows * groups; i++) f[i] = no_few();
#define ADD(s, w, x) (is_signed ? add_signed_bytes(s, w, x) : add_bytes(s, w, x))
    if (!is_unpacked) {
        const int lanes = rows == 1 ? 1 : LANES;
        UNROLL(8)
        for (int i = first; i < first + words; i++)
            for (int g = 0; g < groups; g++) {
                pairs v = bytes_of(format, pieces[g].bits, i);
                for (int r = 0; r < rows; r++)
                    f[r * groups + g] = ADD(f[r * groups + g], v, word(x->words[i * lanes + r]));
            }
    } else { /* unrolled further, all products would be kept until the end */
        UNROLL(2)
        for (int i = first; i < first + words; i++) {
            pairs v[2];
            for (int g = 0; g < groups; g++) v[g] = load_pairs(pieces[g].w + VECTOR * i);
            for (int r = 0; r < rows; r++) {
                pairs four = word(x->words[i * LANES + r]);
                for (int g = 0; g < groups; g++) f[r * groups + g] = ADD(f[r * groups + g], v[g], four);
            }
        }
    }
    for (int i = 0; i < rows * groups; i++) s[i] = together(s[i], as_sums(f[i]));
}

/* Adds to out `[groups][rows]` what a piece of each group gives. */
INLINE void multiply(vec (*out)[ROWS_MAX], const int format, const int bits, Piece *pieces, const int groups,
                     const int rows, const Met x, const int is_unpacked) {
    const int parts = format == Q6_K ? 2 : 1, words = words_of(bits) / parts;
    const int narrow = format == Q8_0 ? 1 : format == Q6_K || has_five_bits(format) ? 4 : 8;
    const int at_once = FEW_HOLD_ALL ? words : narrow;
    UNROLL(2)
    for (int part = 0; part < parts; part++) {
        sums s[8];
        for (int i = 0; i < rows * groups; i++) s[i] = no_sums();
        if (bits == 16) {
            add_pairs(s, format, pieces, groups, rows, &x, part * words, words, is_unpacked);
        } else if (at_once == 1 && rows > 1) {
            UNROLL(2)
            for (int i = 0; i < words; i++) add_fours(s, format, pieces, groups, rows, &x, i, 1, is_unpacked);
        } else {
            UNROLL(8)
            for (int first = part * words; first < (part + 1) * words; first += at_once)
                add_fours(s, format, pieces, groups, rows, &x, first, at_once, is_unpacked);
        }
        /* Read them anew: kept in registers beside all sums, there would not be enough of those. */
        if (rows > 1)
            for (int g = 0; g < groups; g++) __asm__("" : "+m"(pieces[g].scale), "+m"(pieces[g].minimum));
        add_scaled(out, s, pieces, groups, rows, part, &x);
    }
    if (format == Q8_0 || format == Q6_K) return; /* without minima */
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < groups; g++) out[g][r] = plus_product(out[g][r], pieces[g].minimum, all(x.totals[r]));
}

/* A block of all rows with a piece of each group. */
INLINE void multiply_rows(vec (*out)[ROWS_MAX], const int format, const int bits, Piece *pieces, const int groups,
                          const Rounded *x, int64_t rows, int64_t block) {
    const int64_t blocks = x->size / BLOCK, lanes = x->lanes;
#define TILE(n, is_unpacked)                                                                     \
    multiply((vec(*)[ROWS_MAX]) & out[0][r], format, bits, pieces, groups, n,                    \
             (Met){x->words + at * words_of(bits) * lanes, x->scales + at * lanes, x->totals + at * lanes}, is_unpacked)
    int64_t r = 0, at = block;
    if (rows == 1) {
        TILE(1, 0);
        return;
    }
    if (OUTPUTS == 16 && rows <= LANES) { /* the other vectors have no registers left for that */
        if (rows > 2) TILE(4, 0);
        else TILE(2, 0);
        return;
    }
    for (int g = 0; g < groups; g++) {
        UNROLL(16)
        for (int i = 0; i < words_of(bits); i++)
            store_pairs(pieces[g].w + VECTOR * i,
                        bits == 8 ? bytes_of(format, pieces[g].bits, i) : pair_of(format, pieces[g].bits, i));
    }
    for (; r + 2 < rows; r += LANES, at += blocks) TILE(4, 1); /* of three too; what comes of the fourth is not looked at */
    if (r < rows) TILE(2, 1);
}

/* Up to ROWS_MAX rows with the weights of `groups` times OUTPUTS outputs, their blocks one after the other. */
INLINE void product(const int format, const int bits, const int groups, const uint8_t *record, const Rounded *x,
                    int64_t rows, vec (*out)[ROWS_MAX]) {
    const Layout *layout = layout_of(format);
    const int64_t count = x->size / layout->weights, bytes = record_bytes(layout);
    Piece pieces[2];
    for (int64_t at = 0, block = 0; at < count; at++, record += bytes) {
        for (int64_t number = 0; number < layout->weights / BLOCK; number++, block++) {
            for (int g = 0; g < groups; g++) {
                const uint8_t *own = record + g * count * bytes;
                for (int64_t line = 0; line < piece_at(layout, 1); line += 64)
                    __builtin_prefetch(own + piece_at(layout, number) + AHEAD + line);
                read_piece(format, pieces + g, own, own + piece_at(layout, number));
            }
            multiply_rows(out, format, bits, pieces, groups, x, rows, block);
        }
    }
}

#define FORMATS(F) F(Q4_0) F(Q4_1) F(Q5_0) F(Q5_1) F(Q8_0) F(Q4_K) F(Q5_K) F(Q6_K)
#define PRODUCT(format)                                                                                                \
    static void product_##format(const uint8_t *record, int64_t groups, const Rounded *x, int64_t rows,                \
                                 vec (*out)[ROWS_MAX]) {                                                               \
        if (x->bits == 8) {                                                                                            \
            if (groups == 2) product(format, 8, 2, record, x, rows, out);                                              \
            else product(format, 8, 1, record, x, rows, out);                                                          \
        } else {                                                                                                       \
            if (groups == 2) product(format, 16, 2, record, x, rows, out);                                             \
            else product(format, 16, 1, record, x, rows, out);                                                         \
        }                                                                                                              \
    }
FORMATS(PRODUCT)

static void product_of(int64_t format, const uint8_t *record, int64_t groups, const Rounded *x, int64_t rows,
                       vec (*out)[ROWS_MAX]) {
#define CASE(format) \
    case format: product_##format(record, groups, x, rows, out); break;
    switch (format) { FORMATS(CASE) }
}
