// The time loop of a diagonal cell: every unit of every row is a recurrence of its own.
//
// A cell defines, before it includes this file, STATE_NAMES and UNIT_NAMES, and after it `forward_step` and
// `backward_step` (see indrnn/cpu.c, unicornn/cpu.c, linoss/cpu.c). It is declared REVERSIBLE where its step can be
// undone, INCREMENTAL where its second state is what the first has grown by in the step.
//
// These loops wait for memory, so the walk through it is what counts: each thread goes through time with some whole
// rows at once, BLOCK numbers that lie side by side (pages of memory, and not slivers of them), and with a state for
// each of them in the L1 cache. The next step's numbers are asked for in advance: the processor does not guess across
// pages.
#pragma once
#ifdef PHASES
#error "declaration: cpu.c is diagonal, which has no products"
#endif
#include "declaration.h"
#include "sums.h"
#include "threads.h"
#include "vector.h"

NAMED(STATES, STATE_NAMES);
NAMED(UNITS, UNIT_NAMES);

#define BLOCK (4096 / REAL_BYTES)

// LANES units of one row at one step.
typedef struct {
    vec unit[UNITS];  // parameters
    vec pre;          // backward: only where REVERSIBLE or INCREMENTAL
    vec after;        // backward: the first state after the step, where neither
    vec state[STATES];    // forward: before, then after the step; backward: before, where REVERSIBLE after, then before
    vec d_state[STATES];  // in: gradients of the states after the step; out: before it
    vec d_pre;
    vec d_unit[UNITS];  // to be added to
} Step;

INLINE void forward_step(Step *s);
INLINE void backward_step(Step *s);

typedef struct {
    long steps, batch, hidden, vectors, anchor;
    const real *pre, *const *parameters, *const *state, *g_y, *const *g_final;
    real *y, *const *final, *tape, *d_pre, *const *d_state;
    Sums sums;
    int failed;
} Loop;

// A thread's states and their gradients: [state][row of the block][vector of units][LANES].
typedef struct {
    real *state[STATES], *d_state[STATES];
} Block;

// True where there is memory for it.
static int new_block(Loop *loop, long rows, Block *block) {
    long size = rows * loop->vectors * LANES;
    real *memory = allocate(2 * STATES * size);
    for (int i = 0; i < STATES && memory; i++) {
        block->state[i] = memory + 2 * i * size;
        block->d_state[i] = block->state[i] + size;
    }
    if (!memory) loop->failed = 1;
    return !!memory;
}

INLINE long block_rows(const Loop *loop, long left) {
    long rows = loop->hidden < BLOCK ? BLOCK / loop->hidden : 1;
    return rows < left ? rows : left;
}

// Rows of a tensor whose rows are `stride` apart, to or from a block's.
static void read_rows(const Loop *loop, long rows, real *block, const real *from, long stride) {
    for (long r = 0; r < rows; r++)
        for (long v = 0; v < loop->vectors; v++, block += LANES)
            *(vec *)block = load(from + r * stride + v * LANES, loop->hidden - v * LANES);
}

static void write_rows(const Loop *loop, long rows, const real *block, real *to, long stride) {
    for (long r = 0; r < rows; r++)
        for (long v = 0; v < loop->vectors; v++, block += LANES)
            store(to + r * stride + v * LANES, *(const vec *)block, loop->hidden - v * LANES);
}

// Where the states after step t are stored, or 0. The last ones are the final states.
INLINE real *anchored(const Loop *loop, long t, long row) {
    if (!loop->anchor || (t + 1) % loop->anchor || t + 1 == loop->steps) return 0;
    return loop->tape + (((t + 1) / loop->anchor - 1) * loop->batch + row) * STATES * loop->hidden;
}

INLINE void forward_units(const Loop *loop, const Block *block, long at, long r, long v, int lanes) {
    long own = (r * loop->vectors + v) * LANES;
    Step s;
    __builtin_prefetch(loop->pre + at + loop->batch * loop->hidden);
    for (int i = 0; i < UNITS; i++) s.unit[i] = load(loop->parameters[i] + v * LANES, lanes);
    for (int i = 0; i < STATES; i++) s.state[i] = *(vec *)(block->state[i] + own);
    s.pre = load(loop->pre + at, lanes);
    forward_step(&s);
    for (int i = 0; i < STATES; i++) *(vec *)(block->state[i] + own) = s.state[i];
    store(loop->y + at, s.state[0], lanes);
}

static void forward_rows(void *context, long first, long last) {
    Loop *loop = context;
    long hidden = loop->hidden;
    Block block;
    if (!new_block(loop, block_rows(loop, last - first), &block)) return;
    for (long rows; first < last; first += rows) {
        rows = block_rows(loop, last - first);
        for (int i = 0; i < STATES; i++) read_rows(loop, rows, block.state[i], loop->state[i] + first * hidden, hidden);
        for (long t = 0; t < loop->steps; t++) {
            for (long r = 0; r < rows; r++) {
                long at = (t * loop->batch + first + r) * hidden, v = 0;
                for (; (v + 1) * LANES <= hidden; v++) forward_units(loop, &block, at + v * LANES, r, v, LANES);
                if (v < loop->vectors) forward_units(loop, &block, at + v * LANES, r, v, hidden - v * LANES);
            }
            real *anchor = anchored(loop, t, first);
            for (int i = 0; i < STATES && anchor; i++)
                write_rows(loop, rows, block.state[i], anchor + i * hidden, STATES * hidden);
        }
        for (int i = 0; i < STATES; i++)
            write_rows(loop, rows, block.state[i], loop->final[i] + first * hidden, hidden);
    }
    free(block.state[0]);
}

