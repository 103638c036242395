/* Work that several threads share, phase by phase, without waiting for a thread that has no item.
 *
 * A thread takes the items of its own part of a phase, one behind the other, then those that are left in the parts of
 * others, and waits until all items are done, not until all threads have arrived. A thread that the system has descheduled
 * between two items delays no other thread. On a busy machine that is the difference between losing a share of the speed
 * and losing most of it. Neighbouring items are neighbours in memory: a thread that stays in its part reads streams.
 */
#ifndef KEEPWARM_PHASES_H
#define KEEPWARM_PHASES_H

#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

typedef struct {
    atomic_int count;
    char apart[64 - sizeof(atomic_int)]; /* a cache line of its own */
} Counter;

/* Phases that `threads` threads go through: each has a counter of items that are done, and one of items that were taken out
 * of each thread's part. */
typedef struct {
    Counter *counters;
    int threads;
} Phases;

#define SPINS 4096 /* about ten microseconds; then the processor is yielded to the thread that has the item */

static inline size_t phases_size(int phases, int threads) { return sizeof(Counter) * phases * (1 + threads); }

/* An item for `thread`, or -1. */
static inline int take(Phases p, int thread, int items) {
    for (int i = 0; i < p.threads; i++) {
        const int whose = (thread + i) % p.threads;
        const int first = (int)((long long)items * whose / p.threads),
                  end = (int)((long long)items * (whose + 1) / p.threads);
        if (first == end) continue;
        const int item = first + atomic_fetch_add_explicit(&p.counters[1 + whose].count, 1, memory_order_relaxed);
        if (item < end) return item;
    }
    return -1;
}

static inline void finished(Phases p) { atomic_fetch_add_explicit(&p.counters->count, 1, memory_order_release); }

static inline void wait_for(Phases p, int items) {
    for (int spins = 0; atomic_load_explicit(&p.counters->count, memory_order_acquire) < items; spins++) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
        if (spins > SPINS) sched_yield();
    }
}

/* The phases behind the first of these. */
static inline Phases behind(Phases p) { return (Phases){p.counters + 1 + p.threads, p.threads}; }

/* Runs `work(item)` for items 0..count of the first of `phases`, which is behind it then; returns when all of them are done. */
#define RUN_PHASE(phases, count, item, work)                                              \
    do {                                                                                  \
        const Phases here_ = phases;                                                      \
        const int count_ = (count), thread_ = omp_get_thread_num();                       \
        for (int item; (item = take(here_, thread_, count_)) >= 0; finished(here_)) work; \
        wait_for(here_, count_);                                                          \
        phases = behind(here_);                                                           \
    } while (0)

#endif
