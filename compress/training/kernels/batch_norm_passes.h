/* Passes over a map for one numeric type, included by batch_norm.h. They need T, the type; N, LANES of it;
WIDEN(N) -> V; NARROW(V) -> N; NAME(x).

In memory the values are `rows` rows of `channels` numbers (channels_last). They are processed in blocks of several
rows, so that the number of channels need not be a multiple of LANES: a number's place in its block determines its
channel, and per-channel values are stored once per place. The sums of a place stay in registers over a chunk of
blocks. */

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

/* Joins mean and sum of squared deviations of each place, over `before` blocks, with those of `blocks` more blocks
(Chan et al. 1983). */
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

/* y = min(max(x a + b + kept, low), high); a comparison with NaN keeps it. kept: NULL where nothing is added. */
INLINE void NAME(apply)(const T *x, const T *kept, const float *a, const float *b, float low, float high, int bounds,
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

/* The part of the gradients g that the activation lets through; y is the activation's input. */
static inline V NAME(passed)(V g, V y, V low, V high, int bounds)
{
    M mask = ~(M){0};
    if (bounds & BELOW)
        mask &= y > low;
    if (bounds & ABOVE)
        mask &= y < high;
    return (V)((M)g & mask);
}

/* Adds to `sum` and `product`, one of each per place, the sums over `blocks` blocks of the passed gradient and of that
times x - mean.

y: the activation's output, where a map was added in front of it; the passed gradient is then written to `through`.
NULL otherwise, because the activation's input follows from x. */
INLINE void NAME(gradient_sums)(const T *g, const T *x, const T *y, const float *mean, const float *a, const float *b,
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
INLINE void NAME(gradient)(const T *g, const T *x, const float *a, const float *b, const float *slope,
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
                const V y = value * slopes[k] + shifts[k];
                const V passed = NAME(passed)(NAME(load)(g + i + k * LANES), y, lows, highs, bounds);
                NAME(store)(out + i + k * LANES, passed * slopes[k] + (value * inner[k] + outer[k]));
            }
    }
}

/* The last three functions, compiled separately for each kind of activation. */
static void NAME(apply_of)(const T *x, const T *kept, const float *a, const float *b, float low, float high, long block,
                           long blocks, T *y)
{
#define RUN(kind) case kind: NAME(apply)(x, kept, a, b, low, high, kind, block, blocks, y); break;
    switch (kind_of(low, high, kept)) { KINDS }
#undef RUN
}

static void NAME(gradient_sums_of)(const T *g, const T *x, const T *y, const float *mean, const float *a,
                                   const float *b, float low, float high, long block, long blocks, double *sum,
                                   double *product, T *through)
{
#define RUN(kind) \
    case kind: \
        NAME(gradient_sums)(g, x, y, mean, a, b, low, high, kind, block, blocks, sum, product, through); \
        break;
    switch (kind_of(low, high, y)) { KINDS }
#undef RUN
}

static void NAME(gradient_of)(const T *g, const T *x, const float *a, const float *b, const float *slope,
                              const float *offset, float low, float high, long block, long blocks, T *out)
{
#define RUN(kind) case kind: NAME(gradient)(g, x, a, b, slope, offset, low, high, kind, block, blocks, out); break;
    switch (kind_of(low, high, NULL)) { KINDS }
#undef RUN
}
