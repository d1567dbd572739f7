/* Vectors for products with quantised weights: of 16 outputs for AVX512 with VNNI, of eight for AVX2 and in plain C.
 * Part of cpu_quantized.c. */

/* `few` are sums of products of bytes, four of each output at a time. Where that is the fastest, they are made in 16 bits,
 * which hold 8 vectors of weights up to 16, 4 of those up to 32 and 1 of those up to 128, with x up to 127. */
#define PRAGMA(text) _Pragma(#text)
#if OUTPUTS == 16
#define UNROLL(times) PRAGMA(GCC unroll times)
typedef __m512i pairs; /* two 16-bit numbers of each output */
typedef __m512i sums;
typedef __m512 vec;
INLINE pairs load_pairs(const void *p) { return _mm512_loadu_si512(p); }
INLINE void store_pairs(void *p, pairs v) { _mm512_storeu_si512(p, v); }
INLINE pairs low_bytes(pairs v) { return _mm512_srai_epi16(_mm512_slli_epi16(v, 8), 8); } /* with their signs */
INLINE pairs high_bytes(pairs v) { return _mm512_srai_epi16(v, 8); }
INLINE pairs masked(pairs v, int bits) { return _mm512_and_si512(v, _mm512_set1_epi16((short)bits)); }
INLINE pairs right(pairs v, int by) { return _mm512_srli_epi16(v, (unsigned)by); }
INLINE pairs left(pairs v, int by) { return _mm512_slli_epi16(v, (unsigned)by); }
INLINE pairs both(pairs a, pairs b) { return _mm512_or_si512(a, b); }
INLINE pairs less(pairs v, int by) { return _mm512_sub_epi16(v, _mm512_set1_epi16((short)by)); }
INLINE pairs less_bytes(pairs v, int by) { return _mm512_sub_epi8(v, _mm512_set1_epi8((char)by)); }
INLINE sums no_sums(void) { return _mm512_setzero_si512(); }
INLINE pairs word(int32_t x) { return _mm512_set1_epi32(x); } /* for all outputs */
INLINE sums add_products(sums s, pairs w, pairs x) { return _mm512_dpwssd_epi32(s, w, x); }
#define FEW_HOLD_ALL 1
typedef sums few;
INLINE few no_few(void) { return _mm512_setzero_si512(); }
INLINE few add_bytes(few s, pairs w, pairs x) { return _mm512_dpbusd_epi32(s, w, x); }
INLINE few add_signed_bytes(few s, pairs w, pairs x) {
    pairs turned = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w), _mm512_setzero_si512(), x);
    return add_bytes(s, _mm512_abs_epi8(w), turned);
}
INLINE sums as_sums(few s) { return s; }
INLINE sums together(sums a, sums b) { return _mm512_add_epi32(a, b); }
INLINE vec as_float(sums s) { return _mm512_cvtepi32_ps(s); }
INLINE vec zero(void) { return _mm512_setzero_ps(); }
INLINE vec all(float x) { return _mm512_set1_ps(x); }
INLINE vec times(vec a, vec b) { return _mm512_mul_ps(a, b); }
INLINE vec plus_product(vec s, vec a, vec b) { return _mm512_fmadd_ps(a, b, s); }
INLINE vec halves(const void *p) { return _mm512_cvtph_ps(_mm256_loadu_si256(p)); }
INLINE vec unsigned_bytes(const void *p) { return as_float(_mm512_cvtepu8_epi32(_mm_loadu_si128(p))); }
INLINE vec signed_bytes(const void *p) { return as_float(_mm512_cvtepi8_epi32(_mm_loadu_si128(p))); }
INLINE void store(float *p, vec v) { _mm512_storeu_ps(p, v); }
#elif defined(__AVX2__)
#define UNROLL(times) PRAGMA(GCC unroll times)
typedef __m256i pairs; /* two 16-bit numbers of each output */
typedef __m256i sums;
typedef __m256 vec;
INLINE pairs load_pairs(const void *p) { return _mm256_loadu_si256(p); }
INLINE void store_pairs(void *p, pairs v) { _mm256_storeu_si256(p, v); }
INLINE pairs low_bytes(pairs v) { return _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8); } /* with their signs */
INLINE pairs high_bytes(pairs v) { return _mm256_srai_epi16(v, 8); }
INLINE pairs masked(pairs v, int bits) { return _mm256_and_si256(v, _mm256_set1_epi16((short)bits)); }
INLINE pairs right(pairs v, int by) { return _mm256_srli_epi16(v, by); }
INLINE pairs left(pairs v, int by) { return _mm256_slli_epi16(v, by); }
INLINE pairs both(pairs a, pairs b) { return _mm256_or_si256(a, b); }
INLINE pairs less(pairs v, int by) { return _mm256_sub_epi16(v, _mm256_set1_epi16((short)by)); }
INLINE pairs less_bytes(pairs v, int by) { return _mm256_sub_epi8(v, _mm256_set1_epi8((char)by)); }
INLINE sums no_sums(void) { return _mm256_setzero_si256(); }
INLINE pairs word(int32_t x) { return _mm256_set1_epi32(x); } /* for all outputs */
INLINE sums add_products(sums s, pairs w, pairs x) {
#if defined(__AVXVNNI__)
    return _mm256_dpwssd_avx_epi32(s, w, x);
#elif defined(__AVX512VNNI__) && defined(__AVX512VL__)
    return _mm256_dpwssd_epi32(s, w, x);
#else
    return _mm256_add_epi32(s, _mm256_madd_epi16(w, x));
#endif
}
#if defined(__AVXVNNI__) || (defined(__AVX512VNNI__) && defined(__AVX512VL__))
#define FEW_HOLD_ALL 1
typedef sums few;
INLINE few add_bytes(few s, pairs w, pairs x) {
#ifdef __AVXVNNI__
    return _mm256_dpbusd_avx_epi32(s, w, x);
#else
    return _mm256_dpbusd_epi32(s, w, x);
#endif
}
INLINE sums as_sums(few s) { return s; }
#else
#define FEW_HOLD_ALL 0
typedef pairs few;
INLINE few add_bytes(few s, pairs w, pairs x) { return _mm256_add_epi16(s, _mm256_maddubs_epi16(w, x)); }
INLINE sums as_sums(few s) { return _mm256_madd_epi16(s, _mm256_set1_epi16(1)); }
#endif
INLINE few no_few(void) { return _mm256_setzero_si256(); }
INLINE few add_signed_bytes(few s, pairs w, pairs x) {
    return add_bytes(s, _mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
}
INLINE sums together(sums a, sums b) { return _mm256_add_epi32(a, b); }
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
#define UNROLL(times) /* the compiler would take a minute over what it makes of that */
#pragma GCC diagnostic ignored "-Wpsabi" /* all of these are inlined */
typedef int16_t pairs __attribute__((vector_size(32)));
typedef int32_t sums __attribute__((vector_size(32)));
typedef float vec __attribute__((vector_size(32)));
typedef uint16_t unsigned_pairs __attribute__((vector_size(32)));
typedef int8_t bytes32 __attribute__((vector_size(32)));
typedef int8_t bytes8 __attribute__((vector_size(8)));
typedef uint8_t unsigned_bytes8 __attribute__((vector_size(8)));
#define LOADED(type, p) ({ type loaded; memcpy(&loaded, p, sizeof loaded); loaded; })
INLINE pairs load_pairs(const void *p) { return LOADED(pairs, p); }
INLINE void store_pairs(void *p, pairs v) { memcpy(p, &v, sizeof v); }
INLINE pairs low_bytes(pairs v) { return v << 8 >> 8; }
INLINE pairs high_bytes(pairs v) { return v >> 8; }
INLINE pairs masked(pairs v, int bits) { return v & (int16_t)bits; }
INLINE pairs right(pairs v, int by) { return (pairs)((unsigned_pairs)v >> (uint16_t)by); }
INLINE pairs left(pairs v, int by) { return (pairs)((unsigned_pairs)v << (uint16_t)by); }
INLINE pairs both(pairs a, pairs b) { return a | b; }
INLINE pairs less(pairs v, int by) { return v - (int16_t)by; }
INLINE pairs less_bytes(pairs v, int by) { return (pairs)((bytes32)v - (int8_t)by); }
INLINE sums no_sums(void) { return (sums){0}; }
INLINE pairs word(int32_t x) { return (pairs)(sums){x, x, x, x, x, x, x, x}; }
INLINE sums lower(pairs v) { return (sums)v << 16 >> 16; }
INLINE sums upper(pairs v) { return (sums)v >> 16; }
INLINE sums add_products(sums s, pairs w, pairs x) { return s + lower(w) * lower(x) + upper(w) * upper(x); }
#define FEW_HOLD_ALL 0
typedef pairs few;
INLINE few no_few(void) { return (pairs){0}; }
INLINE few add_bytes(few s, pairs w, pairs x) { return s + masked(w, 255) * low_bytes(x) + right(w, 8) * high_bytes(x); }
INLINE few add_signed_bytes(few s, pairs w, pairs x) {
    return s + low_bytes(w) * low_bytes(x) + high_bytes(w) * high_bytes(x);
}
INLINE sums as_sums(few s) { return lower(s) + upper(s); }
INLINE sums together(sums a, sums b) { return a + b; }
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
