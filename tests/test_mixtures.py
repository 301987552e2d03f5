"""Mixtures: scores example by example, clusters by literal formulas, planted mixtures, tasks alone, and the command."""

import json
import sys
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples import random_examples, random_task
from models import shared

import circuitdisc as cd
from circuitdisc.ablation import get_ablation
from circuitdisc.certainty.clusters import clusters_of, prediction_strength, silhouette
from circuitdisc.certainty.mixtures import Mixtures, _advantage, mixtures, score_metric
from circuitdisc.circuit import Circuit
from circuitdisc.cli import main
from circuitdisc.engine.gradients.attribution import Attribution
from circuitdisc.engine.gradients.by_example import edges_by_example, on_examples, senders_by_example
from circuitdisc.engine.gradients.memory import Gradient
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadSetting, BadTask
from circuitdisc.metrics import get_metric
from circuitdisc.pages.mixtures import mixtures_part, mixtures_verdict
from circuitdisc.scoring.faithfulness import normalised

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
campaign: Any = import_module("mixtures")


@cache
def base():
    return cd.load_model("multitask/base")


@cache
def mixed(n: int = 30) -> tuple[Any, Mixtures]:
    return campaign.judged(base(), ("induction", "entity_tracking"), 0, n=n, n_heldout=n, n_splits=2, n_null=99)


@pytest.mark.parametrize(("family", "kind"), [("layer_norm_gated", "resample"), ("parallel", "mean")])
def test_scores_of_each_example_are_those_of_a_task_with_it_alone(family, kind):
    model = shared(family)
    examples = random_examples(model, 6)
    attribution = Attribution(model, get_ablation(kind), examples, get_metric("logit_diff"), gradient=Gradient(at_full=True))
    edges, senders = edges_by_example(attribution), senders_by_example(attribution)
    whole = attribution.edges_at_full()
    np.testing.assert_allclose(edges.mean(0), whole[model.graph.edge_mask], atol=1e-12)
    for row, example in enumerate(examples):
        alone = on_examples(attribution, [example]).edges_at_full()
        np.testing.assert_allclose(edges[row], alone[model.graph.edge_mask], atol=1e-12)
        np.testing.assert_allclose(senders[row], np.nansum(alone, 0), atol=1e-10)
    other = on_examples(attribution, examples[:2])
    edges_by_example(other)
    assert other.cost.backward_runs == pytest.approx(1)


def literal_silhouette(points, labels):
    values = []
    for i in range(len(points)):
        distances = {c: [np.linalg.norm(points[i] - points[j]) for j in range(len(points)) if labels[j] == c and j != i]
                     for c in set(labels)}  # fmt: skip
        if not distances[labels[i]]:
            values.append(0.0)
            continue
        own = np.mean(distances[labels[i]])
        other = min(np.mean(d) for c, d in distances.items() if c != labels[i])
        values.append((other - own) / max(own, other))
    return np.mean(values)


def test_the_silhouette_and_the_strength_by_the_letter():
    generator = np.random.default_rng(0)
    points, labels = generator.normal(size=(12, 3)), np.array([0] * 5 + [1] * 6 + [2])
    assert silhouette(points, labels) == pytest.approx(literal_silhouette(points, labels))
    assert silhouette(points, np.zeros(12, dtype=int)) == 0
    apart = np.concatenate([points, points + 50])
    assert prediction_strength(apart, 2, generator) == 1
    assert prediction_strength(apart, 5, generator) < 0.8


def test_clusters_and_one_cluster():
    generator = np.random.default_rng(1)
    centres = np.eye(20)[:3] * 4
    for k in (1, 2, 3):
        own = np.arange(60) % k
        vectors = (centres[own] + generator.normal(0, 0.5, (60, 20))) * generator.uniform(0.5, 5, (60, 1))
        clusters = clusters_of(vectors, 4, 99, 0.8, 0.05, np.random.default_rng(0))
        assert len(clusters.centres) == k
        assert len({*zip(own.tolist(), clusters.labels.tolist(), strict=True)}) == k, "each cluster is one of the planted"
        assert list(clusters.nearest(vectors)) == list(clusters.labels)
        assert sorted(np.bincount(clusters.labels), reverse=True) == list(np.bincount(clusters.labels))


