// The recurrence with a leaky ReLU: the equation is in reference.py.
#define STATE_NAMES H
#define GATE_NAMES DRIVE
#define UNIT_NAMES SLOPE
#define TAPE_NAMES V
#include "dense.h"

INLINE void forward_step(int phase, Step *s) {
    vec v = s->product[DRIVE] + s->pre[DRIVE];
    s->state[H] = choose(v > 0, v, s->unit[SLOPE] * v);
    s->tape[V] = v;
}

INLINE void backward_step(int phase, Step *s) {
    vec v = s->tape[V], d = s->d_state[H];
    s->d_product[DRIVE] = choose(v > 0, d, s->unit[SLOPE] * d);
    s->d_unit[SLOPE] += choose(v > 0, ZERO, d * v);
    s->d_state[H] = ZERO;
}
