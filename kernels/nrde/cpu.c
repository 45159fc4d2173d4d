// The Neural RDE: explicit Runge-Kutta steps of dh/dt = F(h) x, where F is an MLP whose last layer makes a matrix.
//
// The matrix (B, H, D) is never in memory: a panel of its columns is multiplied with x as soon as it is there, and its
// gradient, the outer product of those of F(h) x and x, is made again where it is read.
//
// Forward, and backward to the states, a thread has its own rows of the batch, a block of up to MOST_ROWS at a time.
// The gradients of the weights are sums over all rows, steps and stages: they are made after every segment of steps,
// each thread with its own part of the weights, so that the bits do not depend on the number of threads.
#include "product.h"
#include "threads.h"

// A tape has for each step, stage and row the h that the field is asked at, and the outputs of its hidden layers after
// their activations; a record of gradients likewise that of F(h) x, and those of the hidden layers before them.
#define WIDTH(loop) ((loop)->hidden + (loop)->layers * (loop)->width)
// Rows of a record that a segment has at least, if there are as many.
#define SEGMENT 1024
// Rows of a record whose gradients are summed in one go, and outputs of a layer that are treated together.
#define CHUNK 128
#define GROUP 16
#define TILE (GRADIENT_ROWS * GRADIENT_WIDE * LANES)
_Static_assert(GROUP % LANES == 0 && GROUP % GRADIENT_ROWS == 0, "a group is made of whole vectors and tiles");

// GROUP outputs of a matrix, from number `first` of `outputs` on, and their gradient: `inputs` are columns of a tape,
// `gradients` those of a record, of `count` layers one after the other.
typedef struct {
    long first, outputs, inputs, width, gradients, count;
    long channel;   // of x, which multiplies the gradients, or -1
    real *weight;   // row i of the sum goes to weight + i * stride * width
    real *bias;     // likewise to bias + i * stride
    long stride;
    real *sum, *bias_sum;
} Group;

typedef struct {
    long steps, blocks, batch, hidden, width, layers, inner, channels, columns, adjoint;
    real table[STAGES][STAGES], ends[STAGES];  // the solver's weights
    int stages;
    const real *x, *state, *parameters, *g_sequence;
    real *sequence, *tape, *d_x, *d_state, *d_parameters;
    real **packed;                // of each matrix, then transposed
    real **biases;                // of each, in the order of its panels
    real *right, *left;           // tape, where it is made again, and record of gradients, of a segment
    long first, last;             // steps of the segment
    Group *groups;
    long group_count;
    int failed;
} Loop;

INLINE long vectors_of(long count) {
    return (count + LANES - 1) / LANES;
}

INLINE long panels_of(long count, int wide) {
    return (vectors_of(count) + wide - 1) / wide;
}

// Of matrix number m, the first, the inner ones, then the last.
INLINE const real *weight_of(const Loop *loop, long m) {
    long first = loop->width * (loop->hidden + 1), inner = loop->width * (loop->width + 1);
    return loop->parameters + (m == 0 ? 0 : first + (m - 1) * inner);
}

INLINE long inputs_of(const Loop *loop, long m) {
    return m == 0 ? loop->hidden : loop->width;
}

INLINE const real *bias_of(const Loop *loop, long m) {
    long outputs = m > loop->inner ? loop->hidden * loop->channels : loop->width;
    return weight_of(loop, m) + outputs * inputs_of(loop, m);
}

// The matrix of hidden layer l: the inner ones follow one another, again and again.
INLINE long matrix_of(const Loop *loop, long l) {
    return l == 0 ? 0 : 1 + (l - 1) % loop->inner;
}

// A matrix as product.h reads it, where number (output, term) is at weight[output * across + term * along].
static real *pack(const real *weight, long outputs, long terms, long across, long along) {
    real *packed = allocate(panels_of(outputs, WIDE) * terms * WIDE * LANES), *to = packed;
    for (long panel = 0; packed && panel < panels_of(outputs, WIDE); panel++)
        for (long k = 0; k < terms; k++)
            for (long n = panel * WIDE * LANES; n < (panel + 1) * WIDE * LANES; n++)
                *to++ = n < outputs ? weight[n * across + k * along] : 0;
    return packed;
}

