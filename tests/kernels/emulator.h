// A cluster of CUDA thread blocks on a CPU, for tests: each of its threads is a fiber, which runs until it waits.
//
// The order in which the threads run is chosen by the caller: where a barrier is missing, results differ between orders
// or from the reference. Shared memory starts as NaN. A barrier that not all threads reach is an error.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL
#define ROLL

typedef struct {
    float x, y, z, w;
} float4;

enum { RUNS, WAITS_FOR_BLOCK, WAITS_FOR_CLUSTER, ENDED };

typedef struct {
    ucontext_t context;
    int rank, thread, status;
} Fiber;

#define FIBERS (CLUSTER * THREADS)
#define STACK (64 * 1024)

static Fiber fibers[FIBERS], *running;
static ucontext_t scheduler;
static float *memories[CLUSTER];
static long cluster;
static int lost;

INLINE float *own_memory(void) {
    return memories[running->rank];
}

INLINE int thread_index(void) {
    return running->thread;
}

INLINE int rank_in_cluster(void) {
    return running->rank;
}

INLINE long cluster_index(void) {
    return cluster;
}

static void wait_as(int status) {
    running->status = status;
    swapcontext(&running->context, &scheduler);
}

INLINE void sync_block(void) {
    wait_as(WAITS_FOR_BLOCK);
}

INLINE void sync_cluster(void) {
    wait_as(WAITS_FOR_CLUSTER);
}

static int count(int status, int rank);

// An error where a block has ended, whose memory is then another's.
INLINE void broadcast(int at, float value) {
    for (int rank = 0; rank < CLUSTER; rank++) {
        lost |= count(ENDED, rank) == THREADS;
        memories[rank][at] = value;
    }
}

#ifdef PRE_FLOAT32
typedef float Pre;
#elif defined(PRE_BFLOAT16)
typedef uint16_t Pre;
#else
typedef _Float16 Pre;
#endif

INLINE float to_float(Pre x) {
#ifdef PRE_BFLOAT16
    uint32_t bits = (uint32_t)x << 16;
    float result;
    memcpy(&result, &bits, sizeof(result));
    return result;
#else
    return x;
#endif
}

// How many of the fibers, or of those of one block, have a status.
static int count(int status, int rank) {
    int found = 0;
    for (int i = 0; i < FIBERS; i++) found += fibers[i].status == status && (rank < 0 || fibers[i].rank == rank);
    return found;
}

static void release(int status, int rank) {
    for (int i = 0; i < FIBERS; i++)
        if (fibers[i].status == status && (rank < 0 || fibers[i].rank == rank)) fibers[i].status = RUNS;
}

// Runs one cluster; 1 where some of its threads wait for ever, or write where no block is. `order` is a permutation of
// the threads.
static int run_cluster(void (*body)(void), const int *order, char *stacks) {
    for (int i = 0; i < FIBERS; i++) {
        fibers[i].rank = i / THREADS, fibers[i].thread = i % THREADS, fibers[i].status = RUNS;
        getcontext(&fibers[i].context);
        fibers[i].context.uc_stack.ss_sp = stacks + (size_t)i * STACK;
        fibers[i].context.uc_stack.ss_size = STACK;
        fibers[i].context.uc_link = &scheduler;
        makecontext(&fibers[i].context, body, 0);
    }
    while (count(ENDED, -1) < FIBERS) {
        for (int i = 0; i < FIBERS; i++) {
            running = &fibers[order[i]];
            if (running->status != RUNS) continue;
            // Of a body that returns.
            running->status = ENDED;
            swapcontext(&scheduler, &running->context);
        }
        int released = count(ENDED, -1) == FIBERS;
        if (count(WAITS_FOR_CLUSTER, -1) == FIBERS) release(WAITS_FOR_CLUSTER, -1), released = 1;
        for (int rank = 0; rank < CLUSTER; rank++)
            if (count(WAITS_FOR_BLOCK, rank) == THREADS) release(WAITS_FOR_BLOCK, rank), released = 1;
        if (!released) return 1;
    }
    return lost;
}

static int run_grid(void (*body)(void), long clusters, const int *order, long bytes) {
    char *stacks = malloc((size_t)FIBERS * STACK);
    int failed = stacks ? 0 : 2;
    lost = 0;
    for (int rank = 0; rank < CLUSTER; rank++) {
        memories[rank] = aligned_alloc(64, (bytes + 63) / 64 * 64);
        failed |= memories[rank] ? 0 : 2;
    }
    for (cluster = 0; cluster < clusters && !failed; cluster++) {
        for (int rank = 0; rank < CLUSTER; rank++) memset(memories[rank], 0xff, bytes);
        failed = run_cluster(body, order, stacks);
    }
    for (int rank = 0; rank < CLUSTER; rank++) free(memories[rank]);
    free(stacks);
    return failed;
}

// What CUDA launches is, here, a function of the same name: 1 where it failed, 2 without memory.
#define KERNEL(name)                                                                       \
    static void name##_thread(const Loop loop);                                            \
    static const Loop *name##_loop;                                                        \
    static void name##_body(void) {                                                        \
        name##_thread(*name##_loop);                                                       \
    }                                                                                      \
    int name(const Loop *loop, long clusters, const int *order, long bytes) {              \
        name##_loop = loop;                                                                \
        return run_grid(name##_body, clusters, order, bytes);                              \
    }                                                                                      \
    static void name##_thread(const Loop loop)
