"""Counts that say how large the package is, and how often it does one thing in many places.

    python scripts/counts.py                    # the working tree
    python scripts/counts.py v0.1.0 .           # a revision and a folder, side by side
    python scripts/counts.py --places .         # with the places behind each count

Every count is a rule over the syntax tree of each file, so that two states are counted
alike; the rules are the functions below.
"""

import argparse
import ast
import io
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PACKAGE, TESTS = "circuitdisc", "tests"
MANY_ARGUMENTS = 10
COMPONENT_CALLS = {"mlp", "hidden", "mlp_output", "pattern", "attention_pattern", "head_output", "heads_sum", "attend"}
READS_FILES = {"read_json", "read_bytes", "read_arrays", "load_file", "load_tensors", "loads"}
WRITES_FILES = {"write_json", "write_bytes", "write_text", "write_arrays", "save_file", "begin_file", "replacing", "mark"}
ASKS_FOR_FILES = {"exists", "is_file", "glob", "rglob"}
RESUMES_NOTHING = {"files.py", "bound.py", "folders.py", "exchange", "models", "shipped"}  # they read and write for other ends
SETTINGS_READERS = {"compose", "hydra_compose", "initialize_config_dir", "from_dotlist", "from_cli", "read_yaml", "safe_load"}
ABLATION_KINDS = {"zero", "zero_folded", "mean", "resample", "optimal"}


@dataclass(frozen=True)
class Source:
    """One file of the package or the tests."""

    path: str
    text: str

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(ast.parse(self.text)))

    def of(self, kind: type | tuple[type, ...]) -> Iterator:
        return (node for node in self.nodes if isinstance(node, kind))

    def place(self, node: ast.AST, label: str = "") -> str:
        return f"{self.path}:{getattr(node, 'lineno', 1)}" + (f" {label}" if label else "")


def calls(node: ast.AST) -> Iterator[tuple[ast.Call, str, str]]:
    """Every call inside a node: the call, the last part of what is called, and the whole as it is written."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Call):
            name = inner.func.attr if isinstance(inner.func, ast.Attribute) else getattr(inner.func, "id", "")
            yield inner, name, ast.unparse(inner.func)


def functions_with_many_arguments(source: Source) -> list[str]:
    """Functions and methods that name more than ten arguments, without `self`; `*args` and `**kwargs` are one each."""
    places = []
    for node in source.of((ast.FunctionDef, ast.AsyncFunctionDef)):
        spec = node.args
        names = [arg.arg for arg in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs, spec.vararg, spec.kwarg) if arg]
        if len([name for name in names if name not in ("self", "cls")]) > MANY_ARGUMENTS:
            places.append(source.place(node, node.name))
    return places


def walks_through_the_layers(source: Source) -> list[str]:
    """`for` statements over the layers that run a block's components, at once or through functions of the same file."""
    functions = {node.name: node for node in source.of((ast.FunctionDef, ast.AsyncFunctionDef))}

    def runs_components(node: ast.AST, seen: frozenset[str]) -> bool:
        names = {name for _, name, _ in calls(node)}
        if names & COMPONENT_CALLS:
            return True
        return any(runs_components(functions[name], seen | {name}) for name in names & functions.keys() - seen)

    places = []
    for node in source.of(ast.For):
        over = ast.unparse(node.iter)
        if ("n_layers" in over or "layers" in over.split(".")[-1]) and any(
            runs_components(line, frozenset()) for line in node.body
        ):
            places.append(source.place(node))
    return places


def resume_mechanisms(source: Source) -> list[str]:
    """Classes, and modules outside their classes, that look for earlier work, read it back and write it themselves."""
    if any(part in RESUMES_NOTHING for part in Path(source.path).parts):
        return []
    tree = ast.parse(source.text)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    rest = ast.Module([node for node in tree.body if not isinstance(node, ast.ClassDef)], [])
    places = []
    for node in (*classes, rest):
        names = {name for _, name, _ in calls(node)}
        if names & READS_FILES and names & WRITES_FILES and names & ASKS_FOR_FILES:
            places.append(source.place(node, node.name) if isinstance(node, ast.ClassDef) else source.path)
    return places


def places_that_resume(source: Source) -> list[str]:
    """Places that open a journal or a memo."""
    return [source.place(call, name) for call, name, _ in calls(ast.parse(source.text)) if name in ("Journal", "Memo", "Units")]


def places_that_read_settings(source: Source) -> list[str]:
    """Calls that compose, load or convert settings: Hydra, OmegaConf, YAML."""
    tree = ast.parse(source.text)
    return [
        source.place(call, written)
        for call, name, written in calls(tree)
        if name in SETTINGS_READERS or written.startswith("OmegaConf.") or written == "yaml.load"
    ]


