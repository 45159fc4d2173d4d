// The time loop of a dense cell on a cluster of CUDA thread blocks. A cell's cpu.c that is compiled with this folder
// before the parent's gets it in place of the C loop of the same name.
//
// A block has WIDTH of the units and all weights that lead to them, in the registers and the shared memory of its
// THREADS. The blocks of a cluster work on the same ROWS of the batch. After each pointwise part a block writes what it
// has computed into the shared memory of all blocks of its cluster (`broadcast`), and the cluster waits.
//
// Of a product, (ROWS, depth) times (depth, columns), a thread has four columns and a slice of the depth; slices take
// turns by four terms. The sum over slices is taken by the thread that has the (row, unit) in the pointwise part, whose
// states never leave registers.
#pragma once

#ifdef __CUDACC_RTC__
#define INLINE static __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define ROLL _Pragma("unroll 1")
#define KERNEL(name) \
    extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1) name(const Loop loop)

extern __shared__ float4 memory[];

INLINE float *own_memory(void) {
    return (float *)memory;
}

INLINE int thread_index(void) {
    return threadIdx.x;
}

INLINE int rank_in_cluster(void) {
    unsigned rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

INLINE long cluster_index(void) {
    return blockIdx.x / CLUSTER;
}

INLINE void sync_block(void) {
    __syncthreads();
}

INLINE void sync_cluster(void) {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Writes memory[at] of each block of the cluster.
INLINE void broadcast(int at, float value) {
    unsigned own = (unsigned)__cvta_generic_to_shared((float *)memory + at), other;
    UNROLL
    for (int rank = 0; rank < CLUSTER; rank++) {
        asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(other) : "r"(own), "r"(rank));
        asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(other), "f"(value) : "memory");
    }
}

#ifdef PRE_FLOAT32
typedef float Pre;
#else
typedef unsigned short Pre;
#endif

INLINE float to_float(Pre x) {
#ifdef PRE_FLOAT32
    return x;
#elif defined(PRE_BFLOAT16)
    return __uint_as_float((unsigned)x << 16);
#else
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x));
    return result;
#endif
}
#else
#include "emulator.h"
#endif

// What a cell's functions are written with: on a GPU a thread has one number.
typedef float real, vec;
#define ZERO 0.0f

INLINE vec tanh_(vec x) {
    return tanhf(x);
}

INLINE vec sigmoid(vec x) {
    return 1 / (1 + expf(-x));
}

INLINE vec absolute(vec x) {
    return fabsf(x);
}

INLINE vec choose(int condition, vec a, vec b) {
    return condition ? a : b;
}

INLINE vec at_least(vec x, real limit) {
    return x < limit ? limit : x;
}

INLINE vec at_most(vec x, real limit) {
    return x > limit ? limit : x;
}

// +1, -1, or 0, and NaN where x is.
INLINE vec sign(vec x) {
    return x > 0 ? 1 : x < 0 ? -1 : x;
}

#define NAMED(kind, ...) enum { before_##kind = -1, __VA_ARGS__ }
NAMED(STATES, STATE_NAMES);
NAMED(GATES, GATE_NAMES);
NAMED(UNITS, UNIT_NAMES);
NAMED(TAPE, TAPE_NAMES);
#ifdef PRODUCT_NAMES
NAMED(PRODUCTS, PRODUCT_NAMES);
#endif

// As of the C loop, of one unit of one row.
typedef struct {
    vec unit[UNITS + 1], product[PRODUCTS], pre[GATES], state[STATES], tape[TAPE];
    vec d_state[STATES], d_product[PRODUCTS];
#ifdef PRODUCT_NAMES
    vec d_pre[GATES];
#endif
    vec d_unit[UNITS + 1];
} Step;

INLINE void forward_step(int phase, Step *s);
INLINE void backward_step(int phase, Step *s);

typedef struct {
    long long steps, batch;
    const Pre *pre;
    const float *weights, *units, *state;
    float *y, *tape;
    const float *d_y;
    float *d_product, *d_pre, *d_state, *d_unit;
} Loop;

// A number that each phase has its own of: those of phase 0 end in _0.
#define OF(phase, name) ((phase) == 0 ? name##_0 : name##_1)
// Of one phase the vectors of two steps: while a block writes the next ones, another may read these.
#define BUFFERS (PHASES == 1 ? 2 : 1)
#define VECTORS_0 0
#define VECTORS_1 (VECTORS_0 + BUFFERS * ROWS * DEPTH_0)
#define RESULTS (VECTORS_1 + (PHASES - 1) * ROWS * DEPTH_1)
#define WEIGHTS (RESULTS + RESULTS_SIZE)
// Of the (row, unit) pairs of a block, those of a thread.
#define EACH ((ROWS * WIDTH + THREADS - 1) / THREADS)

