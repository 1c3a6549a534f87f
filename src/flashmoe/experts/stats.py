"""What a cache counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class CacheStats:
    """Counts since the cache was made. Take a copy with `dataclasses.replace(stats)`.

    hits, misses: wanted experts that were resident, or not. bytes_read: of good records.
    wait_seconds: time in which the engine did nothing but wait for the disk. prefetched: misses
    that had been guessed (their read was queued, under way or done). prefetch_wasted: bytes read
    on guesses that were wrong.
    """

    hits: int = 0
    misses: int = 0
    bytes_read: int = 0
    wait_seconds: float = 0.0
    prefetched: int = 0
    prefetch_wasted: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of wanted experts that were resident; 0.0 before any was wanted."""
        wanted = self.hits + self.misses
        return self.hits / wanted if wanted else 0.0
