// The FastGRNN: the equation is in reference.py.
#define STATE_NAMES H
#define GATE_NAMES DRIVE
#define UNIT_NAMES B_Z, B_H, ZETA, NU
#define TAPE_NAMES TAPE_Z, UPDATE
#include "dense.h"

INLINE void forward_step(int phase, Step *s) {
    vec both = s->product[DRIVE] + s->pre[DRIVE];
    vec z = sigmoid(both + s->unit[B_Z]), update = tanh_(both + s->unit[B_H]);
    s->state[H] = (s->unit[ZETA] * (1 - z) + s->unit[NU]) * update + z * s->state[H];
    s->tape[TAPE_Z] = z;
    s->tape[UPDATE] = update;
}

INLINE void backward_step(int phase, Step *s) {
    vec z = s->tape[TAPE_Z], update = s->tape[UPDATE], d = s->d_state[H];
    vec d_z = d * (s->state[H] - s->unit[ZETA] * update) * z * (1 - z);
    vec d_update = d * (s->unit[ZETA] * (1 - z) + s->unit[NU]) * (1 - update * update);
    s->d_unit[B_Z] += d_z;
    s->d_unit[B_H] += d_update;
    s->d_unit[ZETA] += d * update * (1 - z);
    s->d_unit[NU] += d * update;
    s->d_product[DRIVE] = d_z + d_update;
    s->d_state[H] = d * z;
}
