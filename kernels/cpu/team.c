/* The team of threads and the walk through a program.

   A phase is a run of ops up to one marked `last`. Its units are taken from a counter, and it is over when all are done,
   not when all threads have come: one that the system has put aside holds up nobody, unless it sits on a unit. Idle
   threads stay awake for two milliseconds, then sleep. */
#define _GNU_SOURCE
#include "step.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX_THREADS = 256, SPINS_IDLE = 400, SPINS_PHASE = 4000, AWAKE_NS = 2000000 };

#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ volatile("yield")
#else
#define PAUSE() ((void)0)
#endif

typedef struct {
    _Alignas(64) atomic_llong next;
    atomic_llong done;
} Phase;

typedef struct {
    Team *team;
    pthread_t thread;
    float *scratch;
} Member;

struct Team {
    int threads;
    Member members[MAX_THREADS];
    pthread_mutex_t lock;
    pthread_cond_t wake;
    atomic_int sleeping, active, open, leaving;
    atomic_llong generation;
    Phase *phases;
    int64_t phase_room, scratch_room;
    const Tier *tier;
    const Op *ops;
    int64_t count;
    const Call *call;
    int amx;
};

static int64_t units_of(const Op *op, const Call *call) {
    int64_t tokens = call->tokens;
    switch (op->kind) {
    case OP_MATMUL: {
        int64_t panels = (op->matrix.out + PANEL - 1) / PANEL;
        return (panels + UNIT_PANELS - 1) / UNIT_PANELS;
    }
    case OP_WKV4:
        return call->rows * ((op->in[0].width + CHANNELS - 1) / CHANNELS);
    case OP_WKV6:
    case OP_WKV7:
        return call->rows * op->heads;
    case OP_SAMPLE:
        return call->rows;
    default:
        return (tokens + MIX_TOKENS - 1) / MIX_TOKENS;
    }
}

static Run run_of(const Team *team, const Op *op) {
    const Tier *tier = team->tier;
    switch (op->kind) {
    case OP_EMBED: return tier->embed;
    case OP_MIX: return tier->mix;
    case OP_LERP: return tier->lerp;
    case OP_PACK: return tier->pack;
    case OP_WKV4: return tier->wkv4;
    case OP_WKV6: return tier->wkv6;
    case OP_WKV7: return tier->wkv7;
    case OP_SAMPLE: return tier->sample;
    default: break;
    }
    if (team->amx && tier == &tier_avx512) { /* BF16 is summed in an order of its own, so never by both; integers are exact */
        if (op->matrix.format == INT8 && team->call->tokens >= 4) return amx_matmul_int8;
        if (op->matrix.format == INT4 && team->call->tokens >= 12) return amx_matmul_int4; /* it pays to expand them */
        if (op->matrix.format == BF16) return amx_matmul_bf16;
    }
    return tier->matmul[op->matrix.format];
}

/* Which unit is taken at a turn: threads that take turns go through neighbouring units each, one stream of weights. */
static int64_t unit_of(int64_t turn, int64_t total, int threads) {
    int64_t share = total / threads, longer = total % threads, thread = turn % threads;
    return thread * share + (thread < longer ? thread : longer) + turn / threads;
}

