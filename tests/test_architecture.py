"""The rules of docs/architecture.md, held by reading the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from flashmoe.models.registry import FAMILIES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "flashmoe"
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = sorted(
    path
    for folder in ("src", "native", "tests")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".pyi", ".h", ".cpp")
)

# A part imports from lines below its own only.
ORDER = """
    __init__
    cli
    doctor forecast
    bench chat evals
    server
    hub
    api packing
    cuda
    cuda_tiers
    loading
    planning
    sizing
    generate
    experts
    store
    models
    layers
    ops
    parsers
    checkpoint text
    quant
    library
    _native demo files pages settings sizes stats strict_json
    routing
    errors
"""
RANK = {part: rank for rank, line in enumerate(ORDER.splitlines()) for part in line.split()}
# Our own commands use the public surface, and of the rest only what is not an engine.
NOT_FOR_COMMANDS = {"loading", "planning", "sizing", "experts", "layers", "ops"}
# Array products of NumPy run on the threads of its BLAS, beside ours.
BLAS = {"dot", "matmul", "einsum", "inner", "tensordot", "vdot", "linalg"}
BLAS_FREE = ("ops/cpu.py", "layers/", "models/", "experts/", "generate/")


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> Iterator[str]:
    """Parts of flashmoe that a module imports anywhere, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for parts in (name.split(".") for name in names):
            if parts[0] == "flashmoe" and parts[1:] and parts[1] != "__version__":
                yield parts[1]


def test_imports_point_one_way() -> None:
    upward = [
        f"{name_of(path)} imports {part}"
        for path in MODULES
        for part in {*imported_parts(path)} - {part_of(path)}
        if RANK[part] <= RANK[part_of(path)]
    ]
    assert upward == []


def test_commands_use_the_public_surface() -> None:
    for path in MODULES:
        if part_of(path) == "cli":
            assert not NOT_FOR_COMMANDS & {*imported_parts(path)}, path


def test_no_family_is_named_outside_models() -> None:
    """Rule 1: one file per family. Bench knows shapes, and the registry is in models."""
    for path in MODULES:
        if part_of(path) not in ("models", "bench"):
            strings = [
                node.value
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
            ]
            assert not {*FAMILIES} & {*strings}, path


def test_no_products_beside_our_own_threads() -> None:
    found = [
        f"{name_of(path)}: {ast.dump(node)}"
        for path in MODULES
        if name_of(path).startswith(BLAS_FREE)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.MatMult) or (isinstance(node, ast.Attribute) and node.attr in BLAS)
    ]
    assert found == []


def test_files_are_short() -> None:
    written = [path for path in SOURCES if path.suffix != ".pyi"]  # the stub is generated
    assert [path for path in written if len(path.read_text().splitlines()) >= 400] == []


def test_the_environment_is_read_in_one_place() -> None:
    reads = re.compile(r"\bos\.environ\b|\bgetenv\b")
    ours = [path for path in SOURCES if not path.is_relative_to(ROOT / "tests")]
    assert [path for path in ours if reads.search(path.read_text())] == [PACKAGE / "settings.py"]


def test_every_part_has_its_line_in_the_docs() -> None:
    table = (ROOT / "docs" / "architecture.md").read_text()
    parts = {
        path.name + ("/" if path.is_dir() else "")
        for path in PACKAGE.iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").exists()) and path.stem != "__init__"
    }
    assert [part for part in sorted(parts) if f"`{part}" not in table] == []


def test_the_committed_stub_is_what_the_module_offers() -> None:
    stubgen = pytest.importorskip("nanobind.stubgen", reason="nanobind is not installed")
    from flashmoe import _native

    generator = stubgen.StubGen(module=_native)
    generator.put(_native)
    assert generator.get() == (PACKAGE / "_native.pyi").read_text(), "run `make stubs`"
