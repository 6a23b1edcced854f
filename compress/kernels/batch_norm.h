/* One numeric type's kernels: T, LOAD(T) -> float, STORE(float) -> T and NAME(x) are defined by batch_norm.c, which includes this file once a type.

Values lie in memory as rows of `channels` numbers (channels_last), `rows` of them. Loops run over the flat memory of several rows at once ("a block"),
with the channels' numbers repeated as often: channels need not be a multiple of what the processor computes at once. Every thread has the same rows in
every pass, sums are added in double precision in the order of the threads: the same bits for the same number of threads. */

static void NAME(sums)(const T *restrict x, const float *restrict shift, long count, float *restrict first, float *restrict second, int square)
{
    if (square)
        for (long i = 0; i < count; i++) {
            float value = LOAD(x[i]) - shift[i];
            second[i] += value * value;
        }
    else
        for (long i = 0; i < count; i++)
            first[i] += LOAD(x[i]);
}

/* y = min(max(x a + b, low), high), a comparison with NaN keeps it */
static void NAME(apply)(const T *restrict x, const float *restrict a, const float *restrict b, float low, float high, long count, T *restrict y)
{
    for (long i = 0; i < count; i++) {
        float value = LOAD(x[i]) * a[i] + b[i];
        value = value < low ? low : value;
        y[i] = STORE(value > high ? high : value);
    }
}

static void NAME(gradient_sums)(const T *restrict g, const T *restrict x, const float *restrict mean, const float *restrict a, const float *restrict b,
                                float low, float high, long count, float *restrict first, float *restrict second)
{
    for (long i = 0; i < count; i++) {
        float value = LOAD(x[i]), y = value * a[i] + b[i];
        float passed = (y > low) & (y < high) ? LOAD(g[i]) : 0.0f;
        first[i] += passed;
        second[i] += passed * (value - mean[i]);
    }
}

static void NAME(gradient)(const T *restrict g, const T *restrict x, const float *restrict mean, const float *restrict a, const float *restrict b,
                           const float *restrict slope, const float *restrict offset, float low, float high, long count, T *restrict out)
{
    for (long i = 0; i < count; i++) {
        float value = LOAD(x[i]), y = value * a[i] + b[i];
        float passed = (y > low) & (y < high) ? LOAD(g[i]) : 0.0f;
        out[i] = STORE(passed * a[i] + ((value - mean[i]) * slope[i] + offset[i]));
    }
}

/* See the Python side for the arguments. Returns 0; 1 where memory ran out. */
int NAME(forward)(const T *x, long rows, long channels, const float *weight, const float *bias, float eps, float momentum, float low, float high,
                  float *running_mean, float *running_var, float *mean, float *invstd, float *a, float *b, T *y, int threads)
{
    const long per = block_rows(channels), block = per * channels;
    double *parts = malloc(sizeof(double) * (size_t)threads * (size_t)channels * 3);
    float *scratch = malloc(sizeof(float) * (size_t)threads * (size_t)block * 4);
    if (!parts || !scratch) {
        free(parts), free(scratch);
        return 1;
    }
#pragma omp parallel num_threads(threads)
    {
        const int me = thread_number(), all = thread_count();
        const long begin = share(rows, me, all), end = share(rows, me + 1, all), chunk = per * CHUNK;
        float *first = scratch + me * block * 4, *second = first + block, *left = second + block, *right = left + block;
        double *count = parts + (long)me * channels * 3, *average = count + channels, *spread = average + channels;
        for (long c = 0; c < channels; c++)
            count[c] = average[c] = spread[c] = 0;
        for (long row = begin; row < end; row += chunk) { /* mean and spread of a chunk, then of all so far (Chan et al. 1983) */
            const long stop = row + chunk < end ? row + chunk : end, n = stop - row;
            memset(first, 0, sizeof(float) * (size_t)block * 2);
            for (long at = row; at < stop; at += per)
                NAME(sums)(x + at * channels, left, (at + per < stop ? per : stop - at) * channels, first, second, 0);
            fold(first, channels, per, left);
            for (long c = 0; c < channels; c++)
                left[c] /= (float)n;
            repeat(left, channels, per);
            for (long at = row; at < stop; at += per)
                NAME(sums)(x + at * channels, left, (at + per < stop ? per : stop - at) * channels, first, second, 1);
            fold(second, channels, per, first);
            for (long c = 0; c < channels; c++) {
                const double before = count[c], delta = left[c] - average[c];
                count[c] += n;
                average[c] += delta * n / count[c];
                spread[c] += first[c] + delta * delta * before * n / count[c];
            }
        }
#pragma omp barrier
#pragma omp single
        for (long c = 0; c < channels; c++) {
            double n = 0, m = 0, s = 0;
            for (int t = 0; t < all; t++) {
                const double *part = parts + (long)t * channels * 3 + c;
                if (part[0] == 0)
                    continue;
                const double delta = part[channels] - m, sum = n + part[0];
                m += delta * part[0] / sum;
                s += part[2 * channels] + delta * delta * n * part[0] / sum;
                n = sum;
            }
            mean[c] = (float)m;
            invstd[c] = (float)(1 / sqrt(s / n + eps));
            a[c] = weight[c] * invstd[c];
            b[c] = bias[c] - mean[c] * a[c];
            running_mean[c] += momentum * (mean[c] - running_mean[c]);
            running_var[c] += momentum * ((float)(s / (n - 1)) - running_var[c]);
        }
        memcpy(left, a, sizeof(float) * (size_t)channels), repeat(left, channels, per);
        memcpy(right, b, sizeof(float) * (size_t)channels), repeat(right, channels, per);
        /* backwards: what was read last is still near */
        for (long at = begin + (end - begin - 1) / per * per; at >= begin && end > begin; at -= per)
            NAME(apply)(x + at * channels, left, right, low, high, (at + per < end ? per : end - at) * channels, y + at * channels);
    }
    free(parts), free(scratch);
    return 0;
}

