"""What judging will cost is counted and said before it is done; random controls cost no more than the search."""

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from examples import random_task
from models import shared
from test_judgement_resume import Killed, killed_after

import circuitdisc as cd
from circuitdisc import progress as progress_module
from circuitdisc.cli import main
from circuitdisc.discovery.base import Discovery
from circuitdisc.engine.patching import Cost, Patching
from circuitdisc.errors import BadSetting, CircuitdiscWarning
from circuitdisc.jobs.judge import judge
from circuitdisc.schemas import RunConfig, validate
from circuitdisc.scoring import work
from circuitdisc.scoring.completeness import completeness
from circuitdisc.scoring.kind import ScoreCall
from circuitdisc.scoring.minimality import minimality
from circuitdisc.scoring.registry import SCORES
from circuitdisc.scoring.work import CircuitRuns, estimate, in_time, n_controls, plain_forwards

NOTE = re.compile(r"circuitdisc: note: (.*)")


@pytest.fixture
def nothing_is_small(monkeypatch):
    monkeypatch.setattr(work, "SMALL", 0.0)


@pytest.fixture
def everything_is_said(monkeypatch):
    monkeypatch.setattr(work, "FEW_SECONDS", 0.0)


@pytest.fixture
def bars(monkeypatch):
    """Every bar that is made."""
    made = []

    class Recorded(progress_module.Lines):  # stderr is no terminal here
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            made.append(self)

    monkeypatch.setattr(progress_module, "Lines", Recorded)
    return made


# --- how many controls -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_heldout", [2, 6, 12])
@pytest.mark.parametrize("cost", [(0, 0, 0), (3, 1, 0), (7, 5, 0), (9, 6, 0), (1, 0, 40), (1, 0, 400), (2.5, 40, 0)])
def test_controls_cost_no_more_than_the_search(nothing_is_small, n_heldout, cost, recwarn):
    model = shared("gpt2")
    task = random_task(model, 6)
    task = replace(task, heldout=(*task.heldout, *task.heldout)[:n_heldout])
    spent = Cost(model_runs=cost[0], backward_runs=cost[1], node_evaluations=cost[2] * model.graph.n_senders)
    budget = 6 * (cost[0] + 2 * cost[1] + cost[2])
    assert plain_forwards(spent, model.graph) * 6 == pytest.approx(budget)
    expected = max([n for n in range(5, 21) if n * (6 + n_heldout) <= budget], default=5) if budget else 20
    assert n_controls(model, task, spent) == expected
    assert [str(one.message).split(":")[0] for one in recwarn] == (
        [] if expected == 20 else [f"{expected} random controls in place of 20"]
    )


def test_it_is_twenty_where_that_is_little_or_the_search_is_unknown(nothing_is_small, monkeypatch):
    model = shared("gpt2")
    task, cheap = random_task(model, 6), Cost(model_runs=1.0)
    assert n_controls(model, task, None) == 20
    monkeypatch.setattr(work, "SMALL", 1e12)
    assert n_controls(model, task, cheap) == 20
    shipped = cd.load_model("multitask/base")
    assert n_controls(shipped, cd.load_task("ioi", shipped, n=100, n_heldout=200), cheap) == 20


def test_score_takes_auto_a_number_and_nothing_else(nothing_is_small):
    model = shared("gpt2")
    task = random_task(model, 6)
    circuit = cd.discover(model, task, "eap", ablation="resample", edges=40, allow_chance=True).circuit

    def n(**settings: Any) -> int:
        return len(cd.score(model, task, circuit, **settings).get("faithfulness").controls)

    assert n() == 20
    with pytest.warns(CircuitdiscWarning, match=r"n_random=20 has all of them"):
        assert n(search=Cost(model_runs=1.0)) == 5
    assert n(search=Cost(model_runs=1.0), n_random=3) == 3
    with pytest.raises(BadSetting, match="or auto"):
        n(n_random="few")


def test_a_run_keeps_its_number(tmp_path, nothing_is_small, monkeypatch):
    """Neither another time, nor a lost record, nor another rule changes it; an older run keeps the 20 that it has."""
    run = tmp_path / "run"
    command = ["discover", "model=tpp/lightweight", "task=tpp", "task.n=8", "task.n_heldout=8", "progress=false", f"out={run}"]
    with pytest.warns(CircuitdiscWarning, match="5 random controls in place of 20"):
        assert main([*command, "algorithm=eap", "algorithm.edges=100", "ablation=resample"]) == 0

    def config() -> Any:
        return json.loads((run / "config.json").read_text())

    def drawn() -> set[int]:
        scores = json.loads((run / "scores.json").read_text())["scores"]
        return {len(one["controls"]) for one in scores if one["name"] == "faithfulness"}

    validate(RunConfig, config(), "config.json", closed=True)
    assert config()["scoring"]["n_random"] == 5
    assert drawn() == {5}
    (run / "cost.json").unlink()
    monkeypatch.setattr(work, "SMALL", 1e12)
    assert main(["score", str(run)]) == 0
    assert main(["resume", str(run)]) == 0
    assert drawn() == {5}
    for kept, partial_cost, expected in ((20, False, 20), ("auto", True, 20), ("auto", False, 5)):
        monkeypatch.setattr(work, "SMALL", 0.0)
        (run / "config.json").write_text(json.dumps(config() | {"scoring": {"n_random": kept, "confidence": 0.95}}))
        cost = {"model_runs": 2.0, "seconds": 3.0} | ({"counted": "since the run was resumed"} if partial_cost else {})
        (run / "cost.json").write_text(json.dumps(cost))
        if expected == 5:
            with pytest.warns(CircuitdiscWarning, match="in place of 20"):
                assert main(["score", str(run)]) == 0
        else:
            assert main(["score", str(run)]) == 0
        assert config()["scoring"]["n_random"] == expected
        assert drawn() == {expected}


