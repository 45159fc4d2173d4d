// Vectors of REAL (float or double, by -DREAL) as wide as the machine's, and the functions of them that cells need.
#pragma once
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
#define LANES (VECTOR_BYTES / REAL_BYTES)
// Terms that are summed in one go: long sums lose digits.
#define SPAN 64
#define INLINE static inline __attribute__((always_inline))

typedef REAL real;
typedef real vec __attribute__((vector_size(VECTOR_BYTES)));
#define ZERO ((vec){0})
// The same, at any address.
typedef real loose __attribute__((vector_size(VECTOR_BYTES), aligned(REAL_BYTES), may_alias));

#if REAL_BYTES == 4
typedef int32_t bits __attribute__((vector_size(VECTOR_BYTES)));
#define MANTISSA 23
#define ONE 0x3f800000
#define SIGN INT32_MIN
// 1.5 * 2^23: a number added to it is rounded to an integer, in the lowest bits.
#define ROUNDER 12582912.0f
// The high part times any exponent is exact.
#define LN2_HIGH 0.693359375f
#define LN2_LOW -2.12194440e-4f
#define LOG2E 1.44269504088896341f
// Where tanh is 1; and what e^x is asked for at the most: it is finite there, and its reciprocal so small that it is
// flushed to zero.
#define TANH_ONE 10.0f
#define EXP_LARGEST 88.0f
#else
typedef int64_t bits __attribute__((vector_size(VECTOR_BYTES)));
#define MANTISSA 52
#define ONE 0x3ff0000000000000
#define SIGN INT64_MIN
#define ROUNDER 6755399441055744.0
#define LN2_HIGH 6.93145751953125e-1
#define LN2_LOW 1.42860682030941723212e-6
#define LOG2E 1.44269504088896340736
#define TANH_ONE 20.0
#define EXP_LARGEST 709.4
#endif

static real *allocate(long count) {
    return aligned_alloc(VECTOR_BYTES, (count * sizeof(real) + VECTOR_BYTES - 1) / VECTOR_BYTES * VECTOR_BYTES);
}

// The first `lanes` numbers at p, then zeros.
INLINE vec load(const real *p, int lanes) {
    if (lanes >= LANES) return *(const loose *)p;
    vec v = {0};
    memcpy(&v, p, lanes * sizeof(real));
    return v;
}

INLINE void store(real *p, vec v, int lanes) {
    if (lanes >= LANES) *(loose *)p = v;
    else memcpy(p, &v, lanes * sizeof(real));
}

INLINE vec choose(bits condition, vec a, vec b) {
    return (vec)((condition & (bits)a) | (~condition & (bits)b));
}

INLINE vec absolute(vec x) {
    return (vec)((bits)x & ~SIGN);
}

// +1, -1, or 0, and NaN where x is.
INLINE vec sign(vec x) {
    vec one = (vec)(((bits)x & SIGN) | (bits)((vec){0} + 1));
    return choose((x > 0) | (x < 0), one, x);
}

// A comparison with NaN is false, so that NaN stays.
INLINE vec at_most(vec x, real limit) {
    return choose(x > limit, (vec){0} + limit, x);
}

INLINE vec at_least(vec x, real limit) {
    return choose(x < limit, (vec){0} + limit, x);
}

// e^x - 1 = scale * result + (scale - 1), with scale a power of two: exact where x is small. |x| <= EXP_LARGEST.
INLINE vec expm1_scaled(vec x, vec *scale) {
    vec shifted = x * LOG2E + ROUNDER;
    vec n = shifted - ROUNDER;
    *scale = (vec)(((bits)shifted << MANTISSA) + ONE);
    vec r = x - n * LN2_HIGH;
    r = r - n * LN2_LOW;
#if REAL_BYTES == 4
    // Minimax in the relative error of e^r - 1 on |r| <= ln(2) / 2.
    vec q = r * 0.001388251578f + 0.008366520894f;
    q = q * r + 0.04166719994f;
    q = q * r + 0.1666654362f;
    q = q * r + 0.4999999815f;
#else
    // Taylor to r^13: its first term left out is 1e-17 of the result.
    vec q = r * (1 / 6227020800.0) + 1 / 479001600.0;
    q = q * r + 1 / 39916800.0;
    q = q * r + 1 / 3628800.0;
    q = q * r + 1 / 362880.0;
    q = q * r + 1 / 40320.0;
    q = q * r + 1 / 5040.0;
    q = q * r + 1 / 720.0;
    q = q * r + 1 / 120.0;
    q = q * r + 1 / 24.0;
    q = q * r + 1 / 6.0;
    q = q * r + 1 / 2.0;
#endif
    return r * r * q + r;
}

INLINE vec tanh_(vec x) {
    vec scale;
    vec p = expm1_scaled(at_most(2 * absolute(x), 2 * TANH_ONE), &scale);
    vec e = scale * p + (scale - 1);
    return (vec)((bits)(e / (e + 2)) | ((bits)x & SIGN));
}

INLINE vec sigmoid(vec x) {
    vec scale;
    vec p = expm1_scaled(at_least(at_most(-x, EXP_LARGEST), -EXP_LARGEST), &scale);
    return 1 / (1 + (scale * p + scale));
}
