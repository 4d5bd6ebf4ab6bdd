/* A spiking network in integers, written by ttfs export. No heap, no floating point, no library.

@COMMENT@

   Needs an int of 32 bits. Put these lines into your program:

       #include <stdint.h>
       int net_classify(const uint8_t *image);   class of an image
       extern int net_first_spike;               class of the earliest output spike, of the last image
       extern uint16_t net_spike_times[];        time steps of the output neurons' spikes, or NET_NO_SPIKE
       extern uint64_t net_operations;           synaptic operations

   Or build a program that reads images from standard input and prints a class a line:

       cc -std=c99 -O3 -DTTFS_MAIN net.c -o net */

#include <stddef.h>
#include <stdint.h>

@MACROS@
#define STEPS NET_NO_SPIKE

int net_classify(const uint8_t *image);
int net_first_spike;
uint16_t net_spike_times[NET_CLASSES];
uint64_t net_operations;

/* ---- types: maps are stored row by row, the channels of a pixel beside each other */

@TYPES@

typedef struct {                  /* neurons with their synapses */
    const step_t *from;           /* spikes of the inputs, behind them the delayed spikes */
    step_t *to;                   /* spikes of the neurons; none for the readout */
    int height, width, channels;  /* of the inputs; fully connected: one pixel */
    int rows, columns, maps;      /* of the neurons */
    int kernel[2], stride[2], padding[2], dilation[2], groups;
    int delayed;                  /* number of maps whose neurons get a delayed spike each */
    int saturates;                /* whether registers can saturate, which they do after each step */
    int64_t persistence;          /* share of the slope that persists while neurons fire, in binary places of FINE */
    const weight_t *weights;      /* [kernel row][kernel column][input channel][map in the group] */
    const sum_t *late;            /* [map] weights of delayed spikes */
    const int64_t *start;         /* [map] initial potentials */
    const int64_t *fall;          /* [map] fall of the threshold in half a time step */
} layer_t;
//if pools

typedef struct {                  /* the earliest spike of each patch; patches of one pixel copy */
    const step_t *from;
    step_t *to;
    int height, width, channels;  /* of the maps that are read */
    int rows, columns;            /* of the maps that are written */
    int kernel[2], stride[2], padding[2];
    int by_row, by_column, by_channel;  /* distances in `to`: they concatenate and flatten maps */
} pool_t;
//end

/* ---- state */

@STATE@

/* ---- constants */
@TABLES@

/* ---- engine */

/* The time step in which a neuron fires, STEPS if it does not. The threshold is `missing` above the potential, and
   comes closer by `closing` in half a step; they are compared at the window's start and in the middle of each step. */
static step_t first_step(int64_t missing, int64_t closing)
{
    if (missing <= 0)
        return 0;
    if (closing <= 0 || missing > closing * (2 * STEPS - 1))
        return STEPS;
    return (step_t)(((missing - 1) / closing + 1) / 2);
}
//if latency

/* Bright pixels spike early. */
static void encode(const uint8_t *image, step_t *to)
{
    for (int i = 0; i < NET_IMAGE_BYTES; i++)
        to[i] = encoded[image[i]];
}
//end
//if analog

/* The analog layer: pixels times weights, in exact sums. */
static void encode(const uint8_t *image, const layer_t *l)
{
    static int64_t sums[ENCODED_MAPS], slopes[ENCODED_MAPS];
    for (int place = 0; place < l->rows * l->columns; place++) {
        int top = place / l->columns * l->stride[0] - l->padding[0];
        int left = place % l->columns * l->stride[1] - l->padding[1];
        for (int m = 0; m < l->maps; m++)
            sums[m] = slopes[m] = 0;
        for (int tap = 0; tap < l->kernel[0] * l->kernel[1]; tap++) {
            int y = top + tap / l->kernel[1], x = left + tap % l->kernel[1];
            if (y < 0 || y >= l->height || x < 0 || x >= l->width)
                continue;
            for (int c = 0; c < l->channels; c++) {
                const weight_t *restrict w = l->weights + (tap * l->channels + c) * l->maps;
                int64_t pixel = pixels[c * 256 + image[(y * l->width + x) * l->channels + c]];
                for (int m = 0; m < l->maps; m++)
                    sums[m] += w[m] * pixel;
//if signed
                if (pixel <= 0)
                    continue;
                for (int m = 0; m < l->maps; m++)
                    slopes[m] += w[m];
                net_operations += (uint64_t)l->maps;
//end
            }
        }
        for (int m = 0; m < l->maps; m++) {
            int64_t value = l->start[m] + 2 * STEPS * sums[m];
            int64_t closing = l->fall[m] + slopes[m] * l->persistence;
            l->to[place * l->maps + m] = first_step(2 * STEPS * l->fall[m] - value, closing);
        }
    }
}
//end
//if pools