INLINE float4 load4(const float *p) {
    return *(const float4 *)p;
}

INLINE int vectors_at(int phase, long long step) {
    return OF(phase, VECTORS) + (PHASES == 1 ? (int)(step & 1) * ROWS * DEPTH_0 : 0);
}

// The row, of those of this block, and the unit, of all, of a thread's pair; and whether they exist.
typedef struct {
    int row, unit, column, is_unit, in_batch;
    long long at;  // row * H + unit, in (B, H)
} Place;

INLINE Place place_of(const Loop *loop, int each) {
    int pair = thread_index() + each * THREADS;
    Place place;
    place.row = pair / WIDTH;
    place.column = pair % WIDTH;
    place.unit = rank_in_cluster() * WIDTH + place.column;
    place.is_unit = place.row < ROWS && place.unit < HIDDEN;
    long long row = cluster_index() * ROWS + place.row;
    place.in_batch = place.is_unit && row < loop->batch;
    place.at = row * HIDDEN + place.unit;
    return place;
}

#define EACH_PAIR(each) \
    UNROLL              \
    for (int each = 0; each < EACH; each++)

INLINE void add_terms(float *sum, float4 v, float4 a, float4 b, float4 c, float4 d) {
    sum[0] += v.x * a.x, sum[1] += v.x * a.y, sum[2] += v.x * a.z, sum[3] += v.x * a.w;
    sum[0] += v.y * b.x, sum[1] += v.y * b.y, sum[2] += v.y * b.z, sum[3] += v.y * b.w;
    sum[0] += v.z * c.x, sum[1] += v.z * c.y, sum[2] += v.z * c.z, sum[3] += v.z * c.w;
    sum[0] += v.w * d.x, sum[1] += v.w * d.y, sum[2] += v.w * d.z, sum[3] += v.w * d.w;
}

// The product of a phase, by slices: [slice][row][column].
INLINE void multiply(int phase, const float4 *resident, const float *vectors, float *results, const float *in_shared) {
    int thread = thread_index();
    int group = thread % OF(phase, GROUPS), slice = thread / OF(phase, GROUPS);
    if (slice >= OF(phase, SLICES)) return;
    float sum[ROWS][4];
    UNROLL
    for (int row = 0; row < ROWS; row++) sum[row][0] = sum[row][1] = sum[row][2] = sum[row][3] = 0;
    vectors += 4 * slice;
#define TERMS(row) load4(vectors + (row) * OF(phase, DEPTH) + k * OF(phase, SLICES))
    const float4 *w = resident + (phase == 0 ? 0 : RESIDENT_0);
    UNROLL
    for (int k = 0; k < OF(phase, RESIDENT); k += 4) {
        UNROLL
        for (int row = 0; row < ROWS; row++)
            add_terms(sum[row], TERMS(row), w[k], w[k + 1], w[k + 2], w[k + 3]);
    }
    in_shared += (phase == 0 ? 0 : LENGTH_0 - RESIDENT_0) * THREADS * 4 + thread * 4;
    ROLL
    for (int k = OF(phase, RESIDENT); k < OF(phase, LENGTH); k += 4, in_shared += 4 * THREADS * 4) {
        float4 a = load4(in_shared), b = load4(in_shared + THREADS * 4);
        float4 c = load4(in_shared + 2 * THREADS * 4), d = load4(in_shared + 3 * THREADS * 4);
        UNROLL
        for (int row = 0; row < ROWS; row++)
            add_terms(sum[row], TERMS(row), a, b, c, d);
    }
#undef TERMS
    UNROLL
    for (int row = 0; row < ROWS; row++) {
        float *to = results + (slice * ROWS + row) * 4 * OF(phase, GROUPS) + 4 * group;
        to[0] = sum[row][0], to[1] = sum[row][1], to[2] = sum[row][2], to[3] = sum[row][3];
    }
}

// Block `block` of a phase's product, of one pair.
INLINE float sum_slices(int phase, const float *results, Place place, int block) {
    float sum = 0;
    UNROLL
    for (int slice = 0; slice < OF(phase, SLICES); slice++)
        sum += results[(slice * ROWS + place.row) * 4 * OF(phase, GROUPS) + block * WIDTH + place.column];
    return sum;
}