// The last layer's, forward: a column is LANES units for one channel, and a panel has neighbouring channels.
static real *pack_last(const Loop *loop, const real *weight, long terms, long across, long along) {
    long vectors = vectors_of(loop->hidden);
    real *packed = allocate(vectors * loop->columns * terms * LANES), *to = packed;
    for (long v = 0; packed && v < vectors; v++)
        for (long first = 0; first < loop->columns; first += WIDE)
            for (long k = 0; k < terms; k++)
                for (long d = first; d < first + WIDE; d++)
                    for (long i = v * LANES; i < (v + 1) * LANES; i++) {
                        int inside = i < loop->hidden && d < loop->channels;
                        *to++ = inside ? weight[(i * loop->channels + d) * across + k * along] : 0;
                    }
    return packed;
}

// Backward: a term is a unit, of whole vectors of them, for one channel after the other.
static real *pack_last_transposed(const Loop *loop, const real *weight) {
    long units = vectors_of(loop->hidden) * LANES, width = loop->width;
    real *packed = allocate(panels_of(width, WIDE) * loop->channels * units * WIDE * LANES), *to = packed;
    for (long panel = 0; packed && panel < panels_of(width, WIDE); panel++)
        for (long d = 0; d < loop->channels; d++)
            for (long i = 0; i < units; i++)
                for (long n = panel * WIDE * LANES; n < (panel + 1) * WIDE * LANES; n++)
                    *to++ = n < width && i < loop->hidden ? weight[(i * loop->channels + d) * width + n] : 0;
    return packed;
}

// The matrices as each pass needs them: number m, and transposed, number layers' matrices + m.
static int pack_all(Loop *loop, int backward) {
    long count = loop->inner + 2, width = loop->width;
    loop->packed = calloc(2 * count, sizeof(real *));
    loop->biases = calloc(count, sizeof(real *));
    if (!loop->packed || !loop->biases) return 1;
    int forward = !backward || loop->adjoint || loop->d_x;
    for (long m = 0; m < count; m++) {
        const real *weight = weight_of(loop, m), *bias = bias_of(loop, m);
        long inputs = inputs_of(loop, m);
        int last = m == count - 1;
        if (forward) {
            loop->packed[m] = last ? pack_last(loop, weight, width, width, 1) : pack(weight, width, inputs, inputs, 1);
            loop->biases[m] = last ? pack_last(loop, bias, 1, 1, 0) : pack(bias, width, 1, 1, 0);
            if (!loop->packed[m] || !loop->biases[m]) return 1;
        }
        if (backward) {
            loop->packed[count + m] =
                last ? pack_last_transposed(loop, weight) : pack(weight, inputs, width, 1, inputs);
            if (!loop->packed[count + m]) return 1;
        }
    }
    return 0;
}

static void release(Loop *loop) {
    for (long m = 0; m < loop->inner + 2; m++) {
        if (loop->packed) free(loop->packed[m]), free(loop->packed[loop->inner + 2 + m]);
        if (loop->biases) free(loop->biases[m]);
    }
    for (long i = 0; i < loop->group_count; i++) free(loop->groups[i].sum);
    free(loop->packed), free(loop->biases), free(loop->right), free(loop->left), free(loop->groups);
}

// What a block of rows has, all as [vector][row][LANES] but x.
typedef struct {
    int rows;
    real *x;                            // [row][columns], zeros beyond the channels
    real *h, *at;                       // state, and where the field is asked
    real *hidden;                       // of all hidden layers, after their activations
    real *slopes, *slopes_a, *a, *d_h;  // slopes: of each stage
    real *d_hidden;                     // gradients of all hidden layers, before their activations
    real *panel, *outer;
} Rows;

// Terms of the outer product of the gradient of F(h) x with x that are made at once: whole channels.
INLINE long channels_at_once(const Loop *loop) {
    long units = vectors_of(loop->hidden) * LANES;
    return units < SPAN ? SPAN / units : 1;
}

