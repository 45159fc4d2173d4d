// The time loop of a dense cell: products of states with matrices, then something pointwise.
//
// A cell defines, before it includes this file, STATE_NAMES, GATE_NAMES, UNIT_NAMES and TAPE_NAMES, which begins with
// all states but the first, PRODUCT_NAMES where the gradient of the products is not that of pre, and after it
// `forward_step` and `backward_step` (see cornn/cpu.c).
//
// pre is given, or it is the product of inputs of a few channels, computed in the loop: `channels` is 0 or their number.
//
// Each thread runs the whole loop on its own rows of the batch, a block of up to MOST_ROWS at a time: what belongs to a
// block stays in the L1 cache, the packed matrices in L2. A block keeps its states as [state][vector of units][row]
// [LANES], so that the pointwise part writes whole vectors and the product finds its rows at constant offsets.
#pragma once
#ifndef PHASES
#error "declaration: cpu.c is dense, which needs products"
#endif
#include "declaration.h"
#include "product.h"
#include "sums.h"
#include "threads.h"
#include "vector.h"

NAMED(STATES, STATE_NAMES);
NAMED(GATES, GATE_NAMES);
NAMED(UNITS, UNIT_NAMES);
NAMED(TAPE, TAPE_NAMES);
#ifdef PRODUCT_NAMES
NAMED(PRODUCTS, PRODUCT_NAMES);
#else
_Static_assert(PRODUCTS == GATES, "declaration: PRODUCTS=" TEXT(PRODUCTS) " but cpu.c has one for each gate");
#endif

// Rows of a part of the batch.
#define PART_ROWS (MOST_ROWS > 12 ? 7 : 6)
#define MOST_PARTS 16
// Steps of the backward pass that are kept in the cache, for the weight gradient to be taken from there.
#define SEGMENT 16
// Vectors of the gradient of the inputs' matrix that are summed at once.
#define INPUT_TILE 4

// `inputs` states from first_state on, times a matrix (outputs * H, inputs * H), are `outputs` products from
// first_product on. Phase 0 reads the states before the step, a later one those that the phase before it has left.
typedef struct {
    int first_state, inputs, first_product, outputs;
} Phase;

static const Phase phases[PHASES] = {PHASE_TABLE};

// LANES units of one row at one step. What a phase does not write, the next one finds.
typedef struct {
    vec unit[UNITS + 1];  // parameters with one value a unit
    vec product[PRODUCTS];
    vec pre[GATES];
    vec state[STATES];     // forward: before, then after the phase; backward: before the step
    vec tape[TAPE];        // forward: to be written; backward: to be read
    vec d_state[STATES];   // in: gradients of the states after the phase; out: before it, the products left out
    vec d_product[PRODUCTS];
#ifdef PRODUCT_NAMES
    vec d_pre[GATES];  // otherwise it is d_product
#endif
    vec d_unit[UNITS + 1];  // to be added to
} Step;

INLINE void forward_step(int phase, Step *s);
INLINE void backward_step(int phase, Step *s);

typedef struct {
    long steps, batch, hidden, vectors, parts, channels;
    const real *pre, *x, *const *parameters, *const *state, *g_y, *const *g_final;
    real *y, *const *final, *tape, *d_pre, *const *d_parameters, *const *d_state;
    real *packed[PHASES];
    real *gradients[PHASES];  // of the matrices, of each part of the batch
    real *input, *d_input;    // the inputs' matrix, packed, and its gradient, of each part
    Sums sums;                // for each part
    int failed;
} Loop;

// All panels: `in` has `inputs` blocks of H, `out` has `outputs`.
static void product(const Loop *loop, int rows, const real *in, const real *weights, real *out, int accumulate,
                    int inputs, int outputs) {
    long panel = inputs * loop->hidden * WIDE * LANES, vectors = outputs * loop->vectors;
    for (long v = 0; v < vectors; v += WIDE, weights += panel, out += WIDE * rows * LANES)
        products[rows](in, weights, out, vectors - v < WIDE ? vectors - v : WIDE, accumulate, inputs, loop->hidden);
}