static void pool(const pool_t *p)
{
    for (int row = 0; row < p->rows; row++)
        for (int column = 0; column < p->columns; column++)
            for (int c = 0; c < p->channels; c++) {
                step_t earliest = STEPS;
                int top = row * p->stride[0] - p->padding[0], left = column * p->stride[1] - p->padding[1];
                for (int y = top; y < top + p->kernel[0]; y++)
                    for (int x = left; x < left + p->kernel[1]; x++) {
                        if (y < 0 || y >= p->height || x < 0 || x >= p->width)
                            continue;
                        step_t step = p->from[(y * p->width + x) * p->channels + c];
                        earliest = step < earliest ? step : earliest;
                    }
                p->to[row * p->by_row + column * p->by_column + c * p->by_channel] = earliest;
            }
}
//end

/* Put the spikes into the order of their steps: those of step s are order[begins[s]] to order[begins[s + 1] - 1]. */
static void sort_spikes(const step_t *from, int inputs)
{
    for (int s = 0; s <= STEPS; s++)
        begins[s] = 0;
    for (int i = 0; i < inputs; i++)
        if (from[i] < STEPS)
            begins[from[i]]++;
    for (int s = 1; s <= STEPS; s++)
        begins[s] += begins[s - 1];
    for (int i = inputs - 1; i >= 0; i--)
        if (from[i] < STEPS)
            order[--begins[from[i]]] = (place_t)i;
}

/* A spike adds its weights to the slopes of its targets, and to their potentials for each of the `left` steps. */
static void deliver(const layer_t *l, int place, sum_t left)
{
//if delayed
    int late = place - l->height * l->width * l->channels;
    if (late >= 0) {
        int map = late % l->delayed, neuron = late / l->delayed * l->maps + map;
        potential[neuron] += l->late[map] * left;
//if slopes
        slope[neuron] += l->late[map];
//end
        net_operations++;
        return;
    }
//end
    int c = place % l->channels, x = place / l->channels % l->width, y = place / l->channels / l->width;
    int targets = l->maps / l->groups, group = c / (l->channels / l->groups);
    for (int i = 0; i < l->kernel[0]; i++) {
        int row = y + l->padding[0] - i * l->dilation[0];
        if (row < 0 || row % l->stride[0] || row / l->stride[0] >= l->rows)
            continue;
        for (int j = 0; j < l->kernel[1]; j++) {
            int column = x + l->padding[1] - j * l->dilation[1];
            if (column < 0 || column % l->stride[1] || column / l->stride[1] >= l->columns)
                continue;
            const weight_t *restrict w = l->weights + ((i * l->kernel[1] + j) * l->channels + c) * targets;
            int first = (row / l->stride[0] * l->columns + column / l->stride[1]) * l->maps + group * targets;
            for (int m = 0; m < targets; m++)
                potential[first + m] += w[m] * left;
//if slopes
            if (l->persistence || l->saturates)
                for (int m = 0; m < targets; m++)
                    slope[first + m] += w[m];
//end
            net_operations += (uint64_t)targets;
        }
    }
}
//if saturates

static sum_t saturated(sum_t value)
{
    return value > REGISTER ? REGISTER : value < -REGISTER ? -REGISTER : value;
}
//end

