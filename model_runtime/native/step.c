/* A decoder of the Llama kind: one forward over a few packed rows, and the pieces of one over many.
 *
 * All numbers are float32 but the weights, which keep the bits they were shipped with (matrix.h), and the inputs of
 * matrices that take bytes (activations.h).
 */
#include <omp.h>
#include <stdlib.h>

#include "attention.h"
#include "integer_matrix.h"
#include "phases.h"

typedef struct {
    Matrix query, key, value, output, gate, up, down;
    const float *input_norm, *attention_norm;           /* [hidden]: before attention, before the MLP */
    const float *after_attention_norm, *after_mlp_norm; /* [hidden], of what they add; or NULL */
    const float *query_norm, *key_norm;                 /* [dim], or NULL */
    int32_t has_window, rope;                           /* rope: which of the tables of positions */
} Layer;

typedef struct {
    const Layer *layers;
    const float *final_norm; /* [hidden] */
    Matrix head;
    float norm_epsilon, score_scale;
    int32_t layer_count, hidden, heads, kv_heads, dim, intermediate, vocabulary;
    int32_t window; /* keys that a query sees in layers with a window */
    int32_t ropes;
    int32_t has_gelu; /* gates are GELU's (by tanh), not SiLU's */
} Model;

/* Rows `start..start + tokens` of the packed row belong to one conversation, behind the `past` tokens its slab holds. */
typedef struct {
    void *const *keys, *const *values; /* a pointer a layer: [kv_heads][capacity][dim] */
    int64_t capacity;
    int32_t start, tokens, past;
    int32_t is_half; /* the slab holds halves instead of floats */
} Span;

/* Queries that are attended together: `count` of a KV head's `tokens * groups`, from `first` on. They see no key of the splits
 * before `first_split`. */
typedef struct {
    const Span *span;
    int32_t kv_head, first, count, first_split, splits;
    size_t partial; /* where its first split's results are: in `states`, and times dim in `weighted` */
} Block;

/* Which splits of which blocks there are. */
typedef struct {
    Block *blocks;
    int32_t block_count, split_count; /* splits: (block, split) pairs in all */
} Plan;

/* The attention of one forward: plans for layers without a window and with one, and their results, reused by every layer. */
typedef struct {
    const Model *model;
    const Span *spans;
    const float *cosine, *sine; /* [ropes][rows][dim] */
    float *weighted;            /* per block and split: [count][dim] */
    Softmax *states;            /* per block and split: [count] */
    Plan plans[2];
    int32_t rows;
} Attention;

/* What matrices are multiplied by: [rows][columns], and the same in `bytes` bytes a number, for those that take them. */
typedef struct {
    float *x;
    int32_t *packed;
    int rows, columns, bytes;
} Inputs;

typedef struct {
    float *x;                       /* [rows][hidden] */
    float *query, *key, *value;     /* [rows][heads or kv_heads * dim] */
    float *up;                      /* [rows][intermediate] */
    float *branch;                  /* [rows][hidden]: what is normalised before it is added to x */
    Inputs normed, attended, gated; /* hidden, heads * dim and intermediate columns */
    Inputs ordered;                 /* one of these for matrices whose columns have an order: the widest of them */
} Activations;

static size_t aligned(size_t count) { return (count + LANES - 1) / LANES * LANES; }

static int padded(int rows) { return (rows + PAIR - 1) / PAIR * PAIR; }

INLINE void normalise(const float *x, const float *weight, int width, float epsilon, float *to) {
    floats squares = {0};
    for (int i = 0; i < width; i += LANES) squares += load(x + i) * load(x + i);
    const float factor = 1 / sqrtf(sum_of(squares) / width + epsilon);
    for (int i = 0; i < width; i += LANES) store(to + i, load(x + i) * factor * load(weight + i));
}

/* Rotary positions in transformers' arrangement: lane i and lane i + dim/2 are a pair. In place. */
INLINE void rotate(float *x, const float *cosine, const float *sine, int dim, float scale) {
    const int half = dim / 2;
    for (int i = 0; i < half; i += LANES) {
        const floats a = load(x + i), b = load(x + i + half);
        store(x + i, (a * load(cosine + i) - b * load(sine + i)) * scale);
        store(x + i + half, (b * load(cosine + i + half) + a * load(sine + i + half)) * scale);
    }
}