// The matrix of a phase as `product` reads it: [panel of outputs][k over inputs * H][WIDE * LANES], zeros beside H.
// Backward, the product is with the transposed matrix.
static int pack(Loop *loop, int backward) {
    long hidden = loop->hidden, vectors = loop->vectors;
    for (int p = 0; p < PHASES; p++) {
        int inputs = backward ? phases[p].outputs : phases[p].inputs;
        int outputs = backward ? phases[p].inputs : phases[p].outputs;
        long panels = (outputs * vectors + WIDE - 1) / WIDE, depth = inputs * hidden;
        long across = backward ? 1 : phases[p].inputs * hidden, along = backward ? phases[p].inputs * hidden : 1;
        real *to = loop->packed[p] = allocate(panels * depth * WIDE * LANES);
        if (!to) return 1;
        for (long panel = 0; panel < panels; panel++)
            for (long k = 0; k < depth; k++)
                for (long column = panel * WIDE * LANES; column < (panel + 1) * WIDE * LANES; column++) {
                    long block = column / (vectors * LANES), unit = column % (vectors * LANES);
                    int inside = block < outputs && unit < hidden;
                    *to++ = inside ? loop->parameters[p][(block * hidden + unit) * across + k * along] : 0;
                }
    }
    return 0;
}

static void release(Loop *loop) {
    for (int p = 0; p < PHASES; p++) free(loop->packed[p]), free(loop->gradients[p]);
    free(loop->input), free(loop->d_input);
    free(loop->sums.span);
}

// Where the states after a step are kept: the first is the sequence, the others are on the tape.
INLINE real *kept(const Loop *loop, int state, long t, long row) {
    long at = t * loop->batch + row, hidden = loop->hidden;
    return state == 0 ? loop->y + at * hidden : loop->tape + (at * TAPE + state - 1) * hidden;
}

INLINE const real *kept_before(const Loop *loop, int state, long t, long row) {
    return t == 0 ? loop->state[state] + row * loop->hidden : kept(loop, state, t - 1, row);
}

// The inputs' matrix and bias as [channel, then the bias][gate][vector], in whole tiles of vectors.
#define COLUMNS(loop) ((GATES * (loop)->vectors + INPUT_TILE - 1) / INPUT_TILE * INPUT_TILE)

static int pack_input(Loop *loop, const real *weight, const real *bias) {
    long hidden = loop->hidden, vectors = loop->vectors, channels = loop->channels;
    real *to = loop->input = allocate((channels + 1) * COLUMNS(loop) * LANES);
    if (!to) return 1;
    memset(to, 0, (channels + 1) * COLUMNS(loop) * LANES * sizeof(real));
    for (long c = 0; c <= channels; c++, to += COLUMNS(loop) * LANES)
        for (long n = 0; n < GATES * hidden; n++)
            to[n / hidden * vectors * LANES + n % hidden] = c < channels ? weight[n * channels + c] : bias ? bias[n] : 0;
    return 0;
}

INLINE vec drive(const Loop *loop, long at, int gate, long v, int lanes) {
    long hidden = loop->hidden, channels = loop->channels, column = gate * loop->vectors + v;
    if (!channels) {
        const real *pre = loop->pre + (at * GATES + gate) * hidden + v * LANES;
        __builtin_prefetch(pre + loop->batch * GATES * hidden);
        return load(pre, lanes);
    }
    vec sum = *(const vec *)(loop->input + (channels * COLUMNS(loop) + column) * LANES);
    for (long c = 0; c < channels; c++)
        sum += loop->x[at * channels + c] * *(const vec *)(loop->input + (c * COLUMNS(loop) + column) * LANES);
    return sum;
}

INLINE void forward_units(const Loop *loop, int phase, long t, long first, int rows, real *states, const real *product,
                          int r, long v, int lanes) {
    long hidden = loop->hidden, vectors = loop->vectors, row = first + r, u = v * LANES;
    real *tape = loop->tape + (t * loop->batch + row) * TAPE * hidden + u;
    Step s;
    for (int i = 0; i < UNITS; i++) s.unit[i] = load(loop->parameters[PHASES + i] + u, lanes);
    for (int i = 0; i < PRODUCTS; i++) s.product[i] = *(vec *)(product + ((i * vectors + v) * rows + r) * LANES);
    for (int i = 0; i < GATES; i++) s.pre[i] = drive(loop, t * loop->batch + row, i, v, lanes);
    for (int i = 0; i < STATES; i++) s.state[i] = *(vec *)(states + ((i * vectors + v) * rows + r) * LANES);
    if (phase > 0)
        for (int i = 0; i < TAPE; i++) s.tape[i] = load(tape + i * hidden, lanes);
    forward_step(phase, &s);
    for (int i = 0; i < STATES; i++) *(vec *)(states + ((i * vectors + v) * rows + r) * LANES) = s.state[i];
    for (int i = 1; i < STATES; i++) s.tape[i - 1] = s.state[i];
    for (int i = 0; i < TAPE; i++) store(tape + i * hidden, s.tape[i], lanes);
    if (phase == PHASES - 1) store(kept(loop, 0, t, row) + u, s.state[0], lanes);
}

