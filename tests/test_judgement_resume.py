"""Nodes taken out in one run, and judgements that are killed: the results are those of whole runs, and nothing runs twice."""

import json
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from examples import random_task, some_circuit
from models import shared
from reference import masked_run

import circuitdisc as cd
from circuitdisc.ablation import Ablation
from circuitdisc.circuit import Circuit, Provenance
from circuitdisc.cli import main
from circuitdisc.discovery.base import Discovery
from circuitdisc.engine.memory import bytes_per_token
from circuitdisc.engine.node_removal import bytes_of_run
from circuitdisc.engine.part_removal import PartRemoval
from circuitdisc.engine.parts import parts_of, without
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadFile, BadRun, BadSetting
from circuitdisc.jobs import judge as judging
from circuitdisc.jobs.judge import Judgement, judge
from circuitdisc.metrics import get_metric
from circuitdisc.schemas import validate
from circuitdisc.scoring import stability as stability_module
from circuitdisc.scoring.completeness import Completeness, completeness
from circuitdisc.scoring.curves import curve
from circuitdisc.scoring.hypotheses import hypothesis_tests
from circuitdisc.scoring.minimality import Minimality, minimality
from circuitdisc.scoring.overlap import overlap
from circuitdisc.scoring.stability import stability

torch.set_num_threads(1)


class Killed(Exception):
    """What a kill looks like from inside."""


# --- nodes taken out incrementally -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["resample", "mean", "zero"])
@pytest.mark.parametrize("family", ["gpt2", "parallel", "bidirectional", "gemma2", "rms_rotary_grouped"])
@pytest.mark.parametrize("whole", [True, False])
def test_sets_of_nodes_taken_out_of_one_run_equal_masked_runs(family, kind, whole):
    """Sets that begin at one node are rows of one batch: some hold a later node, and others compute it."""
    model = shared(family)
    task, metric, graph = random_task(model, n=4), get_metric("logit_diff"), model.graph
    circuit = Circuit.full(graph) if whole else some_circuit(graph, 3)
    patching = Patching(model, Ablation(kind), task.train)
    removal = PartRemoval(patching, task.heldout, metric, "node")
    parts, generator = parts_of(circuit, "node"), np.random.default_rng(0)
    sets = [(), (parts[0],), (parts[0], parts[-1]), tuple(parts[:3]), tuple(parts)]
    sets += [tuple(part for part in parts if generator.random() < 0.5) for _ in range(4)]
    found = removal.sets_removed(circuit.mask, sets)
    (chunk,) = removal.chunks
    for row, names in zip(found, sets, strict=True):
        logits = masked_run(model, chunk, without(graph, circuit.mask, names))
        assert row == pytest.approx(chunk.batch.per_example(metric(logits, chunk.labels)).numpy(), abs=1e-9)
    assert patching.cost.circuit_runs == 1
    one = removal.added_removed(circuit.mask, sets[3], [parts[-1]])
    both = removal.each_removed(without(graph, circuit.mask, sets[3]), [parts[-1]])
    assert one == pytest.approx(both, abs=1e-9)


@pytest.mark.parametrize(("room", "runs"), [(0.5, None), (1, 3), (2, 2)])
def test_runs_are_held_while_they_fit(room, runs):
    """Too little memory: each set is a run of its own. A little more: one run is held at a time. All give the same."""
    model = shared("gpt2")
    task, metric, graph = random_task(model, n=4), get_metric("logit_diff"), model.graph
    needed = bytes_per_token(model) * 4 * max(map(len, task.heldout))
    circuit, sets = some_circuit(graph, 3), [("m0",), ("a1.h1", "m2"), ()]
    values, n_tokens = [], 4 * max(map(len, task.heldout))
    most = max(bytes_of_run(model.components, graph, mask, n_tokens) for mask in (circuit.mask, graph.edge_mask))
    for memory in (needed + int(room * most), "4GiB"):
        patching = Patching(model, Ablation("zero"), task.train, memory=memory)
        removal = PartRemoval(patching, task.heldout, metric, "node")
        values.append(np.stack([removal.sets_removed(mask, sets) for mask in (circuit.mask, graph.edge_mask, circuit.mask)]))
        if memory != "4GiB":
            assert patching.cost.circuit_runs == (6 * len(removal.chunks) if runs is None else runs)
    assert values[0] == pytest.approx(values[1], abs=1e-9)


