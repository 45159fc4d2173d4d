// The FastRNN: the equation is in reference.py.
#define STATE_NAMES H
#define GATE_NAMES DRIVE
#define UNIT_NAMES ALPHA, BETA
#define TAPE_NAMES UPDATE
#include "dense.h"

INLINE void forward_step(int phase, Step *s) {
    s->tape[UPDATE] = tanh_(s->product[DRIVE] + s->pre[DRIVE]);
    s->state[H] = s->unit[ALPHA] * s->tape[UPDATE] + s->unit[BETA] * s->state[H];
}

INLINE void backward_step(int phase, Step *s) {
    vec update = s->tape[UPDATE], d = s->d_state[H];
    s->d_unit[ALPHA] += d * update;
    s->d_unit[BETA] += d * s->state[H];
    s->d_product[DRIVE] = d * s->unit[ALPHA] * (1 - update * update);
    s->d_state[H] = d * s->unit[BETA];
}
