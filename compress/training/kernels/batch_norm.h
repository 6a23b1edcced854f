/* One numeric type's kernels. Defined by batch_norm.c, which includes this file once a type: T; N, LANES of it; WIDEN(N) -> V; NARROW(V) -> N;
LOAD(T) -> float; NAME(x).

Values lie in memory as rows of `channels` numbers (channels_last), `rows` of them, which are worked on as blocks of several rows, so that channels need
not be a multiple of LANES: a number's place in its block says its channel, and what belongs to a channel is kept once a place. A place's sums stay in
registers over a chunk of blocks. Every thread has the same blocks in every pass, sums are added in double precision in the order of the threads: the same
bits for the same number of threads. */

static inline V NAME(load)(const T *from)
{
    N raw;
    memcpy(&raw, from, sizeof raw);
    return WIDEN(raw);
}

static inline void NAME(store)(T *to, V values)
{
    const N raw = NARROW(values);
    memcpy(to, &raw, sizeof raw);
}

/* The mean and the sum of squared deviations of each place, of `before` blocks, joined with those of `blocks` more (Chan et al. 1983). */
static void NAME(moments)(const T *x, long block, long before, long blocks, double *average, double *spread)
{
    const double part = (double)blocks / (double)(before + blocks), cross = (double)before * part;
    for (long at = 0; at < block; at += GROUP * LANES) {
        V mean[GROUP], square[GROUP];
        for (int k = 0; k < GROUP; k++)
            mean[k] = square[k] = splat(0);
        for (long i = at; i < blocks * block; i += block)
            for (int k = 0; k < GROUP; k++)
                mean[k] += NAME(load)(x + i + k * LANES);
        for (int k = 0; k < GROUP; k++)
            mean[k] /= (float)blocks;
        for (long i = at; i < blocks * block; i += block)
            for (int k = 0; k < GROUP; k++) {
                const V away = NAME(load)(x + i + k * LANES) - mean[k];
                square[k] += away * away;
            }
        for (int k = 0; k < GROUP; k++)
            for (int lane = 0; lane < LANES; lane++) {
                const long place = at + k * LANES + lane;
                const double delta = mean[k][lane] - average[place];
                average[place] += delta * part;
                spread[place] += square[k][lane] + delta * delta * cross;
            }
    }
}

/* y = min(max(x a + b + kept, low), high); a comparison with NaN keeps it. kept: NULL for nothing */
static inline __attribute__((always_inline)) void NAME(apply)(const T *x, const T *kept, const float *a, const float *b, float low, float high, int bounds,
                                                              long block, long blocks, T *y)
{
    const V lows = splat(low), highs = splat(high);
    for (long at = 0; at < block; at += GROUP * LANES) {
        V slopes[GROUP], shifts[GROUP];
        for (int k = 0; k < GROUP; k++)
            slopes[k] = floats(a + at + k * LANES), shifts[k] = floats(b + at + k * LANES);
        for (long i = at; i < blocks * block; i += block)
            for (int k = 0; k < GROUP; k++) {
                V value = NAME(load)(x + i + k * LANES) * slopes[k] + shifts[k];
                if (bounds & KEPT)
                    value += NAME(load)(kept + i + k * LANES);
                if (bounds & BELOW)
                    value = either(value < lows, lows, value);
                if (bounds & ABOVE)
                    value = either(value > highs, highs, value);
                NAME(store)(y + i + k * LANES, value);
            }
    }
}

/* What of the gradients g the activation lets through; y: what went into it. */
static inline V NAME(passed)(V g, V y, V low, V high, int bounds)
{
    M mask = ~(M){0};
    if (bounds & BELOW)
        mask &= y > low;
    if (bounds & ABOVE)
        mask &= y < high;
    return (V)((M)g & mask);
}