INLINE void forward_phase(const Loop *loop, int phase, long t, long first, int rows, real *states, real *products) {
    long hidden = loop->hidden, vectors = loop->vectors;
    const Phase *p = &phases[phase];
    product(loop, rows, states + p->first_state * vectors * rows * LANES, loop->packed[phase],
            products + p->first_product * vectors * rows * LANES, 0, p->inputs, p->outputs);
    for (int r = 0; r < rows; r++) {
        long v = 0;
        for (; (v + 1) * LANES <= hidden; v++)
            forward_units(loop, phase, t, first, rows, states, products, r, v, LANES);
        if (v < vectors) forward_units(loop, phase, t, first, rows, states, products, r, v, hidden - v * LANES);
    }
}

static void forward_rows(void *context, long first, long last) {
    Loop *loop = context;
    long hidden = loop->hidden, vectors = loop->vectors, block = MOST_ROWS * vectors * LANES;
    real *states = allocate((STATES + PRODUCTS) * block), *products = states + STATES * block;
    if (!states) {
        loop->failed = 1;
        return;
    }
    for (int rows; first < last; first += rows) {
        rows = block_rows(last - first);
        for (int i = 0; i < STATES; i++)
            for (long v = 0; v < vectors; v++)
                for (int r = 0; r < rows; r++)
                    *(vec *)(states + ((i * vectors + v) * rows + r) * LANES) =
                        load(loop->state[i] + (first + r) * hidden + v * LANES, hidden - v * LANES);
        for (long t = 0; t < loop->steps; t++) {
            forward_phase(loop, 0, t, first, rows, states, products);
            if (PHASES > 1) forward_phase(loop, PHASES - 1, t, first, rows, states, products);
        }
        for (int i = 0; i < STATES; i++)
            for (int r = 0; r < rows; r++)
                memcpy(loop->final[i] + (first + r) * hidden, kept(loop, i, loop->steps - 1, first + r),
                       hidden * sizeof(real));
    }
    free(states);
}

// The gradients of the weights are summed over time and the rows of a part of the batch, then over the parts. Parts
// depend on the batch alone, so that any number of threads gives the same bits; their number is even, for two threads.
static long count_parts(long batch) {
    long parts = (batch + 2 * PART_ROWS - 1) / (2 * PART_ROWS) * 2;
    if (parts > MOST_PARTS) parts = MOST_PARTS;
    return parts < batch ? parts : batch;
}

// What a segment keeps of a step of a block: d_product, then for each phase the states that it read, then d_pre where it
// is not d_product, all as [vector][row][LANES]. The last panel or tile of a gradient may look beyond, for columns that
// nobody reads.
#ifdef PRODUCT_NAMES
#define D_PRE (PRODUCTS + PHASES * STATES)
#define BLOCKS (D_PRE + GATES)
#else
#define D_PRE 0
#define BLOCKS (PRODUCTS + PHASES * STATES)
#endif
INLINE long slot_size(const Loop *loop, int rows) {
    return (BLOCKS * loop->vectors + GRADIENT_WIDE + GRADIENT_ROWS + INPUT_TILE) * rows * LANES;
}