static void walk(Team *team, float *scratch) {
    const Op *op = team->ops, *end = op + team->count;
    if (team->amx) amx_enter();
    for (Phase *phase = team->phases; op < end; phase++) {
        const Op *stop = op;
        int64_t total = 0;
        do total += units_of(stop, team->call);
        while (!(stop++)->last && stop < end);
        int64_t taken = 0;
        for (;;) {
            int64_t turn = atomic_fetch_add_explicit(&phase->next, 1, memory_order_relaxed);
            if (turn >= total) break;
            int64_t unit = unit_of(turn, total, team->threads);
            const Op *its = op;
            for (int64_t own; unit >= (own = units_of(its, team->call)); its++) unit -= own;
            run_of(team, its)(its, team->call, unit, scratch);
            taken++;
        }
        if (taken) atomic_fetch_add_explicit(&phase->done, taken, memory_order_acq_rel);
        for (int spins = 0; atomic_load_explicit(&phase->done, memory_order_acquire) < total; spins++) {
            if (spins < SPINS_PHASE) PAUSE();
            else sched_yield();
        }
        op = stop;
    }
    if (team->amx) amx_leave();
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

/* Between steps it spins, then offers its core to whoever has work, and sleeps only after AWAKE_NS: a core that is put
   to rest between the steps of a decode comes back too late for the next, most of all on a virtual machine. */
static void *helper(void *argument) {
    Member *member = argument;
    Team *team = member->team;
    long long seen = 0;
    for (;;) {
        for (int spins = 0; atomic_load(&team->generation) == seen && spins < SPINS_IDLE; spins++) PAUSE();
        int64_t tired = now() + AWAKE_NS;
        while (atomic_load(&team->generation) == seen && now() < tired) sched_yield();
        if (atomic_load(&team->generation) == seen) {
            pthread_mutex_lock(&team->lock);
            atomic_fetch_add(&team->sleeping, 1);
            while (atomic_load(&team->generation) == seen) pthread_cond_wait(&team->wake, &team->lock);
            atomic_fetch_sub(&team->sleeping, 1);
            pthread_mutex_unlock(&team->lock);
        }
        seen = atomic_load(&team->generation);
        if (atomic_load(&team->leaving)) return NULL;
        atomic_fetch_add(&team->active, 1); /* before looking: the next run waits until nobody is left in this one */
        if (atomic_load(&team->open)) walk(team, member->scratch);
        atomic_fetch_sub(&team->active, 1);
    }
}

static void next_generation(Team *team) {
    atomic_fetch_add(&team->generation, 1);
    if (atomic_load(&team->sleeping)) {
        pthread_mutex_lock(&team->lock);
        pthread_cond_broadcast(&team->wake);
        pthread_mutex_unlock(&team->lock);
    }
}

/* Room for each member, while none of them is at work. */
static void make_room(Team *team, const Op *ops, int64_t count) {
    int64_t floats = team->scratch_room;
    for (int64_t i = 0; i < count; i++) {
        int64_t own = ops[i].kind == OP_SAMPLE ? 5 * SAMPLE_ROOM(ops[i].matrix.in) : 0;
        if (own > floats) floats = own;
    }
    if (floats == team->scratch_room) return;
    for (int i = 0; i < team->threads; i++) {
        free(team->members[i].scratch);
        team->members[i].scratch = aligned_alloc(64, (size_t)floats * sizeof(float));
        if (!team->members[i].scratch) abort();
    }
    team->scratch_room = floats;
}

void rookery_run(Team *team, const Tier *tier, const Op *ops, int64_t count, const Call *call) {
    while (atomic_load(&team->active)) sched_yield();
    if (count > team->phase_room) {
        free(team->phases);
        team->phases = aligned_alloc(64, sizeof(Phase) * (size_t)count);
        if (!team->phases) abort();
        team->phase_room = count;
    }
    make_room(team, ops, count);
    memset((void *)team->phases, 0, sizeof(Phase) * (size_t)count);
    team->tier = tier;
    team->ops = ops;
    team->count = count;
    team->call = call;
    int alone = count == 1 && units_of(ops, call) == 1; /* nobody is woken for it */
    if (team->threads > 1 && !alone) {
        atomic_store(&team->open, 1);
        next_generation(team);
    }
    walk(team, team->members[0].scratch);
    atomic_store(&team->open, 0);
    while (atomic_load(&team->active)) PAUSE(); /* `call` ends with this function */
}

Team *rookery_team(int threads) {
    if (threads < 1 || threads > MAX_THREADS) return NULL;
    Team *team = calloc(1, sizeof(Team));
    if (!team) return NULL;
    pthread_mutex_init(&team->lock, NULL);
    pthread_cond_init(&team->wake, NULL);
    team->amx = amx_start();
    team->scratch_room = SCRATCH_FLOATS;
    for (int i = 0; i < threads; i++) {
        Member *member = &team->members[i];
        member->team = team;
        member->scratch = aligned_alloc(64, SCRATCH_FLOATS * sizeof(float));
        if (!member->scratch) break;
        if (i > 0 && pthread_create(&member->thread, NULL, helper, member)) {
            free(member->scratch);
            break;
        }
        team->threads = i + 1;
    }
    if (team->threads == 0) {
        free(team);
        return NULL;
    }
    return team;
}

void rookery_free(Team *team) {
    atomic_store(&team->leaving, 1);
    next_generation(team);
    for (int i = 0; i < team->threads; i++) {
        if (i > 0) pthread_join(team->members[i].thread, NULL);
        free(team->members[i].scratch);
    }
    pthread_cond_destroy(&team->wake);
    pthread_mutex_destroy(&team->lock);
    free(team->phases);
    free(team);
}

int rookery_threads(const Team *team) { return team->threads; }

int64_t rookery_program(void) { return (int64_t)PROGRAM_VERSION << 32 | (int64_t)sizeof(Op); }

#ifndef SOURCES
#define SOURCES 0
#endif
uint64_t rookery_sources(void) { return SOURCES; }

/* The best tier of this machine, or the one of that name; NULL where the machine lacks it. */
const Tier *rookery_tier(const char *name) {
    const Tier *best = &tier_portable;
#if defined(__x86_64__)
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                 __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
    if (avx2) best = &tier_avx2;
    if (avx512) best = &tier_avx512;
    if (!name[0]) return best;
    if (!strcmp(name, tier_avx2.name)) return avx2 ? &tier_avx2 : NULL;
    if (!strcmp(name, tier_avx512.name)) return avx512 ? &tier_avx512 : NULL;
#endif
    return !name[0] || !strcmp(name, best->name) || !strcmp(name, "portable") ? (name[0] ? &tier_portable : best) : NULL;
}

const char *rookery_tier_name(const Tier *tier) { return tier->name; }
