"""Imports run downwards only: no room of the package imports from a room on its own floor or above."""

import ast
from pathlib import Path

import pytest

import circuitdisc

PACKAGE = Path(circuitdisc.__file__).parent
FLOORS = (
    ("errors", "files", "progress", "shipped", "checks", "schemas", "stats", "options", "results"),
    ("graph", "metrics", "identity"),
    ("circuit", "models", "tasks", "ablation"),
    ("engine", "runs", "exchange", "known", "controls"),
    ("discovery", "scoring", "heads"),
    ("checkpoints", "pages", "sections", "bound"),
    ("jobs",),
    ("cli", "__init__", "__main__"),
)
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
# neighbours on one floor that may be used: what is used is simpler, and uses nothing of the user
NEIGHBOURS = {
    ("files", "errors"), ("checks", "errors"), ("schemas", "errors"), ("schemas", "files"),
    ("options", "checks"), ("results", "errors"), ("results", "schemas"),
    ("shipped", "files"), ("heads", "scoring"), ("scoring", "discovery"),
    ("pages", "checkpoints"),
}  # fmt: skip


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Rooms that a file imports when it runs; imports for types alone do not count."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    only_types = {id(inner) for node in ast.walk(tree) if is_type_checking(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if id(node) not in only_types:
            found |= {name.split(".")[1] for name in names if name.startswith("circuitdisc.")}
    return found


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards(path):
    room = room_of(path)
    assert room in LEVEL, f"give '{room}' a floor"
    for other in imports(path) - {room}:
        below = LEVEL[other] < LEVEL[room] or (room, other) in NEIGHBOURS
        assert below, f"{path.name} in '{room}' imports from '{other}', which is not below it"