INLINE void backward_units(const Loop *loop, int phase, long t, long part, long first, int rows, real *d_states,
                           real *slot, long v, int lanes) {
    long hidden = loop->hidden, vectors = loop->vectors, u = v * LANES;
    real *d_units = loop->sums.span + part * UNITS * hidden + u;
    Step s;
    for (int i = 0; i < UNITS; i++) s.unit[i] = load(loop->parameters[PHASES + i] + u, lanes);
    for (int i = 0; i < UNITS; i++) s.d_unit[i] = load(d_units + i * hidden, lanes);
    for (int r = 0; r < rows; r++) {
        long row = first + r, at = t * loop->batch + row;
#define OF(blocks, i) *(vec *)((blocks) + (((i) * vectors + v) * rows + r) * LANES)
        for (int i = 0; i < STATES; i++) s.state[i] = load(kept_before(loop, i, t, row) + u, lanes);
        for (int i = 0; i < TAPE; i++) s.tape[i] = load(loop->tape + (at * TAPE + i) * hidden + u, lanes);
        if (phase == PHASES - 1) {
            // What the next step reads: waiting for it took a tenth of a coRNN's backward pass.
            for (int i = 0; i < STATES; i++) __builtin_prefetch(kept(loop, i, t - 2, row) + u);
            for (int i = STATES - 1; i < TAPE; i++)
                __builtin_prefetch(loop->tape + ((at - loop->batch) * TAPE + i) * hidden + u);
        }
        for (int i = 0; i < STATES; i++) s.d_state[i] = OF(d_states, i);
        if (phase < PHASES - 1)
            for (int i = 0; i < PRODUCTS; i++) s.d_product[i] = OF(slot, i);
        else if (loop->g_y)
            s.d_state[0] += load(loop->g_y + at * hidden + u, lanes);
        for (int i = phases[phase].first_state; i < phases[phase].first_state + phases[phase].inputs; i++)
            OF(slot, PRODUCTS + phase * STATES + i) =
                phase == 0 ? s.state[i] : load(kept(loop, i, t, row) + u, lanes);
        backward_step(phase, &s);
        for (int i = 0; i < STATES; i++) OF(d_states, i) = s.d_state[i];
        for (int i = 0; i < PRODUCTS; i++) OF(slot, i) = s.d_product[i];
#ifdef PRODUCT_NAMES
        for (int i = 0; i < GATES; i++) OF(slot, D_PRE + i) = s.d_pre[i];
#endif
        if (phase == 0 && loop->d_pre)
            for (int i = 0; i < GATES; i++) store(loop->d_pre + (at * GATES + i) * hidden + u, OF(slot, D_PRE + i), lanes);
#undef OF
    }
    for (int i = 0; i < UNITS; i++) store(d_units + i * hidden, s.d_unit[i], lanes);
}

INLINE void backward_phase(const Loop *loop, int phase, long t, long part, long first, int rows, real *d_states,
                           real *slot) {
    long hidden = loop->hidden, vectors = loop->vectors, v = 0;
    const Phase *p = &phases[phase];
    for (; (v + 1) * LANES <= hidden; v++)
        backward_units(loop, phase, t, part, first, rows, d_states, slot, v, LANES);
    if (v < vectors) backward_units(loop, phase, t, part, first, rows, d_states, slot, v, hidden - v * LANES);
    product(loop, rows, slot + p->first_product * vectors * rows * LANES, loop->packed[phase],
            d_states + p->first_state * vectors * rows * LANES, 1, p->outputs, p->inputs);
}

// The weight gradient of a phase is kept as [panel of columns][tile of rows][GRADIENT_ROWS][GRADIENT_WIDE][LANES].
INLINE long panels(const Loop *loop, int phase) {
    return (phases[phase].inputs * loop->vectors + GRADIENT_WIDE - 1) / GRADIENT_WIDE;
}

INLINE long tiles(const Loop *loop, int phase) {
    return (phases[phase].outputs * loop->vectors * LANES + GRADIENT_ROWS - 1) / GRADIENT_ROWS;
}

#define TILE (GRADIENT_ROWS * GRADIENT_WIDE * LANES)

// Adds d_products^T times the states that a phase has read in the steps of a segment.
static void weight_gradient(const Loop *loop, int phase, int steps, int rows, const real *slots, real *to) {
    long size = slot_size(loop, rows), vectors = loop->vectors, block = vectors * rows * LANES;
    const real *states = slots + (PRODUCTS + phase * STATES + phases[phase].first_state) * block;
    const real *products = slots + phases[phase].first_product * block;
    for (long panel = 0; panel < panels(loop, phase); panel++, states += GRADIENT_WIDE * rows * LANES)
        for (long tile = 0; tile < tiles(loop, phase); tile++, to += TILE) {
            long n = tile * GRADIENT_ROWS;
            if (n % (vectors * LANES) >= loop->hidden) continue;
            const real *in = states, *gradient = products + n / LANES * rows * LANES + n % LANES;
            vec sum[GRADIENT_ROWS][GRADIENT_WIDE] = {0};
            for (int step = 0; step < steps; step++, in += size, gradient += size)
                for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
                    for (int i = 0; i < GRADIENT_ROWS; i++)
#pragma GCC unroll 4
                        for (int v = 0; v < GRADIENT_WIDE; v++)
                            sum[i][v] += gradient[(i / LANES * rows + r) * LANES + i % LANES] *
                                         *(const vec *)(in + (v * rows + r) * LANES);
#pragma GCC unroll 8
            for (int i = 0; i < GRADIENT_ROWS; i++)
#pragma GCC unroll 4
                for (int v = 0; v < GRADIENT_WIDE; v++) *(vec *)(to + (i * GRADIENT_WIDE + v) * LANES) += sum[i][v];
        }
}

