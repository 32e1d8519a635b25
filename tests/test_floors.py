"""The house stands on its floors: every module imports only from its own floor's rules, and none grows too large."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent / "src" / "hubbub"

FLOORS: dict[str, tuple[str, ...]] = {
    "vocabulary": ("errors", "messages", "metrics", "settings", "patterns"),
    "core": (
        "frames", "handshake", "auth", "redaction", "session", "outbox", "presence", "stream", "limits", "heartbeat",
        "eager", "admission", "order",
    ),
    "ports": ("ports",),
    "runtime": (
        "batch", "channel", "hub", "commands", "drain", "entrance", "comings", "calls", "subscriptions", "making", "runs",
        "inlet", "asking", "cluster", "control", "agreement", "everywhere", "devices", "others", "lately", "revocation", "quotas",
        "store", "group", "engines", "schema", "migrations", "tables", "files", "gather",
    ),
    "adapters": ("brokers", "transports"),
    "features": ("features",),
    "toolkit": ("toolkit",),
    "entry points": (
        "endpoint", "api", "rest", "asyncapi", "app", "cli", "maintenance", "progress", "logs", "__init__",
        "__main__", "serving", "processes", "listening", "worker", "workers", "publisher",
    ),
    "side rooms": ("testing",),
}  # fmt: skip
MAY_SEE: dict[str, tuple[str, ...]] = {
    "vocabulary": ("vocabulary",),
    "core": ("vocabulary", "core"),
    "ports": ("vocabulary", "core", "ports"),
    "runtime": ("vocabulary", "core", "ports", "runtime"),
    "adapters": ("vocabulary", "core", "ports", "adapters"),
    "features": ("vocabulary", "core", "ports", "runtime", "features"),  # but not another feature: see below
    "toolkit": ("vocabulary", "core", "ports", "runtime", "toolkit"),
    "entry points": tuple(floor for floor in FLOORS if floor != "side rooms"),
    "side rooms": tuple(FLOORS),
}
NOT_IN_THE_CORE = {"asyncio", "socket", "time", "random", "threading", "select", "uvloop"}


def modules() -> dict[str, Path]:
    found = {}
    for path in HOUSE.rglob("*.py"):
        relative = path.relative_to(HOUSE).with_suffix("")
        name = ".".join(relative.parts)
        found[name.removesuffix(".__init__") if name != "__init__" else name] = path
    return found


MODULES = modules()


def floor_of(module: str) -> str:
    top = module.split(".")[0]
    for floor, names in FLOORS.items():
        if top in names:
            return floor
    raise AssertionError(f"{module} is on no floor: add it to FLOORS")


def package(module: str) -> str:
    """The folder that a module of a folder of folders belongs to: neighbours in it are one thing."""
    parts = module.split(".")
    return parts[0] if parts[0] == "transports" else ".".join(parts[:2])


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of what is imported, also inside functions; not what only type checkers see."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from imports(node)


def ours(path: Path) -> set[str]:
    """The modules of the house that a module imports."""
    names = {name.removeprefix("hubbub.") for name in imports(ast.parse(path.read_text())) if name.startswith("hubbub")}
    return {"__init__" if name == "hubbub" else name for name in names if name in MODULES or name == "hubbub"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_keep_to_the_floors(module: str) -> None:
    floor = floor_of(module)
    for other in ours(MODULES[module]) - {"__init__"}:
        assert floor_of(other) in MAY_SEE[floor], f"{module} ({floor}) imports {other} ({floor_of(other)})"
        if floor in ("features", "adapters") and other != module and "." in other:
            registry = other.startswith(module + ".")  # a folder chooses among what is in it
            assert registry or package(other) == package(module), f"{module} imports its neighbour {other}"


@pytest.mark.parametrize("module", sorted(name for name in MODULES if floor_of(name) in ("core", "vocabulary")))
def test_the_core_does_no_io_and_reads_no_clock(module: str) -> None:
    found = {name.split(".")[0] for name in imports(ast.parse(MODULES[module].read_text()))}
    assert not found & NOT_IN_THE_CORE


@pytest.mark.parametrize("module", sorted(MODULES))
def test_modules_fit_in_a_head(module: str) -> None:
    lines = len(MODULES[module].read_text().splitlines())
    assert lines <= 700, f"{module} has {lines} lines"


def test_there_are_no_cycles() -> None:
    seen: dict[str, int] = {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert seen.get(module) != 1, " → ".join((*path, module))
        if module in seen:
            return
        seen[module] = 1
        for other in top_level(MODULES[module]):
            visit(other, (*path, module))
        seen[module] = 2

    for module in MODULES:
        visit(module, ())


def top_level(path: Path) -> set[str]:
    """What a module imports when it is imported itself."""
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {name.removeprefix("hubbub.") for name in imports(tree) if name.startswith("hubbub.")}
    return {name for name in names if name in MODULES}