/* Sums over `blocks` blocks of what passes, and of that times x - mean, added to `sum` and `product`, one of each a place of the block.

y: what came out of the activation, where something was added in front of it; what passes is then written to `through`. Else NULL, as y follows from x. */
static inline __attribute__((always_inline)) void NAME(gradient_sums)(const T *g, const T *x, const T *y, const float *mean, const float *a, const float *b,
                                                                      float low, float high, int bounds, long block, long blocks, double *sum,
                                                                      double *product, T *through)
{
    const V lows = splat(low), highs = splat(high);
    for (long at = 0; at < block; at += GROUP * LANES) {
        V means[GROUP], slopes[GROUP], shifts[GROUP], first[GROUP], second[GROUP];
        for (int k = 0; k < GROUP; k++) {
            const long place = at + k * LANES;
            means[k] = floats(mean + place), slopes[k] = floats(a + place), shifts[k] = floats(b + place);
            first[k] = second[k] = splat(0);
        }
        for (long i = at; i < blocks * block; i += block)
            for (int k = 0; k < GROUP; k++) {
                const V value = NAME(load)(x + i + k * LANES);
                const V out = bounds & KEPT ? NAME(load)(y + i + k * LANES) : value * slopes[k] + shifts[k];
                const V passed = NAME(passed)(NAME(load)(g + i + k * LANES), out, lows, highs, bounds);
                if (bounds & KEPT)
                    NAME(store)(through + i + k * LANES, passed);
                first[k] += passed;
                second[k] += passed * (value - means[k]);
            }
        for (int k = 0; k < GROUP; k++)
            for (int lane = 0; lane < LANES; lane++) {
                sum[at + k * LANES + lane] += first[k][lane];
                product[at + k * LANES + lane] += second[k][lane];
            }
    }
}

/* out = passed a + x slope + offset */
static inline __attribute__((always_inline)) void NAME(gradient)(const T *g, const T *x, const float *a, const float *b, const float *slope,
                                                                 const float *offset, float low, float high, int bounds, long block, long blocks, T *out)
{
    const V lows = splat(low), highs = splat(high);
    for (long at = 0; at < block; at += GROUP * LANES) {
        V slopes[GROUP], shifts[GROUP], inner[GROUP], outer[GROUP];
        for (int k = 0; k < GROUP; k++) {
            const long place = at + k * LANES;
            slopes[k] = floats(a + place), shifts[k] = floats(b + place);
            inner[k] = floats(slope + place), outer[k] = floats(offset + place);
        }
        for (long i = at; i < blocks * block; i += block)
            for (int k = 0; k < GROUP; k++) {
                const V value = NAME(load)(x + i + k * LANES);
                const V passed = NAME(passed)(NAME(load)(g + i + k * LANES), value * slopes[k] + shifts[k], lows, highs, bounds);
                NAME(store)(out + i + k * LANES, passed * slopes[k] + (value * inner[k] + outer[k]));
            }
    }
}

/* The last three, compiled apart for each kind of activation. */
static void NAME(apply_of)(const T *x, const T *kept, const float *a, const float *b, float low, float high, long block, long blocks, T *y)
{
#define RUN(kind) case kind: NAME(apply)(x, kept, a, b, low, high, kind, block, blocks, y); break;
    switch (kind_of(low, high, kept)) { KINDS }
#undef RUN
}

static void NAME(gradient_sums_of)(const T *g, const T *x, const T *y, const float *mean, const float *a, const float *b, float low, float high, long block,
                                   long blocks, double *sum, double *product, T *through)
{
#define RUN(kind) case kind: NAME(gradient_sums)(g, x, y, mean, a, b, low, high, kind, block, blocks, sum, product, through); break;
    switch (kind_of(low, high, y)) { KINDS }
#undef RUN
}

static void NAME(gradient_of)(const T *g, const T *x, const float *a, const float *b, const float *slope, const float *offset, float low, float high,
                              long block, long blocks, T *out)
{
#define RUN(kind) case kind: NAME(gradient)(g, x, a, b, slope, offset, low, high, kind, block, blocks, out); break;
    switch (kind_of(low, high, NULL)) { KINDS }
#undef RUN
}