// Adds d_pre^T times the inputs, and the 1 of the bias, in the steps of a segment: [tile][channel][INPUT_TILE][LANES].
static void input_gradient(const Loop *loop, long t, int steps, long first, int rows, const real *slots, real *to) {
    long channels = loop->channels;
    const real *d_pre = slots + D_PRE * loop->vectors * rows * LANES;
    for (long v = 0; v < COLUMNS(loop); v += INPUT_TILE, d_pre += INPUT_TILE * rows * LANES)
        for (long c = 0; c <= channels; c++, to += INPUT_TILE * LANES) {
            vec sum[INPUT_TILE] = {0};
            for (int step = 0; step < steps; step++) {
                const real *in = d_pre + step * slot_size(loop, rows);
                const real *x = loop->x + ((t + step) * loop->batch + first) * channels + c;
                for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
                    for (int i = 0; i < INPUT_TILE; i++)
                        sum[i] += (c < channels ? x[r * channels] : 1) * *(const vec *)(in + (i * rows + r) * LANES);
            }
            for (int i = 0; i < INPUT_TILE; i++) *(vec *)(to + i * LANES) += sum[i];
        }
}

static void backward_block(const Loop *loop, long part, long first, int rows, real *d_states, real *slots) {
    long hidden = loop->hidden, vectors = loop->vectors;
    for (int i = 0; i < STATES; i++)
        for (long v = 0; v < vectors; v++)
            for (int r = 0; r < rows; r++)
                *(vec *)(d_states + ((i * vectors + v) * rows + r) * LANES) =
                    loop->g_final[i] ? load(loop->g_final[i] + (first + r) * hidden + v * LANES, hidden - v * LANES)
                                     : (vec){0};
    for (long t = loop->steps - 1; t >= 0; t--) {
        real *slot = slots + t % SEGMENT * slot_size(loop, rows);
        if (PHASES > 1) backward_phase(loop, PHASES - 1, t, part, first, rows, d_states, slot);
        backward_phase(loop, 0, t, part, first, rows, d_states, slot);
        if (t % SEGMENT) continue;
        int steps = loop->steps - t < SEGMENT ? loop->steps - t : SEGMENT;
        for (int p = 0; p < PHASES; p++)
            weight_gradient(loop, p, steps, rows, slots,
                            loop->gradients[p] + part * panels(loop, p) * tiles(loop, p) * TILE);
        if (loop->channels)
            input_gradient(loop, t, steps, first, rows, slots,
                           loop->d_input + part * (loop->channels + 1) * COLUMNS(loop) * LANES);
        close_span(&loop->sums, part, 1);
    }
    for (int i = 0; i < STATES; i++)
        for (long v = 0; v < vectors; v++)
            for (int r = 0; r < rows; r++)
                store(loop->d_state[i] + (first + r) * hidden + v * LANES,
                      *(vec *)(d_states + ((i * vectors + v) * rows + r) * LANES), hidden - v * LANES);
}

static void backward_parts(void *context, long part, long last) {
    Loop *loop = context;
    long states = STATES * loop->vectors * MOST_ROWS * LANES;
    real *d_states = allocate(states + SEGMENT * slot_size(loop, MOST_ROWS));
    if (!d_states) {
        loop->failed = 1;
        return;
    }
    for (; part < last; part++) {
        for (int p = 0; p < PHASES; p++) {
            long size = panels(loop, p) * tiles(loop, p) * TILE;
            memset(loop->gradients[p] + part * size, 0, size * sizeof(real));
        }
        if (loop->channels) {
            long size = (loop->channels + 1) * COLUMNS(loop) * LANES;
            memset(loop->d_input + part * size, 0, size * sizeof(real));
        }
        long end = loop->batch * (part + 1) / loop->parts;
        for (long first = loop->batch * part / loop->parts, rows; first < end; first += rows) {
            rows = block_rows(end - first);
            backward_block(loop, part, first, rows, d_states, d_states + states);
        }
    }
    free(d_states);
}