// The weights of this block, [phase][k of the slice][thread][4], into registers and shared memory.
INLINE void load_weights(const Loop *loop, float4 *resident, float *in_shared) {
    int thread = thread_index();
    const float *from = loop->weights + rank_in_cluster() * (LENGTH_0 + LENGTH_1) * THREADS * 4 + thread * 4;
    UNROLL
    for (int k = 0; k < RESIDENT_0; k++) resident[k] = load4(from + k * THREADS * 4);
    UNROLL
    for (int k = 0; k < RESIDENT_1; k++) resident[RESIDENT_0 + k] = load4(from + (LENGTH_0 + k) * THREADS * 4);
    for (int k = 0; k < LENGTH_0 + LENGTH_1 - RESIDENT_0 - RESIDENT_1; k++) {
        int other = k < LENGTH_0 - RESIDENT_0 ? RESIDENT_0 + k : RESIDENT_0 + RESIDENT_1 + k;
        *(float4 *)(in_shared + (k * THREADS + thread) * 4) = load4(from + other * THREADS * 4);
    }
}

INLINE void load_units(const Loop *loop, Step *s, Place place) {
    UNROLL
    for (int i = 0; i < UNITS; i++) s->unit[i] = place.is_unit ? loop->units[i * HIDDEN + place.unit] : 0;
}

INLINE void load_pre(const Loop *loop, float *pre, Place place, long long n) {
    long long stride = loop->batch * HIDDEN, row = place.at - place.unit;
    const Pre *from = loop->pre + GATES * (n * stride + row) + place.unit;
    UNROLL
    for (int i = 0; i < GATES; i++) pre[i] = place.in_batch && n < loop->steps ? to_float(from[i * HIDDEN]) : 0;
}

#ifndef BACKWARD
KERNEL(forward) {
    float *own = own_memory();
    long long stride = loop.batch * HIDDEN;
    float4 resident[RESIDENT_0 + RESIDENT_1 + 1];
    Step s[EACH];
    float ahead[EACH][GATES];
    for (int i = thread_index(); i < RESULTS; i += THREADS) own[i] = 0;
    sync_block();
    // The initial states that the first product reads, of all units.
    for (int i = thread_index(); i < ROWS * INPUTS_0 * HIDDEN; i += THREADS) {
        int row = i / (INPUTS_0 * HIDDEN), k = i % (INPUTS_0 * HIDDEN);
        long long at = (cluster_index() * ROWS + row) * HIDDEN + k % HIDDEN;
        if (cluster_index() * ROWS + row < loop.batch)
            own[vectors_at(0, 0) + row * DEPTH_0 + k] = loop.state[(FIRST_STATE_0 + k / HIDDEN) * stride + at];
    }
    load_weights(&loop, resident, own + WEIGHTS);
    EACH_PAIR(e) {
        Place place = place_of(&loop, e);
        load_units(&loop, &s[e], place);
        UNROLL
        for (int i = 0; i < STATES; i++) s[e].state[i] = place.in_batch ? loop.state[i * stride + place.at] : 0;
        load_pre(&loop, ahead[e], place, 0);
    }
    sync_cluster();
    for (long long n = 0; n < loop.steps; n++) {
        EACH_PAIR(e) {
            UNROLL
            for (int i = 0; i < GATES; i++) s[e].pre[i] = ahead[e][i];
            load_pre(&loop, ahead[e], place_of(&loop, e), n + 1);
        }
        UNROLL
        for (int phase = 0; phase < PHASES; phase++) {
            multiply(phase, resident, own + vectors_at(phase, n), own + RESULTS, own + WEIGHTS);
            sync_block();
            int next = phase + 1 < PHASES ? phase + 1 : 0;
            EACH_PAIR(e) {
                Place place = place_of(&loop, e);
                if (place.is_unit) {
                    UNROLL
                    for (int i = 0; i < OF(phase, OUTPUTS); i++)
                        s[e].product[OF(phase, FIRST_PRODUCT) + i] = sum_slices(phase, own + RESULTS, place, i);
                    forward_step(phase, &s[e]);
                    UNROLL
                    for (int i = 0; i < OF(next, INPUTS); i++)
                        broadcast(vectors_at(next, n + 1) + place.row * OF(next, DEPTH) + i * HIDDEN + place.unit,
                              s[e].state[OF(next, FIRST_STATE) + i]);
                }
            }
            sync_cluster();
        }
        // After the barrier, which would wait for them.
        EACH_PAIR(e) {
            Place place = place_of(&loop, e);
            if (place.in_batch) {
                float *to = loop.tape + TAPE * (n * stride + place.at - place.unit) + place.unit;
                UNROLL
                for (int i = 0; i < TAPE; i++)
                    to[i * HIDDEN] = i < STATES - 1 ? s[e].state[i + 1 < STATES ? i + 1 : 0] : s[e].tape[i];
                loop.y[n * stride + place.at] = s[e].state[0];
            }
        }
    }
}

