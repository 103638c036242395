// What stands for common.cuh and CUDA itself when tests run cuda/coded.cu on a CPU: a warp's lanes are fibers, which take
// turns at each exchange between them. Warps and blocks, which share nothing, run one after the other.
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
using std::min;

struct Index {
    int x, y;
};
static Index threadIdx, blockIdx;

static float __uint_as_float(u32 bits) {
    float number;
    memcpy(&number, &bits, 4);
    return number;
}
static u32 bits_of_float(float number) {
    u32 bits;
    memcpy(&bits, &number, 4);
    return bits;
}
static float __fmul_rn(float a, float b) { return a * b; }
static float __fadd_rn(float a, float b) { return a + b; }
static float wide(u16 bits) { return __uint_as_float((u32)bits << 16); }
static u16 narrow(float number) {
    const u32 bits = bits_of_float(number);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
static float wide_half(u16 bits) {
    _Float16 half;
    memcpy(&half, &bits, 2);
    return half;
}
static u16 narrow_half(float number) {
    const _Float16 half = number;
    u16 bits;
    memcpy(&bits, &half, 2);
    return bits;
}
static void wait_for_earlier() {}

constexpr int LANES_OF_A_WARP = 32, STACK_BYTES = 1 << 16;
static ucontext_t scheduler, fibers[LANES_OF_A_WARP];
static int now;
static float exchanged[LANES_OF_A_WARP];
static void give_way() { swapcontext(&fibers[now], &scheduler); }

static float warp_sum(float number) {
    for (int distance = 16; distance; distance >>= 1) {
        exchanged[now] = number;
        give_way();
        number += exchanged[now ^ distance];
        give_way();
    }
    return number;
}

struct Coded;
static void (*kernel)(Coded);
static const Coded* argument;
static bool is_done[LANES_OF_A_WARP];
static void run_lane();

static void run_warp() {
    static std::vector<char> stacks(LANES_OF_A_WARP * STACK_BYTES);
    for (int lane = 0; lane < LANES_OF_A_WARP; lane++) {
        getcontext(&fibers[lane]);
        fibers[lane].uc_stack.ss_sp = stacks.data() + lane * STACK_BYTES;
        fibers[lane].uc_stack.ss_size = STACK_BYTES;
        fibers[lane].uc_link = &scheduler;
        is_done[lane] = false;
        makecontext(&fibers[lane], run_lane, 0);
    }
    const int first = threadIdx.x;
    for (bool all_done = false; !all_done;) {
        all_done = true;
        for (now = 0; now < LANES_OF_A_WARP; now++) {
            if (is_done[now]) continue;
            threadIdx.x = first + now;
            swapcontext(&scheduler, &fibers[now]);
            all_done &= is_done[now];
        }
    }
    threadIdx.x = first;
}

// Called with the kernels' names after coded.cu.
#define LAUNCHED(NAME)                                                                    \
    extern "C" void launch_##NAME(const Coded* p, int blocks, int more, int threads) {    \
        kernel = NAME, argument = p;                                                      \
        for (blockIdx.y = 0; blockIdx.y < more; blockIdx.y++)                             \
            for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++)                       \
                for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x += LANES_OF_A_WARP) run_warp(); \
    }