static int new_rows(const Loop *loop, Rows *b) {
    long block = MOST_ROWS * LANES, h = vectors_of(loop->hidden) * block;
    long hidden = loop->layers * vectors_of(loop->width) * block, stages = loop->stages;
    real *p = allocate(MOST_ROWS * LANES * vectors_of(loop->columns) + (4 + 2 * stages) * h + 2 * hidden +
                       (WIDE + loop->columns) * block + channels_at_once(loop) * h);
    if (!p) return 1;
    b->h = p, p += h;
    b->at = p, p += h;
    b->a = p, p += h;
    b->d_h = p, p += h;
    b->slopes = p, p += stages * h;
    b->slopes_a = p, p += stages * h;
    b->hidden = p, p += hidden;
    b->d_hidden = p, p += hidden;
    b->panel = p, p += (WIDE + loop->columns) * block;
    b->outer = p, p += channels_at_once(loop) * h;
    b->x = p;
    return 0;
}

// From (row, width) in memory, and back.
INLINE void read_rows(real *to, const real *from, long stride, long width, int rows) {
    for (long v = 0; v < vectors_of(width); v++)
        for (int r = 0; r < rows; r++)
            *(vec *)(to + (v * rows + r) * LANES) = load(from + r * stride + v * LANES, width - v * LANES);
}

INLINE void write_rows(real *to, const real *from, long stride, long width, int rows, real scale) {
    for (long v = 0; v < vectors_of(width); v++)
        for (int r = 0; r < rows; r++)
            store(to + r * stride + v * LANES, scale * *(const vec *)(from + (v * rows + r) * LANES),
                  width - v * LANES);
}

INLINE long block_of(const Loop *loop, long step) {
    return step < loop->blocks ? step : loop->blocks - 1;
}

static void read_x(const Loop *loop, Rows *b, long step, long first) {
    const real *from = loop->x + (block_of(loop, step) * loop->batch + first) * loop->channels;
    for (int r = 0; r < b->rows; r++)
        for (long d = 0; d < loop->columns; d++)
            b->x[r * loop->columns + d] = d < loop->channels ? from[r * loop->channels + d] : 0;
}

// to = from + sum_j weights[j] slopes[j], of `count` stages; all of H.
INLINE void plus(const Loop *loop, int rows, real *to, const real *from, const real *weights, const real *slopes,
                 int count) {
    long size = vectors_of(loop->hidden) * rows * LANES;
    for (long i = 0; i < size; i += LANES) {
        vec sum = *(const vec *)(from + i);
        for (int j = 0; j < count; j++) sum += weights[j] * *(const vec *)(slopes + j * size + i);
        *(vec *)(to + i) = sum;
    }
}

// out += in times a packed matrix, or some of its terms: a panel has `stride` of them.
INLINE void add_product(int rows, const real *in, long terms, const real *weights, long stride, real *out,
                        long outputs) {
    long vectors = vectors_of(outputs);
    for (long v = 0; v < vectors; v += WIDE, weights += stride * WIDE * LANES)
        products[rows](in, weights, out + v * rows * LANES, vectors - v < WIDE ? vectors - v : WIDE, 1, 1, terms);
}

// All hidden layers at b->at.
static void hidden_layers(const Loop *loop, Rows *b) {
    int rows = b->rows;
    long vectors = vectors_of(loop->width), size = vectors * rows * LANES, terms = loop->hidden;
    const real *in = b->at;
    real *out = b->hidden;
    for (long l = 0; l < loop->layers; l++, in = out, out += size, terms = loop->width) {
        long m = matrix_of(loop, l);
        for (long v = 0; v < vectors; v++)
            for (int r = 0; r < rows; r++)
                *(vec *)(out + (v * rows + r) * LANES) = *(const vec *)(loop->biases[m] + v * LANES);
        add_product(rows, in, terms, loop->packed[m], terms, out, loop->width);
        for (long i = 0; i < size; i += LANES) {
            vec *z = (vec *)(out + i);
            *z = l < loop->layers - 1 ? at_least(*z, 0) : tanh_(*z);
        }
    }
}

// Panel `p` of the matrix F(h), from its hidden layers: [column][row][LANES].
INLINE void matrix_panel(const Loop *loop, Rows *b, long p) {
    long m = loop->inner + 1;
    int rows = b->rows;
    for (int c = 0; c < WIDE; c++)
        for (int r = 0; r < rows; r++)
            *(vec *)(b->panel + (c * rows + r) * LANES) = *(const vec *)(loop->biases[m] + (p * WIDE + c) * LANES);
    const real *in = b->hidden + (loop->layers - 1) * vectors_of(loop->width) * rows * LANES;
    products[rows](in, loop->packed[m] + p * loop->width * WIDE * LANES, b->panel, WIDE, 1, 1, loop->width);
}