def test_a_late_node_computes_what_comes_behind_it_alone():
    model = shared("gpt2")
    task, graph = random_task(model, n=4), model.graph
    patching = Patching(model, Ablation("zero"), task.train)
    removal = PartRemoval(patching, task.heldout, get_metric("logit_diff"), "node")
    removal.sets_removed(graph.edge_mask, [()])
    spent = []
    for name in ("m2", "m1", "m0"):
        before = patching.cost.node_evaluations
        removal.each_removed(graph.edge_mask, [name])
        spent.append(patching.cost.node_evaluations - before)
    assert spent[0] == 0
    assert spent[0] < spent[1] <= graph.n_heads + 1
    assert spent[1] < spent[2] <= 2 * (graph.n_heads + 1)


# --- killed, and called again ----------------------------------------------------------------------------------------------


def killed_after(monkeypatch, owner, name, calls):
    """Make a function raise at its n-th call; returns the list of its calls."""
    original, made = getattr(owner, name), []

    def wrapper(*arguments: Any, **settings: Any) -> Any:
        made.append(arguments)
        if len(made) > calls:
            raise Killed
        return original(*arguments, **settings)

    monkeypatch.setattr(owner, name, wrapper)
    return made


TESTS: dict[str, Any] = {"ablation": "resample", "n_random": 5, "n_permutations": 20, "quantile": 0.5, "seed": 4}


