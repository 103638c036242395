/* Work that several threads share, phase by phase, without waiting for a thread that has no item.
 *
 * A thread takes the next item of a phase until none is left, then waits until all items are done, not until all
 * threads have arrived. A thread that the system has descheduled between two items delays no other thread. On a busy
 * machine that is the difference between losing a share of the speed and losing most of it.
 */
#ifndef KEEPWARM_PHASES_H
#define KEEPWARM_PHASES_H

#include <sched.h>
#include <stdatomic.h>

typedef struct {
    atomic_int next, done;
    char apart[64 - 2 * sizeof(atomic_int)]; /* a cache line of its own */
} Phase;

#define SPINS 4096 /* about ten microseconds; then the processor is yielded to the thread that has the item */

static inline int take(Phase *phase, int items) {
    const int item = atomic_fetch_add_explicit(&phase->next, 1, memory_order_relaxed);
    return item < items ? item : -1;
}

static inline void finished(Phase *phase) { atomic_fetch_add_explicit(&phase->done, 1, memory_order_release); }

static inline void wait_for(Phase *phase, int items) {
    for (int spins = 0; atomic_load_explicit(&phase->done, memory_order_acquire) < items; spins++) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
        if (spins > SPINS) sched_yield();
    }
}

/* Runs `work(item)` for items 0..count of a phase; returns when all of them are done. */
#define RUN_PHASE(phase, count, item, work)                                          \
    do {                                                                             \
        Phase *shared_ = (phase);                                                    \
        const int count_ = (count);                                                  \
        for (int item; (item = take(shared_, count_)) >= 0; finished(shared_)) work; \
        wait_for(shared_, count_);                                                   \
    } while (0)

#endif
