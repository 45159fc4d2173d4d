// A range divided over threads, in which denormal numbers are zero; and memory in large pages.
#pragma once
#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

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
#endif
}

static void *run_share(void *argument) {
    Share *share = argument;
    uint64_t before = flush_denormals();
    share->task(share->context, share->first, share->last);
    restore_denormals(before);
    return 0;
}

// Shares that are done by whoever takes them next.
typedef struct {
    Share *shares;
    long count, taken;
} Shares;

static void take_shares(void *argument) {
    Shares *all = argument;
    for (long i; (i = __atomic_fetch_add(&all->taken, 1, __ATOMIC_RELAXED)) < all->count;) run_share(&all->shares[i]);
}

static void *take_shares_in_thread(void *argument) {
    take_shares(argument);
    return 0;
}

// Calls task(context, first, last) on contiguous parts of 0 .. count - 1, one for each thread, and waits for all.
//
// The threads are those of the OpenMP that PyTorch has loaded, where it is found: after an operation of PyTorch's they
// stay awake for some milliseconds, and threads of our own would have to share the cores with them.
static void parallel(long threads, long count, void (*task)(void *, long, long), void *context) {
    Share shares[MOST_THREADS];
    pthread_t ids[MOST_THREADS];
    int started[MOST_THREADS];
    if (threads > count) threads = count;
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    for (long i = 0; i < threads; i++) shares[i] = (Share){task, context, count * i / threads, count * (i + 1) / threads};
    Shares all = {shares, threads, 0};
    void (*team)(void (*)(void *), void *, unsigned, unsigned) = dlsym(RTLD_DEFAULT, "GOMP_parallel");
    if (threads > 1 && team) {
        team(take_shares, &all, threads, 0);
        return;
    }
    for (long i = 1; i < threads; i++) started[i] = pthread_create(&ids[i], 0, take_shares_in_thread, &all) == 0;
    take_shares(&all);
    for (long i = 1; i < threads; i++)
        if (started[i]) pthread_join(ids[i], 0);
}

// Asks for pages of 2 MB for fresh memory that a loop is about to fill: with those of 4 kB, a third of an LSTM's time
// was the system's, faulting them in.
static void use_large_pages(void *memory, size_t bytes) {
#ifdef MADV_HUGEPAGE
    const uintptr_t page = 2 << 20;
    uintptr_t begin = ((uintptr_t)memory + page - 1) / page * page, end = ((uintptr_t)memory + bytes) / page * page;
    if (begin < end) madvise((void *)begin, end - begin, MADV_HUGEPAGE);
#endif
}
