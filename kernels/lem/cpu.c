// The LEM: the equation is in reference.py.
#define STATE_NAMES Y, Z
#define GATE_NAMES GATE_Y, GATE_Z, FORCE_Z, FORCE_Y
#define UNIT_NAMES DT
// Gates before they are multiplied by dt.
#define TAPE_NAMES TAPE_Z, TAPE_GATE_Y, TAPE_GATE_Z, TAPE_FORCE_Z, TAPE_FORCE_Y
#include "dense.h"

INLINE void forward_step(int phase, Step *s) {
    vec *gate = s->tape + TAPE_GATE_Y, dt = s->unit[DT];
    if (phase == 0) {
        gate[GATE_Y] = sigmoid(s->product[GATE_Y] + s->pre[GATE_Y]);
        gate[GATE_Z] = sigmoid(s->product[GATE_Z] + s->pre[GATE_Z]);
        gate[FORCE_Z] = tanh_(s->product[FORCE_Z] + s->pre[FORCE_Z]);
        gate[FORCE_Y] = ZERO;
        s->state[Z] += dt * gate[GATE_Z] * (gate[FORCE_Z] - s->state[Z]);
    } else {
        gate[FORCE_Y] = tanh_(s->product[FORCE_Y] + s->pre[FORCE_Y]);
        s->state[Y] += dt * gate[GATE_Y] * (gate[FORCE_Y] - s->state[Y]);
    }
}

// The gradients of s += dt gate (force - s), given that of s.
INLINE void backward_mix(Step *s, int state, int gate, int force) {
    vec dt = s->unit[DT], g = s->tape[TAPE_GATE_Y + gate], f = s->tape[TAPE_GATE_Y + force], d = s->d_state[state];
    vec d_gate = d * (f - s->state[state]);
    s->d_unit[DT] += d_gate * g;
    s->d_product[gate] = d_gate * dt * g * (1 - g);
    s->d_product[force] = d * dt * g * (1 - f * f);
    s->d_state[state] = d - d * dt * g;
}

INLINE void backward_step(int phase, Step *s) {
    if (phase == 1) {
        backward_mix(s, Y, GATE_Y, FORCE_Y);
        s->d_product[GATE_Z] = s->d_product[FORCE_Z] = ZERO;
    } else {
        backward_mix(s, Z, GATE_Z, FORCE_Z);
    }
}
