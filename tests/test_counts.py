"""scripts/counts.py on a small made-up package: every rule sees what it is about, and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "counts.py"
PACKAGE = {
    "engine/forward.py": """
        class Walk:
            def run(self, x):
                for layer in range(self.graph.n_layers):  # a walk: the MLP runs two functions deeper
                    x = self.layer(x)
                for layer in range(self.graph.n_layers):
                    self.count(layer)

            def layer(self, x):
                return self.after(x)

            def after(self, x):
                return self.cut.mlp(x)

            def count(self, layer):
                return layer
        """,
    "engine/runs.py": """
        class Walk:
            def run(self, a, b, c, d, e, f, g, h, i, j): ...

            def long(self, a, b, c, d, e, f, g, h, i, j, *, k): ...

        def asks(model, ablation, node):
            if isinstance(model.cut, Components) or isinstance(model, int):
                return ablation.kind == "mean" and node.kind == "head"
            return ablation.kind in ("zero", "resample")
        """,
    "runs/store.py": """
        class Store:
            def get(self, path):
                if path.exists():
                    return read_json(path)
                write_json(path, {})

        class OnlyReads:
            def get(self, path):
                return read_json(path)

        memo = Memo(None)
        settings = OmegaConf.load("x")
        """,
    "files.py": "def both(path):\n    path.exists()\n    write_json(path, read_json(path))",
}
EXPECTED = {
    "package: lines": 39, "package: files": 4, "package: files over 450 lines": 0, "tests: lines": 451, "tests: files": 1,
    "tests: files over 450 lines": 1, "classes": 4, "class names used twice": 1, "functions with more than 10 arguments": 1,
    "walks through the layers": 1, "resume mechanisms": 1, "places that open a journal or memo": 1,
    "places that read settings": 1, "isinstance(..., Components)": 1, "tests of an ablation's kind": 2,
}  # fmt: skip


@pytest.fixture
def tree(tmp_path):
    """The made-up package and one long test file."""
    for name, text in PACKAGE.items():
        path = tmp_path / "circuitdisc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(line.removeprefix(" " * 8) for line in text.strip("\n").splitlines()).rstrip() + "\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_long.py").write_text("x = 1\n" * 451)
    return tmp_path


def counted(folder, *args):
    return subprocess.run([sys.executable, SCRIPT, *args], cwd=folder, capture_output=True, text=True)


def numbers(line):
    return [int(word.replace(",", "")) for word in line[38:].split() if word[0].isdigit()]


def test_every_rule_counts_what_it_is_about(tree):
    done = counted(tree)
    assert done.returncode == 0, done.stderr
    assert {line[:38].strip(): numbers(line)[0] for line in done.stdout.splitlines()[1:]} == EXPECTED


def test_places_are_named(tree):
    text = counted(tree, "--places").stdout
    assert "circuitdisc/engine/runs.py:4 long" in text
    assert "Walk: circuitdisc/engine/forward.py:1, circuitdisc/engine/runs.py:1" in text


def test_a_revision_stands_beside_a_folder(tree):
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "init.defaultBranch=main"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "a state"]):
        subprocess.run([*git, *command], cwd=tree, check=True)
    (tree / "circuitdisc" / "more.py").write_text("class Store: ...\n")
    lines = {line[:38].strip(): line for line in counted(tree, "HEAD", ".").stdout.splitlines()}
    assert numbers(lines["package: files"]) == [4, 5]
    assert numbers(lines["class names used twice"]) == [1, 2]
    assert lines["class names used twice"].endswith("+100.0%")


def test_what_is_neither_is_refused_in_a_sentence(tree):
    done = counted(tree, "nowhere")
    assert done.returncode == 1
    assert done.stderr == "nowhere is neither a folder nor a revision that holds circuitdisc and tests\n"
