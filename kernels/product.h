// The product of a block of rows with a packed matrix: all of it in vector registers.
#pragma once
#include "vector.h"

// The accumulators of a product are MOST_ROWS x WIDE vectors, those of a weight gradient GRADIENT_ROWS x GRADIENT_WIDE.
#define WIDE 2
#if defined(__AVX512F__)
#define MOST_ROWS 14
#define GRADIENT_ROWS 8
#define GRADIENT_WIDE 2
#elif defined(__aarch64__)
#define MOST_ROWS 12
#define GRADIENT_ROWS 8
#define GRADIENT_WIDE 2
#else
#define MOST_ROWS 6
#define GRADIENT_ROWS 4
#define GRADIENT_WIDE 3
#endif

// out[vector][row] = or += sum_k in[k][row] weights[k][vector], for one panel of `wide` (at most WIDE) vectors. k runs
// over `inputs` blocks of `hidden`; number k is at in[k / LANES * rows * LANES + row * LANES + k % LANES] in its block.
// It is summed SPAN terms at a time.
INLINE void product_panel(const int rows, const real *in, const real *weights, real *out, int wide, int accumulate,
                          int inputs, long hidden) {
    for (int i = 0; i < inputs; i++)
        for (long begin = 0; begin < hidden; begin += SPAN) {
            vec sum[MOST_ROWS][WIDE];
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
                for (int v = 0; v < WIDE; v++) sum[r][v] = (vec){0};
            long left = hidden - begin < SPAN ? hidden - begin : SPAN;
            for (; left > 0; left -= LANES, in += rows * LANES)
                for (int k = 0; k < (left < LANES ? left : LANES); k++, weights += WIDE * LANES) {
                    vec w[WIDE];
#pragma GCC unroll 4
                    for (int v = 0; v < WIDE; v++) w[v] = *(const vec *)(weights + v * LANES);
#pragma GCC unroll 16
                    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
                        for (int v = 0; v < WIDE; v++) sum[r][v] += in[r * LANES + k] * w[v];
                }
            int first = !accumulate && i == 0 && begin == 0;
#pragma GCC unroll 4
            for (int v = 0; v < WIDE; v++)
                if (v < wide) {
                    vec *to = (vec *)(out + v * rows * LANES);
#pragma GCC unroll 16
                    for (int r = 0; r < rows; r++) to[r] = first ? sum[r][v] : to[r] + sum[r][v];
                }
        }
}

// The number of rows is a constant in each of these, for the accumulators to be registers.
#define PRODUCT(rows)                                                                                            \
    static void product_##rows(const real *in, const real *weights, real *out, int wide, int accumulate, int inputs, \
                               long hidden) {                                                                    \
        product_panel(rows, in, weights, out, wide, accumulate, inputs, hidden);                                 \
    }
PRODUCT(1) PRODUCT(2) PRODUCT(3) PRODUCT(4) PRODUCT(5) PRODUCT(6)
#if MOST_ROWS > 6
PRODUCT(7) PRODUCT(8) PRODUCT(9) PRODUCT(10) PRODUCT(11) PRODUCT(12)
#endif
#if MOST_ROWS > 12
PRODUCT(13) PRODUCT(14)
#endif
static void (*const products[])(const real *, const real *, real *, int, int, int, long) = {
    0, product_1, product_2, product_3, product_4, product_5, product_6,
#if MOST_ROWS > 6
    product_7, product_8, product_9, product_10, product_11, product_12,
#endif
#if MOST_ROWS > 12
    product_13, product_14,
#endif
};

// The balanced number of blocks, for none to be much smaller than the others.
INLINE int block_rows(long left) {
    long blocks = (left + MOST_ROWS - 1) / MOST_ROWS;
    return (left + blocks - 1) / blocks;
}
