/* Runs a program that another machine wrote down (check.py): its ops, and every piece of memory they point to.

   replay FILE THREADS: the file is read, pointers are moved to where the pieces lie now, the program is run, and the
   pieces are written back to the file. All numbers are little-endian, as both machines are. */
#include "../../kernels/cpu/step.h"

#include <stdio.h>
#include <stdlib.h>

typedef struct {
    uint64_t was, size;
    char *is;
    long at; /* in the file */
} Piece;

static Piece *pieces;
static uint64_t count;

static void fail(const char *what) {
    fprintf(stderr, "replay: %s\n", what);
    exit(1);
}

static void get(void *to, size_t size, FILE *file) {
    if (size && fread(to, size, 1, file) != 1) fail("the file is cut off");
}

static void *moved(const void *pointer) {
    uint64_t was = (uint64_t)pointer;
    if (!was) return NULL;
    for (uint64_t i = 0; i < count; i++)
        if (was >= pieces[i].was && was < pieces[i].was + pieces[i].size) return pieces[i].is + (was - pieces[i].was);
    fail("a pointer to nothing that was written down");
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 3) fail("usage: replay FILE THREADS");
    FILE *file = fopen(argv[1], "r+b");
    if (!file) fail("the file cannot be opened");
    uint64_t sizes[4];
    get(sizes, sizeof sizes, file);
    if (sizes[0] != sizeof(Op) || sizes[1] != sizeof(Call)) fail("structs are laid out otherwise here");
    uint64_t ops_count = sizes[2];
    count = sizes[3];
    Call call;
    Op *ops = malloc(ops_count * sizeof(Op));
    pieces = calloc(count, sizeof(Piece));
    if (!ops || !pieces) fail("no memory");
    get(&call, sizeof call, file);
    get(ops, ops_count * sizeof(Op), file);
    for (uint64_t i = 0; i < count; i++) {
        get(&pieces[i].was, 8, file);
        get(&pieces[i].size, 8, file);
        pieces[i].at = ftell(file);
        pieces[i].is = aligned_alloc(64, (pieces[i].size + 63) / 64 * 64 + 64);
        if (!pieces[i].is) fail("no memory");
        get(pieces[i].is, pieces[i].size, file);
    }
    for (uint64_t i = 0; i < ops_count; i++) {
        Op *op = &ops[i];
        op->matrix.data = moved(op->matrix.data);
        op->matrix.scale = moved(op->matrix.scale);
        for (int j = 0; j < 8; j++) {
            op->in[j].data = moved(op->in[j].data), op->in[j].scale = moved(op->in[j].scale);
            op->out[j].data = moved(op->out[j].data), op->out[j].scale = moved(op->out[j].scale);
        }
        for (int j = 0; j < 10; j++) op->vec[j] = moved(op->vec[j]);
    }
    call.ids = moved(call.ids), call.slots = moved(call.slots), call.starts = moved(call.starts);
    call.shift = moved(call.shift), call.wkv = moved(call.wkv);
    Team *team = rookery_team(atoi(argv[2]));
    const Tier *tier = rookery_tier("");
    if (!team || !tier) fail("no team");
    rookery_run(team, tier, ops, (int64_t)ops_count, &call);
    rookery_free(team);
    for (uint64_t i = 0; i < count; i++) {
        fseek(file, pieces[i].at, SEEK_SET);
        if (pieces[i].size && fwrite(pieces[i].is, pieces[i].size, 1, file) != 1) fail("the file cannot be written");
    }
    if (fclose(file)) fail("the file cannot be written");
    puts(rookery_tier_name(tier));
    return 0;
}
