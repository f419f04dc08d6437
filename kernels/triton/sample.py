"""Sampling in Triton: no sort, no word to the host. Verified in Triton's interpreter only.

A float32's bits, as an integer, are in the order of the numbers. So the k-th largest logit, and the smallest one
that top-p needs, are found exactly, two bits a pass over the row, which stays in the second-level cache.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..sample import SEEN, Penalties, Streams
from ..sampling import Truncation

BLOCK = 4096
"""Of the vocabulary at a time: a row alone is bound by how long its loads take, so they are few and large."""


@triton.jit
def _order(x):
    """An int32 that grows with the float32; -0 counts as 0."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _reaching(logits, peak, scale, vocab, limit, wanted, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """The largest order such that the tokens of it and above have `wanted` together.

    Two bits at a time, from the highest: 4 candidates, of which the lowest always reaches.

    Args:
        logits: pointer to the row.
        wanted: float64; a number of tokens (COUNT), or a sum of exp((logit - peak) / scale).
    """
    lane = tl.arange(0, BLOCK)
    found = tl.full([], -2147483648, tl.int64)
    for digit in tl.static_range(16):
        step = tl.full([], 1, tl.int64) << (30 - 2 * digit)
        above1 = tl.zeros([BLOCK], dtype=tl.float64)
        above2 = tl.zeros([BLOCK], dtype=tl.float64)
        above3 = tl.zeros([BLOCK], dtype=tl.float64)
        for start in range(0, vocab, BLOCK):
            inside = start + lane < limit
            x = tl.load(logits + start + lane, mask=inside, other=float("-inf"))
            order = _order(x).to(tl.int64)
            if COUNT:
                weight = inside.to(tl.float64)
            else:
                weight = tl.exp((x - peak) / scale).to(tl.float64)
            above1 += tl.where(order >= found + step, weight, 0.0)
            above2 += tl.where(order >= found + 2 * step, weight, 0.0)
            above3 += tl.where(order >= found + 3 * step, weight, 0.0)
        reached1 = (tl.sum(above1, 0) >= wanted).to(tl.int64)
        reached2 = (tl.sum(above2, 0) >= wanted).to(tl.int64)
        reached3 = (tl.sum(above3, 0) >= wanted).to(tl.int64)
        found += step * (reached1 + reached2 + reached3)
    return found


@triton.jit
def _kept(x, order, floor, kth, ties, tied_before, peak, scale, min_p):
    """Which tokens of a block are kept: all over the floor, of those equal to the k-th as many as there is room for."""
    tied = order == kth
    rank = tied_before + tl.cumsum(tied.to(tl.int32), 0)
    weight = tl.exp((x - peak) / scale)
    keep = (order >= floor) & ((order > kth) | (tied & (rank <= ties)))
    return keep & (weight.to(tl.float64) >= min_p) & (weight > 0), tl.sum(tied.to(tl.int32), 0)


@triton.jit(
    do_not_specialize_on_alignment=[
        "temperature_ptr",
        "top_k_ptr",
        "top_p_ptr",
        "min_p_ptr",
        "top_p_first_ptr",
        "seed_ptr",
        "choice_ptr",
        "drawn_ptr",
        "slots_ptr",
        "repetition_ptr",
        "presence_ptr",
        "frequency_ptr",
        "decay_ptr",
        "limits_ptr",
    ]
)
def _kernel(
    logits_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, top_p_first_ptr, seed_ptr, choice_ptr, drawn_ptr,
    counts_ptr, free_ptr, slots_ptr, repetition_ptr, presence_ptr, frequency_ptr, decay_ptr, limits_ptr, token_ptr,
    logits_stride, vocab, PENALTIES: tl.constexpr, LIMITS: tl.constexpr, SEEN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a row."""
    row = tl.program_id(0).to(tl.int64)
    logits = logits_ptr + row * logits_stride
    lane = tl.arange(0, BLOCK)

    slot = tl.full([], -1, tl.int64)
    if PENALTIES:
        slot = tl.load(slots_ptr + row)
        if slot >= 0:
            repetition, presence = tl.load(repetition_ptr + row), tl.load(presence_ptr + row)
            frequency, decay = tl.load(frequency_ptr + row), tl.load(decay_ptr + row)
            for start in range(0, vocab, BLOCK):
                inside = start + lane < vocab
                counts = counts_ptr + slot * vocab + start + lane
                count = tl.load(counts, mask=inside, other=0.0)
                x = tl.load(logits + start + lane, mask=inside, other=0.0)
                cost = presence + count.to(tl.float32) * frequency
                penalized = tl.where(x > 0, x / repetition, x * repetition) - cost
                tl.store(logits + start + lane, tl.where(count > 0, penalized, x), mask=inside)
                tl.store(counts, tl.where(count > 0, tl.maximum(count * decay, SEEN), count), mask=inside)
            tl.debug_barrier()  # what other threads of this program wrote is read below

    limit = vocab
    if LIMITS:
        limit = tl.load(limits_ptr + row).to(tl.int32)

    # the likeliest, the lowest of equals; not-a-numbers count as infinite, and fail the row
    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    at = tl.full([BLOCK], 0, tl.int32)
    for start in range(0, vocab, BLOCK):  # each lane by itself, so that no block waits for the one before it
        x = tl.load(logits + start + lane, mask=start + lane < limit, other=float("-inf"))
        x = tl.where(x == x, x, float("inf"))
        at = tl.where(x > highest, start + lane, at)
        highest = tl.maximum(x, highest)
    peak = tl.max(highest, 0)
    best = tl.min(tl.where(highest == peak, at, vocab), 0).to(tl.int64)

    temperature = tl.load(temperature_ptr + row)
    token = best
    if (peak == float("-inf")) | (peak == float("inf")):
        token = tl.full([], -1, tl.int64)
    elif temperature > 0:
        top_k, top_p = tl.load(top_k_ptr + row), tl.load(top_p_ptr + row)
        min_p, top_p_first = tl.load(min_p_ptr + row), tl.load(top_p_first_ptr + row) != 0
        scale = tl.where(top_p_first, 1.0, temperature)
        lowest = tl.full([], -2147483648, tl.int64)

        kth, ties = lowest, limit
        if (top_k > 0) & (top_k < limit):
            kth = _reaching(logits, peak, scale, vocab, limit, top_k.to(tl.float64), True, BLOCK)
            above = tl.zeros([BLOCK], dtype=tl.int32)
            for start in range(0, vocab, BLOCK):
                x = tl.load(logits + start + lane, mask=start + lane < limit, other=float("-inf"))
                above += ((_order(x).to(tl.int64) > kth) & (start + lane < limit)).to(tl.int32)
            ties = (top_k - tl.sum(above, 0)).to(tl.int32)

        floor = lowest
        if top_p < 1:
            whole = tl.zeros([BLOCK], dtype=tl.float64)
            tied_before = tl.full([], 0, tl.int32)
            for start in range(0, vocab, BLOCK):
                x = tl.load(logits + start + lane, mask=start + lane < limit, other=float("-inf"))
                order = _order(x).to(tl.int64)
                rank = tied_before + tl.cumsum((order == kth).to(tl.int32), 0)
                within = (order > kth) | ((order == kth) & (rank <= ties))
                tied_before += tl.sum((order == kth).to(tl.int32), 0)
                weight = tl.exp((x - peak) / scale).to(tl.float64)
                whole += tl.where(within | top_p_first, weight, 0.0)
            wanted = top_p * tl.sum(whole, 0)
            # rounding may put the whole a little over the sum; the likeliest is kept even where top-p is 0
            floor = _reaching(logits, peak, scale, vocab, limit, wanted * (1 - 1e-12), False, BLOCK)
            floor = tl.minimum(floor, _order(peak).to(tl.int64))

        mass = tl.full([], 0.0, tl.float64)
        last = tl.full([], 0, tl.int32)
        tied_before = tl.full([], 0, tl.int32)
        for start in range(0, vocab, BLOCK):
            x = tl.load(logits + start + lane, mask=start + lane < limit, other=float("-inf"))
            keep, tied = _kept(x, _order(x).to(tl.int64), floor, kth, ties, tied_before, peak, scale, min_p)
            tied_before += tied
            mass += tl.sum(tl.where(keep, tl.exp((x - peak) / temperature), 0.0).to(tl.float64), 0)
            last = tl.maximum(last, tl.max(tl.where(keep, start + lane, 0), 0))

        offset = (tl.load(choice_ptr + row) << 32) | tl.load(drawn_ptr + row)
        high, low, _, _ = tl.randint4x(tl.load(seed_ptr + row), offset)
        bits = (high.to(tl.uint32, bitcast=True).to(tl.int64) << 21) | (
            low.to(tl.uint32, bitcast=True).to(tl.int64) >> 11
        )
        target = bits.to(tl.float64) * (2.0**-53) * mass

        running = tl.full([], 0.0, tl.float64)
        passed = tl.full([], 0, tl.int32)
        tied_before = tl.full([], 0, tl.int32)
        for start in range(0, vocab, BLOCK):
            inside = start + lane < limit
            x = tl.load(logits + start + lane, mask=inside, other=float("-inf"))
            keep, tied = _kept(x, _order(x).to(tl.int64), floor, kth, ties, tied_before, peak, scale, min_p)
            tied_before += tied
            weight = tl.where(keep, tl.exp((x - peak) / temperature), 0.0).to(tl.float64)
            passed += tl.sum((inside & (running + tl.cumsum(weight, 0) <= target)).to(tl.int32), 0)
            running += tl.sum(weight, 0)
        token = tl.minimum(passed, last).to(tl.int64)

    tl.store(token_ptr + row, token)
    if (slot >= 0) & (token >= 0):
        counted = counts_ptr + slot * vocab + token
        gain = 1.0 - tl.load(free_ptr + slot * vocab + token).to(tl.float64)
        tl.store(counted, tl.maximum(tl.load(counted) + gain, SEEN))


def sample(
    logits: Tensor,
    settings: Truncation,
    streams: Streams,
    penalties: Penalties | None = None,
    limits: Tensor | None = None,
) -> Tensor:
    """`rookery.kernels.sample.sample`; rows of logits are dense."""
    rows, vocab = logits.shape
    token_ids = torch.empty(rows, dtype=torch.int64, device=logits.device)
    unused = settings.temperature
    of_penalties = (unused,) * 7
    if penalties is not None:
        of_penalties = (
            penalties.counts, penalties.free, penalties.slots, penalties.repetition, penalties.presence,
            penalties.frequency, penalties.decay,
        )  # fmt: skip
    if rows:
        _kernel[(rows,)](
            logits, settings.temperature, settings.top_k, settings.top_p, settings.min_p,
            settings.top_p_first.to(torch.int32), streams.seed, streams.choice, streams.drawn, *of_penalties,
            unused if limits is None else limits, token_ids, logits.stride(0), vocab,
            PENALTIES=penalties is not None, LIMITS=limits is not None, SEEN=SEEN,
            BLOCK=min(BLOCK, triton.next_power_of_2(vocab)), num_warps=16,
        )  # fmt: skip
    return token_ids
