/* A spiking network in integers, written by ttfs export. No heap, no floating point, no library; an int of 32 bits.
@COMMENT@

   Put these lines into your program, for C++ in extern "C" { }:
       #include <stdint.h>
       int net_classify(const uint8_t *image);   class of an image
       extern int net_first_spike;               class of the earliest output spike, of the last image
       extern uint16_t net_spike_times[];        time steps of the output neurons' spikes, or NET_NO_SPIKE
       extern uint64_t net_operations;           synaptic operations

   Or build a program that reads images from standard input and prints a class a line:
       cc -std=c99 -O3 -DTTFS_MAIN net.c -o net */

#include <stdint.h>
typedef char net_needs_an_int_of_32_bits[sizeof(int) >= 4 ? 1 : -1];

@DEFINITIONS@
#define STEPS NET_NO_SPIKE
int net_first_spike;
uint16_t net_spike_times[NET_CLASSES];
uint64_t net_operations;

/* Neurons with their synapses, or a pool, which has no weights and copies the earliest spike of a patch.
   Maps are stored row by row, all channels of a pixel together; features are the channels of one pixel. */
typedef struct {
    const step_t *from;           /* spikes that a pool reads; neurons read `inputs`, the first layer the image */
    step_t *to;                   /* spikes that are emitted */
    int height, width, channels, rows, columns, maps;  /* sizes of the maps that are read, and of those emitted */
    int kernel[2], stride[2], padding[2], dilation[2], groups;
    int by_place, by_map;         /* distances in `to`, with which pools concatenate and flatten maps */
    const int64_t *pixels;        /* [channel][256] value of a pixel for the first layer */
    int spiking, saturates;       /* whether positive pixels count as spikes; whether registers can saturate */
    int64_t persistence;          /* share of the slope that persists while neurons fire, in units of 1/FINE */
    const weight_t *weights;      /* [kernel row][kernel column][channel][map in the group]; first layer: [map] */
    const sum_t *late;            /* [map] weights of delayed spikes, which lie behind the other inputs */
    int delayed;                  /* number of maps whose neurons get delayed spikes, one per neuron */
    const int64_t *start, *fall;  /* [map] initial potentials; fall of the threshold in half a time step */
} layer_t;

@TABLES@

/* The time step in which a neuron fires, STEPS if it does not. Its potential starts from `value` and gains `drift` in
   half a step. Potential and threshold are compared at the window's start and in the middle of every step. */
static step_t first_step(int64_t fall, int64_t value, int64_t drift)
{
    int64_t missing = 2 * STEPS * fall - value, closing = fall + drift;
    if (missing <= 0)
        return 0;
    if (closing <= 0 || missing > closing * (2 * STEPS - 1))
        return STEPS;
    return (step_t)(((missing - 1) / closing + 1) / 2);
}

/* The pixel under a tap of the kernel, for a place of the maps that are emitted; -1 outside of the maps that are read. */
static int pixel_under(const layer_t *l, int place, int tap)
{
    int y = place / l->columns * l->stride[0] - l->padding[0] + tap / l->kernel[1] * l->dilation[0];
    int x = place % l->columns * l->stride[1] - l->padding[1] + tap % l->kernel[1] * l->dilation[1];
    return y < 0 || y >= l->height || x < 0 || x >= l->width ? -1 : y * l->width + x;
}

/* The first layer: pixels times weights, in exact sums. */
static void encode(const layer_t *l, const uint8_t *image)
{
    int synapses = l->kernel[0] * l->kernel[1] * l->channels;
    for (int place = 0; place < l->rows * l->columns; place++) {
        for (int i = 0; i < synapses; i++) {
            int under = pixel_under(l, place, i / l->channels), c = i % l->channels;
            patch[i] = under < 0 ? 0 : l->pixels[c * 256 + image[under * l->channels + c]];
            net_operations += l->spiking && patch[i] > 0 ? (uint64_t)(l->maps / l->groups) : 0;
        }
        for (int m = 0; m < l->maps; m++) {
            int64_t value = l->start[m], gain = 0;
            for (int i = 0; i < synapses; i++) {
                value += patch[i] * l->weights[i * l->maps + m];
                gain += l->spiking && patch[i] > 0 ? l->weights[i * l->maps + m] : 0;
            }
            l->to[place * l->maps + m] = first_step(l->fall[m], value, gain * l->persistence);
        }
    }
}