def test_one_normal_distribution_is_one_cluster():
    """However long it is in one direction."""
    several = 0
    for seed in range(20):
        generator = np.random.default_rng(seed)
        vectors = generator.normal(size=(40, 12)) * np.geomspace(4, 0.2, 12) + generator.normal(size=12) * 3
        several += len(clusters_of(vectors, 3, 39, 0.8, 0.05, generator).centres) > 1
    assert several <= 3  # at most 5 %: of 20 more than 3 in 1.6 % of cases


def test_a_planted_mixture_is_found_and_a_task_alone_is_not():
    _, result = mixed()
    assert result.sizes == result.heldout_sizes == (15, 15)
    assert campaign.purity(result) == 1
    assert result.by == "edge"
    alone = campaign.judged(base(), ("entity_tracking",), 0, n=30, n_heldout=6, n_null=99)[1]
    assert (alone.k, alone.cells, alone.p) == (1, (), None)
    assert mixtures_verdict(alone).headline == "One mechanism: the scores of 30 search examples form one cluster."
    assert mixtures_part(alone).rows[0][0] == "2"


def test_circuits_are_those_of_a_search_on_each_cluster():
    task, result = mixed()
    parts = [tuple(e for e in task.train if e.group.startswith(name)) for name in ("induction", "entity_tracking")]
    shown = [example.text or " ".join(map(str, example.clean)) for example in parts[0]]
    parts = parts if result.examples[0][0] in shown else parts[::-1]
    names = [next(iter(groups)).split()[0] for groups in result.groups]
    circuits = [
        cd.discover(base(), replace(task, train=part), "eap", ablation="resample", edges=100, allow_chance=True).circuit
        for part in parts
    ]
    assert result.edges[1:] == tuple(circuit.n_edges for circuit in circuits)
    patching, metric = Patching(base(), get_ablation("resample"), task.train), get_metric("logit_diff")
    graph = base().graph
    for cell in result.cells:
        if cell.circuit:
            own = [e for e in task.heldout if e.group.startswith(names[cell.cluster - 1])]
            masks = {"full": graph.edge_mask, "c": circuits[cell.circuit - 1].mask, "empty": Circuit.empty(graph).mask}
            values = patching.evaluate(own, masks, [metric])
            means = np.array([float(values[name]["logit_diff"].double().mean()) for name in masks])
            assert cell.faithfulness == pytest.approx(float(normalised(means)), abs=1e-5)
            assert cell.n == 15
    apart = {(c.circuit, c.cluster): abs(1 - (c.faithfulness or 0)) for c in result.cells if c.circuit}
    own, other = apart[1, 1] + apart[2, 2], apart[1, 2] + apart[2, 1]
    assert result.advantage == pytest.approx((other - own) / 2)
    assert (result.advantage or 0) > 0.1 > max(map(abs, result.random))
    assert result.p == pytest.approx(1 / 3)
    assert (result.shared or 0) < (result.random_shared or 0)
    spent = result.forwards
    assert all((spent[name] or 0) > 0 for name in ("scores", "circuits", "judgement", "own search"))


def test_the_advantage_leaves_out_empty_parts():
    value = {"full": np.array([2.0, 2]), "empty": np.zeros(2), "0 0": np.array([2.0, 2]), "0 1": np.array([1.0, 1])}
    assert _advantage(value, "0", np.array([0, 0]), 2) == pytest.approx(0.5)
    assert _advantage(value, "0", np.array([0, 1]), 2) == pytest.approx(0.0)
    assert _advantage({**value, "full": np.zeros(2)}, "0", np.array([0, 1]), 2) == 0