INLINE void backward_units(const Loop *loop, const Block *block, long at, long row, long r, long v, int lanes) {
    long own = (r * loop->vectors + v) * LANES, step = loop->batch * loop->hidden;
    real *d_units = loop->sums.span + row * UNITS * loop->hidden + v * LANES;
    Step s;
    for (int i = 0; i < UNITS; i++) s.unit[i] = load(loop->parameters[i] + v * LANES, lanes);
    for (int i = 0; i < UNITS; i++) s.d_unit[i] = load(d_units + i * loop->hidden, lanes);
    for (int i = 0; i < STATES; i++) s.d_state[i] = *(vec *)(block->d_state[i] + own);
#ifdef REVERSIBLE
    __builtin_prefetch(loop->pre + at - step);
    for (int i = 0; i < STATES; i++) s.state[i] = *(vec *)(block->state[i] + own);
    s.pre = load(loop->pre + at, lanes);
#elif defined INCREMENTAL
    __builtin_prefetch(loop->pre + at - step);
    __builtin_prefetch(loop->y + at - 3 * step);
    s.pre = load(loop->pre + at, lanes);
    s.state[0] = load(at < step ? loop->state[0] + at : loop->y + at - step, lanes);
    if (at < step) s.state[1] = load(loop->state[1] + at, lanes);
    else s.state[1] = s.state[0] - load(at < 2 * step ? loop->state[0] + at - step : loop->y + at - 2 * step, lanes);
#else
    __builtin_prefetch(loop->y + at - 2 * step);
    s.after = load(loop->y + at, lanes);
    s.state[0] = load(at < step ? loop->state[0] + at : loop->y + at - step, lanes);
#endif
    if (loop->g_y) {
        __builtin_prefetch(loop->g_y + at - step);
        s.d_state[0] += load(loop->g_y + at, lanes);
    }
    backward_step(&s);
    for (int i = 0; i < UNITS; i++) store(d_units + i * loop->hidden, s.d_unit[i], lanes);
    for (int i = 0; i < STATES; i++) *(vec *)(block->d_state[i] + own) = s.d_state[i];
#ifdef REVERSIBLE
    for (int i = 0; i < STATES; i++) *(vec *)(block->state[i] + own) = s.state[i];
#endif
    store(loop->d_pre + at, s.d_pre, lanes);
}

static void backward_rows(void *context, long first, long last) {
    Loop *loop = context;
    long hidden = loop->hidden;
    Block block;
    if (!new_block(loop, block_rows(loop, last - first), &block)) return;
    for (long rows; first < last; first += rows) {
        rows = block_rows(loop, last - first);
        for (int i = 0; i < STATES; i++) {
            if (loop->g_final[i]) read_rows(loop, rows, block.d_state[i], loop->g_final[i] + first * hidden, hidden);
            else memset(block.d_state[i], 0, rows * loop->vectors * LANES * sizeof(real));
#ifdef REVERSIBLE
            read_rows(loop, rows, block.state[i], loop->final[i] + first * hidden, hidden);
#endif
        }
        for (long t = loop->steps - 1; t >= 0; t--) {
#ifdef REVERSIBLE
            real *anchor = anchored(loop, t, first);
            for (int i = 0; i < STATES && anchor; i++)
                read_rows(loop, rows, block.state[i], anchor + i * hidden, STATES * hidden);
#endif
            for (long r = 0; r < rows; r++) {
                long row = first + r, at = (t * loop->batch + row) * hidden, v = 0;
                for (; (v + 1) * LANES <= hidden; v++) backward_units(loop, &block, at + v * LANES, row, r, v, LANES);
                if (v < loop->vectors) backward_units(loop, &block, at + v * LANES, row, r, v, hidden - v * LANES);
            }
            if (t % SPAN == 0) close_span(&loop->sums, first, rows);
        }
        for (int i = 0; i < STATES; i++)
            write_rows(loop, rows, block.d_state[i], loop->d_state[i] + first * hidden, hidden);
    }
    free(block.state[0]);
}

int forward(long threads, long steps, long batch, long hidden, long anchor, long channels, const real *pre,
            const real *weight, const real *bias, const real *const *parameters, const real *const *state, real *y, real *const *final, real *tape) {
    Loop loop = {.steps = steps, .batch = batch, .hidden = hidden, .vectors = (hidden + LANES - 1) / LANES,
                 .anchor = anchor, .pre = pre, .parameters = parameters, .state = state, .y = y, .final = final,
                 .tape = tape};
    use_large_pages(y, steps * batch * hidden * sizeof(real));
    parallel(threads, batch, forward_rows, &loop);
    return loop.failed;
}

int backward(long threads, long steps, long batch, long hidden, long anchor, long channels, const real *pre,
             const real *const *parameters, const real *const *state, const real *y, const real *const *final,
             const real *tape, const real *g_y, const real *const *g_final, real *d_pre, real *d_weight,
             real *d_bias, real *const *d_parameters, real *const *d_state) {
    Loop loop = {.steps = steps, .batch = batch, .hidden = hidden, .vectors = (hidden + LANES - 1) / LANES,
                 .anchor = anchor, .pre = pre, .parameters = parameters, .state = state, .y = (real *)y,
                 .final = (real *const *)final, .tape = (real *)tape, .g_y = g_y, .g_final = g_final, .d_pre = d_pre,
                 .d_state = d_state};
    use_large_pages(d_pre, steps * batch * hidden * sizeof(real));
    loop.failed = new_sums(&loop.sums, batch, UNITS * hidden);
    if (!loop.failed) parallel(threads, batch, backward_rows, &loop);
    if (!loop.failed) finish_sums(&loop.sums, batch, UNITS, hidden, d_parameters);
    free(loop.sums.span);
    return loop.failed;
}
