"""CRC-32C (Castagnoli) in NumPy: the slow twin of `flashmoe._native.crc32c`."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

POLYNOMIAL = 0x82F63B78  # reflected
Words = NDArray[np.uint32]


def crc32c(buffer: bytes | memoryview | NDArray[np.uint8], crc: int = 0) -> int:
    """CRC-32C of the bytes, continuing from the CRC of what came before.

    A CRC without initial value is linear and does not see leading zeros. So the bytes, zero-padded
    in front, are cut into equal lanes that are reduced side by side and then joined pairwise.
    """
    data = np.frombuffer(buffer, np.uint8)
    head, tail = data[:4].tolist(), data[4:]
    register = crc ^ 0xFFFFFFFF
    for byte in head:
        register = int(_byte_table()[(register ^ byte) & 255]) ^ (register >> 8)
    if len(tail):
        shifted = _advance(np.array([register], np.uint32), len(tail))[0]
        register = int(shifted) ^ _raw(tail)
    return register ^ 0xFFFFFFFF


def _raw(data: NDArray[np.uint8]) -> int:
    """CRC with initial value 0 and no final inversion."""
    lanes = 1 << max(0, (len(data).bit_length() - 1) // 2)
    width = -(-len(data) // lanes)
    columns = np.pad(data, (lanes * width - len(data), 0)).reshape(lanes, width).T
    table, state = _byte_table(), np.zeros(lanes, np.uint32)
    for column in np.ascontiguousarray(columns):
        state = table[(state ^ column) & 255] ^ (state >> 8)
    while len(state) > 1:
        state = _advance(state[0::2], width) ^ state[1::2]
        width *= 2
    return int(state[0])


def _advance(state: Words, zeros: int) -> Words:
    """The registers after `zeros` more zero bytes."""
    power = 0
    while zeros:
        if zeros & 1:
            state = _apply(_zeros_operator(power), state)
        zeros >>= 1
        power += 1
    return state


def _apply(tables: Words, state: Words) -> Words:
    """Applies a linear operator, uint32 [4, 256] per byte of the register, to registers."""
    low, second, third, high = (tables[i][(state >> (8 * i)) & 255] for i in range(4))
    result: Words = low ^ second ^ third ^ high
    return result


@functools.cache
def _zeros_operator(power: int) -> Words:
    """The operator of 2**power zero bytes -> uint32 [4, 256]."""
    if power:
        half = _zeros_operator(power - 1)
        return np.stack([_apply(half, row) for row in half])
    registers = np.arange(256, dtype=np.uint32) << (8 * np.arange(4, dtype=np.uint32)[:, None])
    operator: Words = _byte_table()[registers & 255] ^ (registers >> 8)
    return operator


@functools.cache
def _byte_table() -> Words:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> np.uint32(1)) ^ (table & np.uint32(1)) * np.uint32(POLYNOMIAL)
    return table