// slope = F(h) x, from the hidden layers.
static void contract(const Loop *loop, Rows *b, real *slope) {
    int rows = b->rows;
    long p = 0;
    for (long v = 0; v < vectors_of(loop->hidden); v++, slope += rows * LANES) {
        memset(slope, 0, rows * LANES * sizeof(real));
        for (long d = 0; d < loop->columns; d += WIDE, p++) {
            matrix_panel(loop, b, p);
            for (int r = 0; r < rows; r++) {
                vec sum = *(vec *)(slope + r * LANES);
                for (int c = 0; c < WIDE; c++)
                    sum += b->x[r * loop->columns + d + c] * *(const vec *)(b->panel + (c * rows + r) * LANES);
                *(vec *)(slope + r * LANES) = sum;
            }
        }
    }
}

// d_x += weight times the gradient of x, where that of F(h) x is g.
static void gradient_of_x(const Loop *loop, Rows *b, const real *g, real weight, long step, long first) {
    int rows = b->rows;
    long columns = loop->columns, p = 0;
    real *sums = b->panel + WIDE * MOST_ROWS * LANES, *d_x;
    memset(sums, 0, columns * rows * LANES * sizeof(real));
    for (long v = 0; v < vectors_of(loop->hidden); v++, g += rows * LANES)
        for (long d = 0; d < columns; d += WIDE, p++) {
            matrix_panel(loop, b, p);
            for (int c = 0; c < WIDE; c++)
                for (int r = 0; r < rows; r++)
                    *(vec *)(sums + ((d + c) * rows + r) * LANES) +=
                        *(const vec *)(g + r * LANES) * *(const vec *)(b->panel + (c * rows + r) * LANES);
        }
    d_x = loop->d_x + (block_of(loop, step) * loop->batch + first) * loop->channels;
    for (int r = 0; r < rows; r++)
        for (long d = 0; d < loop->channels; d++) {
            real sum = 0;
            for (int k = 0; k < LANES; k++) sum += sums[(d * rows + r) * LANES + k];
            d_x[r * loop->channels + d] += weight * sum;
        }
}

// d_h, and the gradients of all hidden layers, where that of F(h) x is g.
static void field_backward(const Loop *loop, Rows *b, const real *g, real *d_h) {
    int rows = b->rows;
    long vectors = vectors_of(loop->width), size = vectors * rows * LANES, at_once = channels_at_once(loop);
    long of_h = vectors_of(loop->hidden), matrices = loop->inner + 2, terms = loop->channels * of_h * LANES;
    real *d = b->d_hidden + (loop->layers - 1) * size, *z = b->hidden + (loop->layers - 1) * size;
    memset(d, 0, size * sizeof(real));
    for (long first = 0; first < loop->channels; first += at_once) {
        long count = loop->channels - first < at_once ? loop->channels - first : at_once;
        for (long c = 0; c < count; c++)
            for (long v = 0; v < of_h; v++)
                for (int r = 0; r < rows; r++)
                    *(vec *)(b->outer + ((c * of_h + v) * rows + r) * LANES) =
                        b->x[r * loop->columns + first + c] * *(const vec *)(g + (v * rows + r) * LANES);
        add_product(rows, b->outer, count * of_h * LANES,
                    loop->packed[2 * matrices - 1] + first * of_h * LANES * WIDE * LANES, terms, d, loop->width);
    }
    for (long i = 0; i < size; i += LANES) {
        vec y = *(vec *)(z + i);
        *(vec *)(d + i) *= 1 - y * y;
    }
    for (long l = loop->layers - 1; l > 0; l--, d -= size) {
        memset(d - size, 0, size * sizeof(real));
        z -= size;
        add_product(rows, d, loop->width, loop->packed[matrices + matrix_of(loop, l)], loop->width, d - size,
                    loop->width);
        for (long i = 0; i < size; i += LANES) {
            vec *to = (vec *)(d - size + i);
            *to = choose(*(vec *)(z + i) <= 0, ZERO, *to);
        }
    }
    memset(d_h, 0, of_h * rows * LANES * sizeof(real));
    add_product(rows, d, loop->width, loop->packed[matrices], loop->width, d_h, loop->hidden);
}

