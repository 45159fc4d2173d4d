// Elman's RNN: the equation is in reference.py.
#define STATE_NAMES H
#define GATE_NAMES DRIVE
#define UNIT_NAMES
#define TAPE_NAMES NEW_H
#include "dense.h"

INLINE void forward_step(int phase, Step *s) {
    s->state[H] = s->tape[NEW_H] = tanh_(s->product[DRIVE] + s->pre[DRIVE]);
}

INLINE void backward_step(int phase, Step *s) {
    s->d_product[DRIVE] = s->d_state[H] * (1 - s->tape[NEW_H] * s->tape[NEW_H]);
    s->d_state[H] = ZERO;
}