/* See the Python side for the arguments. Returns 0; 1 where memory ran out. */
int NAME(forward)(const T *x, const T *kept, long rows, long channels, const float *weight, const float *bias, float eps, float momentum, float low,
                  float high, float *running_mean, float *running_var, float *mean, float *invstd, float *a, float *b, T *y, int threads)
{
    const long per = block_rows(channels), block = per * channels, blocks = rows / per, rest = (rows - blocks * per) * channels, chunk = chunk_of(block);
    double *parts = calloc((size_t)threads * (size_t)block * 2, sizeof(double));
    float *scratch = malloc(sizeof(float) * (size_t)block * 2);
    T *padded = calloc((size_t)block * 3, sizeof(T)); /* the rows behind the last whole block, and zeros */
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
                        join(&n, &m, &s, share(blocks, t + 1, all) - share(blocks, t, all), parts[(long)t * block * 2 + i], parts[(long)t * block * 2 + block + i]);
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
        /* backwards: what was read last is still near */
        for (long stop = end, at; stop > begin; stop = at) {
            at = stop - chunk > begin ? stop - chunk : begin;
            NAME(apply_of)(x + at * block, kept ? kept + at * block : NULL, scale, shift, low, high, block, stop - at, y + at * block);
        }
    }
    memcpy(y + blocks * block, last_y, sizeof(T) * (size_t)rest);
    free(parts), free(scratch), free(padded);
    return 0;
}

/* y, through: see the sums; NULL where nothing was added in front of the activation, or there is none. */
int NAME(backward)(const T *g, const T *x, const T *y, long rows, long channels, const float *mean, const float *invstd, const float *a, const float *b,
                   float low, float high, T *out, T *through, float *weight_gradient, float *bias_gradient, int threads)
{
    const long per = block_rows(channels), block = per * channels, blocks = rows / per, rest = (rows - blocks * per) * channels, chunk = chunk_of(block);
    double *parts = calloc((size_t)threads * (size_t)block * 2, sizeof(double));
    float *scratch = malloc(sizeof(float) * (size_t)block * 5);
    T *padded = calloc((size_t)block * 5, sizeof(T));
    if (!parts || !scratch || !padded) {
        free(parts), free(scratch), free(padded);
        return 1;
    }
    float *means = scratch, *scale = means + block, *shift = scale + block, *slope = shift + block, *offset = slope + block;
    T *last_g = padded, *last_x = padded + block, *last_out = last_x + block, *last_y = y ? last_out + block : NULL, *last_through = last_out + 2 * block;
    memcpy(means, mean, sizeof(float) * (size_t)channels), repeat(means, channels, per);
    memcpy(scale, a, sizeof(float) * (size_t)channels), repeat(scale, channels, per);
    memcpy(shift, b, sizeof(float) * (size_t)channels), repeat(shift, channels, per);
    memcpy(last_g, g + blocks * block, sizeof(T) * (size_t)rest), memcpy(last_x, x + blocks * block, sizeof(T) * (size_t)rest);
    if (y)
        memcpy(last_y, y + blocks * block, sizeof(T) * (size_t)rest);
#pragma omp parallel num_threads(threads)
    {
        const int me = thread_number(), all = thread_count();
        const long begin = share(blocks, me, all), end = share(blocks, me + 1, all);
        double *sum = parts + (long)me * block * 2, *product = sum + block;
        for (long at = begin; at < end; at += chunk) /* float32 within a chunk, double over chunks */
            NAME(gradient_sums_of)(g + at * block, x + at * block, y ? y + at * block : NULL, means, scale, shift, low, high, block,
                                   at + chunk < end ? chunk : end - at, sum, product, through ? through + at * block : NULL);
        if (rest && me == all - 1)
            NAME(gradient_sums_of)(last_g, last_x, last_y, means, scale, shift, low, high, block, 1, sum, product, last_through);
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
        const float below = y ? -INFINITY : low, above = y ? INFINITY : high; /* what passed is known by now */
        if (rest && me == all - 1)
            NAME(gradient_of)(last_of, last_x, scale, shift, slope, offset, below, above, block, 1, last_out);
        /* backwards: what was read last is still near */
        for (long stop = end, at; stop > begin; stop = at) {
            at = stop - chunk > begin ? stop - chunk : begin;
            NAME(gradient_of)(of + at * block, x + at * block, scale, shift, slope, offset, below, above, block, stop - at, out + at * block);
        }
    }
    memcpy(out + blocks * block, last_out, sizeof(T) * (size_t)rest);
    if (y)
        memcpy(through + blocks * block, last_through, sizeof(T) * (size_t)rest);
    free(parts), free(scratch), free(padded);
    return 0;
}
