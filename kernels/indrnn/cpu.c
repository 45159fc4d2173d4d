// The IndRNN: the equation is in reference.py.
#define STATE_NAMES H
#define UNIT_NAMES U
#include "diagonal.h"

#if defined REVERSIBLE || defined INCREMENTAL
#error "declaration: cpu.c is neither reversible nor incremental"
#endif

INLINE void forward_step(Step *s) {
    s->state[H] = at_least(s->pre + s->unit[U] * s->state[H], 0);
}

INLINE void backward_step(Step *s) {
    // As torch.relu: the gradient passes where the output is not zero or less, NaN included.
    s->d_pre = choose(s->after <= 0, ZERO, s->d_state[H]);
    s->d_unit[U] += s->d_pre * s->state[H];
    s->d_state[H] = s->d_pre * s->unit[U];
}
