// The LSTM: the equation is in reference.py.
#define STATE_NAMES H, C
#define GATE_NAMES I, F, G, O
#define UNIT_NAMES
#define TAPE_NAMES TAPE_C, TAPE_I, TAPE_F, TAPE_G, TAPE_O
#include "dense.h"

INLINE void forward_step(int phase, Step *s) {
    vec i = sigmoid(s->product[I] + s->pre[I]), f = sigmoid(s->product[F] + s->pre[F]);
    vec g = tanh_(s->product[G] + s->pre[G]), o = sigmoid(s->product[O] + s->pre[O]);
    s->state[C] = f * s->state[C] + i * g;
    s->state[H] = o * tanh_(s->state[C]);
    s->tape[TAPE_I] = i;
    s->tape[TAPE_F] = f;
    s->tape[TAPE_G] = g;
    s->tape[TAPE_O] = o;
}

INLINE void backward_step(int phase, Step *s) {
    const vec *gate = s->tape + TAPE_I;
    // Again, rather than from the tape: it costs less than the memory.
    vec c = tanh_(s->tape[TAPE_C]);
    vec d_c = s->d_state[C] + s->d_state[H] * gate[O] * (1 - c * c);
    s->d_product[I] = d_c * gate[G] * gate[I] * (1 - gate[I]);
    s->d_product[F] = d_c * s->state[C] * gate[F] * (1 - gate[F]);
    s->d_product[G] = d_c * gate[I] * (1 - gate[G] * gate[G]);
    s->d_product[O] = s->d_state[H] * c * gate[O] * (1 - gate[O]);
    s->d_state[C] = d_c * gate[F];
    s->d_state[H] = ZERO;
}
