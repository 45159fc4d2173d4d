// The recurrence with modReLU: the equation is in reference.py.
#define STATES 1
#define GATES 1
#define PRODUCTS 1
#define UNITS 1
#define TAPE 1
#define PHASES 1
#include "dense.h"

static const Phase phases[] = {{0, 1, 0, 1}};

// +1, -1, or 0, and NaN where v is.
INLINE vec sign(vec v) {
    vec one = (vec)(((bits)v & SIGN) | (bits)((vec){0} + 1));
    return choose((v > 0) | (v < 0), one, v);
}

INLINE void forward_step(int phase, Step *s) {
    vec v = s->product[0] + s->pre[0];
    s->state[0] = sign(v) * at_least(absolute(v) + s->unit[0], 0);
    s->tape[0] = v;
}

INLINE void backward_step(int phase, Step *s) {
    vec v = s->tape[0];
    vec d = choose(absolute(v) + s->unit[0] > 0, s->d_state[0], (vec){0});
    // |v| has no slope at 0, and neither has sign(v).
    s->d_product[0] = choose((v > 0) | (v < 0), d, (vec){0});
    s->d_unit[0] += d * sign(v);
    s->d_state[0] = (vec){0};
}
