"""The notebooks of docs/notebooks run from top to bottom, show what they end cells with, and are kept without outputs."""

import ast
import json
import re
from pathlib import Path

import pytest

import circuitdisc.jobs.pipeline  # noqa: F401 - what a notebook's models and tasks load, before the time of the first begins

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
assert NOTEBOOKS


def cells(path: Path) -> list[str]:
    """The code, cell by cell."""
    data = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in data["cells"] if cell["cell_type"] == "code"]


def run(path: Path) -> dict[str, object]:
    """Run a notebook; what a cell ends with is shown as Jupyter shows it."""
    names: dict[str, object] = {}
    for number, source in enumerate(cells(path)):
        code = ast.parse(source)
        end = code.body[-1]
        last = ast.Expression(end.value) if isinstance(end, ast.Expr) else None
        code.body = code.body[: -1 if last else None]
        where = f"{path.name}, code cell {number}"
        exec(compile(code, where, "exec"), names)
        if last is not None:
            value = eval(compile(last, where, "eval"), names)
            shows = [show() for name in ("_repr_html_", "_repr_png_") if (show := getattr(value, name, None))]
            assert all(shows), "it shows itself"
    return names


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(path)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs_and_its_links_lead_somewhere(path):
    data = json.loads(path.read_text(encoding="utf-8"))
    assert (data["nbformat"], data["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in data["cells"]}) == len(data["cells"])
    for cell in data["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
        for link in re.findall(r"\]\(([^)#]+)", "".join(cell["source"]) if cell["cell_type"] == "markdown" else ""):
            assert (FOLDER / link).exists(), link
    assert re.sub(r"\n$", "", path.read_text(encoding="utf-8")) == json.dumps(data, indent=1, ensure_ascii=False)
