"""Whether the peer was built for the processor that it runs on: a generic wheel loses its race."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path
from typing import Final

# Flag in /proc/cpuinfo -> name in llama.cpp's system information.
_NAMES: Final = {
    "avx2": "AVX2",
    "fma": "FMA",
    "f16c": "F16C",
    "avx_vnni": "AVX_VNNI",
    "avx512f": "AVX512",
    "avx512_vnni": "AVX512_VNNI",
    "avx512_bf16": "AVX512_BF16",
    "amx_int8": "AMX_INT8",
    "asimddp": "DOTPROD",
    "i8mm": "MATMUL_INT8",
}


def processor_flags(root: Path = Path("/")) -> frozenset[str]:
    """Instruction sets of this processor, as Linux names them; root: where /proc is."""
    for line in (root / "proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def lacking_instructions(built: str, flags: Set[str]) -> list[str]:
    """A note if the processor has instructions that the build does not use.

    built: as llama_print_system_info says, "AVX2 = 1 | FMA = 1 | ...".
    """
    has = {part.split("=")[0].split(":")[-1].strip() for part in built.split("|") if "= 1" in part}
    lacking = [name for flag, name in _NAMES.items() if flag in flags and name not in has]
    if not lacking:
        return []
    return [f"llama.cpp was built without {', '.join(lacking)}: build it on this machine"]
