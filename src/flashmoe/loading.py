"""From a packed model and settings to a running engine: sizes first, then memory, then weights."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flashmoe.errors import MemoryBudgetError, UsageError
from flashmoe.experts.budget import Budget, Part, plan_cache
from flashmoe.experts.memory import MemoryLimit, memory_limit, resident_set_size
from flashmoe.experts.cache import ExpertCache, open_cache
from flashmoe.experts.streamed import StreamedExperts
from flashmoe.generate.engine import Engine
from flashmoe.models.decoder import Weights
from flashmoe.models.registry import load_family
from flashmoe.models.specs import WeightSpecs
from flashmoe.ops.base import Ops
from flashmoe.settings import DEFAULT_CONTEXT, PREFILL_CHUNKS, EngineSettings
from flashmoe.store.packed import PackedModel
