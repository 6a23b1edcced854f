/* BatchNorm with the residual sum and the activation behind it, forward and backward, for training on a CPU: float32 or
bfloat16 maps, float32 parameters.

A step of a compact network is mostly memory traffic. As separate operators, BatchNorm and ReLU read or write a map
thirteen times in a forward and a backward pass. Here it is eight times: the backward pass computes what it needs of the
activation from the input again instead of reading it. With a sum between the two it is 16 and 11 times. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#ifdef __AVX512F__
#include <immintrin.h>
#endif

/* Vectors of LANES numbers, GROUP of them at a time; the compiler splits them into the registers that the CPU has. */
#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
typedef float V __attribute__((vector_size(4 * LANES)));
typedef int32_t M __attribute__((vector_size(4 * LANES)));
typedef uint32_t U __attribute__((vector_size(4 * LANES)));
typedef uint16_t H __attribute__((vector_size(2 * LANES)));

#define INLINE static inline __attribute__((always_inline))

enum { GROUP = 2, CHUNK = 64, NEAR = 32768, BELOW = 1, ABOVE = 2, KEPT = 4 };

static int thread_number(void)
{
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

static int thread_count(void)
{
#ifdef _OPENMP
    return omp_get_num_threads();
#else
    return 1;
#endif
}

/* The first row of a thread's share. */
static long share(long rows, int thread, int threads) { return rows * thread / threads; }

/* Rows per block, so that a block is a whole number of groups. */
static long block_rows(long channels)
{
    long rows = 1;
    while (channels * rows % (GROUP * LANES))
        rows *= 2;
    return rows;
}

/* Blocks that are summed in float32 before double precision takes over; they stay in the L2 cache. */
static long chunk_of(long block) { return block >= NEAR ? 1 : NEAR / block < CHUNK ? NEAR / block : CHUNK; }

/* Joins number, mean and sum of squared deviations of two sets (Chan et al. 1983). */
static void join(double *n, double *mean, double *spread, double other_n, double other_mean, double other_spread)
{
    if (other_n == 0)
        return;
    const double delta = other_mean - *mean, sum = *n + other_n;
    *mean += delta * other_n / sum;
    *spread += other_spread + delta * delta * *n * other_n / sum;
    *n = sum;
}

/* Which bounds the activation has, and whether a map was added in front of it. */
static int kind_of(float low, float high, const void *kept)
{
    return (high < INFINITY ? BELOW | ABOVE : low > -INFINITY ? BELOW : 0) | (kept ? KEPT : 0);
}

#define KINDS RUN(0) RUN(BELOW) RUN(BELOW | ABOVE) RUN(KEPT) RUN(KEPT | BELOW) RUN(KEPT | BELOW | ABOVE)

static void repeat(float *values, long channels, long times)
{
    for (long i = channels; i < channels * times; i++)
        values[i] = values[i - channels];
}

static inline float of_bf16(uint16_t value)
{
    const uint32_t bits = (uint32_t)value << 16;
    float out;
    memcpy(&out, &bits, sizeof out);
    return out;
}

static inline V splat(float value) { return (V){0} + value; }

static inline V either(M mask, V one, V other) { return (V)(((M)one & mask) | ((M)other & ~mask)); }

static inline V floats(const float *from)
{
    V out;
    memcpy(&out, from, sizeof out);
    return out;
}

static inline V of_bf16s(H values)
{
#ifdef __AVX512F__
    return (V)((U)_mm512_cvtepu16_epi32((__m256i)values) << 16); /* gcc 12 would widen in two halves */
#else
    return (V)(__builtin_convertvector(values, U) << 16);
#endif
}

/* Rounds to the nearest, ties to even; NaN stays NaN. */
static inline H to_bf16s(V values)
{
#ifdef __AVX512BF16__
    return (H)_mm512_cvtneps_pbh((__m512)values); /* the same rounding; denormal numbers become zero */
#else
    const U bits = (U)values, rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16, ordered = (U)(values == values);
    return __builtin_convertvector((rounded & ordered) | (0x7fc0u & ~ordered), H);
#endif
}

#define T float
#define N V
#define LOAD(value) (value)
#define WIDEN(values) (values)
#define NARROW(values) (values)
#define NAME(name) name##_float32
#include "batch_norm.h"
#undef T
#undef N
#undef LOAD
#undef WIDEN
#undef NARROW
#undef NAME

#define T uint16_t
#define N H
#define LOAD(value) of_bf16(value)
#define WIDEN(values) of_bf16s(values)
#define NARROW(values) to_bf16s(values)
#define NAME(name) name##_bfloat16
#include "batch_norm.h"
