// The GRU: the equation is in reference.py.
#define STATE_NAMES H
#define GATE_NAMES R, U, M
#define PRODUCT_NAMES OF_R, OF_U, OF_M
#define UNIT_NAMES B_N
#define TAPE_NAMES TAPE_R, TAPE_U, TAPE_M, TAPE_PRODUCT
#include "dense.h"

INLINE void forward_step(int phase, Step *s) {
    vec r = sigmoid(s->product[OF_R] + s->pre[R]), u = sigmoid(s->product[OF_U] + s->pre[U]);
    vec product = s->product[OF_M] + s->unit[B_N];
    vec m = tanh_(s->pre[M] + r * product);
    s->state[H] = m + u * (s->state[H] - m);
    s->tape[TAPE_R] = r;
    s->tape[TAPE_U] = u;
    s->tape[TAPE_M] = m;
    s->tape[TAPE_PRODUCT] = product;
}

INLINE void backward_step(int phase, Step *s) {
    vec r = s->tape[TAPE_R], u = s->tape[TAPE_U], m = s->tape[TAPE_M], d_h = s->d_state[H];
    s->d_pre[M] = d_h * (1 - u) * (1 - m * m);
    s->d_pre[R] = s->d_pre[M] * s->tape[TAPE_PRODUCT] * r * (1 - r);
    s->d_pre[U] = d_h * (s->state[H] - m) * u * (1 - u);
    s->d_product[OF_R] = s->d_pre[R];
    s->d_product[OF_U] = s->d_pre[U];
    s->d_product[OF_M] = s->d_pre[M] * r;
    s->d_unit[B_N] += s->d_product[OF_M];
    s->d_state[H] = d_h * u;
}