// Row number `first` of the batch at a stage: its place in a tape or a record.
INLINE long place(const Loop *loop, long step, int stage, long first) {
    return ((step * loop->stages + stage) * loop->batch + first) * WIDTH(loop);
}

static void write_tape(const Loop *loop, const Rows *b, real *to) {
    long size = vectors_of(loop->width) * b->rows * LANES;
    write_rows(to, b->at, WIDTH(loop), loop->hidden, b->rows, 1);
    for (long l = 0; l < loop->layers; l++)
        write_rows(to + loop->hidden + l * loop->width, b->hidden + l * size, WIDTH(loop), loop->width, b->rows, 1);
}

static void read_tape(const Loop *loop, Rows *b, const real *from) {
    long size = vectors_of(loop->width) * b->rows * LANES;
    for (long l = 0; l < loop->layers; l++)
        read_rows(b->hidden + l * size, from + loop->hidden + l * loop->width, WIDTH(loop), loop->width, b->rows);
}

static void write_gradients(const Loop *loop, const Rows *b, const real *g, real weight, real *to) {
    long size = vectors_of(loop->width) * b->rows * LANES;
    write_rows(to, g, WIDTH(loop), loop->hidden, b->rows, weight);
    for (long l = 0; l < loop->layers; l++)
        write_rows(to + loop->hidden + l * loop->width, b->d_hidden + l * size, WIDTH(loop), loop->width, b->rows,
                   weight);
}

static void forward_rows(void *context, long first, long last) {
    Loop *loop = context;
    Rows b;
    if (new_rows(loop, &b)) {
        loop->failed = 1;
        return;
    }
    for (; first < last; first += b.rows) {
        b.rows = block_rows(last - first);
        long size = vectors_of(loop->hidden) * b.rows * LANES;
        read_rows(b.h, loop->state + first * loop->hidden, loop->hidden, loop->hidden, b.rows);
        for (long step = 0; step < loop->steps; step++) {
            read_x(loop, &b, step, first);
            for (int s = 0; s < loop->stages; s++) {
                plus(loop, b.rows, b.at, b.h, loop->table[s], b.slopes, s);
                hidden_layers(loop, &b);
                contract(loop, &b, b.slopes + s * size);
                if (loop->tape) write_tape(loop, &b, loop->tape + place(loop, step, s, first));
            }
            plus(loop, b.rows, b.h, b.h, loop->ends, b.slopes, loop->stages);
            write_rows(loop->sequence + (step * loop->batch + first) * loop->hidden, b.h, loop->hidden, loop->hidden,
                       b.rows, 1);
        }
    }
    free(b.h);
}

// A step through the solver: the gradient of the state after it, b->a, becomes that of the state before it.
static void backward_step(const Loop *loop, Rows *b, long step, long first) {
    long size = vectors_of(loop->hidden) * b->rows * LANES;
    for (int s = loop->stages - 1; s >= 0; s--) {
        // Of slope s, of which the state after the step and the later stages are made.
        for (long i = 0; i < size; i += LANES) {
            vec sum = loop->ends[s] * *(vec *)(b->a + i);
            for (int j = s + 1; j < loop->stages; j++)
                sum += loop->table[j][s] * *(vec *)(b->slopes_a + j * size + i);
            *(vec *)(b->d_h + i) = sum;
        }
        read_tape(loop, b, loop->tape + place(loop, step, s, first));
        field_backward(loop, b, b->d_h, b->slopes_a + s * size);
        if (loop->d_x) gradient_of_x(loop, b, b->d_h, 1, step, first);
        write_gradients(loop, b, b->d_h, 1, loop->left + place(loop, step - loop->first, s, first));
    }
    for (long i = 0; i < size; i += LANES)
        for (int s = 0; s < loop->stages; s++) *(vec *)(b->a + i) += *(vec *)(b->slopes_a + s * size + i);
}

