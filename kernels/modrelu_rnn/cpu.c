// The recurrence with modReLU: the equation is in reference.py.
#define STATE_NAMES H
#define GATE_NAMES DRIVE
#define UNIT_NAMES BIAS
#define TAPE_NAMES V
#include "dense.h"

INLINE void forward_step(int phase, Step *s) {
    vec v = s->product[DRIVE] + s->pre[DRIVE];
    s->state[H] = sign(v) * at_least(absolute(v) + s->unit[BIAS], 0);
    s->tape[V] = v;
}

INLINE void backward_step(int phase, Step *s) {
    vec v = s->tape[V];
    vec d = choose(absolute(v) + s->unit[BIAS] > 0, s->d_state[H], ZERO);
    // |v| has no slope at 0, and neither has sign(v).
    s->d_product[DRIVE] = choose((v > 0) | (v < 0), d, ZERO);
    s->d_unit[BIAS] += d * sign(v);
    s->d_state[H] = ZERO;
}
