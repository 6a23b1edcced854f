/* Forward and backward of BatchNorm for one numeric type. batch_norm.c includes this file once for each type, after
defining T, N, WIDEN, NARROW and NAME (see batch_norm_passes.h) and LOAD(T) -> float.

Every thread has the same blocks in every pass, and sums are added in double precision in the order of the threads, so
the same number of threads gives the same bits. */

#include "batch_norm_passes.h"

/* See norm.py for the arguments. Returns 0, or 1 where memory ran out. */
int NAME(forward)(const T *x, const T *kept, long rows, long channels, const float *weight, const float *bias,
                  float eps, float momentum, float low, float high, float *running_mean, float *running_var,
                  float *mean, float *invstd, float *a, float *b, T *y, int threads)
{
    const long per = block_rows(channels), block = per * channels, blocks = rows / per;
    const long rest = (rows - blocks * per) * channels, chunk = chunk_of(block);
    double *parts = calloc((size_t)threads * (size_t)block * 2, sizeof(double));
    float *scratch = malloc(sizeof(float) * (size_t)block * 2);
    T *padded = calloc((size_t)block * 3, sizeof(T)); /* the rows after the last whole block, and zeros */
    if (!parts || !scratch || !padded) {
        free(parts), free(scratch), free(padded);
        return 1;
    }
    float *scale = scratch, *shift = scratch + block;
    T *last_x = padded, *last_y = last_x + block, *last_kept = kept ? last_y + block : NULL;
    memcpy(last_x, x + blocks * block, sizeof(T) * (size_t)rest);
    if (kept)
        memcpy(last_kept, kept + blocks * block, sizeof(T) * (size_t)rest);
#pragma omp parallel num_threads(threads)
    {
        const int me = thread_number(), all = thread_count();
        const long begin = share(blocks, me, all), end = share(blocks, me + 1, all);
        double *average = parts + (long)me * block * 2, *spread = average + block;
        for (long at = begin; at < end; at += chunk)
            NAME(moments)(x + at * block, block, at - begin, at + chunk < end ? chunk : end - at, average, spread);
#pragma omp barrier
#pragma omp single
        {
            for (long c = 0; c < channels; c++) {
                double n = 0, m = 0, s = 0;
                for (int t = 0; t < all; t++)
                    for (long i = c; i < block; i += channels)
                        join(&n, &m, &s, share(blocks, t + 1, all) - share(blocks, t, all),
                             parts[(long)t * block * 2 + i], parts[(long)t * block * 2 + block + i]);
                for (long i = c; i < rest; i += channels)
                    join(&n, &m, &s, 1, LOAD(last_x[i]), 0);
                mean[c] = (float)m;
                invstd[c] = (float)(1 / sqrt(s / n + eps));
                scale[c] = a[c] = weight[c] * invstd[c];
                shift[c] = b[c] = bias[c] - mean[c] * a[c];
                running_mean[c] += momentum * (mean[c] - running_mean[c]);
                running_var[c] += momentum * ((float)(s / (n - 1)) - running_var[c]);
            }
            repeat(scale, channels, per), repeat(shift, channels, per);
        }
        if (rest && me == all - 1)
            NAME(apply_of)(last_x, last_kept, scale, shift, low, high, block, 1, last_y);
        /* Backwards: what was read last is still in the cache. */
        for (long stop = end, at; stop > begin; stop = at) {
            at = stop - chunk > begin ? stop - chunk : begin;
            NAME(apply_of)(x + at * block, kept ? kept + at * block : NULL, scale, shift, low, high, block, stop - at,
                           y + at * block);
        }
    }
    memcpy(y + blocks * block, last_y, sizeof(T) * (size_t)rest);
    free(parts), free(scratch), free(padded);
    return 0;
}

