/* Batch normalisation with the activation behind it, forward and backward, for training on a CPU: float32 or bfloat16 maps, float32 parameters.

A step of a compact network is mostly memory traffic. As two operators these read and write a map thirteen times, forward and one backward pass; here
eight times, and what the backward pass needs of the activation is computed again from the input instead of being read. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

enum { CHUNK = 64, SHORTEST = 512 };

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

/* the first row of a thread's share */
static long share(long rows, int thread, int threads) { return rows * thread / threads; }

/* how many rows a block has: its length is a multiple of 32 numbers, and not short */
static long block_rows(long channels)
{
    long rows = 1;
    while (channels * rows % 32)
        rows *= 2;
    while (channels * rows < SHORTEST)
        rows *= 2;
    return rows;
}

static void repeat(float *values, long channels, long times)
{
    for (long i = channels; i < channels * times; i++)
        values[i] = values[i - channels];
}

/* sums over the rows of a block */
static void fold(const float *block, long channels, long rows, float *out)
{
    memcpy(out, block, sizeof(float) * (size_t)channels);
    for (long row = 1; row < rows; row++)
        for (long c = 0; c < channels; c++)
            out[c] += block[row * channels + c];
}

static inline float of_bf16(uint16_t value)
{
    const uint32_t bits = (uint32_t)value << 16;
    float out;
    memcpy(&out, &bits, sizeof out);
    return out;
}

/* to the nearest, halves to the even; NaN stays NaN */
static inline uint16_t to_bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    return (uint16_t)(value == value ? rounded : 0x7fc0u);
}

#define T float
#define LOAD(value) (value)
#define STORE(value) (value)
#define NAME(name) name##_float32
#include "batch_norm.h"
#undef T
#undef LOAD
#undef STORE
#undef NAME

#define T uint16_t
#define LOAD(value) of_bf16(value)
#define STORE(value) to_bf16(value)
#define NAME(name) name##_bfloat16
#include "batch_norm.h"