int NAME(backward)(const T *g, const T *x, long rows, long channels, const float *mean, const float *invstd, const float *a, const float *b, float low,
                   float high, T *out, float *weight_gradient, float *bias_gradient, int threads)
{
    const long per = block_rows(channels), block = per * channels;
    double *parts = malloc(sizeof(double) * (size_t)threads * (size_t)channels * 2);
    float *scratch = malloc(sizeof(float) * ((size_t)threads * 2 + 5) * (size_t)block);
    if (!parts || !scratch) {
        free(parts), free(scratch);
        return 1;
    }
    float *means = scratch + (long)threads * 2 * block, *scale = means + block, *shift = scale + block, *slope = shift + block, *offset = slope + block;
    memcpy(means, mean, sizeof(float) * (size_t)channels), repeat(means, channels, per);
    memcpy(scale, a, sizeof(float) * (size_t)channels), repeat(scale, channels, per);
    memcpy(shift, b, sizeof(float) * (size_t)channels), repeat(shift, channels, per);
#pragma omp parallel num_threads(threads)
    {
        const int me = thread_number(), all = thread_count();
        const long begin = share(rows, me, all), end = share(rows, me + 1, all), chunk = per * CHUNK;
        float *first = scratch + (long)me * 2 * block, *second = first + block;
        double *sum = parts + (long)me * channels * 2, *product = sum + channels;
        for (long c = 0; c < channels; c++)
            sum[c] = product[c] = 0;
        for (long row = begin; row < end; row += chunk) { /* float32 within a chunk, double over chunks */
            const long stop = row + chunk < end ? row + chunk : end;
            memset(first, 0, sizeof(float) * (size_t)block * 2);
            for (long at = row; at < stop; at += per)
                NAME(gradient_sums)(g + at * channels, x + at * channels, means, scale, shift, low, high,
                                    (at + per < stop ? per : stop - at) * channels, first, second);
            for (long i = 0; i < block; i++) {
                sum[i % channels] += first[i];
                product[i % channels] += second[i];
            }
        }
#pragma omp barrier
#pragma omp single
        {
            for (long c = 0; c < channels; c++) {
                double s = 0, p = 0;
                for (int t = 0; t < all; t++) {
                    s += parts[(long)t * channels * 2 + c];
                    p += parts[(long)t * channels * 2 + channels + c];
                }
                bias_gradient[c] = (float)s;
                weight_gradient[c] = (float)(p * invstd[c]);
                slope[c] = (float)(-a[c] * invstd[c] * invstd[c] * p / rows);
                offset[c] = (float)(-a[c] * s / rows);
            }
            repeat(slope, channels, per), repeat(offset, channels, per);
        }
        for (long at = begin + (end - begin - 1) / per * per; at >= begin && end > begin; at -= per)
            NAME(gradient)(g + at * channels, x + at * channels, means, scale, shift, slope, offset, low, high,
                           (at + per < end ? per : end - at) * channels, out + at * channels);
    }
    free(parts), free(scratch);
    return 0;
}