def test_a_cluster_without_held_out_examples():
    """Its circuit is judged on the other's, and what cannot be known is said."""
    task, _ = mixed()
    some = replace(task, heldout=tuple(example for example in task.heldout if example.group == "induction"))
    own: dict[str, Any] = {"settings": {"edges": 100}, "ablation": "resample", "n_splits": 1, "n_null": 99}
    result = mixtures(base(), some, Circuit.full(base().graph), "eap", **own)
    assert sorted(result.heldout_sizes) == [0, 15]
    assert [cell.faithfulness is None for cell in result.cells] == [cell.n == 0 for cell in result.cells]
    assert "A cluster has no held-out examples, and nothing is said of it." in mixtures_verdict(result).caveats


def test_words():
    _, result = mixed()
    assert "too few to rule out chance" in mixtures_verdict(result).caveats[0]
    assert mixtures_verdict(result).headline.startswith("The scores form 2 clusters, but circuits of these are no better")
    sure = replace(result, p=0.05)
    assert mixtures_verdict(sure).headline.startswith("The circuit mixes 2 mechanisms: the scores form 2 clusters")
    again = Mixtures.from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False)))
    assert again == result
    part = mixtures_part(again)
    assert [row[0] for row in part.rows] == ["the run's own", "of cluster 1", "of cluster 2"]
    assert any(line.startswith("Cluster 2: 15 search examples, of groups ") for line in part.lines)


def test_a_metric_without_a_gradient_gives_way():
    task = random_task(shared("parallel"))
    assert score_metric(get_metric("prob_diff"), task).name == "prob_diff"
    assert score_metric(get_metric("kl"), task).name == "logit_diff"


def test_bad_input():
    model = shared("parallel")
    task, circuit = random_task(model, 6), Circuit.full(model.graph)
    with pytest.raises(BadSetting, match="mixtures takes 10 search examples at least"):
        mixtures(model, replace(task, train=task.train[:4]), circuit, "eap", ablation="zero")
    with pytest.raises(BadSetting, match="n_null=19 draws cannot tell clusters from one: n_null=99 can"):
        mixtures(model, random_task(model, 12), circuit, "eap", ablation="zero", n_null=19, confidence=0.99)
    for nothing in (Circuit.empty(model.graph), Circuit.from_heads(model.graph, [])):
        with pytest.raises(BadTask, match="the circuit is empty: there is nothing to split"):
            mixtures(model, random_task(model, 12), nothing, "eap", ablation="zero")


def test_the_command_goes_on_after_a_kill(tmp_path, capsys, monkeypatch):
    rows = campaign.rows_of(base(), ("induction", "entity_tracking"), 30, 12, 0)
    (tmp_path / "mixed.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = tmp_path / "run"
    search = ["discover", "model=multitask/base", f"task={tmp_path / 'mixed.jsonl'}", "algorithm=eap", "algorithm.edges=60"]
    assert main([*search, "ablation=resample", "explorer=false", "scoring.n_random=1", "progress=false", f"out={run}"]) == 0
    command = ["mixtures", str(run), "n_splits=1", "n_null=99", "most=2", "progress=false"]
    with monkeypatch.context() as patch:
        patch.setattr("circuitdisc.certainty.mixtures._judged", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(command) == 130
    assert f"`circuitdisc {' '.join(command)}` goes on" in capsys.readouterr().err
    assert main([word.replace("most=2", "most=3") for word in command]) == 2
    assert "another most (2, now 3)" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr("circuitdisc.certainty.mixtures.discover", lambda *_, **__: pytest.fail("it was done"))
        assert main(command) == 0
    out = capsys.readouterr().out
    assert "On cluster 2 (n = 6)" in out
    assert "times the run's own search" in out
    assert json.loads((run / "mixtures.json").read_text())["format"] == "circuitdisc.mixtures"
    assert "<h3>Mechanisms</h3>" in (run / "report.html").read_text()
    assert not list(run.glob("*.partial.jsonl"))
    assert main(["mixtures", str(run), "most=1"]) == 2
    assert "most=1 must be a whole number from 2 to 20" in capsys.readouterr().err


@pytest.mark.slow
def test_the_campaign():
    for line in campaign.counted(base(), campaign.ALONE, 20):
        assert int(line[1].split()[0]) >= 17, line
    for line in campaign.counted(base(), campaign.MIXED, 20):
        assert int(line[2].split()[0]) >= 17, line
