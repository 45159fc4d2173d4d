// The coRNN: the equation is in reference.py.
#define STATE_NAMES Y, Z
#define GATE_NAMES DRIVE
// The step of z is another one than that of y where damping is implicit.
#define UNIT_NAMES DT, DT_Z, GAMMA, EPSILON
#define TAPE_NAMES TAPE_Z, FORCE
#include "dense.h"

INLINE void forward_step(int phase, Step *s) {
    vec y = s->state[Y], z = s->state[Z];
    vec force = tanh_(s->product[DRIVE] + s->pre[DRIVE]);
    z += s->unit[DT_Z] * (force - s->unit[GAMMA] * y - s->unit[EPSILON] * z);
    s->state[Y] = y + s->unit[DT] * z;
    s->state[Z] = z;
    s->tape[FORCE] = force;
}

INLINE void backward_step(int phase, Step *s) {
    vec y = s->state[Y], z = s->state[Z], force = s->tape[FORCE];
    vec d_z = s->d_state[Z] + s->unit[DT] * s->d_state[Y];
    vec d_acceleration = s->unit[DT_Z] * d_z;
    vec acceleration = force - s->unit[GAMMA] * y - s->unit[EPSILON] * z;
    s->d_unit[DT] += s->d_state[Y] * s->tape[TAPE_Z];
    s->d_unit[DT_Z] += d_z * acceleration;
    s->d_unit[GAMMA] -= d_acceleration * y;
    s->d_unit[EPSILON] -= d_acceleration * z;
    s->d_product[DRIVE] = d_acceleration * (1 - force * force);
    s->d_state[Y] -= d_acceleration * s->unit[GAMMA];
    s->d_state[Z] = d_z - d_acceleration * s->unit[EPSILON];
}
