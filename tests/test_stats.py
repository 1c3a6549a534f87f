from flashmoe.stats import Stats


def test_rates() -> None:
    stats = Stats(
        prompt_tokens=30,
        prefill_seconds=2,
        decode_tokens=8,
        decode_seconds=4,
        cache_hits=3,
        cache_misses=1,
    )
    assert stats.prefill_tokens_per_second == 15
    assert stats.decode_tokens_per_second == 2
    assert stats.hit_rate == 0.75


def test_rates_of_nothing_are_zero() -> None:
    stats = Stats()
    assert stats.hit_rate == stats.decode_tokens_per_second == stats.prefill_tokens_per_second == 0
