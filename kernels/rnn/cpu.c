// Elman's RNN: the equation is in reference.py.
#define STATES 1
#define GATES 1
#define PRODUCTS 1
#define UNITS 0
#define TAPE 1
#define PHASES 1
#include "dense.h"

static const Phase phases[] = {{0, 1, 0, 1}};

INLINE void forward_step(int phase, Step *s) {
    s->state[0] = s->tape[0] = tanh_(s->product[0] + s->pre[0]);
}

INLINE void backward_step(int phase, Step *s) {
    s->d_product[0] = s->d_state[0] * (1 - s->tape[0] * s->tape[0]);
    s->d_state[0] = (vec){0};
}
