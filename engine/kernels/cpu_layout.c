/* How quantised weights are laid out anew. Part of cpu_quantized.c.
 *
 * A record holds one GGUF block of each of OUTPUTS outputs: fields as below, each for these outputs in turn, and for
 * each 32 weights a piece with their bits. A piece is eight vectors of bytes, in which each output has four: vectors 2j
 * and 2j + 1 hold its weights 8j + 0, 4, 1, 5 and 8j + 2, 6, 3, 7. So weights 2i and 2i + 1 of each output, a pair,
 * stand in the low or the high bytes of the two halves of 32 bits: what both 8 and 16 bits of activations can meet.
 *
 * Of four bits, two vectors share one, the first in the lower half of each byte. The fifth bits of vector i are bit i of
 * each byte of one more; the fifth and sixth of vector i are bits 2 (i % 4) of one of two more, i / 4.
 *
 *   Q4_0  scale f16 | 4 vectors            Q4_1  scale f16, minimum f16 | 4 vectors       Q8_0  scale f16 | 8 vectors
 *   Q5_0  as Q4_0, and a vector of fifth bits            Q5_1  as Q4_1, and a vector of fifth bits
 *   Q4_K  d f16, dmin f16 | 8 x (scale u8, minimum u8, 4 vectors)
 *   Q5_K  as Q4_K, and a vector of fifth bits a piece
 *   Q6_K  d f16 | 8 x (scale i8 of the first 16, of the last 16, 4 vectors, 2 vectors of two bits)
 */

/* Where pair i stands: its vector, and whether in the high bytes of 16 bits. */
#define VECTOR_OF(i) ((i) / 4 * 2 + (i) % 2)
#define IS_HIGH(i) ((i) % 4 / 2)

typedef struct {
    int64_t weights;      /* in a GGUF block */
    int64_t block_bytes;  /* of a GGUF block */
    int64_t head, piece;  /* bytes of our record for each output: before the pieces, and of each */
} Layout;

static const Layout *layout_of(int64_t format) {
    static const Layout q4_0 = {32, 18, 2, 16}, q4_1 = {32, 20, 4, 16}, q5_0 = {32, 22, 2, 20}, q5_1 = {32, 24, 4, 20},
                        q8_0 = {32, 34, 2, 32}, q4_k = {256, 144, 4, 18}, q5_k = {256, 176, 4, 22},
                        q6_k = {256, 210, 2, 26};
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
    return (layout->head + layout->weights / BLOCK * layout->piece) * OUTPUTS;
}

/* Where a record's piece begins in it. */
static int64_t piece_at(const Layout *layout, int64_t number) {
    return (layout->head + number * layout->piece) * OUTPUTS;
}

/* Bytes of OUTPUTS outputs with weights of a size. */
static int64_t group_bytes(int64_t format, int64_t size) {
    const Layout *layout = layout_of(format);
    return size / layout->weights * record_bytes(layout);
}

/* Bytes of a weight `[outputs, size]` in our layout; 0 for a format or a size that is not known here. */
int64_t packed_bytes(int64_t format, int64_t outputs, int64_t size) {
    const Layout *layout = layout_of(format);
    if (!layout || size % layout->weights) return 0;
    return (outputs + OUTPUTS - 1) / OUTPUTS * group_bytes(format, size);
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
    if (format == Q4_1 || format == Q5_1 || format == Q4_K || format == Q5_K) memcpy(record + 2 * (OUTPUTS + output), block + 2, 2);
}

/* 32 numbers in the order that the vectors of a piece have those of an output in. */
INLINE void order(const uint8_t *numbers, uint8_t *ordered) {
    for (int k = 0; k < BLOCK; k++) ordered[4 * VECTOR_OF(k / 2) + k % 2 * 2 + IS_HIGH(k / 2)] = numbers[k];
}

static void pack_piece(int64_t format, const uint8_t *block, int64_t number, int64_t output, uint8_t *piece) {
    uint8_t numbers[BLOCK];
    numbers_of(format, block, number, numbers);
    if (format == Q4_K || format == Q5_K) {
        scale_of(block + 4, number, piece + output, piece + OUTPUTS + output);
        piece += 2 * OUTPUTS;
    } else if (format == Q6_K) {
        const uint8_t *scales = block + 192 + number / 4 * 8 + number % 4 * 2;
        piece[output] = scales[0], piece[OUTPUTS + output] = scales[1];
        piece += 2 * OUTPUTS;
    }
    uint32_t words[8], lower[4] = {0}, fifth = 0, top[2] = {0};
    order(numbers, (uint8_t *)words);
    for (int v = 0; v < 8; v++) {
        lower[v / 2] |= (words[v] & 0x0f0f0f0f) << v % 2 * 4;
        fifth |= (words[v] >> 4 & 0x01010101) << v;
        top[v / 4] |= (words[v] >> 4 & 0x03030303) << v % 4 * 2;
    }
    uint8_t *to = piece + 4 * output;
    if (format == Q8_0) {
        for (int v = 0; v < 8; v++) memcpy(to + v * VECTOR, words + v, 4);
        return;
    }
    for (int v = 0; v < 4; v++) memcpy(to + v * VECTOR, lower + v, 4);
    if (format == Q5_K || format == Q5_0 || format == Q5_1) memcpy(to + 4 * VECTOR, &fifth, 4);
    if (format == Q6_K)
        for (int v = 0; v < 2; v++) memcpy(to + (4 + v) * VECTOR, top + v, 4);
}

/* Lay out `[outputs, size]` of GGUF blocks anew. */
void pack_quantized(uint8_t *packed, const uint8_t *blocks, int64_t format, int64_t outputs, int64_t size) {
    const Layout *layout = layout_of(format);
    int64_t count = size / layout->weights, pieces = layout->weights / BLOCK, bytes = record_bytes(layout);
#pragma omp parallel for
    for (int64_t group = 0; group < (outputs + OUTPUTS - 1) / OUTPUTS; group++) {
        if ((group + 1) * OUTPUTS > outputs) memset(packed + group * count * bytes, 0, count * bytes);
        for (int64_t output = 0; output < OUTPUTS && group * OUTPUTS + output < outputs; output++) {
            const uint8_t *block = blocks + (group * OUTPUTS + output) * count * layout->block_bytes;
            for (int64_t at = 0; at < count; at++, block += layout->block_bytes) {
                uint8_t *record = packed + (group * count + at) * bytes;
                pack_head(format, block, output, record);
                for (int64_t piece = 0; piece < pieces; piece++)
                    pack_piece(format, block, piece, output, record + piece_at(layout, piece));
            }
        }
    }
}