// The sum over all parts, for the rows first .. last - 1 of each block of H.
static void finish_gradients(void *context, long first, long last) {
    Loop *loop = context;
    long hidden = loop->hidden, vectors = loop->vectors;
    for (int p = 0; p < PHASES; p++)
        for (long row = first; row < last; row++)
            for (int output = 0; output < phases[p].outputs; output++)
                for (long column = 0; column < phases[p].inputs * vectors; column++) {
                    long n = output * vectors * LANES + row, u = column % vectors * LANES;
                    const real *from = loop->gradients[p] +
                                       (column / GRADIENT_WIDE * tiles(loop, p) + n / GRADIENT_ROWS) * TILE +
                                       (n % GRADIENT_ROWS * GRADIENT_WIDE + column % GRADIENT_WIDE) * LANES;
                    vec sum = {0};
                    for (long part = 0; part < loop->parts; part++, from += panels(loop, p) * tiles(loop, p) * TILE)
                        sum += *(const vec *)from;
                    long to = ((output * hidden + row) * phases[p].inputs + column / vectors) * hidden + u;
                    store(loop->d_parameters[p] + to, sum, hidden - u);
                }
}

static void finish_input(const Loop *loop, real *d_weight, real *d_bias) {
    long hidden = loop->hidden, channels = loop->channels, size = (channels + 1) * COLUMNS(loop) * LANES;
    for (long n = 0; n < GATES * hidden; n++)
        for (long c = 0; c <= channels; c++) {
            long column = n / hidden * loop->vectors * LANES + n % hidden, tile = INPUT_TILE * LANES;
            const real *from = loop->d_input + (column / tile * (channels + 1) + c) * tile + column % tile;
            real sum = 0;
            for (long part = 0; part < loop->parts; part++) sum += from[part * size];
            if (c < channels) d_weight[n * channels + c] = sum;
            else if (d_bias) d_bias[n] = sum;
        }
}

int forward(long threads, long steps, long batch, long hidden, long anchor, long channels, const real *pre,
            const real *weight, const real *bias, const real *const *parameters, const real *const *state, real *y,
            real *const *final, real *tape) {
    Loop loop = {.steps = steps, .batch = batch, .hidden = hidden, .channels = channels, .pre = pre, .x = pre,
                 .vectors = (hidden + LANES - 1) / LANES, .parameters = parameters, .state = state, .y = y,
                 .final = final, .tape = tape};
    use_large_pages(y, steps * batch * hidden * sizeof(real));
    use_large_pages(tape, steps * batch * TAPE * hidden * sizeof(real));
    loop.failed = pack(&loop, 0) || (channels && pack_input(&loop, weight, bias));
    if (!loop.failed) parallel(threads, batch, forward_rows, &loop);
    release(&loop);
    return loop.failed;
}

int backward(long threads, long steps, long batch, long hidden, long anchor, long channels, const real *pre,
             const real *const *parameters, const real *const *state, const real *y, const real *const *final,
             const real *tape, const real *g_y, const real *const *g_final, real *d_pre, real *d_weight,
             real *d_bias, real *const *d_parameters, real *const *d_state) {
    Loop loop = {.steps = steps, .batch = batch, .hidden = hidden, .vectors = (hidden + LANES - 1) / LANES,
                 .parts = count_parts(batch), .channels = channels, .x = pre, .parameters = parameters, .state = state, .y = (real *)y,
                 .tape = (real *)tape, .g_y = g_y, .g_final = g_final, .d_pre = d_pre, .d_parameters = d_parameters,
                 .d_state = d_state};
    if (d_pre) use_large_pages(d_pre, steps * batch * GATES * hidden * sizeof(real));
    loop.failed = new_sums(&loop.sums, loop.parts, UNITS * hidden) || pack(&loop, 1);
    for (int p = 0; p < PHASES; p++)
        loop.failed |= !(loop.gradients[p] = allocate(loop.parts * panels(&loop, p) * tiles(&loop, p) * TILE));
    if (channels) loop.failed |= !(loop.d_input = allocate(loop.parts * (channels + 1) * COLUMNS(&loop) * LANES));
    if (!loop.failed) parallel(threads, loop.parts, backward_parts, &loop);
    if (!loop.failed) {
        finish_sums(&loop.sums, loop.parts, UNITS, hidden, d_parameters + PHASES);
        if (channels) finish_input(&loop, d_weight, d_bias);
        parallel(threads, hidden, finish_gradients, &loop);
    }
    release(&loop);
    return loop.failed;
}