/* y, through: see gradient_sums; NULL where nothing was added in front of the activation, or there is none. */
int NAME(backward)(const T *g, const T *x, const T *y, long rows, long channels, const float *mean,
                   const float *invstd, const float *a, const float *b, float low, float high, T *out, T *through,
                   float *weight_gradient, float *bias_gradient, int threads)
{
    const long per = block_rows(channels), block = per * channels, blocks = rows / per;
    const long rest = (rows - blocks * per) * channels, chunk = chunk_of(block);
    double *parts = calloc((size_t)threads * (size_t)block * 2, sizeof(double));
    float *scratch = malloc(sizeof(float) * (size_t)block * 5);
    T *padded = calloc((size_t)block * 5, sizeof(T));
    if (!parts || !scratch || !padded) {
        free(parts), free(scratch), free(padded);
        return 1;
    }
    float *means = scratch, *scale = means + block, *shift = scale + block;
    float *slope = shift + block, *offset = slope + block;
    T *last_g = padded, *last_x = padded + block, *last_out = last_x + block;
    T *last_y = y ? last_out + block : NULL, *last_through = last_out + 2 * block;
    memcpy(means, mean, sizeof(float) * (size_t)channels), repeat(means, channels, per);
    memcpy(scale, a, sizeof(float) * (size_t)channels), repeat(scale, channels, per);
    memcpy(shift, b, sizeof(float) * (size_t)channels), repeat(shift, channels, per);
    memcpy(last_g, g + blocks * block, sizeof(T) * (size_t)rest);
    memcpy(last_x, x + blocks * block, sizeof(T) * (size_t)rest);
    if (y)
        memcpy(last_y, y + blocks * block, sizeof(T) * (size_t)rest);
#pragma omp parallel num_threads(threads)
    {
        const int me = thread_number(), all = thread_count();
        const long begin = share(blocks, me, all), end = share(blocks, me + 1, all);
        double *sum = parts + (long)me * block * 2, *product = sum + block;
        for (long at = begin; at < end; at += chunk) /* float32 within a chunk, double over chunks */
            NAME(gradient_sums_of)(g + at * block, x + at * block, y ? y + at * block : NULL, means, scale, shift, low,
                                   high, block, at + chunk < end ? chunk : end - at, sum, product,
                                   through ? through + at * block : NULL);
        if (rest && me == all - 1)
            NAME(gradient_sums_of)(last_g, last_x, last_y, means, scale, shift, low, high, block, 1, sum, product,
                                   last_through);
#pragma omp barrier
#pragma omp single
        {
            for (long c = 0; c < channels; c++) {
                double s = 0, p = 0;
                for (int t = 0; t < all; t++)
                    for (long i = c; i < block; i += channels) {
                        s += parts[(long)t * block * 2 + i];
                        p += parts[(long)t * block * 2 + block + i];
                    }
                bias_gradient[c] = (float)s;
                weight_gradient[c] = (float)(p * invstd[c]);
                const double inner = -a[c] * invstd[c] * (double)invstd[c] * p / rows;
                slope[c] = (float)inner;
                offset[c] = (float)(-a[c] * s / rows - inner * mean[c]);
            }
            repeat(slope, channels, per), repeat(offset, channels, per);
        }
        const T *of = y ? through : g, *last_of = y ? last_through : last_g;
        const float below = y ? -INFINITY : low, above = y ? INFINITY : high; /* the passed gradient is known now */
        if (rest && me == all - 1)
            NAME(gradient_of)(last_of, last_x, scale, shift, slope, offset, below, above, block, 1, last_out);
        /* Backwards: what was read last is still in the cache. */
        for (long stop = end, at; stop > begin; stop = at) {
            at = stop - chunk > begin ? stop - chunk : begin;
            NAME(gradient_of)(of + at * block, x + at * block, scale, shift, slope, offset, below, above, block,
                              stop - at, out + at * block);
        }
    }
    memcpy(out + blocks * block, last_out, sizeof(T) * (size_t)rest);
    if (y)
        memcpy(through + blocks * block, last_through, sizeof(T) * (size_t)rest);
    free(parts), free(scratch), free(padded);
    return 0;
}