// The same of the adjoint equation, solved backwards together with that of the state.
static void adjoint_step(const Loop *loop, Rows *b, long step, long first) {
    long size = vectors_of(loop->hidden) * b->rows * LANES;
    const real *end = loop->sequence + (step * loop->batch + first) * loop->hidden;
    read_rows(b->h, end, loop->hidden, loop->hidden, b->rows);
    for (int s = 0; s < loop->stages; s++) {
        long at = place(loop, step - loop->first, s, first);
        plus(loop, b->rows, b->at, b->h, loop->table[s], b->slopes, s);
        plus(loop, b->rows, b->d_h, b->a, loop->table[s], b->slopes_a, s);
        hidden_layers(loop, b);
        contract(loop, b, b->slopes + s * size);
        for (long i = 0; i < size; i += LANES) *(vec *)(b->slopes + s * size + i) *= -1;
        field_backward(loop, b, b->d_h, b->slopes_a + s * size);
        if (loop->d_x) gradient_of_x(loop, b, b->d_h, loop->ends[s], step, first);
        write_tape(loop, b, loop->right + at);
        write_gradients(loop, b, b->d_h, loop->ends[s], loop->left + at);
    }
    plus(loop, b->rows, b->a, b->a, loop->ends, b->slopes_a, loop->stages);
}

// All steps of a segment. The gradient of the state is d_state between them.
static void backward_rows(void *context, long first, long last) {
    Loop *loop = context;
    long hidden = loop->hidden;
    Rows b;
    if (new_rows(loop, &b)) {
        loop->failed = 1;
        return;
    }
    for (; first < last; first += b.rows) {
        b.rows = block_rows(last - first);
        long size = vectors_of(hidden) * b.rows * LANES;
        read_rows(b.a, loop->d_state + first * hidden, hidden, hidden, b.rows);
        for (long step = loop->last - 1; step >= loop->first; step--) {
            read_rows(b.d_h, loop->g_sequence + (step * loop->batch + first) * hidden, hidden, hidden, b.rows);
            for (long i = 0; i < size; i += LANES) *(vec *)(b.a + i) += *(vec *)(b.d_h + i);
            read_x(loop, &b, step, first);
            if (loop->adjoint) adjoint_step(loop, &b, step, first);
            else backward_step(loop, &b, step, first);
        }
        write_rows(loop->d_state + first * hidden, b.a, hidden, hidden, b.rows, 1);
    }
    free(b.h);
}

// The groups of all matrices, the last layer's by channel: outputs that have the same inputs are neighbours.
static int make_groups(Loop *loop) {
    long hidden = loop->hidden, width = loop->width, channels = loop->channels;
    long of_width = (width + GROUP - 1) / GROUP, of_hidden = (hidden + GROUP - 1) / GROUP;
    loop->group_count = (1 + loop->inner) * of_width + channels * of_hidden;
    loop->groups = calloc(loop->group_count, sizeof(Group));
    if (!loop->groups) return 1;
    Group *g = loop->groups;
    for (long m = 0; m <= loop->inner; m++)
        for (long first = 0; first < width; first += GROUP, g++) {
            *g = (Group){.first = first, .outputs = width, .width = inputs_of(loop, m), .channel = -1, .stride = 1,
                         .count = m == 0 ? 1 : (loop->layers - m + loop->inner - 1) / loop->inner,
                         .inputs = m == 0 ? 0 : hidden + (m - 1) * width, .gradients = hidden + m * width};
            g->weight = loop->d_parameters + (weight_of(loop, m) - loop->parameters) + first * g->width;
            g->bias = loop->d_parameters + (bias_of(loop, m) - loop->parameters) + first;
        }
    for (long d = 0; d < channels; d++)
        for (long first = 0; first < hidden; first += GROUP, g++) {
            *g = (Group){.first = first, .outputs = hidden, .width = width, .channel = d, .stride = channels,
                         .count = 1, .inputs = hidden + (loop->layers - 1) * width, .gradients = 0};
            long row = first * channels + d, m = loop->inner + 1;
            g->weight = loop->d_parameters + (weight_of(loop, m) - loop->parameters) + row * width;
            g->bias = loop->d_parameters + (bias_of(loop, m) - loop->parameters) + row;
        }
    for (g = loop->groups; g < loop->groups + loop->group_count; g++) {
        long size = panels_of(g->width, GRADIENT_WIDE) * GRADIENT_WIDE * LANES * GROUP + GROUP;
        g->sum = allocate(size);
        if (!g->sum) return 1;
        memset(g->sum, 0, size * sizeof(real));
        g->bias_sum = g->sum + size - GROUP;
    }
    return 0;
}

