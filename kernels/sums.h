// The gradients of parameters with one value a unit: sums over time and the batch, (rows, UNITS, H) until the end.
//
// Long sums in one go lose digits: `span` holds the last SPAN steps, `total` all before. Rows are kept apart, so that
// the bits do not depend on which thread had which.
#pragma once
#include "vector.h"

typedef struct {
    real *span, *total;
    long width;  // of a row: UNITS * H
} Sums;

static int new_sums(Sums *sums, long rows, long width) {
    sums->width = width;
    sums->span = calloc(2 * rows * width + 1, sizeof(real));
    sums->total = sums->span + rows * width;
    return !sums->span;
}

// After about SPAN terms, for the rows that have them.
static void close_span(const Sums *sums, long first, long rows) {
    real *span = sums->span + first * sums->width, *total = sums->total + first * sums->width;
    for (long i = 0; i < rows * sums->width; i++) {
        total[i] += span[i];
        span[i] = 0;
    }
}

// The sums over all rows.
static void finish_sums(Sums *sums, long rows, long units, long hidden, real *const *d_parameters) {
    for (long i = 0; i < units * hidden; i++) {
        real sum = 0;
        for (long row = 0; row < rows; row++) sum += sums->total[row * sums->width + i];
        d_parameters[i / hidden][i % hidden] = sum;
    }
}
