"""Slots of experts, planned and filled by the card itself, out of pinned host memory.

The policy is that of experts/policy.py, least recently used out first, where the experts of one
layer and pass count as used at the same moment (then the lower slot goes first).
"""

import triton
import triton.language as tl


@triton.jit
def place(
    ids_ptr, table_ptr, owner_ptr, stamp_ptr, fresh_ptr, clock_ptr, loads_ptr, counts_ptr,
    layer_key, pairs,
    SLOTS: tl.constexpr, BLOCK: tl.constexpr, GUESS: tl.constexpr,
):  # fmt: skip
    """Give each expert ids [pairs] of a layer a slot; grid (1).

    table [layers * E]: slot of each expert, or -1. owner [SLOTS]: the expert in each slot, or -1.
    stamp [SLOTS]: when it was used last, by the clock. loads [pairs]: the slot to copy the pair's
    expert into, -1 where it is there or an earlier pair brings it. counts [4] int64: loads, pairs,
    loads for guesses, experts asked for that a guess had brought (fresh [SLOTS]: it has, and nobody
    has asked yet). GUESS: nobody asks, and time stands still: what the layer before uses stays.
    """
    at = tl.arange(0, BLOCK)
    now = tl.load(clock_ptr) + (0 if GUESS else 1)
    stamps = tl.load(stamp_ptr + at, mask=at < SLOTS, other=2147483647)
    for p in range(pairs):
        slot = tl.load(table_ptr + layer_key + tl.load(ids_ptr + p))
        stamps = tl.where(at == slot, now, stamps)
    missed, used = 0, 0
    for p in range(pairs):
        key = layer_key + tl.load(ids_ptr + p)
        load = -1
        slot = tl.load(table_ptr + key)
        if (slot >= 0) & (not GUESS):
            used += tl.load(fresh_ptr + slot)
            tl.debug_barrier()
            tl.store(fresh_ptr + slot, 0)
        if slot < 0:
            load = tl.argmin(stamps, 0, tie_break_left=True)
            stamps = tl.where(at == load, now, stamps)
            old = tl.load(owner_ptr + load)
            if old >= 0:
                tl.store(table_ptr + old, -1)
            tl.store(owner_ptr + load, key)
            tl.store(table_ptr + key, load)
            tl.store(fresh_ptr + load, 1 if GUESS else 0)
            missed += 1
            tl.debug_barrier()  # a later pair may name the same expert
        tl.store(loads_ptr + p, load)
    tl.store(stamp_ptr + at, stamps, mask=at < SLOTS)
    if GUESS:
        tl.store(counts_ptr + 2, tl.load(counts_ptr + 2) + missed)
    else:
        tl.store(clock_ptr, now)
        tl.store(counts_ptr, tl.load(counts_ptr) + missed)
        tl.store(counts_ptr + 1, tl.load(counts_ptr + 1) + pairs)
        tl.store(counts_ptr + 3, tl.load(counts_ptr + 3) + used)


@triton.jit
def fetch(
    host_ptr, arena_ptr, ids_ptr, loads_ptr, layer_key, pairs,
    RECORD_WORDS: tl.constexpr, PIECE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Copy the records that `place` has given slots; grid (pieces of a record).

    host: every record of the model in order, in pinned memory that the card reads itself. Few
    programs, one record after the other: reads that wait for the bus hold up all other reads.
    """
    first = tl.program_id(0) * PIECE
    for pair in range(pairs):
        slot = tl.load(loads_ptr + pair)
        if slot >= 0:
            key = layer_key + tl.load(ids_ptr + pair)
            source = host_ptr + key.to(tl.int64) * RECORD_WORDS
            target = arena_ptr + slot.to(tl.int64) * RECORD_WORDS
            for begin in range(first, first + PIECE, BLOCK):
                at = begin + tl.arange(0, BLOCK)
                mine = (at < RECORD_WORDS) & (at < first + PIECE)
                tl.store(target + at, tl.load(source + at, mask=mine), mask=mine)
