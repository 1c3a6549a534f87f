from tests.support.bench import fixed_rates, tiny_pack

__all__ = ["fixed_rates", "tiny_pack"]
