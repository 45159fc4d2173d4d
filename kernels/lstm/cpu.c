// The LSTM: the equation is in reference.py.
#define STATES 2
#define GATES 4
#define PRODUCTS 4
#define UNITS 0
#define TAPE 5
#define PHASES 1
#include "dense.h"

static const Phase phases[] = {{0, 1, 0, 4}};
enum { H, C };
enum { I, F, G, O };
enum { TAPE_C, TAPE_GATES };

INLINE void forward_step(int phase, Step *s) {
    vec i = sigmoid(s->product[I] + s->pre[I]), f = sigmoid(s->product[F] + s->pre[F]);
    vec g = tanh_(s->product[G] + s->pre[G]), o = sigmoid(s->product[O] + s->pre[O]);
    s->state[C] = f * s->state[C] + i * g;
    s->state[H] = o * tanh_(s->state[C]);
    s->tape[TAPE_GATES + I] = i;
    s->tape[TAPE_GATES + F] = f;
    s->tape[TAPE_GATES + G] = g;
    s->tape[TAPE_GATES + O] = o;
}

INLINE void backward_step(int phase, Step *s) {
    const vec *gate = s->tape + TAPE_GATES;
    // Again, rather than from the tape: it costs less than the memory.
    vec c = tanh_(s->tape[TAPE_C]);
    vec d_c = s->d_state[C] + s->d_state[H] * gate[O] * (1 - c * c);
    s->d_product[I] = d_c * gate[G] * gate[I] * (1 - gate[I]);
    s->d_product[F] = d_c * s->state[C] * gate[F] * (1 - gate[F]);
    s->d_product[G] = d_c * gate[I] * (1 - gate[G] * gate[G]);
    s->d_product[O] = s->d_state[H] * c * gate[O] * (1 - gate[O]);
    s->d_state[C] = d_c * gate[F];
    s->d_state[H] = (vec){0};
}