#else
// Of a step that is read ahead.
typedef struct {
    float state[STATES], tape[TAPE], d_y;
} Kept;

INLINE void load_kept(const Loop *loop, Kept *kept, Place place, long long n) {
    long long stride = loop->batch * HIDDEN, row = place.at - place.unit;
    int here = place.in_batch && n >= 0;
    const float *tape = loop->tape + TAPE * (n * stride + row) + place.unit, *before = tape - TAPE * stride;
    UNROLL
    for (int i = 0; i < STATES; i++) {
        const float *from = n == 0 ? loop->state + i * stride + place.at
                            : i    ? before + (i - 1) * HIDDEN
                                   : loop->y + (n - 1) * stride + place.at;
        kept->state[i] = here ? *from : 0;
    }
    UNROLL
    for (int i = 0; i < TAPE; i++) kept->tape[i] = here ? tape[i * HIDDEN] : 0;
    kept->d_y = here && loop->d_y ? loop->d_y[n * stride + place.at] : 0;
}

KERNEL(backward) {
    float *own = own_memory();
    long long stride = loop.batch * HIDDEN;
    float4 resident[RESIDENT_0 + RESIDENT_1 + 1];
    Step s[EACH];
    Kept ahead[EACH];
    for (int i = thread_index(); i < RESULTS; i += THREADS) own[i] = 0;
    load_weights(&loop, resident, own + WEIGHTS);
    EACH_PAIR(e) {
        Place place = place_of(&loop, e);
        load_units(&loop, &s[e], place);
        UNROLL
        for (int i = 0; i < UNITS; i++) s[e].d_unit[i] = 0;
        UNROLL
        for (int i = 0; i < STATES; i++) s[e].d_state[i] = place.in_batch ? loop.d_state[i * stride + place.at] : 0;
        load_kept(&loop, &ahead[e], place, loop.steps - 1);
    }
    sync_cluster();
    for (long long n = loop.steps - 1; n >= 0; n--) {
        EACH_PAIR(e) {
            UNROLL
            for (int i = 0; i < STATES; i++) s[e].state[i] = ahead[e].state[i];
            UNROLL
            for (int i = 0; i < TAPE; i++) s[e].tape[i] = ahead[e].tape[i];
            s[e].d_state[0] += ahead[e].d_y;
            load_kept(&loop, &ahead[e], place_of(&loop, e), n - 1);
        }
        UNROLL
        for (int phase = PHASES - 1; phase >= 0; phase--) {
            EACH_PAIR(e) {
                Place place = place_of(&loop, e);
                if (place.is_unit) {
                    backward_step(phase, &s[e]);
                    UNROLL
                    for (int i = 0; i < OF(phase, INPUTS); i++)
                        broadcast(vectors_at(phase, n) + place.row * OF(phase, DEPTH) + i * HIDDEN + place.unit,
                              s[e].d_product[OF(phase, FIRST_PRODUCT) + i]);
                }
            }
            sync_cluster();
            if (phase == 0) {
                EACH_PAIR(e) {
                    Place place = place_of(&loop, e);
                    if (place.in_batch) {
                        long long row = n * stride + place.at - place.unit;
                        UNROLL
                        for (int i = 0; i < PRODUCTS; i++)
                            loop.d_product[PRODUCTS * row + i * HIDDEN + place.unit] = s[e].d_product[i];
#ifdef PRODUCT_NAMES
                        UNROLL
                        for (int i = 0; i < GATES; i++)
                            loop.d_pre[GATES * row + i * HIDDEN + place.unit] = s[e].d_pre[i];
#endif
                    }
                }
            }
            multiply(phase, resident, own + vectors_at(phase, n), own + RESULTS, own + WEIGHTS);
            sync_block();
            EACH_PAIR(e) {
                Place place = place_of(&loop, e);
                if (place.is_unit) {
                    UNROLL
                    for (int i = 0; i < OF(phase, OUTPUTS); i++)
                        s[e].d_state[OF(phase, FIRST_STATE) + i] += sum_slices(phase, own + RESULTS, place, i);
                }
            }
        }
    }
    EACH_PAIR(e) {
        Place place = place_of(&loop, e);
        if (place.in_batch) {
            UNROLL
            for (int i = 0; i < STATES; i++) loop.d_state[i * stride + place.at] = s[e].d_state[i];
            UNROLL
            for (int i = 0; i < UNITS; i++)
                if (loop.d_unit) loop.d_unit[i * stride + place.at] = s[e].d_unit[i];
        }
    }
}
#endif
