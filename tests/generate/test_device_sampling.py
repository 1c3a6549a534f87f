"""Sampling on the card against the host's sampler: the same tokens from the same seeds."""

from __future__ import annotations

import numpy as np
import pytest

from flashmoe.generate.sampling import Sampler, SamplingOptions
from tests.support.card import card as card_device
from tests.support.tolerances import LOGPROB_ATOL

pytestmark = pytest.mark.cuda

OPTIONS = [
    SamplingOptions(),
    SamplingOptions(repeat_penalty=1.7),
    SamplingOptions(temperature=1.0, seed=3),
    SamplingOptions(temperature=0.7, top_k=5, seed=4),
    SamplingOptions(temperature=1.3, top_p=0.6, seed=5),
    SamplingOptions(temperature=2.0, min_p=0.2, seed=6),
    SamplingOptions(temperature=1.0, top_k=40, top_p=0.9, min_p=0.05, repeat_penalty=1.2, seed=7),
    SamplingOptions(temperature=1e-3, top_p=1e-6, seed=8),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_same_tokens_as_on_the_host(options: SamplingOptions) -> None:
    device = card_device()
    import torch

    from flashmoe.generate.device_sampling import DeviceSampler

    rng, host, card = np.random.default_rng(9), Sampler(options), DeviceSampler(options)
    history: list[int] = [3, 3, 250]
    for _ in range(50):
        # Halves, so that many are equal.
        logits = np.round(8 * rng.standard_normal(257)).astype(np.float32) / 2
        expected, logprob = host.sample(logits, history)
        token, ours = card.sample(torch.from_numpy(logits).to(device), history)
        assert token == expected
        assert abs(ours - logprob) <= 20 * LOGPROB_ATOL
        history.append(token)
