/* One native call runs a program: a list of ops over the tokens of a step, split into units that a team of threads
   takes one by one. Each unit is computed by one thread in a fixed order, so no result depends on the number of threads
   or on what else is in the batch. The structs are mirrored, field by field, in library.py. */
#ifndef ROOKERY_STEP_H
#define ROOKERY_STEP_H

#include <stdint.h>

enum { OP_EMBED, OP_MIX, OP_LERP, OP_PACK, OP_MATMUL, OP_WKV4, OP_WKV6, OP_WKV7, OP_SAMPLE };
enum { ACT_NONE, ACT_TANH, ACT_SIGMOID, ACT_RELU2, ACT_ADD, ACT_ADD_GATED };
enum { F32, BF16, INT8, INT4, F16 };

/* Activations, row-major, one row a token. F32: floats. BF16: the upper halves of floats. INT8: signed, with
   `scale` holding for each row: its scale (float), the sum of its numbers, the sums of each 32 of them (int32). */
typedef struct {
    void *data;
    void *scale;
    int32_t width;  /* numbers of a row */
    int32_t stride; /* from row to row; what lies between is zero */
    int32_t scale_stride;
    int32_t format;
} Buffer;

/* A weight [out, in] in panels of 16 outputs, zeros where a size is no multiple:
   F32  [panel][in][16]; BF16 [panel][in/2][16][2], in a multiple of 32;
   INT8 [panel][in/4][16][4], in a multiple of 64, value + 128, scale [out];
   INT4 [panel][in/128], each first [4][4][16][4], value + 8, two fours of inputs a byte, 32 inputs a group, then [4][16]
   signed multipliers of the four groups; scale [out]: value times multiplier, at most 120, is what INT8 has.
   Of OP_EMBED: a plain table [vocabulary, width]. */
typedef struct {
    const void *data;
    const void *scale;
    int32_t out, in;
    int32_t stride; /* `in`, rounded up */
    int32_t format;
} Matrix;

typedef struct {
    int32_t kind;
    int32_t last; /* whether the next op reads what this one writes: all wait for each other here */
    int32_t act;
    int32_t count;
    int32_t heads, head_size;
    float eps;
    int32_t unused;
    int64_t offset;       /* of this layer in a slot of the states, in floats; -1 for no state */
    Matrix matrix;
    Buffer in[8];
    Buffer out[8];
    const float *vec[10];
} Op;

typedef struct {
    int64_t tokens, rows;
    const int64_t *ids;    /* [tokens] */
    const int64_t *slots;  /* [rows]; -1: state reads as zero and is not written */
    const int64_t *starts; /* [rows + 1] */
    float *shift, *wkv;    /* states, slot by slot */
    int64_t shift_stride, wkv_stride;
} Call;

/* A row of logits, and how a token is drawn from it. OP_SAMPLE finds pointers to such rows in `matrix.data`, one a row of
   the call, and in `matrix.in` the largest `vocabulary`. */
typedef struct {
    const float *logits;  /* [vocabulary] */
    const uint32_t *mask; /* [words]: token t is allowed if bit t % 32 of word t / 32 is 1; NULL for all */
    const int64_t *bias_ids, *ban_ids, *seen_ids; /* each id once in each list */
    const float *bias;    /* [biases] */
    const double *counts; /* [seen], decayed */
    int64_t words, biases, bans, seen;
    int64_t vocabulary;
    int64_t limit; /* ids from here on are never drawn */
    double top_p, min_p, typical_p;
    float temperature; /* 0: the likeliest */
    float repetition, presence, frequency;
    int32_t top_k, top_p_first;
    uint64_t seed;
    uint32_t choice, drawn;
    int64_t token; /* -1, and becomes what is drawn; an id given is only scored */
    int32_t fault; /* set by a draw */
    int32_t top;   /* so many of the likeliest with their log-probabilities; -1: not even the token's */
    double logprob;
    int64_t *top_ids;
    double *top_logprobs;
} Sample;

enum { SAMPLE_DRAWN, SAMPLE_NOTHING_ALLOWED, SAMPLE_NOT_FINITE };

#define SCRATCH_FLOATS (1200 * 1024) /* per thread; most is for amx.c: four panels of 65536 inputs as INT8 */
#define SAMPLE_ROOM(vocabulary) (((int64_t)(vocabulary) + 31) / 16 * 16) /* floats, of which a row takes five times */
#define PANEL 16
#define GROUP 32
#define GROUP_BYTES (GROUP / 2 * PANEL) /* of a panel's INT4 numbers; four such groups and their multipliers: */
#define BATCH_BYTES (4 * (GROUP_BYTES + PANEL))
#define UNIT_PANELS 4
#define MIX_TOKENS 4
#define CHANNELS 64

typedef void (*Run)(const Op *op, const Call *call, int64_t unit, float *scratch);

typedef struct {
    const char *name;
    Run embed, mix, lerp, pack, wkv4, wkv6, wkv7, sample;
    Run matmul[4]; /* by format of the matrix */
} Tier;

extern const Tier tier_portable, tier_avx2, tier_avx512;

/* amx.c: products of 16 rows and more by the matrix unit. */
int amx_start(void);
void amx_enter(void);
void amx_leave(void);
void amx_matmul_bf16(const Op *op, const Call *call, int64_t unit, float *scratch);
void amx_matmul_int8(const Op *op, const Call *call, int64_t unit, float *scratch);
void amx_matmul_int4(const Op *op, const Call *call, int64_t unit, float *scratch);

/* team.c */
typedef struct Team Team;
Team *rookery_team(int threads);
void rookery_free(Team *team);
int rookery_threads(const Team *team);
void rookery_run(Team *team, const Tier *tier, const Op *ops, int64_t count, const Call *call);
const Tier *rookery_tier(const char *name);
const char *rookery_tier_name(const Tier *tier);
/* Raise PROGRAM_VERSION whenever the same program would mean something else: the Python side refuses other libraries. */
enum { PROGRAM_VERSION = 5 };
int64_t rookery_program(void);
/* The digest of the sources (sources.py) that setup.py gives; 0 in other builds. */
uint64_t rookery_sources(void);

#endif
