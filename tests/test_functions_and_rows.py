"""Python's own things in place of names: functions as metrics and algorithms, lists and data frames as task files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples import random_task
from models import shared
from test_own_task import content, pair, write_csv, write_jsonl
from tiny import bare_model, word_model

import circuitdisc as cd
from circuitdisc.discovery.base import Discovery
from circuitdisc.discovery.selection import top_k
from circuitdisc.errors import BadFile, BadRun, BadSetting, UnknownName
from circuitdisc.metrics import METRICS, Metric
from circuitdisc.plugins import name_of
from circuitdisc.tasks import load_task

SEARCH: dict[str, Any] = {"ablation": "resample", "allow_chance": True}


def mine(logits, labels):
    """The logit difference again."""
    return METRICS["logit_diff"].function(logits, labels)


def first_edges(model, task, ablation, *, sender=0, edges=4):
    """Edges out of one sender first."""
    scores = np.where(model.graph.edge_mask, 0.0, np.nan)
    scores[model.graph.edge_mask[:, sender], sender] = -1.0
    return Discovery(top_k(model.graph, scores, edges), scores)


def seeded(model, task, ablation, context, *, edges=60):
    scores = np.where(model.graph.edge_mask, np.random.default_rng(context.seed).random(model.graph.edge_mask.shape), np.nan)
    return Discovery(top_k(model.graph, scores, edges), scores)


def makes(change: float) -> Any:
    def doubled(logits, labels):
        return mine(logits, labels) * change

    return doubled


# --- metrics and algorithms -----------------------------------------------------------------------------------------------


def test_a_function_is_a_metric_everywhere() -> None:
    model = shared("gpt2")
    task = random_task(model, 4)
    ours = cd.discover(model, task, "eap", metric=mine, edges=12, **SEARCH)
    theirs = cd.discover(model, task, "eap", metric="logit_diff", edges=12, **SEARCH)
    assert ours.circuit == theirs.circuit
    name = str(ours.circuit.provenance.metric)
    assert name.startswith("test_functions_and_rows.mine#")
    scores = cd.score(model, task, ours.circuit, metric=mine, n_random=1)
    again = cd.score(model, task, theirs.circuit, n_random=1)
    assert scores.means["heldout"] == again.means["heldout"]
    with pytest.raises(BadSetting, match=r"the metric test_functions_and_rows\.mine#\w{8} was a function of your own"):
        cd.score(model, task, ours.circuit, n_random=1)
    with pytest.raises(BadSetting, match=r"takes 1 positional arguments: it must take \(logits, labels\)"):
        cd.score(model, task, ours.circuit, metric=lambda logits: logits)


def test_a_function_is_an_algorithm_with_or_without_the_searchs_context(tmp_path: Path) -> None:
    model = shared("gpt2")
    task = random_task(model, 4)
    result = cd.discover(model, task, first_edges, sender=1, metric="logit_diff", **SEARCH)
    assert result.edge_scores is not None
    assert set(np.flatnonzero(np.nan_to_num(result.edge_scores).any(0))) == {1}
    said = result.circuit.provenance
    assert str(said.algorithm).startswith("test_functions_and_rows.first_edges#")
    assert said.settings == {"sender": 1, "edges": 4}
    one, two = (cd.discover(model, task, seeded, seed=seed, metric="logit_diff", **SEARCH).circuit for seed in (0, 1))
    assert one != two
    result.circuit.save(tmp_path / "circuit.json")
    assert cd.score(model, task, cd.Circuit.load(tmp_path / "circuit.json"), n_random=1).means
    with pytest.raises(BadSetting, match=r"the algorithm \S+first_edges#\w+ was a function of your own, which no name finds"):
        cd.discover(model, task, str(said.algorithm), **SEARCH)
    with pytest.raises(UnknownName, match="sendr"):
        cd.discover(model, task, first_edges, sendr=1, **SEARCH)
    for wrong in (lambda model: None, 7):
        with pytest.raises(BadSetting, match="it must be a function"):
            cd.discover(model, task, wrong, **SEARCH)  # pyright: ignore[reportArgumentType] - what is refused


def test_names_of_functions_change_with_what_they_do() -> None:
    assert name_of(makes(2.0)) == name_of(makes(2.0)) != name_of(makes(3.0))
    assert name_of(lambda x: x) != name_of(lambda x: -x)


def test_a_journal_goes_on_with_the_same_function_alone(tmp_path: Path, open_journal: Any) -> None:
    model = shared("gpt2")
    task = random_task(model, 4)

    def search(metric: Any) -> cd.Circuit:
        journal = open_journal(tmp_path / "journal.jsonl")
        result = cd.discover(model, task, "acdc", metric=metric, threshold=0.5, journal=journal, **SEARCH)
        journal.close()
        return result.circuit

    first = search(makes(2.0))
    assert search(makes(2.0)) == first
    with pytest.raises(BadRun, match="metric"):
        search(makes(3.0))


# --- tasks ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dicts", "tuples", "frame", "frame of a file"])
def test_rows_in_memory_are_as_those_of_a_file(kind: str, tmp_path: Path) -> None:
    rows = [pair(index, roles={"subject": 2}, positions=-1, group="ab"[index % 2]) for index in range(6)]
    rows[1].pop("roles")
    from_file = load_task(write_jsonl(tmp_path, rows), word_model())
    table: Any = rows
    if kind == "tuples":
        table = tuple({**row, "answers": (row["answers"],)} for row in rows)
    elif kind == "frame":
        table = pytest.importorskip("pandas").DataFrame(rows)
        assert table["roles"].isna().sum() == 1
    elif kind == "frame of a file":
        pandas, plain = pytest.importorskip("pandas"), [pair(index) for index in range(6)]
        from_file = load_task(write_csv(tmp_path, plain), word_model())
        table = pandas.read_csv(write_csv(tmp_path, plain))
    task = load_task(table, word_model(), metric="prob_diff" if kind == "dicts" else None)
    assert content(task)[:2] == content(from_file)[:2]
    measured = task.metric.name if isinstance(task.metric, Metric) else task.metric
    assert measured == ("prob_diff" if kind == "dicts" else from_file.metric)
    assert task.name == "6 rows in memory"
    assert json.loads(json.dumps(task.settings))["path"] == "6 rows in memory"


def test_token_ids_and_numpy_values() -> None:
    rows = [{"clean": np.arange(3) + index, "answers": np.int64(7), "wrong": [8], "positions": 2.0} for index in range(4)]
    task = load_task(rows, bare_model(), n=2)
    plain = [{"clean": [index, index + 1, index + 2], "answers": 7, "wrong": [8]} for index in range(4)]
    assert content(task) == content(load_task(plain, bare_model(), n=2))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "the list holds no examples"),
        ([pair(0), {"clean": "x"}], "row 2: the field 'answers' is missing"),
        ([pair(0), 7], "row 2: it is a int: give a dict"),
        ([{**pair(0), "wrnog": "x"}], "row 1: unknown field 'wrnog'. Did you mean wrong"),
        ([pair(0), {"clean": [1, 2], "answers": 3}], "row 1 holds text and row 2 token ids"),
        ({"clean": "x"}, "a list of dicts or a data frame, not a dict"),
        (7, "a list of dicts or a data frame, not a int"),
    ],
)
def test_rows_that_cannot_be_read(rows: Any, words: str) -> None:
    with pytest.raises(BadFile) as caught:
        load_task(rows, word_model())
    assert words in str(caught.value)
