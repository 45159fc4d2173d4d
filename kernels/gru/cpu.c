// The GRU: the equation is in reference.py.
#define STATES 1
#define GATES 3
#define PRODUCTS 3
#define UNITS 1
#define TAPE 4
#define PHASES 1
#define OWN_PRODUCTS
#include "dense.h"

static const Phase phases[] = {{0, 1, 0, 3}};
enum { R, U, M, PRODUCT_M };

INLINE void forward_step(int phase, Step *s) {
    vec r = sigmoid(s->product[R] + s->pre[R]), u = sigmoid(s->product[U] + s->pre[U]);
    vec product = s->product[M] + s->unit[0];
    vec m = tanh_(s->pre[M] + r * product);
    s->state[0] = m + u * (s->state[0] - m);
    s->tape[R] = r;
    s->tape[U] = u;
    s->tape[M] = m;
    s->tape[PRODUCT_M] = product;
}

INLINE void backward_step(int phase, Step *s) {
    vec r = s->tape[R], u = s->tape[U], m = s->tape[M], d_h = s->d_state[0];
    s->d_pre[M] = d_h * (1 - u) * (1 - m * m);
    s->d_pre[R] = s->d_pre[M] * s->tape[PRODUCT_M] * r * (1 - r);
    s->d_pre[U] = d_h * (s->state[0] - m) * u * (1 - u);
    s->d_product[R] = s->d_pre[R];
    s->d_product[U] = s->d_pre[U];
    s->d_product[M] = s->d_pre[M] * r;
    s->d_unit[0] += s->d_product[M];
    s->d_state[0] = d_h * u;
}