# --- what is said ------------------------------------------------------------------------------------------------------------


def test_an_estimate_in_words():
    assert in_time(48.7) == "about 49 s"
    assert in_time(600) == "about 10 min"
    assert in_time(9000) == "about 2.5 h"
    one = {"score": [CircuitRuns(23, 60)]}
    assert estimate(one, 0.05) == "score: 23 circuits on 60 examples, about 69 s"
    several = {**one, "tests": [CircuitRuns(300, 40), CircuitRuns(500, 20, 0.1)], "mine": None}
    assert estimate(several, 0.05) == (
        "about 12 min in all; score: 23 circuits on 60 examples, about 69 s; tests: 800 circuits on 20 or 40 examples, "
        "about 11 min; mine: it does not say how long"
    )


@pytest.mark.parametrize("memory", ["4GiB", 30_000])
def test_score_says_once_what_it_runs_and_its_bar_counts_it(memory, everything_is_said, bars, capsys, tmp_path, monkeypatch):
    """Also in chunks of unequal size, and of a score that goes on: what is known is no work."""
    model = shared("attention_only")
    task = random_task(model, 5, seed=1)
    circuit = cd.discover(model, task, "eap", ablation="resample", edges=12, allow_chance=True).circuit
    options: Any = {"n_random": 4, "memory": memory}
    cd.score(model, task, circuit, **options)
    assert not NOTE.findall(capsys.readouterr().err)
    cd.score(model, task, circuit, progress=True, **options)
    (said,) = NOTE.findall(capsys.readouterr().err)
    assert said.startswith("score: 7 circuits on 10 examples, about ")
    assert bars[-1].n == 10 * (7 + 1) == pytest.approx(bars[-1].total)
    with monkeypatch.context() as patch:
        killed_after(patch, Patching, "circuit_logits", 6)
        with pytest.raises(Killed):
            cd.score(model, task, circuit, journal=tmp_path / "journal", **options)
    cd.score(model, task, circuit, journal=tmp_path / "journal", progress=True, **options)
    assert bars[-1].n == pytest.approx(bars[-1].total)
    assert 0 < bars[-1].total < 10 * (7 + 1)


def test_a_judgement_says_every_part_once(tmp_path, everything_is_said, bars, capsys, monkeypatch):
    run = tmp_path / "run"
    common = ["model=toys/induction", "task=induction", "task.n=6", "task.n_heldout=8", "ablation=resample"]
    search = ["algorithm=eap", "algorithm.edges=8", "scoring.n_random=3", f"out={run}"]
    assert main(["discover", *common, *search]) == 0
    (said,) = [line for line in NOTE.findall(capsys.readouterr().err) if line.startswith("score:")]
    bars.clear()
    judged = judge(run, {})
    (said,) = NOTE.findall(capsys.readouterr().err)
    parts = [part.partition(":")[0] for part in said.split("; ")]
    assert parts[1:] == ["scores", *(kind.words for kind in SCORES.values())]
    assert len(bars) == len(parts) - 1
    for bar in bars:
        assert bar.n == pytest.approx(bar.total, rel=1e-6), bar.desc
        assert bar.n <= bar.total

    circuits = {name: int(n.replace(",", "")) for name, n in re.findall(r"(\w[\w ]*): ([\d,]+) circuits", said)}
    results = judged.results
    assert circuits["scores"] == 3 + len(judged.scores.get("faithfulness").controls)
    assert circuits["hypothesis tests"] == 3 + len(results["tests"].members.names) + 4 * 100
    assert circuits["curve"] == 2 + 4 * 10
    assert main(["score", str(run), "--all", "--quiet"]) == 0
    assert not NOTE.findall(capsys.readouterr().err)

    with monkeypatch.context() as patch:
        killed_after(patch, Patching, "removal", 0)
        with pytest.raises(Killed):
            judge(run, {})
    first = NOTE.findall(capsys.readouterr().err)
    judge(run, {})
    (again,) = NOTE.findall(capsys.readouterr().err)
    assert len(first) == 1
    assert "scores:" not in again, "they are done"
    assert "hypothesis tests:" in again


def test_what_scores_say_they_run_is_what_they_run():
    model = shared("gpt2")
    task, graph = random_task(model, 4), model.graph
    circuit = cd.discover(model, task, "eap", ablation="zero", edges=30, allow_chance=True).circuit
    call = ScoreCall(model, task, circuit, {}, Discovery(circuit, np.where(graph.edge_mask, 1.0, np.nan)))
    for kind in SCORES.values():
        assert kind.work is not None
        assert work.runs_of(kind.work(call)) > 0, kind.name
    for name, tool in (("completeness", completeness), ("minimality", minimality)):
        counted: Any = SCORES[name].work
        n = sum(part.circuits for part in counted(call))  # sets are random, and greedy steps may run out of candidates
        assert n == pytest.approx(tool(model, task, circuit).cost["candidates"], rel=0.2), name
