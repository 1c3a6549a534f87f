#!/usr/bin/env python3
"""What streams that draw their experts independently must read per token, whatever the cache does.

    python bench/concurrency_bound.py SKEW --slots 591 569 --streams 1 8 --disk 2.0

SKEW: as for `flashmoe synth --skew` (a routing trace, or zipf:S). An expert that a token chooses
with probability f is wanted by a pass over n tokens with 1 - (1 - f)^n. No cache that does not see
the future reads less than one that always holds the experts with the largest of these: slots of
them.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray

from flashmoe.bench.skew import parse_skew


def bound(frequencies: NDArray[np.float64], streams: int, slots: int) -> tuple[float, float]:
    """frequencies [layers, E] -> (experts that a pass wants, of those not in the cache)."""
    wanted = np.sort((1 - (1 - frequencies) ** streams).ravel())[::-1]
    return float(wanted.sum()), float(wanted[slots:].sum())


def main() -> None:
    """Prints a line per number of streams."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("skew")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--slots", type=int, nargs="+", default=[591, 569], help="for each")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--chosen", type=int, default=8)
    parser.add_argument("--record", type=int, default=2654208, help="bytes of an expert")
    parser.add_argument("--disk", type=float, default=2.0, help="GB/s")
    options = parser.parse_args()
    skew = parse_skew(options.skew, options.experts)
    rows = [skew.frequencies(layer, options.chosen) for layer in range(options.layers)]
    for streams, slots in zip(options.streams, options.slots, strict=True):
        wanted, missed = bound(np.array(rows), streams, slots)
        read = missed * options.record / streams
        print(
            f"{streams} streams: {wanted / options.layers:.1f} experts per layer, "
            f"hits at most {1 - missed / wanted:.1%}, at least {read / 1e6:.0f} MB per token, "
            f"at most {options.disk * 1e9 / read:.1f} tok/s"
        )


if __name__ == "__main__":
    main()
