"""Pages of ladders: curves along the checkpoints that hold what the result holds; titles that say what was run."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from made_pages import random_circuit, written

from circuitdisc.checkpoints.baselines import Baselines, Figure
from circuitdisc.checkpoints.drift import drift
from circuitdisc.checkpoints.evaluation_sets import HELDOUT
from circuitdisc.graph import ComputationGraph
from circuitdisc.pages import baselines as _baselines  # noqa: F401 - registers how it is described
from circuitdisc.pages import drift as _drift  # noqa: F401
from circuitdisc.pages.curves import FOLLOWED, Line, ladder_curves
from circuitdisc.pages.description import describe
from circuitdisc.wording import task_words

LADDER = ["tpp/base", "tpp/lightweight", "tpp/welterweight"]


def figures_of(result) -> dict[str, Any]:
    """The figures of a result's page, by name."""
    pictures = [section.picture for section in describe(result).sections if section.picture is not None]
    return {picture.name: SimpleNamespace(**json.loads(picture.spec)) for picture in pictures}


def lines_of(figure) -> dict[str, Any]:
    return {trace["name"]: trace for trace in figure.data}


def numbers(values) -> np.ndarray:
    """As plotly writes them: a list, or packed."""
    if isinstance(values, dict):
        import base64

        return np.frombuffer(base64.b64decode(values["bdata"]), dtype=values["dtype"])
    return np.array(values, dtype=float)


def test_drift_is_drawn_as_curves():
    found = drift(LADDER, {"name": "tpp", "n": 4, "n_heldout": 12}, key="c1")
    figures = figures_of(found)
    kinds = [trace["type"] for figure in figures.values() for trace in figure.data]
    assert kinds.count("heatmap") == 1, "the change of the last checkpoint alone"
    attention, rows = lines_of(figures["attention"]), found.by_checkpoint()
    mean = attention.pop("mean of all heads")
    np.testing.assert_allclose(numbers(mean["y"]), [row["attention end to c1"] for row in rows])
    np.testing.assert_allclose(
        numbers(mean["y"]) + numbers(mean["error_y"]["array"]), [row["high"] for row in rows], atol=1e-12
    )
    by_head = found.attention.mean(-1).reshape(3, -1)
    assert set(attention) == {found.heads[h] for h in np.argsort(-np.ptp(by_head, axis=0))[:FOLLOWED]}
    for name, line in attention.items():
        np.testing.assert_allclose(numbers(line["y"]), by_head[:, found.heads.index(name)])
    added = found.attribution.mean(-1).reshape(3, -1)
    for name, line in lines_of(figures["attribution"]).items():
        np.testing.assert_allclose(numbers(line["y"]), added[:, found.heads.index(name)])
    for role, line in lines_of(figures["roles"]).items():
        assert numbers(line["y"]).tolist() == [row[role] for row in rows]
    assert figures["attention"].layout["xaxis"]["ticktext"] == LADDER


def test_baselines_are_drawn_as_curves():
    names = ("base", "tuned")
    figures = [
        Figure(name, on, kind, 0.25 * (1 + at), 0.2 * (1 + at), 0.3 * (1 + at), 100)
        for at, name in enumerate(names)
        for on in (HELDOUT, "ioi")
        for kind in ("accuracy", "log_prob")
    ]
    found = Baselines(names, "tpp", {HELDOUT: "its own", "ioi": "another task"}, tuple(figures))
    (figure,) = figures_of(found).values()
    lines = lines_of(figure)
    assert list(lines) == ["tpp", "ioi"]
    assert numbers(lines["ioi"]["y"]).tolist() == [0.25, 0.5]
    assert figure.layout["yaxis"]["tickformat"] == ".0%"
    assert "25 % [20 %, 30 %]" in lines["tpp"]["hovertext"][0]


def test_what_is_not_known_is_a_gap_and_names_are_escaped():
    figure: Any = ladder_curves(["<b>", "x" * 40], [Line("<i>", [None, 0.5], [None, 0.4], [None, 0.75])], "what")
    (trace,) = figure.data
    assert trace.name == "&lt;i&gt;"
    assert trace.y == (None, 0.5)
    assert trace.error_y.array == (0.0, 0.25)
    assert "undefined" in trace.hovertext[0]
    assert figure.layout.xaxis.ticktext == ("&lt;b&gt;", "…" + "x" * 23)


@pytest.mark.parametrize(
    ("task", "words"),
    [({"name": "file", "path": "/data/pairs.jsonl"}, "pairs.jsonl"), ({"name": "ioi", "n": 3}, "ioi"), ("tpp", "tpp")],
)
def test_a_title_says_what_was_run(task, words, tmp_path):
    assert task_words(task) == words
    page = written(tmp_path, random_circuit(ComputationGraph(2, 2), 5), run={"task": task, "model": "gpt2"})
    assert f"Circuit for {words} in gpt2" in page.words
