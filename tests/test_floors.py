"""Imports run downwards only: no room of the package imports from a room on its own floor or above."""

import ast
from collections import defaultdict
from pathlib import Path

import circuitdisc

PACKAGE = Path(circuitdisc.__file__).parent
FLOORS = (
    (
        "errors",
        "files",
        "lazy",
        "progress",
        "shipped",
        "checks",
        "schemas",
        "stats",
        "plugins",
        "wording",
        "options",
        "results",
        "terminal",
        "tracking",
    ),
    ("graph", "metrics", "identity"),
    ("circuit", "models", "tasks"),
    ("ablation",),
    ("engine", "runs", "exchange", "known", "controls"),
    ("discovery", "scoring", "heads"),
    ("checkpoints", "certainty", "positioned", "pages", "sections", "bound", "planning", "figures"),
    ("jobs",),
    ("cli", "__init__"),
    ("__main__", "benchmark"),
)
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
# neighbours on one floor that may be used: what is used is simpler, and uses nothing of the user
NEIGHBOURS = {
    ("files", "errors"), ("checks", "errors"), ("plugins", "errors"), ("wording", "stats"),
    ("schemas", "errors"), ("schemas", "files"),
    ("options", "checks"), ("results", "errors"), ("results", "schemas"), ("results", "wording"),
    ("progress", "tracking"), ("progress", "wording"), ("tracking", "errors"), ("tracking", "plugins"),
    ("shipped", "files"), ("heads", "scoring"), ("scoring", "discovery"),
    ("pages", "checkpoints"), ("pages", "certainty"), ("pages", "positioned"), ("figures", "pages"), ("figures", "checkpoints"),
    ("figures", "bound"),
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


def test_imports_run_downwards():
    upwards = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = room_of(path)
        assert room in LEVEL, f"give '{room}' a floor"
        others = imports(path) - {room}
        upwards += [
            f"{path.relative_to(PACKAGE)} in '{room}' imports from '{other}', which is not below it"
            for other in sorted(others)
            if LEVEL[other] >= LEVEL[room] and (room, other) not in NEIGHBOURS
        ]
    assert not upwards


SOURCES = sorted([*PACKAGE.rglob("*.py"), *Path(__file__).parent.rglob("*.py")])


def test_no_file_is_over_450_lines():
    long = {path.name: n for path in SOURCES if (n := len(path.read_text(encoding="utf-8").splitlines())) > 450}
    assert not long, "split them by what they are about"


def test_no_class_name_is_used_twice_in_the_package():
    places = defaultdict(list)
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(path.relative_to(PACKAGE)))
    assert not {name: files for name, files in places.items() if len(files) > 1}