@pytest.mark.parametrize("memory", ["4GiB", 30000])
@pytest.mark.parametrize("granularity", ["edge", "head"])
def test_hypothesis_tests_go_on_where_they_were(granularity, memory, tmp_path, monkeypatch):
    model = shared("attention_only")
    task = random_task(model, 5, seed=1)
    whole = some_circuit(model.graph, 2, 0.4)
    circuit = whole if granularity == "edge" else Circuit.from_heads(model.graph, ["a0.h1", "a1.h0", "a1.h2"])
    settings: Any = {**TESTS, "memory": memory}
    straight = hypothesis_tests(model, task, circuit, journal=tmp_path / "straight", **settings)
    n_units = (tmp_path / "straight").read_text().count('"unit"')
    journal = tmp_path / "killed"
    with monkeypatch.context() as patch:
        killed_after(patch, PartRemoval, "know", n_units // 2)
        with pytest.raises(Killed):
            hypothesis_tests(model, task, circuit, journal=journal, **settings)
    done = journal.read_text().count('"unit"')
    assert 0 < done < n_units
    with journal.open("a") as file:
        file.write('{"unit": "half a li')  # the line that was being written
    with monkeypatch.context() as patch:
        runs = killed_after(patch, Patching, "circuit_logits", 10**6)
        again = hypothesis_tests(model, task, circuit, journal=journal, **settings)
        first = len(runs)
        assert again.to_dict() == straight.to_dict()
        assert json.loads(json.dumps(again.to_dict())) == json.loads(json.dumps(straight.to_dict()))
        runs.clear()
        hypothesis_tests(model, task, circuit, journal=journal, **settings)
        assert not runs, "all was done"
        hypothesis_tests(model, task, circuit, **settings)
        assert len(runs) > first, "what was done is not run again"
    with pytest.raises(BadRun, match="another seed"):
        hypothesis_tests(model, task, circuit, journal=journal, **(settings | {"seed": 5}))
    with pytest.raises(BadRun, match="other train examples, other tested examples"):
        hypothesis_tests(model, random_task(model, 5, seed=2), circuit, journal=journal, **settings)


def test_stability_goes_on_where_it_was(tmp_path, monkeypatch):
    model = shared("attention_only")
    task = random_task(model, 6, seed=1)
    settings: dict[str, Any] = {"ablation": "resample", "edges": 12, "allow_chance": True, "seed": 7, "vary_seed": True}
    straight = stability(model, task, "eap", n_bootstrap=5, **settings)
    journal = tmp_path / "journal"
    with monkeypatch.context() as patch:
        killed_after(patch, stability_module, "discover", 3)
        with pytest.raises(Killed):
            stability(model, task, "eap", n_bootstrap=5, journal=journal, **settings)
    with monkeypatch.context() as patch:
        found = killed_after(patch, stability_module, "discover", 10)
        again = stability(model, task, "eap", n_bootstrap=5, journal=journal, **settings)
        assert len(found) == 3, "the whole split and two samples were done"
    assert again.to_dict() == straight.to_dict()
    assert again.circuits == straight.circuits
    with pytest.raises(BadRun, match=r"another algorithm\.edges \(12, now 11\)"):
        stability(model, task, "eap", n_bootstrap=5, journal=journal, **{**settings, "edges": 11})
    more = stability(model, task, "eap", n_bootstrap=6, journal=journal, **settings)
    assert more.circuits[:5] == straight.circuits


# --- all of a run ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge") / "run"
    common = ["model=toys/induction", "task=induction", "task.n=12", "task.n_heldout=16", "ablation=resample", "progress=false"]
    search = ["algorithm=eap", "algorithm.edges=8", "scoring.n_random=3", f"out={folder}"]
    assert main(["discover", *common, *search]) == 0
    return folder


SCORING = "circuitdisc.scoring"
PARTS = {
    "scores": (judging, "score_circuit"),
    "completeness": (sys.modules[f"{SCORING}.completeness"], "completeness"),
    "minimality": (sys.modules[f"{SCORING}.minimality"], "minimality"),
    "curve": (sys.modules[f"{SCORING}.curves"], "curve"),
    "tests": (sys.modules[f"{SCORING}.hypotheses"], "hypothesis_tests"),
    "minimality of edges": (sys.modules[f"{SCORING}.minimality_of_edges"], "minimality"),
}


def without_seconds(data):
    if isinstance(data, dict):
        return {name: without_seconds(value) for name, value in data.items() if name != "seconds"}
    return [without_seconds(one) for one in data] if isinstance(data, list) else data


def test_a_killed_judgement_goes_on_where_it_was(run, monkeypatch, capsys):
    straight = judge(run, {}, progress=False)
    (run / "judgement.json").unlink()
    assert not list(run.glob("*.partial.jsonl")), "what was needed until the end is gone"
    with monkeypatch.context() as patch:
        killed_after(patch, *PARTS["tests"], 0)
        with pytest.raises(Killed):
            judge(run, {}, progress=False)
    assert len(list(run.glob("judgement.*.partial.jsonl"))) == 1
    assert not (run / "judgement.json").exists()
    with monkeypatch.context() as patch:
        calls = {name: killed_after(patch, *part, 10) for name, part in PARTS.items()}
        again = judge(run, {}, progress=False)
        assert {name: len(made) for name, made in calls.items()} == {
            "scores": 0, "completeness": 0, "minimality": 0, "curve": 0, "tests": 1, "minimality of edges": 1,
        }  # fmt: skip
    assert without_seconds(again.to_dict()) == without_seconds(straight.to_dict())
    assert again.text() == straight.text()
    assert not list(run.glob("*.partial.jsonl"))
    written = json.loads((run / "judgement.json").read_text())
    assert written.pop("identity")["weights"]
    assert without_seconds(written) == without_seconds(json.loads(json.dumps(straight.to_dict())))


def test_other_settings_start_afresh(run, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        killed_after(patch, *PARTS["minimality"], 0)
        with pytest.raises(Killed):
            judge(run, {}, progress=False)
    with monkeypatch.context() as patch:
        calls = killed_after(patch, *PARTS["completeness"], 10)
        judge(run, {"seed": 5}, progress=False)
        assert len(calls) == 1
    assert "starting afresh" in capsys.readouterr().err
    (left,) = run.glob("judgement.*.partial.jsonl")
    judge(run, {}, progress=False)
    assert not left.exists()


def test_scores_come_back_from_json(run):
    judged = judge(run, {}, progress=False)
    data = json.loads(json.dumps(judged.results["completeness"].to_dict()))
    assert validate(Completeness, data, "a file") == judged.results["completeness"]
    with pytest.raises(BadFile, match=r"a file: the key .needs. is missing"):
        validate(Minimality, data, "a file")


def test_complete_or_not_is_said_against_a_share_that_is_named(run):
    judged = judge(run, {}, progress=False)
    first = judged.results["completeness"].gaps[0]

    def sentence(value: float) -> str:
        gap = replace(first, kind="empty", removed=("a0.h1", "a1.h2"), full=10.0, circuit=10.0 - value, value=value)
        gap = replace(gap, low=value, high=value)
        changed = replace(judged.results["completeness"], gaps=(gap,))
        said = replace(judged, results={**judged.results, "completeness": changed}).verdict()
        (line,) = (one for one in said if "separates" in one)
        return line

    assert sentence(1.9).startswith("Not complete: removing a0.h1 and a1.h2 separates it from the model by 1.9")
    assert sentence(0.9).startswith("Complete: removing a0.h1 and a1.h2")
    assert "19 % of the model's" in sentence(1.9)
    assert "up to 10 % is complete" in sentence(1.9)
    assert isinstance(judged, Judgement)


# --- different ablations ---------------------------------------------------------------------------------------------------


def found_under(circuit, kind):
    return circuit.with_provenance(Provenance(ablation={"kind": kind} if kind else {}))


def test_circuits_of_different_ablations_do_not_meet_unless_asked():
    model = shared("attention_only")
    task = random_task(model, 4, seed=1)
    circuit = some_circuit(model.graph, 3)
    zero, mean, unknown = (found_under(circuit, kind) for kind in ("zero", "mean", ""))
    with pytest.raises(BadSetting, match=r"zero.* and mean.*mix=True"):
        overlap(zero, mean)
    assert overlap(zero, mean, mix=True) == overlap(zero, zero) == overlap(zero, unknown)

    def source(n_edges: int) -> Circuit:
        return zero if n_edges < 10 else mean

    settings: dict[str, Any] = {"shares": (0.01, 1.0), "ablation": "zero", "n_random": 0}
    with pytest.raises(BadSetting, match="mix=True"):
        curve(model, task, source, **settings)
    assert len(curve(model, task, source, mix=True, **settings).points) == 2

    truth = cd.Truth(model.graph, {"resample": circuit.edge_names(), "zero": circuit.edge_names()[:3]})
    with pytest.raises(BadSetting, match=r"found under zero.*resample.*mix=True"):
        cd.against_truth(zero, truth, ablation="resample")
    assert cd.against_truth(zero, truth, ablation="resample", mix=True).edges.recall == 1
    assert cd.against_truth(unknown, truth, ablation="resample").edges.recall == 1
    assert cd.against_truth(Discovery(zero), truth).edges.recall == 1


def test_a_greedy_set_costs_less_than_runs_of_its_own():
    """Every candidate set, of circuit and model, computes less than a run of all nodes."""
    model = shared("gpt2")
    task, graph = random_task(model, 4), model.graph
    circuit = Circuit.from_heads(graph, ["a0.h1", "a1.h3", "a2.h0", "a2.h2"])
    for tool in (completeness, minimality):
        found = tool(model, task, circuit, ablation="zero", n_random=2)
        assert found.cost["candidates"] > 20
        assert found.cost["node_evaluations"] < 0.5 * found.cost["candidates"] * graph.n_senders


def test_the_command_of_stability_goes_on_where_it_was(run, monkeypatch):
    with monkeypatch.context() as patch:
        killed_after(patch, stability_module, "discover", 2)
        with pytest.raises(Killed):
            main(["stability", str(run), "n_samples=3", "progress=false"])
    assert (run / "stability.partial.jsonl").exists()
    assert main(["stability", str(run), "n_samples=3", "seed=9", "progress=false"]) == 2, "another seed is refused"
    with monkeypatch.context() as patch:
        found = killed_after(patch, stability_module, "discover", 10)
        assert main(["stability", str(run), "n_samples=3", "progress=false"]) == 0
        assert len(found) == 2
    assert json.loads((run / "stability.json").read_text())["n"] == 3
    assert not (run / "stability.partial.jsonl").exists()