static void pool(const layer_t *l)
{
    for (int place = 0; place < l->rows * l->columns; place++) {
        step_t *to = l->to + place * l->by_place;
        for (int m = 0; m < l->maps; m++)
            to[m * l->by_map] = STEPS;
        for (int tap = 0; tap < l->kernel[0] * l->kernel[1]; tap++) {
            int under = pixel_under(l, place, tap);
            for (int m = 0; under >= 0 && m < l->maps; m++) {
                if (l->from[under * l->maps + m] < to[m * l->by_map])
                    to[m * l->by_map] = l->from[under * l->maps + m];
            }
        }
    }
}

/* The spike of an input adds its weights to the slopes of its targets, and `left` times to their potentials, once per
   step that is left. Delayed spikes lie behind the other inputs. */
static void deliver(const layer_t *l, int input, sum_t left)
{
    int late = input - l->height * l->width * l->channels, sloped = l->persistence || l->saturates;
    if (late >= 0) {
        int map = late % l->delayed, neuron = late / l->delayed * l->maps + map;
        potential[neuron] += l->late[map] * left;
        if (sloped)
            slope[neuron] += l->late[map];
        net_operations++;
        return;
    }
    int c = input % l->channels, x = input / l->channels % l->width, y = input / l->channels / l->width;
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
            int target = (row / l->stride[0] * l->columns + column / l->stride[1]) * l->maps + group * targets;
            for (int m = 0; !sloped && m < targets; m++)
                potential[target + m] += w[m] * left;
            for (int m = 0; sloped && m < targets; m++) {
                potential[target + m] += w[m] * left;
                slope[target + m] += w[m];
            }
            net_operations += (uint64_t)targets;
        }
    }
}

static int64_t saturated(int64_t value, int64_t largest)
{
    return value > largest ? largest : value < -largest ? -largest : value;
}

/* Neurons in their two windows: spikes arrive, step by step if registers can saturate; then neurons fire. */
static void run(const layer_t *l)
{
    int neurons = l->rows * l->columns * l->maps, sloped = l->persistence || l->saturates;
    int count = l->height * l->width * l->channels + l->rows * l->columns * l->delayed;
    for (int i = 0; i < neurons;)
        for (int m = 0; m < l->maps; m++)
            potential[i++] = (sum_t)l->start[m];
    for (int i = 0; sloped && i < neurons; i++)
        slope[i] = 0;
    for (int step = 0; step < (l->saturates ? STEPS : 1); step++) {
        for (int i = 0; i < count; i++)
            if (l->saturates ? inputs[i] == step : inputs[i] < STEPS)
                deliver(l, i, l->saturates ? 0 : STEPS - inputs[i]);
        for (int i = 0; l->saturates && i < neurons; i++) {
            slope[i] = (sum_t)saturated(slope[i], REGISTER);
            potential[i] = (sum_t)saturated((int64_t)potential[i] + slope[i], REGISTER);
        }
    }
    for (int i = 0; i < neurons;)
        for (int m = 0; m < l->maps; m++, i++)
            l->to[i] = first_step(l->fall[m], potential[i] * FINE, l->persistence ? slope[i] * l->persistence : 0);
}

/* A class's potential without the common initial potential, converted to a unit that all classes share. */
static int64_t height(int64_t value, int64_t start, int c)
{
    value -= start * FINE;
    return rest[c] + value / SPLIT * scale[c] + value % SPLIT * scale[c] / SPLIT;
}

/* The value rounded to 24 bits, half to even, as in the simulator's float32: close potentials tie. */
static int64_t rounded(int64_t value)
{
    int64_t size = value < 0 ? -value : value, unit = 1;
    while (size / unit >= 1 << 24)
        unit *= 2;
    size = (size + (unit - 1 + size / unit % 2) / 2) / unit * unit;
    return value < 0 ? -size : size;
}

/* The readout's neurons have run: spike times, and both decisions. Of equal classes, the lowest wins. */
static int decide(const layer_t *l)
{
    int by_spike = 0, by_last = 0, by_score = 0;
    int64_t highest_last = INT64_MIN, highest_score = INT64_MIN;
    for (int c = 0; c < NET_CLASSES; c++) {
        int64_t value = potential[c] * FINE, gain = l->persistence ? 2 * STEPS * (slope[c] * l->persistence) : 0;
        int64_t end = saturated(value + gain, REGISTER * FINE);
        int64_t last = height(end, l->start[c], c), score = rounded(AT_END ? last : height(value, l->start[c], c));
        net_spike_times[c] = l->to[c];
        by_spike = l->to[c] < l->to[by_spike] ? c : by_spike;
        by_last = last > highest_last ? c : by_last;
        by_score = score > highest_score ? c : by_score;
        highest_last = last > highest_last ? last : highest_last;
        highest_score = score > highest_score ? score : highest_score;
    }
    net_first_spike = l->to[by_spike] < STEPS ? by_spike : by_last;
    return FIRST_SPIKE ? by_spike : by_score;
}

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
