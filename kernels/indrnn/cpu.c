// The IndRNN: the equation is in reference.py.
#define STATES 1
#define UNITS 1
#include "diagonal.h"

INLINE void forward_step(Step *s) {
    s->state[0] = at_least(s->pre + s->unit[0] * s->state[0], 0);
}

INLINE void backward_step(Step *s) {
    // As torch.relu: the gradient passes where the output is not zero or less, NaN included.
    s->d_pre = choose(s->after <= 0, (vec){0}, s->d_state[0]);
    s->d_unit[0] += s->d_pre * s->state[0];
    s->d_state[0] = s->d_pre * s->unit[0];
}