/* The window in which the inputs fire: their spikes arrive in time order. */
static void integrate(const layer_t *l)
{
    int places = l->rows * l->columns, neuron = 0;
    for (int place = 0; place < places; place++)
        for (int m = 0; m < l->maps; m++, neuron++) {
            potential[neuron] = (sum_t)l->start[m];
//if slopes
            slope[neuron] = 0;
//end
        }
    sort_spikes(l->from, l->height * l->width * l->channels + places * l->delayed);
    for (int step = 0; step < STEPS; step++) {
        for (int i = begins[step]; i < begins[step + 1]; i++)
            deliver(l, order[i], l->saturates ? 0 : STEPS - step);
//if saturates
        if (l->saturates)
            for (int i = 0; i < neuron; i++) {
                slope[i] = saturated(slope[i]);
                potential[i] = saturated(potential[i] + slope[i]);
            }
//end
    }
}

/* Change of a potential in half a step of the window in which its neuron fires. */
static int64_t drift(const layer_t *l, int neuron)
{
//if slopes
    return slope[neuron] * l->persistence;
//end
//if no_slopes
    (void)l, (void)neuron;
    return 0;
//end
}
//if hidden

/* A hidden layer, in its two windows. */
static void run(const layer_t *l)
{
    integrate(l);
    for (int place = 0, i = 0; place < l->rows * l->columns; place++)
        for (int m = 0; m < l->maps; m++, i++)
            l->to[i] = first_step(2 * STEPS * l->fall[m] - potential[i] * FINE, l->fall[m] + drift(l, i));
}
//end

/* A potential in a unit that all classes share. */
static int64_t height(int64_t value, int c)
{
    value /= GRAIN;
    return value / SPLIT * scale[c] + value % SPLIT * scale[c] / SPLIT;
}
//if potential

/* Rounded to 24 digits, half to even, as the simulator's float32: close potentials tie, and the lowest class wins. */
static int64_t rounded(int64_t value)
{
    uint64_t size = value < 0 ? (uint64_t)-value : (uint64_t)value, unit = 1;
    while (size / unit >= 1u << 24)
        unit *= 2;
    uint64_t rest = size % unit, whole = size / unit;
    if (2 * rest > unit || (2 * rest == unit && whole % 2))
        whole++;
    return value < 0 ? -(int64_t)(whole * unit) : (int64_t)(whole * unit);
}
//end

/* The readout: spike times, and both decisions. */
static int read_out(const layer_t *l)
{
    int64_t last = INT64_MIN;
    int by_spike = 0, by_end = 0;
//if potential
    int64_t highest = INT64_MIN;
    int by_potential = 0;
//end
    integrate(l);
    for (int c = 0; c < NET_CLASSES; c++) {
        int64_t value = potential[c] * FINE, end = value + 2 * STEPS * drift(l, c);
//if register
        end = end > REGISTER * FINE ? REGISTER * FINE : end < -REGISTER * FINE ? -REGISTER * FINE : end;
//end
        net_spike_times[c] = first_step(2 * STEPS * l->fall[c] - value, l->fall[c] + drift(l, c));
        if (net_spike_times[c] < net_spike_times[by_spike])
            by_spike = c;
        if (height(end, c) > last)
            last = height(end, c), by_end = c;
//if potential
        int64_t score = rounded(height(POTENTIAL, c) - OFFSET);
        if (score > highest)
            highest = score, by_potential = c;
//end
    }
    net_first_spike = net_spike_times[by_spike] < NET_NO_SPIKE ? by_spike : by_end;
//if potential
    return by_potential;
//end
//if first_spike
    return by_spike;
//end
}

/* ---- the network */

int net_classify(const uint8_t *image)
{
    net_operations = 0;
@CALLS@
}

#ifdef TTFS_MAIN
#include <stdio.h>

int main(void)
{
    static uint8_t image[NET_IMAGE_BYTES];
    size_t bytes;
    while ((bytes = fread(image, 1, sizeof image, stdin)) == sizeof image)
        printf("%d\n", net_classify(image));
    return bytes != 0;  /* the last image was cut off */
}
#endif