/* One head's rows of queries or keys, in place: its own norm where there is one, then positions. */
static void finish_head(const Attention *a, int rope, float *x, int stride, const float *norm, float scale) {
    const int dim = a->model->dim;
    const size_t table = (size_t)rope * a->rows * dim;
    for (int r = 0; r < a->rows; r++) {
        float *row = x + (size_t)r * stride;
        if (norm) normalise(row, norm, dim, a->model->norm_epsilon, row);
        rotate(row, a->cosine + table + (size_t)r * dim, a->sine + table + (size_t)r * dim, dim, scale);
    }
}

/* Writes one KV head's rows [rows][stride] behind what the slabs of `layer` hold. */
static void append_head(const Attention *a, int layer, int kv_head, const float *from, int stride, int is_value) {
    const int dim = a->model->dim;
    const Span *s = a->spans;
    for (int r = 0; r < a->rows; r++) {
        while (r >= s->start + s->tokens) s++;
        void *slab = (is_value ? s->values : s->keys)[layer];
        const size_t place = ((size_t)kv_head * s->capacity + s->past + r - s->start) * dim;
        const float *row = from + (size_t)r * stride;
        if (s->is_half)
            for (int d = 0; d < dim; d += LANES) store_halves((uint16_t *)slab + place + d, load(row + d));
        else
            memcpy((float *)slab + place, row, sizeof(float) * dim);
    }
}

/* Head `head` of queries, then keys, then values: what their projections left is finished, and appended. */
static void finish_projection(const Attention *a, int layer, int head, const Activations *v) {
    const Model *m = a->model;
    const Layer *l = m->layers + layer;
    const int kv_head = (head - m->heads) % m->kv_heads, kv_width = m->kv_heads * m->dim;
    if (head < m->heads) {
        finish_head(a, l->rope, v->query + head * m->dim, m->heads * m->dim, l->query_norm, m->score_scale);
    } else if (head < m->heads + m->kv_heads) {
        finish_head(a, l->rope, v->key + kv_head * m->dim, kv_width, l->key_norm, 1);
        append_head(a, layer, kv_head, v->key + kv_head * m->dim, kv_width, 0);
    } else {
        append_head(a, layer, kv_head, v->value + kv_head * m->dim, kv_width, 1);
    }
}

static void plan_attention(const Attention *a, int span_count, int window, Plan *plan) {
    const int groups = a->model->heads / a->model->kv_heads;
    size_t partial = 0;
    plan->block_count = plan->split_count = 0;
    for (const Span *s = a->spans; s < a->spans + span_count; s++)
        for (int head = 0; head < a->model->kv_heads; head++)
            for (int first = 0; first < s->tokens * groups; first += BLOCK_QUERIES) {
                const int left = s->tokens * groups - first, count = left < BLOCK_QUERIES ? left : BLOCK_QUERIES;
                const int keys = s->past + (first + count - 1) / groups + 1;
                const int hidden = window ? s->past + first / groups + 1 - window : 0;
                const int first_split = hidden > 0 ? hidden / SPLIT_KEYS : 0;
                const int splits = (keys + SPLIT_KEYS - 1) / SPLIT_KEYS - first_split;
                plan->blocks[plan->block_count++] = (Block){s, head, first, count, first_split, splits, partial};
                plan->split_count += splits;
                partial += (size_t)splits * count;
            }
}

/* Returns 0 when there is no memory. */
static int open_attention(Attention *a, int span_count) {
    const int groups = a->model->heads / a->model->kv_heads;
    size_t blocks = 0, partials = 0;
    for (const Span *s = a->spans; s < a->spans + span_count; s++) {
        const size_t queries = (size_t)s->tokens * groups;
        blocks += a->model->kv_heads * (queries / BLOCK_QUERIES + 1);
        partials += a->model->kv_heads * queries * ((s->past + s->tokens) / SPLIT_KEYS + 1);
    }
    a->weighted = aligned_alloc(64, sizeof(float) * aligned(partials * a->model->dim));
    a->states = malloc(sizeof(Softmax) * partials);
    Block *memory = malloc(sizeof(Block) * blocks * 2);
    if (a->weighted && memory && a->states) {
        a->plans[0].blocks = memory;
        a->plans[1].blocks = memory + blocks;
        for (int i = 0; i < 2; i++) plan_attention(a, span_count, i ? a->model->window : 0, a->plans + i);
        return 1;
    }
    free(a->weighted), free(memory), free(a->states);
    return 0;
}