// Adds left^T right of `rows` rows: left is [row][GROUP], right [panel][row][GRADIENT_WIDE][LANES], and the sum
// [panel][tile][GRADIENT_ROWS][GRADIENT_WIDE][LANES].
static void add_outer_products(const real *left, const real *right, long panels, int rows, real *to) {
    for (long panel = 0; panel < panels; panel++, right += CHUNK * GRADIENT_WIDE * LANES)
        for (long tile = 0; tile < GROUP; tile += GRADIENT_ROWS, to += TILE) {
            vec sum[GRADIENT_ROWS][GRADIENT_WIDE] = {0};
            const real *l = left + tile, *r = right;
            for (int n = 0; n < rows; n++, l += GROUP, r += GRADIENT_WIDE * LANES)
#pragma GCC unroll 8
                for (int i = 0; i < GRADIENT_ROWS; i++)
#pragma GCC unroll 4
                    for (int v = 0; v < GRADIENT_WIDE; v++) sum[i][v] += l[i] * *(const vec *)(r + v * LANES);
#pragma GCC unroll 8
            for (int i = 0; i < GRADIENT_ROWS; i++)
#pragma GCC unroll 4
                for (int v = 0; v < GRADIENT_WIDE; v++) *(vec *)(to + (i * GRADIENT_WIDE + v) * LANES) += sum[i][v];
        }
}

// The columns of a tape that a group reads, as `add_outer_products` needs them.
static void pack_right(const real *from, long stride, long width, int rows, real *to) {
    for (long panel = 0; panel < panels_of(width, GRADIENT_WIDE); panel++)
        for (int n = 0; n < CHUNK; n++)
            for (int v = 0; v < GRADIENT_WIDE; v++, to += LANES) {
                long column = (panel * GRADIENT_WIDE + v) * LANES, left = width - column;
                if (n < rows) *(vec *)to = left > 0 ? load(from + n * stride + column, left) : ZERO;
            }
}

// The gradients of a group, times x where it has a channel, and their sum, which is that of the bias.
static void pack_left(const Group *g, const real *from, const real *const *x, long stride, int rows, real *to) {
    long outputs = g->outputs - g->first;
    vec sum[4][GROUP / LANES] = {0};
    for (int n = 0; n < rows; n++)
        for (int v = 0; v < GROUP / LANES; v++) {
            long left = outputs - v * LANES;
            vec value = left > 0 ? load(from + n * stride + v * LANES, left) : ZERO;
            if (g->channel >= 0) value *= x[n][g->channel];
            *(vec *)(to + n * GROUP + v * LANES) = value;
            sum[n % 4][v] += value;
        }
    for (int v = 0; v < GROUP / LANES; v++)
        *(vec *)(g->bias_sum + v * LANES) += (sum[0][v] + sum[1][v]) + (sum[2][v] + sum[3][v]);
}

// The weight gradients of a segment, of the groups first .. last - 1.
static void segment_gradients(void *context, long first, long last) {
    Loop *loop = context;
    long widest = loop->width > loop->hidden ? loop->width : loop->hidden, stride = WIDTH(loop);
    long per_step = loop->stages * loop->batch, rows = (loop->last - loop->first) * per_step;
    const real *tape = loop->adjoint ? loop->right : loop->tape + loop->first * per_step * stride;
    const real *x[CHUNK];
    real *left = allocate(CHUNK * (GROUP + panels_of(widest, GRADIENT_WIDE) * GRADIENT_WIDE * LANES));
    if (!left) {
        loop->failed = 1;
        return;
    }
    real *right = left + CHUNK * GROUP;
    for (long begin = 0; begin < rows; begin += CHUNK) {
        int count = rows - begin < CHUNK ? rows - begin : CHUNK;
        for (int n = 0; n < count; n++) {
            long step = loop->first + (begin + n) / per_step, row = (begin + n) % loop->batch;
            x[n] = loop->x + (block_of(loop, step) * loop->batch + row) * loop->channels;
        }
        long packed = -1;
        for (const Group *g = loop->groups + first; g < loop->groups + last; g++)
            for (long i = 0; i < g->count; i++) {
                // A matrix that is repeated has further inputs and gradients, each as many layers on.
                long on = i * loop->inner * loop->width;
                if (packed != g->inputs + on)
                    pack_right(tape + begin * stride + g->inputs + on, stride, g->width, count, right);
                packed = g->inputs + on;
                pack_left(g, loop->left + begin * stride + g->gradients + on + g->first, x, stride, count, left);
                add_outer_products(left, right, panels_of(g->width, GRADIENT_WIDE), count, g->sum);
            }
    }
    free(left);
}

