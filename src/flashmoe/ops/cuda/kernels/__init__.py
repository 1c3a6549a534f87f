"""Triton kernels. Each has a twin in NumPy (ops/reference_*.py), and Triton's interpreter runs it.

The row-interleaved layout of packs (docs/format.md) is read as it is: a tile is [units, 8] words of
four bytes, unit k of the eight rows of a block. `off` is the word at which a block begins.
"""