/* One KV head's rows in a layer's slab, from position `first` on. */
static Numbers rows_of(const Attention *a, const Span *s, const void *slab, int kv_head, int first) {
    return from_number((Numbers){slab, s->is_half}, ((size_t)kv_head * s->capacity + first) * a->model->dim);
}

static void close_attention(Attention *a) { free(a->weighted), free(a->plans[0].blocks), free(a->states); }

static const Plan *plan_of(const Attention *a, int layer) { return a->plans + a->model->layers[layer].has_window; }

/* The block whose splits the `*number`-th of all belongs to; `*number` becomes its number there. */
static const Block *block_of(const Plan *plan, int *number) {
    const Block *b = plan->blocks;
    while (*number >= b->splits) *number -= (b++)->splits;
    return b;
}

/* Attends the `number`-th split of all, and prefetches the keys of the split that this thread may take next. */
static void attend(const Attention *a, int layer, int number, const float *query) {
    const Model *m = a->model;
    const Plan *plan = plan_of(a, layer);
    const int groups = m->heads / m->kv_heads, width = m->heads * m->dim, next_number = number + 1;
    float queries[BLOCK_QUERIES * MAX_DIM] __attribute__((aligned(64)));
    int visible[BLOCK_QUERIES], later = next_number < plan->split_count ? next_number : number;
    const Block *b = block_of(plan, &number), *next = block_of(plan, &later);
    const Span *s = b->span;
    for (int i = 0; i < b->count; i++) {
        const int row = (b->first + i) / groups, head = b->kv_head * groups + (b->first + i) % groups;
        memcpy(queries + (size_t)i * m->dim, query + (size_t)(s->start + row) * width + head * m->dim,
               sizeof(float) * m->dim);
        visible[i] = s->past + row + 1;
    }
    const int from = (b->first_split + number) * SPLIT_KEYS, seen = visible[b->count - 1] - from;
    const size_t place = b->partial + (size_t)number * b->count;
    const Split split = {
        rows_of(a, s, s->keys[layer], b->kv_head, from), rows_of(a, s, s->values[layer], b->kv_head, from),
        rows_of(a, next->span, next->span->keys[layer], next->kv_head, (next->first_split + later) * SPLIT_KEYS), from,
        seen < SPLIT_KEYS ? seen : SPLIT_KEYS};
    const int window = m->layers[layer].has_window ? m->window : 0;
    attend_split(queries, visible, window, b->count, &split, m->dim, a->states + place, a->weighted + place * m->dim);
}

/* Packs `count` columns of a row, from `column` on, which are there as floats. */
static void pack_inputs(const Inputs *in, int row, int column, int count) {
    pack(in->x + (size_t)row * in->columns + column, in->rows, in->columns, row, column, count, in->bytes, in->packed);
}

/* A block's attended values, from all its splits, to their places in `in`. */
static void merge(const Attention *a, int layer, int number, const Inputs *in, int is_packed) {
    const Model *m = a->model;
    const Block *b = plan_of(a, layer)->blocks + number;
    const int groups = m->heads / m->kv_heads;
    for (int i = 0; i < b->count; i++) {
        const int row = b->span->start + (b->first + i) / groups, head = b->kv_head * groups + (b->first + i) % groups;
        const size_t at = (size_t)(row * m->heads + head) * m->dim;
        Softmax state = {-INFINITY, 0};
        for (int split = 0; split < b->splits; split++) {
            const size_t place = b->partial + (size_t)split * b->count + i;
            merge_split(&state, in->x + at, a->states[place], a->weighted + place * m->dim, m->dim);
        }
        for (int d = 0; d < m->dim; d += LANES) store(in->x + at + d, load(in->x + at + d) / state.sum);
        if (is_packed) pack_inputs(in, row, head * m->dim, m->dim);
    }
}

/* The inputs as the matrix wants them, which are `in` where its columns have no order of their own. */
static Inputs inputs_of(const Matrix *w, const Inputs *in, const Activations *v) {
    if (!w->order) return *in;
    return (Inputs){
        .x = v->ordered.x, .packed = v->ordered.packed, .rows = in->rows, .columns = w->columns, .bytes = in->bytes};
}