static void finish_gradients(const Loop *loop) {
    for (const Group *g = loop->groups; g < loop->groups + loop->group_count; g++)
        for (long i = 0; i < GROUP && g->first + i < g->outputs; i++) {
            g->bias[i * g->stride] = g->bias_sum[i];
            for (long v = 0; v < vectors_of(g->width); v++) {
                const real *from = g->sum + (v / GRADIENT_WIDE * (GROUP / GRADIENT_ROWS) + i / GRADIENT_ROWS) * TILE +
                                   (i % GRADIENT_ROWS * GRADIENT_WIDE + v % GRADIENT_WIDE) * LANES;
                store(g->weight + i * g->stride * g->width + v * LANES, *(const vec *)from, g->width - v * LANES);
            }
        }
}

static void set_up(Loop *loop, const double *table, const double *ends) {
    loop->columns = (loop->channels + WIDE - 1) / WIDE * WIDE;
    for (int s = 0; s < loop->stages; s++) {
        loop->ends[s] = ends[s];
        for (int j = 0; j < loop->stages; j++) loop->table[s][j] = table[s * loop->stages + j];
    }
}

// `table` is (stages, stages); `tape` is null where nothing is kept.
int forward(long threads, long steps, long blocks, long batch, long hidden, long channels, long width, long inner,
            long repeats, long stages, const double *table, const double *ends, const real *x, const real *state,
            const real *parameters, real *sequence, real *tape) {
    Loop loop = {.steps = steps, .blocks = blocks, .batch = batch, .hidden = hidden, .channels = channels,
                 .width = width, .inner = inner, .layers = 1 + inner * repeats, .stages = stages, .x = x,
                 .state = state, .parameters = parameters, .sequence = sequence, .tape = tape};
    set_up(&loop, table, ends);
    if (tape) use_large_pages(tape, steps * stages * batch * WIDTH(&loop) * sizeof(real));
    loop.failed = pack_all(&loop, 0);
    if (!loop.failed) parallel(threads, batch, forward_rows, &loop);
    release(&loop);
    return loop.failed;
}

// Without a tape, by the adjoint equation. d_x is null where nobody asks for it.
int backward(long threads, long steps, long blocks, long batch, long hidden, long channels, long width, long inner,
             long repeats, long stages, const double *table, const double *ends, const real *x, const real *parameters,
             const real *sequence, const real *tape, const real *g_sequence, real *d_x, real *d_state,
             real *d_parameters) {
    Loop loop = {.steps = steps, .blocks = blocks, .batch = batch, .hidden = hidden, .channels = channels,
                 .width = width, .inner = inner, .layers = 1 + inner * repeats, .stages = stages, .x = x,
                 .parameters = parameters, .sequence = (real *)sequence, .tape = (real *)tape, .adjoint = !tape,
                 .g_sequence = g_sequence, .d_x = d_x, .d_state = d_state, .d_parameters = d_parameters};
    set_up(&loop, table, ends);
    long per_step = stages * batch, segment = batch ? (SEGMENT + per_step - 1) / per_step : 1;
    if (segment > steps) segment = steps;
    memset(d_state, 0, batch * hidden * sizeof(real));
    if (d_x) memset(d_x, 0, blocks * batch * channels * sizeof(real));
    loop.left = allocate(segment * per_step * WIDTH(&loop) + 1);
    loop.right = loop.adjoint ? allocate(segment * per_step * WIDTH(&loop) + 1) : 0;
    loop.failed = !loop.left || (loop.adjoint && !loop.right) || make_groups(&loop) || pack_all(&loop, 1);
    for (loop.last = steps; !loop.failed && loop.last > 0; loop.last = loop.first) {
        loop.first = loop.last > segment ? loop.last - segment : 0;
        parallel(threads, batch, backward_rows, &loop);
        if (!loop.failed) parallel(threads, loop.group_count, segment_gradients, &loop);
    }
    if (!loop.failed) finish_gradients(&loop);
    release(&loop);
    return loop.failed;
}
