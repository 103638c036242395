/* The matrix registers of Intel's AMX, which Intel calls tiles: here a tile is one of weights (matrix.h). */
#ifndef KEEPWARM_AMX_H
#define KEEPWARM_AMX_H

#include "vectors.h"

#if defined(__AMX_INT8__) && defined(__AVX512VNNI__) && defined(__linux__)
#define CAN_USE_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#else
#define CAN_USE_AMX 0
#endif

#define AMX_ROWS 16 /* of a register, which are also the lanes of a tile */

static int has_amx; /* whether the system has given the registers to this process */

#if CAN_USE_AMX
#define ASK_FOR_FEATURE 0x1023 /* ARCH_REQ_XCOMP_PERM */
#define REGISTERS 18           /* XFEATURE_XTILE_DATA */

/* Once, when the library is loaded: the width of blocks depends on it. */
__attribute__((constructor)) static void ask_for_amx(void) {
    has_amx = syscall(SYS_arch_prctl, ASK_FOR_FEATURE, REGISTERS) == 0;
}

/* Gives this thread's registers their shapes: 0 to 3 are sums, 4 and 5 activations and codes of 32 columns, 6 and 7 those
 * of sixteen. The shapes are static, because GCC 12 takes only their first eight bytes as read, and would not write others. */
static void open_amx(void) {
    static const struct {
        uint8_t palette, first_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } shapes __attribute__((aligned(64))) = {
        .palette = 1,
        .row_bytes = {64, 64, 64, 64, 32, 64, 16, 64},
        .rows = {AMX_ROWS, AMX_ROWS, AMX_ROWS, AMX_ROWS, AMX_ROWS, 8, AMX_ROWS, 4},
    };
    _tile_loadconfig(&shapes);
}

static void close_amx(void) { _tile_release(); }

#else
static void open_amx(void) {}
static void close_amx(void) {}
#endif

#endif