/* A row of `in` in the order of the matrix's columns, in `ordered`. */
static void order_row(const Matrix *w, int row, const Inputs *in, const Activations *v) {
    const Inputs to = inputs_of(w, in, v);
    const size_t at = (size_t)row * w->columns;
    for (int i = 0; i < w->columns; i++) to.x[at + i] = in->x[at + w->order[i]];
    if (w->takes_bytes) pack_inputs(&to, row, 0, w->columns);
}

/* Row `from` of x, normalised, as row `row` of the inputs of what comes next: `reader` is a matrix that reads it. */
static void normalise_row(const Model *m, const float *weight, const Matrix *reader, int from, int row,
                          const Activations *v, int is_packed) {
    const size_t width = m->hidden;
    normalise(v->x + from * width, weight, m->hidden, m->norm_epsilon, v->normed.x + row * width);
    if (reader->order)
        order_row(reader, row, &v->normed, v);
    else if (is_packed)
        pack_inputs(&v->normed, row, 0, m->hidden);
}

/* Adds row `row` of the branch to x, normalised. */
static void add_normalised(const Model *m, const float *weight, int row, const Activations *v) {
    float *branch = v->branch + (size_t)row * m->hidden, *x = v->x + (size_t)row * m->hidden;
    normalise(branch, weight, m->hidden, m->norm_epsilon, branch);
    for (int i = 0; i < m->hidden; i += LANES) store(x + i, load(x + i) + load(branch + i));
}

/* Outputs PAIR * pair.. of `y` [rows][outputs]. */
static void project(const Matrix *w, int pair, const Inputs *in, float *y, int adds) {
    if (w->takes_bytes)
        multiply_packed(w, pair, in->rows, in->packed, y, padded(w->rows), adds, AHEAD);
    else
        multiply_pair(w, pair, in->rows, in->x, in->columns, y, padded(w->rows), adds, AHEAD);
}

/* Head `head` of queries, then keys, then values. */
static void project_head(const Attention *a, int layer, int head, const Activations *v) {
    const Model *m = a->model;
    const Layer *l = m->layers + layer;
    const int kind = head < m->heads ? 0 : head < m->heads + m->kv_heads ? 1 : 2;
    const Matrix *w = kind == 0 ? &l->query : kind == 1 ? &l->key : &l->value;
    const int own = kind == 0 ? head : (head - m->heads) % m->kv_heads;
    float *y = kind == 0 ? v->query : kind == 1 ? v->key : v->value;
    const Inputs in = inputs_of(w, &v->normed, v);
    for (int pair = own * m->dim / PAIR; pair < (own + 1) * m->dim / PAIR; pair++) project(w, pair, &in, y, 0);
    finish_projection(a, layer, head, v);
}

/* What GELU's sigmoid is taken of: x times it is 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))). */
INLINE floats gelu_argument(floats x) { return 1.5957691216f * (x + 0.044715f * x * x * x); }

/* RUN outputs of silu(gate) * up, or of GELU, in `gated`. */
static void gate_run(const Attention *a, int layer, int run, const Activations *v) {
    const Layer *l = a->model->layers + layer;
    const Inputs in = inputs_of(&l->gate, &v->normed, v);
    for (int pair = run * RUN / PAIR; pair < (run + 1) * RUN / PAIR; pair++) {
        project(&l->gate, pair, &in, v->gated.x, 0);
        project(&l->up, pair, &in, v->up, 0);
    }
    for (int r = 0; r < a->rows; r++) {
        const size_t at = (size_t)r * a->model->intermediate + run * RUN;
        for (int i = 0; i < RUN; i += LANES) {
            const floats g = load(v->gated.x + at + i);
            const floats s = a->model->has_gelu ? gelu_argument(g) : g;
            const floats e = exp_of(choose(s > 0, -s, s)); /* never overflows: sigmoid is 1 / (1 + e) or e / (1 + e) */
            store(v->gated.x + at + i, g * choose(s > 0, all(1), e) / (1 + e) * load(v->up + at + i));
        }
        if (l->down.takes_bytes && !l->down.order) pack_inputs(&v->gated, r, run * RUN, RUN);
    }
}

