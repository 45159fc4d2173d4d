// The AntisymmetricRNN, with -DGATED the gated one: the equation is in reference.py.
#define STATES 1
#define PRODUCTS 1
#define UNITS 1
#define PHASES 1
#ifdef GATED
#define GATES 2
#define TAPE 2
#define OWN_PRODUCTS
#else
#define GATES 1
#define TAPE 1
#endif
#include "dense.h"

static const Phase phases[] = {{0, 1, 0, 1}};

#ifdef GATED
enum { U, FORCE };

INLINE void forward_step(int phase, Step *s) {
    s->tape[U] = sigmoid(s->product[0] + s->pre[U]);
    s->tape[FORCE] = tanh_(s->product[0] + s->pre[FORCE]);
    s->state[0] += s->unit[0] * s->tape[U] * s->tape[FORCE];
}

INLINE void backward_step(int phase, Step *s) {
    vec u = s->tape[U], force = s->tape[FORCE], d = s->d_state[0] * s->unit[0];
    s->d_unit[0] += s->d_state[0] * u * force;
    s->d_pre[U] = d * force * u * (1 - u);
    s->d_pre[FORCE] = d * u * (1 - force * force);
    s->d_product[0] = s->d_pre[U] + s->d_pre[FORCE];
}
#else
INLINE void forward_step(int phase, Step *s) {
    s->tape[0] = tanh_(s->product[0] + s->pre[0]);
    s->state[0] += s->unit[0] * s->tape[0];
}

INLINE void backward_step(int phase, Step *s) {
    s->d_unit[0] += s->d_state[0] * s->tape[0];
    s->d_product[0] = s->d_state[0] * s->unit[0] * (1 - s->tape[0] * s->tape[0]);
}
#endif
