"""What a cache counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class CacheStats:
    """Counts since the cache was made. Take a copy with `dataclasses.replace(stats)`.

    hits, misses: wanted experts that were resident, or not. bytes_read: of good records.
    wait_seconds: time in which the engine did nothing but wait for the disk.
    """

    hits: int = 0
    misses: int = 0
    bytes_read: int = 0
    wait_seconds: float = 0.0

    @property
    def hit_rate(self) -> float:
        """Share of wanted experts that were resident; 0.0 before any was wanted."""
        wanted = self.hits + self.misses
        return self.hits / wanted if wanted else 0.0