#define PHASES_A_LAYER 11
#define HEAD_PAIRS 16 /* of the vocabulary, taken at a time */

static Phases run_layer(const Attention *a, int layer, const Activations *v, Phases phases) {
    const Model *m = a->model;
    const Layer *l = m->layers + layer;
    const int attends_bytes = l->query.takes_bytes || l->key.takes_bytes || l->value.takes_bytes;
    const int gates_bytes = l->gate.takes_bytes || l->up.takes_bytes;
    RUN_PHASE(phases, a->rows, row, normalise_row(m, l->input_norm, &l->query, row, row, v, attends_bytes));
    RUN_PHASE(phases, m->heads + 2 * m->kv_heads, head, project_head(a, layer, head, v));
    const Plan *plan = plan_of(a, layer);
    const int output_is_packed = l->output.takes_bytes && !l->output.order;
    RUN_PHASE(phases, plan->split_count, split, attend(a, layer, split, v->query));
    RUN_PHASE(phases, plan->block_count, block, merge(a, layer, block, &v->attended, output_is_packed));
    RUN_PHASE(phases, l->output.order ? a->rows : 0, row, order_row(&l->output, row, &v->attended, v));
    const Inputs attended = inputs_of(&l->output, &v->attended, v);
    float *to = l->after_attention_norm ? v->branch : v->x;
    RUN_PHASE(phases, pairs_of(&l->output), pair, project(&l->output, pair, &attended, to, to == v->x));
    RUN_PHASE(phases, a->rows, row, {
        if (l->after_attention_norm) add_normalised(m, l->after_attention_norm, row, v);
        normalise_row(m, l->attention_norm, &l->gate, row, row, v, gates_bytes);
    });
    RUN_PHASE(phases, m->intermediate / RUN, run, gate_run(a, layer, run, v));
    RUN_PHASE(phases, l->down.order ? a->rows : 0, row, order_row(&l->down, row, &v->gated, v));
    const Inputs gated = inputs_of(&l->down, &v->gated, v);
    to = l->after_mlp_norm ? v->branch : v->x;
    RUN_PHASE(phases, pairs_of(&l->down), pair, project(&l->down, pair, &gated, to, to == v->x));
    RUN_PHASE(phases, l->after_mlp_norm ? a->rows : 0, row, add_normalised(m, l->after_mlp_norm, row, v));
    return phases;
}

/* Takes the next `count` floats of `memory`, a whole number of vectors. */
static float *carve(float **memory, size_t count) {
    float *taken = *memory;
    *memory += aligned(count);
    return taken;
}

static Inputs carve_inputs(float **memory, int rows, int columns, int bytes) {
    Inputs in = {.rows = rows, .columns = columns, .bytes = bytes};
    in.x = carve(memory, (size_t)rows * columns);
    in.packed = (int32_t *)carve(memory, packed_size_up_to(rows, columns, bytes));
    return in;
}

/* The most inputs of a matrix whose columns have an order; 0 if no matrix has one. */
static int widest_order(const Model *m) {
    int widest = 0;
    for (const Layer *l = m->layers; l < m->layers + m->layer_count; l++) {
        const Matrix *readers[] = {&l->query, &l->output, &l->gate, &l->down};
        for (int i = 0; i < 4; i++)
            if (readers[i]->order && readers[i]->columns > widest) widest = readers[i]->columns;
    }
    return widest;
}

static int has_branches(const Model *m) {
    return m->layer_count > 0 && (m->layers->after_attention_norm || m->layers->after_mlp_norm);
}

/* The bytes that activations are packed in: those of the first matrix that takes any. `is_sound` refuses others beside it. */
static int bytes_taken(const Model *m) {
    for (const Layer *l = m->layers; l < m->layers + m->layer_count; l++) {
        const Matrix *all[] = {&l->query, &l->key, &l->value, &l->output, &l->gate, &l->up, &l->down};
        for (int i = 0; i < 7; i++)
            if (all[i]->takes_bytes) return all[i]->takes_bytes;
    }
    return m->head.takes_bytes ? m->head.takes_bytes : 1;
}

