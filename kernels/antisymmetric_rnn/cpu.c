// The AntisymmetricRNN, of two gates the gated one: the equation is in reference.py.
#define STATE_NAMES H
#define UNIT_NAMES EPSILON
#if GATES == 2
#define GATE_NAMES U, FORCE
#define TAPE_NAMES TAPE_U, TAPE_FORCE
#define PRODUCT_NAMES BOTH
#else
#define GATE_NAMES FORCE
#define TAPE_NAMES TAPE_FORCE
#endif
#include "dense.h"

#if GATES == 2

INLINE void forward_step(int phase, Step *s) {
    s->tape[TAPE_U] = sigmoid(s->product[BOTH] + s->pre[U]);
    s->tape[TAPE_FORCE] = tanh_(s->product[BOTH] + s->pre[FORCE]);
    s->state[H] += s->unit[EPSILON] * s->tape[TAPE_U] * s->tape[TAPE_FORCE];
}

INLINE void backward_step(int phase, Step *s) {
    vec u = s->tape[TAPE_U], force = s->tape[TAPE_FORCE], d = s->d_state[H] * s->unit[EPSILON];
    s->d_unit[EPSILON] += s->d_state[H] * u * force;
    s->d_pre[U] = d * force * u * (1 - u);
    s->d_pre[FORCE] = d * u * (1 - force * force);
    s->d_product[BOTH] = s->d_pre[U] + s->d_pre[FORCE];
}
#else
INLINE void forward_step(int phase, Step *s) {
    s->tape[TAPE_FORCE] = tanh_(s->product[FORCE] + s->pre[FORCE]);
    s->state[H] += s->unit[EPSILON] * s->tape[TAPE_FORCE];
}

INLINE void backward_step(int phase, Step *s) {
    s->d_unit[EPSILON] += s->d_state[H] * s->tape[TAPE_FORCE];
    s->d_product[FORCE] = s->d_state[H] * s->unit[EPSILON] * (1 - s->tape[TAPE_FORCE] * s->tape[TAPE_FORCE]);
}
#endif
