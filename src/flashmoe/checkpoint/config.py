"""Strict reading of config.json: typed, no silent default for a shape, the unsupported refused."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from flashmoe.checkpoint.quantization import is_readable
from flashmoe.errors import ConfigError

T = TypeVar("T")
_REQUIRED: Any = object()

# Bound the work that a damaged config can ask for.
MAX_LAYERS = 4096
MAX_EXPERTS = 2**16

# Keys that say nothing about the forward pass of a text model, or that are read elsewhere.
HARMLESS = frozenset(
    (
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "audio_config",
        "audio_token_id",
        "auto_map",
        "aux_loss_alpha",
        "boa_token_id",
        "boi_token_id",
        "bos_token_id",
        "dtype",
        "eoa_token_id",
        "eoa_token_index",
        "eoi_token_id",
        "eos_token_id",
        "ep_size",
        "id2label",
        "image_token_id",
        "initializer_range",
        "label2id",
        "language_model_only",
        "mamba_ssm_dtype",
        "max_window_layers",
        "model_type",
        "mtp_num_hidden_layers",
        "mtp_use_dedicated_embeddings",
        "output_router_logits",
        "num_mtp_layers",
        "num_nextn_predict_layers",
        "pad_token_id",
        "pretraining_tp",
        "router_aux_loss_coef",
        "router_jitter_noise",
        "seq_aux",
        "sliding_window",
        "tokenizer_class",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "video_token_id",
        "vision_config",
        "vision_end_token_id",
        "vision_soft_tokens_per_image",
        "vision_start_token_id",
    )
)
# mrope: how positions of image tokens are laid out; text tokens see plain RoPE.
ROPE_KEYS = frozenset(
    ("rope_type", "rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved")
)

# How activations were quantised in training and which modules were not: no matter to the weights.
QUANTISED_KEYS = frozenset(
    ("activation_scheme", "expert_dtype", "ignored_layers", "modules_to_not_convert", "scale_fmt")
)


@dataclass(frozen=True)
class Yarn:
    """How YaRN extends a context, by the names of config.json; see layers/rope.py.

    attention_factor None: follows from the factor, and from mscale and mscale_all_dim (0: absent).
    truncate: the ramp ends at whole numbers.
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float
    truncate: bool
    attention_factor: float | None
    mscale: float = 0.0
    mscale_all_dim: float = 0.0


@dataclass(frozen=True)
class Rope:
    """RoPE: base, the share of each head's dimensions that is rotated, and its extension if any."""

    theta: float
    partial_rotary_factor: float
    yarn: Yarn | None = None