/* Lays out the activations behind one another; with `memory` NULL it only counts: the result is how many floats. */
static size_t lay_out(const Model *m, int rows, float *memory, Activations *v) {
    float *next = memory;
    const int bytes = bytes_taken(m);
    const size_t width = (size_t)m->heads * m->dim, kv_width = (size_t)m->kv_heads * m->dim;
    v->query = carve(&next, rows * width);
    v->key = carve(&next, rows * kv_width);
    v->value = carve(&next, rows * kv_width);
    v->up = carve(&next, (size_t)rows * m->intermediate);
    v->branch = carve(&next, has_branches(m) ? (size_t)rows * m->hidden : 0);
    v->normed = carve_inputs(&next, rows, m->hidden, bytes);
    v->attended = carve_inputs(&next, rows, m->heads * m->dim, bytes);
    v->gated = carve_inputs(&next, rows, m->intermediate, bytes);
    v->ordered = carve_inputs(&next, rows, widest_order(m), bytes);
    return next - memory;
}

static int fits(const Matrix *w, int rows, int columns, int bytes) {
    if (!w->codes || w->kind < Q2 || w->kind > SINGLE || w->rows != rows || w->columns != columns) return 0;
    if ((w->kind < HALF && !w->scale) || (has_high(w->kind) && !w->high)) return 0;
    if (!w->takes_bytes) return 1;
    if (w->takes_bytes != bytes) return 0;
    return w->kind <= Q8 || (w->kind == LEVELS && w->level_bytes);
}

/* Whether two matrices can read the same inputs in the same order. */
static int is_ordered_like(const Matrix *w, const Matrix *first) {
    return w->order == first->order && (!w->order || w->takes_bytes == first->takes_bytes);
}

/* Whether all sizes fit together. The caller has checked that before; a mistake there must not make this code write
 * outside a buffer. */
static int is_sound(const Model *m, const Span *spans, int span_count, int rows, const int32_t *wanted,
                    int wanted_count) {
    const int width = m->heads * m->dim, kv_width = m->kv_heads * m->dim, bytes = bytes_taken(m);
    int seen = 0;
    if (m->heads <= 0 || m->kv_heads <= 0 || m->heads % m->kv_heads || m->hidden <= 0 || m->intermediate <= 0) return 0;
    if (m->dim <= 0 || m->dim > MAX_DIM || m->dim % RUN || m->hidden % RUN || m->intermediate % RUN) return 0;
    if (m->ropes < 1 || m->window < 0 || (bytes != 1 && bytes != 2)) return 0;
    if (!m->final_norm || !fits(&m->head, m->vocabulary, m->hidden, bytes) || m->head.order) return 0;
    for (const Layer *l = m->layers; l < m->layers + m->layer_count; l++)
        if (!l->input_norm || !l->attention_norm || l->rope < 0 || l->rope >= m->ropes ||
            l->has_window != (l->has_window && m->window) ||
            !l->after_attention_norm != !m->layers->after_attention_norm ||
            !l->after_mlp_norm != !m->layers->after_mlp_norm || !fits(&l->query, width, m->hidden, bytes) ||
            !fits(&l->key, kv_width, m->hidden, bytes) || !fits(&l->value, kv_width, m->hidden, bytes) ||
            !fits(&l->output, m->hidden, width, bytes) || !fits(&l->gate, m->intermediate, m->hidden, bytes) ||
            !fits(&l->up, m->intermediate, m->hidden, bytes) || !fits(&l->down, m->hidden, m->intermediate, bytes) ||
            !is_ordered_like(&l->key, &l->query) || !is_ordered_like(&l->value, &l->query) ||
            !is_ordered_like(&l->up, &l->gate))
            return 0;
    for (const Span *s = spans; s < spans + span_count; seen += (s++)->tokens)
        if (s->start != seen || s->tokens <= 0 || s->past < 0 || (int64_t)s->past + s->tokens > s->capacity) return 0;
    for (int i = 0; i < wanted_count; i++)
        if (wanted[i] < 0 || wanted[i] >= rows) return 0;
    return seen == rows && wanted_count <= rows;
}

/* Layers first_layer..last_layer of one forward. x [rows][hidden] holds the rows' embeddings before the first layer, and
 * their hidden states between two calls. `cosine`, `sine` [ropes][rows][dim]. Appends to every span's slab. `wanted` lists the
 * rows whose logits are wanted once the last layer is done, into logits [wanted_count][vocabulary rounded up to PAIR].
 * Returns 0, 1 when there is no memory, or 2 when the sizes do not fit together; nothing was touched then. */