def asks_for_components(source: Source) -> list[str]:
    """`isinstance(..., Components)`."""
    return [
        source.place(call)
        for call, name, _ in calls(ast.parse(source.text))
        if name == "isinstance" and len(call.args) == 2 and "Components" in ast.unparse(call.args[1])
    ]


def asks_for_the_ablation(source: Source) -> list[str]:
    """Comparisons of a `kind` with the name of an ablation."""
    places = []
    for node in source.of(ast.Compare):
        names = {inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant) and isinstance(inner.value, str)}
        read = {ast.unparse(inner).split(".")[-1] for inner in ast.walk(node) if isinstance(inner, ast.Attribute | ast.Name)}
        if names & ABLATION_KINDS and "kind" in read:
            places.append(source.place(node))
    return places


def class_names_used_twice(sources: list[Source]) -> list[str]:
    """Names that more than one class of the package has."""
    places = [(node.name, source.place(node)) for source in sources for node in source.of(ast.ClassDef)]
    times = Counter(name for name, _ in places)
    return [f"{name}: {', '.join(at for other, at in places if other == name)}" for name in sorted(times) if times[name] > 1]


RULES = {
    f"functions with more than {MANY_ARGUMENTS} arguments": functions_with_many_arguments,
    "walks through the layers": walks_through_the_layers,
    "resume mechanisms": resume_mechanisms,
    "places that open a journal or memo": places_that_resume,
    "places that read settings": places_that_read_settings,
    "isinstance(..., Components)": asks_for_components,
    "tests of an ablation's kind": asks_for_the_ablation,
}


def sources_of(root: Path, folder: str) -> list[Source]:
    return [Source(str(path.relative_to(root)), path.read_text("utf-8")) for path in sorted((root / folder).rglob("*.py"))]


def count(root: Path) -> dict[str, tuple[int, list[str]]]:
    """Every count of a tree: its name, the number, and the places behind it."""
    package, tests = sources_of(root, PACKAGE), sources_of(root, TESTS)
    found: dict[str, tuple[int, list[str]]] = {}
    for label, sources in (("package", package), ("tests", tests)):
        lines = {source.path: len(source.text.splitlines()) for source in sources}
        found[f"{label}: lines"] = (sum(lines.values()), [])
        found[f"{label}: files"] = (len(lines), [])
        long = [f"{path} {n}" for path, n in lines.items() if n > 450]
        found[f"{label}: files over 450 lines"] = (len(long), long)
    found["classes"] = (sum(1 for source in package for _ in source.of(ast.ClassDef)), [])
    twice = class_names_used_twice(package)
    found["class names used twice"] = (len(twice), twice)
    for name, rule in RULES.items():
        places = [place for source in package for place in rule(source)]
        found[name] = (len(places), places)
    return found


def tree_of(state: str, made: Path) -> Path:
    """A folder that holds the state: itself, or a revision's files written under `made`."""
    if Path(state).is_dir():
        return Path(state)
    archive = subprocess.run(["git", "archive", state, PACKAGE, TESTS], capture_output=True)
    if archive.returncode:
        sys.exit(f"{state} is neither a folder nor a revision that holds {PACKAGE} and {TESTS}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(made, filter="data")
    return made


def table(states: list[str], counts: list[dict[str, tuple[int, list[str]]]], with_places: bool) -> str:
    """The counts, a column a state; of two states, the change in percent, too."""
    compared = len(counts) == 2
    lines = [f"{'':38}" + "".join(f"{state[-14:]:>16}" for state in states) + (f"{'change':>10}" if compared else "")]
    for name in counts[0]:
        values = [one[name][0] for one in counts]
        row = f"{name:38}" + "".join(f"{value:>16,}" for value in values)
        if compared and values[0]:
            row += f"{values[1] / values[0] - 1:>+10.1%}"
        lines.append(row)
        if with_places:
            for state, one in zip(states, counts, strict=True):
                lines += [f"    {state}: {place}" for place in one[name][1]]
    return "\n".join(lines)


def main(args: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("states", nargs="*", default=["."], metavar="FOLDER|REVISION")
    parser.add_argument("--places", action="store_true", help="the places behind each count")
    given = parser.parse_args(args)
    counts = []
    for state in given.states:
        with tempfile.TemporaryDirectory() as made:
            counts.append(count(tree_of(state, Path(made))))
    print(table(given.states, counts, given.places))


if __name__ == "__main__":
    main(sys.argv[1:])
