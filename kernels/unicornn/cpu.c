// The UnICORNN: the equation is in reference.py, the gradients in Rusch & Mishra 2021.
#define STATE_NAMES Y, Z
#define UNIT_NAMES W, D, ALPHA
#include "diagonal.h"

#ifndef REVERSIBLE
#error "declaration: cpu.c is reversible"
#endif

INLINE void forward_step(Step *s) {
    vec y = s->state[Y], d = s->unit[D];
    s->state[Z] -= d * (tanh_(s->unit[W] * y + s->pre) + s->unit[ALPHA] * y);
    s->state[Y] = y + d * s->state[Z];
}

INLINE void backward_step(Step *s) {
    vec z = s->state[Z], w = s->unit[W], d = s->unit[D], alpha = s->unit[ALPHA];
    // The step undone.
    vec y = s->state[Y] - d * z;
    vec tanh_n = tanh_(w * y + s->pre);
    vec force = tanh_n + alpha * y;
    s->state[Y] = y;
    s->state[Z] = z + d * force;

    vec d_y = s->d_state[Y], d_z = s->d_state[Z] + d * d_y;
    vec d_force = -d * d_z;
    s->d_pre = d_force * (1 - tanh_n * tanh_n);
    s->d_unit[W] += s->d_pre * y;
    s->d_unit[D] += d_y * z - d_z * force;
    s->d_unit[ALPHA] += d_force * y;
    s->d_state[Y] = d_y + s->d_pre * w + d_force * alpha;
    s->d_state[Z] = d_z;
}