int keepwarm_step(const Model *m, int first_layer, int last_layer, const Span *spans, int span_count, int rows,
                  float *x, const float *cosine, const float *sine, const int32_t *wanted, int wanted_count,
                  float *logits, int threads) {
    if (first_layer < 0 || last_layer > m->layer_count || first_layer > last_layer) return 2;
    if (!is_sound(m, spans, span_count, rows, wanted, wanted_count)) return 2;
    Attention a = {.model = m, .spans = spans, .cosine = cosine, .sine = sine, .rows = rows};
    Activations v = {.x = x};
    const int phase_count = PHASES_A_LAYER * (last_layer - first_layer) + 2;
    float *memory = aligned_alloc(64, sizeof(float) * lay_out(m, rows, NULL, &v));
    Counter *counters = aligned_alloc(64, phases_size(phase_count, threads));
    if (!memory || !counters || !open_attention(&a, span_count)) {
        free(memory), free(counters);
        return 1;
    }
    lay_out(m, rows, memory, &v);
    Activations w = v; /* of the rows whose logits are wanted */
    w.normed.rows = wanted_count;
    memset(counters, 0, phases_size(phase_count, threads));
#pragma omp parallel num_threads(threads)
    {
        const int uses_amx = is_for_amx(width_of(rows, w.normed.bytes));
        if (uses_amx) open_amx();
        Phases phases = {counters, threads};
        for (int layer = first_layer; layer < last_layer; layer++) phases = run_layer(&a, layer, &v, phases);
        if (last_layer == m->layer_count) {
            RUN_PHASE(phases, wanted_count, i,
                      normalise_row(m, m->final_norm, &m->head, wanted[i], i, &w, m->head.takes_bytes));
            RUN_PHASE(phases, (pairs_of(&m->head) + HEAD_PAIRS - 1) / HEAD_PAIRS, item, {
                for (int pair = HEAD_PAIRS * item; pair < HEAD_PAIRS * (item + 1) && pair < pairs_of(&m->head); pair++)
                    project(&m->head, pair, &w.normed, logits, 0);
            });
        }
        if (uses_amx) close_amx();
    }
    close_attention(&a);
    free(memory), free(counters);
    return 0;
}

/* How many outputs lie side by side in a tile. */
int keepwarm_lanes(void) { return LANES; }

/* Whether the processor multiplies bytes by bytes in instructions of its own. */
int keepwarm_has_byte_products(void) { return HAS_BYTE_PRODUCTS; }

/* `count` floats to halves, as slabs are written; a multiple of LANES. */
void keepwarm_to_halves(const float *from, uint16_t *to, int count) {
    for (int i = 0; i < count; i += LANES) store_halves(to + i, load(from + i));
}

/* y [rows][outputs rounded up to PAIR] = x [rows][columns] times the matrix, plus its bias. Returns 0, or 1 when there is
 * no memory for x as bytes. */
int keepwarm_multiply(const Matrix *m, int rows, float *x, float *y, int threads) {
    Inputs in = {.x = x, .rows = rows, .columns = m->columns, .bytes = m->takes_bytes};
    if (m->takes_bytes && !(in.packed = malloc(sizeof(int32_t) * packed_size(rows, m->columns, in.bytes)))) return 1;
#pragma omp parallel num_threads(threads)
    {
        const int uses_amx = m->takes_bytes && is_for_amx(width_of(rows, in.bytes));
        if (uses_amx) open_amx();
        if (m->takes_bytes) {
#pragma omp for schedule(static)
            for (int row = 0; row < rows; row++) pack_inputs(&in, row, 0, m->columns);
        }
#pragma omp for schedule(dynamic, 4)
        for (int pair = 0; pair < pairs_of(m); pair++) project(m, pair, &in, y, 0);
        if (uses_amx) close_amx();
    }
    free(in.packed);
    return 0;
}

/* Rows `ids` [count] of the matrix as numbers, y [count][columns]. */
void keepwarm_rows(const Matrix *m, int count, const int32_t *ids, float *y, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int i = 0; i < count; i++) write_row(m, ids[i], y + (size_t)i * m->columns);
}
