"""flashmoe beside llama.cpp: the same shape, bits, threads and memory limit, in turns.

Each run of an engine is a process of its own. What runs in the peer's Python is in `peer`, which
imports nothing of flashmoe; the rest is ours.
"""
