// The UGRNN: the equation is in reference.py.
#define STATE_NAMES H
#define GATE_NAMES G, C
#define UNIT_NAMES
#define TAPE_NAMES TAPE_G, TAPE_C
#include "dense.h"

INLINE void forward_step(int phase, Step *s) {
    vec g = sigmoid(s->product[G] + s->pre[G]), c = tanh_(s->product[C] + s->pre[C]);
    s->state[H] = c + g * (s->state[H] - c);
    s->tape[TAPE_G] = g;
    s->tape[TAPE_C] = c;
}

INLINE void backward_step(int phase, Step *s) {
    vec g = s->tape[TAPE_G], c = s->tape[TAPE_C], d = s->d_state[H];
    s->d_product[G] = d * (s->state[H] - c) * g * (1 - g);
    s->d_product[C] = d * (1 - g) * (1 - c * c);
    s->d_state[H] = d * g;
}
