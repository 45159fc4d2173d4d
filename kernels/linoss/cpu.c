// LinOSS: the equation is in reference.py. With w = dt z, the way that y goes in a step:
//
//     w_n = s (w_{n-1} + dt^2 (pre_n - a y_{n-1})),    y_n = y_{n-1} + w_n
//
// dt is multiplied with twice: dt^2 a as one number would be rounded once for all steps, and the frequency with it.
// The implicit step shrinks what was, so that to undo it would let errors grow: w is what the stored y differ by.
#define STATE_NAMES Y, W
#define UNIT_NAMES S, A, DT
#include "diagonal.h"

#ifndef INCREMENTAL
#error "declaration: cpu.c is incremental"
#endif

INLINE void forward_step(Step *s) {
    vec dt = s->unit[DT];
    s->state[W] = s->unit[S] * (s->state[W] + dt * (dt * (s->pre - s->unit[A] * s->state[Y])));
    s->state[Y] += s->state[W];
}

INLINE void backward_step(Step *s) {
    vec dt = s->unit[DT], force = dt * (s->pre - s->unit[A] * s->state[Y]);
    vec d_y = s->d_state[Y], d_w = s->d_state[W] + d_y, d_before = s->unit[S] * d_w;
    s->d_pre = dt * (dt * d_before);
    s->d_unit[S] += d_w * (s->state[W] + dt * force);
    s->d_unit[A] -= s->d_pre * s->state[Y];
    s->d_unit[DT] += 2 * d_before * force;
    s->d_state[Y] = d_y - s->unit[A] * s->d_pre;
    s->d_state[W] = d_before;
}
