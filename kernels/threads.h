// A range divided over threads, in which denormal numbers are zero.
#pragma once
#include <pthread.h>
#include <stdint.h>

#define MOST_THREADS 256

typedef struct {
    void (*task)(void *context, long first, long last);
    void *context;
    long first, last;
} Share;

// Vanishing gradients become denormal numbers, with which a processor is up to a hundred times slower.
static inline uint64_t flush_denormals(void) {
#if defined(__SSE__)
    unsigned before = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(before | 0x8040);  // flush to zero, denormals are zero
    return before;
#elif defined(__aarch64__)
    uint64_t before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"(before | (1 << 24)));
    return before;
#else
    return 0;
#endif
}

static inline void restore_denormals(uint64_t before) {
#if defined(__SSE__)
    __builtin_ia32_ldmxcsr((unsigned)before);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"(before));
#else
    (void)before;
#endif
}

static void *run_share(void *argument) {
    Share *share = argument;
    uint64_t before = flush_denormals();
    share->task(share->context, share->first, share->last);
    restore_denormals(before);
    return 0;
}

// Calls task(context, first, last) on contiguous parts of 0 .. count - 1, one for each thread, and waits for all.
static void parallel(long threads, long count, void (*task)(void *, long, long), void *context) {
    Share shares[MOST_THREADS];
    pthread_t ids[MOST_THREADS];
    int started[MOST_THREADS];
    if (threads > count) threads = count;
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    for (long i = 0; i < threads; i++) {
        shares[i] = (Share){task, context, count * i / threads, count * (i + 1) / threads};
        started[i] = i > 0 && pthread_create(&ids[i], 0, run_share, &shares[i]) == 0;
    }
    // The first, and any that no thread could be had for.
    for (long i = 0; i < threads; i++)
        if (!started[i]) run_share(&shares[i]);
    for (long i = 0; i < threads; i++)
        if (started[i]) pthread_join(ids[i], 0);
}