class ConfigReader:
    """Typed reads of one JSON object; `finish` reports the keys that nobody read.

    Each read takes one or more names of the same key (old and new), the first of which is used in
    messages. Without a default, a missing key is a ConfigError, as is a wrong type.
    """

    def __init__(self, raw: dict[str, Any], where: str = "config.json") -> None:
        self._raw, self._where = raw, where
        self._seen: set[str] = set()
        self._refused = ["quantization_config", "quantization"]

    def integer(
        self, *names: str, default: int = _REQUIRED, low: int = 1, high: int = 2**31 - 1
    ) -> int:
        """An integer in [low, high]."""
        value = self._get(names, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self.fail(names[0], f"an integer in [{low}, {high}]", value)
        return value

    def sizes(self, *names: str) -> dict[str, Any]:
        """Positive integers by name, for fields that are called as their keys are."""
        return {name: self.integer(name) for name in names}

    def divisor(self, name: str, of: int) -> int:
        """An integer that divides `of`."""
        value = self.integer(name)
        if of % value:
            self.fail(name, f"a divisor of {of}", value)
        return value

    def multiple(self, name: str, of: int) -> int:
        """A multiple of `of`."""
        value = self.integer(name)
        if value % of:
            self.fail(name, f"a multiple of {of}", value)
        return value

    def even(self, name: str, default: int = _REQUIRED) -> int:
        """An even integer."""
        value = self.integer(name, default=default)
        if value % 2:
            self.fail(name, "an even integer", value)
        return value

    def number(self, *names: str, default: float = _REQUIRED) -> float:
        """A positive finite number."""
        value = self._get(names, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e30:
            self.fail(names[0], "a positive number", value)
        return float(value)

    def flag(self, *names: str, default: bool = _REQUIRED) -> bool:
        """true or false."""
        value = self._get(names, default)
        if not isinstance(value, bool):
            self.fail(names[0], "true or false", value)
        return value

    def choices(self, name: str, allowed: tuple[str, ...], length: int) -> tuple[str, ...] | None:
        """A list of `length` strings out of `allowed`; None if the key is absent or null."""
        value = self._get((name,), None)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != length:
            self.fail(name, f"a list of {length}", value)
        for item in value:
            if item not in allowed:
                self.fail(name, " | ".join(allowed), item)
        return tuple(value)

    def letters(self, name: str, known: dict[str, str], length: int) -> tuple[str, ...] | None:
        """What the letters of a string of `length` mean, or a list of such words; None if the key
        is absent or null."""
        if not isinstance(self._raw.get(name), str):
            return self.choices(name, tuple(known.values()), length)
        value = str(self._get((name,), None))
        if len(value) != length or set(value) - known.keys():
            self.fail(name, f"{length} letters out of {''.join(known)}", value)
        return tuple(known[letter] for letter in value)

    def integers(self, name: str, count: int, allowed: tuple[int, ...]) -> tuple[int, ...] | None:
        """The first `count` of a list of at least so many integers out of `allowed`; None if the
        key is absent or null."""
        value = self._get((name,), None)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) < count:
            self.fail(name, f"a list of at least {count}", value)
        for item in value[:count]:
            if type(item) is not int or item not in allowed:
                self.fail(name, " | ".join(map(str, allowed)), item)
        return tuple(value[:count])

    def require(self, name: str, *supported: object, default: object = _REQUIRED) -> None:
        """Refuses every value but the supported ones."""
        value = self._get((name,), default)
        # JSON true and 1 are equal in Python; the type keeps them apart.
        if not any(type(value) is type(item) and value == item for item in supported):
            self.fail(name, " | ".join(map(repr, supported)), value, "unsupported value")

    def section(self, name: str) -> ConfigReader | None:
        """A nested object; None if the key is absent or null."""
        value = self._get((name,), None)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.fail(name, "an object", value)
        return ConfigReader(value, f"{self._where}: {name}")

    def required_section(self, name: str) -> ConfigReader:
        """A nested object that must be there."""
        return self.section(name) or self.fail(name, "an object", None)

    def text_model(self) -> ConfigReader:
        """The text part of a multimodal config, which inherits `tie_word_embeddings`."""
        text = self.section("text_config")
        if text is None:
            return self
        self._refuse_quantised()
        if self.has("tie_word_embeddings"):
            tied = self.flag("tie_word_embeddings")
            text.require("tie_word_embeddings", tied, default=tied)
            text._raw = {**text._raw, "tie_word_embeddings": tied}
        self.finish()
        return text

    def rope(self, default_partial: float, allow_yarn: bool = False) -> Rope:
        """`rope_parameters`, or the older `rope_theta` with `rope_scaling`."""
        new, old = self.section("rope_parameters"), self.section("rope_scaling")
        sections = [section for section in (new, old) if section is not None]
        yarns = [section._rope_kind(allow_yarn) for section in sections]
        nested = sections[0] if sections else ConfigReader({}, self._where)
        theta = self._agreed(nested, "rope_theta", None)
        partial = self._agreed(nested, "partial_rotary_factor", default_partial)
        if partial > 1:
            self.fail("partial_rotary_factor", "a number in (0, 1]", partial)
        if len({*yarns}) > 1:
            self.fail("rope_scaling", "the same as rope_parameters", old and old._raw)
        yarn = yarns[0] if yarns else None
        if yarn is not None and theta <= 1:
            self.fail("rope_theta", "more than 1", theta)
        return Rope(theta, partial, yarn)

    def own_rope(self, default_partial: float, allow_yarn: bool = False) -> Rope:
        """`rope_parameters` that are this object itself."""
        yarn = self._rope_kind(allow_yarn)
        partial = self.number("partial_rotary_factor", default=default_partial)
        if partial > 1:
            self.fail("partial_rotary_factor", "a number in (0, 1]", partial)
        return Rope(self.number("rope_theta"), partial, yarn)

    def full_rope(self, allow_yarn: bool = False) -> Rope:
        """As `rope`, of a family that rotates all dimensions."""
        rope = self.rope(default_partial=1.0, allow_yarn=allow_yarn)
        if rope.partial_rotary_factor != 1.0:
            self.fail("partial_rotary_factor", 1.0, rope.partial_rotary_factor)
        return rope

    def rotated(self, rope: Rope, head_dim: int) -> int:
        """How many dimensions of a head are rotated: an even number."""
        rotary_dim = int(head_dim * rope.partial_rotary_factor)
        if rotary_dim % 2 or not rotary_dim:
            self.fail("partial_rotary_factor", "an even number of rotated dimensions", rotary_dim)
        return rotary_dim

    def allow_quantised(self, method: str) -> None:
        """Accepts a checkpoint quantised by this method; which tensors are shows in the tensors."""
        section = self.section("quantization_config")
        if section is not None and is_readable(section._raw):
            return
        self._refused.remove("quantization_config")
        if section is not None:
            section.require("quant_method", method)
            if method == "fp8":
                section.require("fmt", "e4m3", "float8_e4m3fn", default="e4m3")
                section.require("weight_block_size", [128, 128])
            section._seen |= QUANTISED_KEYS
            section.finish()

    def ignore(self, *names: str) -> None:
        """Keys that say nothing about the forward pass of this family."""
        self._seen.update(names)

    def has(self, name: str) -> bool:
        """Whether the key is there and not null."""
        return self._raw.get(name) is not None

    def unknown(self) -> tuple[str, ...]:
        """The keys that nobody read, sorted."""
        return tuple(sorted(self._raw.keys() - self._seen - HARMLESS))

    def finish(self) -> None:
        """Refuses quantised checkpoints and warns once of keys that were not understood."""
        self._refuse_quantised()
        if self.unknown():
            names = ", ".join(self.unknown())
            logging.getLogger(__name__).warning("%s: ignored unknown keys: %s", self._where, names)

    def fail(self, name: str, expected: object, got: object, what: str = "bad value") -> NoReturn:
        """Refuses the value of a key."""
        raise ConfigError(what, where=f"{self._where}: {name}", expected=expected, got=repr(got))

    def _get(self, names: tuple[str, ...], default: T) -> Any | T:
        self._seen.update(names)
        found = [self._raw[name] for name in names if self._raw.get(name) is not None]
        if any(value != found[0] for value in found):
            self.fail(" and ".join(names), "the same value under each name", found)
        if found:
            return found[0]
        if default is _REQUIRED:
            raise ConfigError("key is missing", where=f"{self._where}: {names[0]}")
        return default

    def _agreed(self, nested: ConfigReader, name: str, default: float | None) -> float:
        """A number that may stand here, in the nested object, or, if equal, in both."""
        here = self.number(name) if self.has(name) else None
        there = nested.number(name) if nested.has(name) else None
        if here is not None and there is not None and here != there:
            self.fail(name, f"{there} as in the RoPE parameters", here)
        value = there if there is not None else here if here is not None else default
        return value if value is not None else self.number(name)

    def _rope_kind(self, allow_yarn: bool) -> Yarn | None:
        """Refuses what is neither the default type nor, if allowed, YaRN."""
        name = "type" if self.has("type") else "rope_type"
        kinds = ("default", "yarn") if allow_yarn else ("default",)
        self.require(name, *kinds, default="default")
        yarn = self._yarn() if self._raw.get(name) == "yarn" else None
        self._seen.update(ROPE_KEYS)
        for unknown in self.unknown():
            self.fail(unknown, f"keys of {'YaRN' if yarn else 'default RoPE'}", self._raw[unknown])
        return yarn

    def _yarn(self) -> Yarn:
        fast, slow = self.number("beta_fast", default=32.0), self.number("beta_slow", default=1.0)
        if fast <= slow:
            self.fail("beta_fast", f"more than beta_slow, {slow}", fast)
        given = self.has("attention_factor")
        return Yarn(
            factor=self.number("factor"),
            original_max_position_embeddings=self.integer("original_max_position_embeddings"),
            beta_fast=fast,
            beta_slow=slow,
            truncate=self.flag("truncate", default=True),
            attention_factor=self.number("attention_factor") if given else None,
            mscale=self._absent_or_number("mscale"),
            mscale_all_dim=self._absent_or_number("mscale_all_dim"),
        )

    def _absent_or_number(self, name: str) -> float:
        return self.number(name) if self.has(name) else 0.0

    def _refuse_quantised(self) -> None:
        for name in self._refused:
            if is_readable(self._raw.get(name)):
                self._seen.add(name)
            else:
                self.require(name, None, default=None)
