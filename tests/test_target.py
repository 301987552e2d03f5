"""`target=`: the smallest number of best edges, against all sizes run whole; its interval, its repair, its refusals."""

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from examples import random_task
from hypothesis import given, settings
from hypothesis import strategies as st
from models import model_of, shared
from reference import masked_run

import circuitdisc as cd
from circuitdisc.ablation import Ablation
from circuitdisc.circuit import Circuit
from circuitdisc.cli import main
from circuitdisc.discovery.base import SearchContext
from circuitdisc.discovery.eap import eap
from circuitdisc.discovery.selection import Selection, connected, top_k
from circuitdisc.discovery.target import set_apart, smallest
from circuitdisc.engine.patching import Patching
from circuitdisc.engine.ranks import simulated
from circuitdisc.errors import BadSetting
from circuitdisc.exchange import write_graph_json
from circuitdisc.graph import ComputationGraph
from circuitdisc.metrics import METRICS
from circuitdisc.planning import plan
from circuitdisc.stats import partition_of


def per_example(model, rest, apart, kind):
    """Metric values of a circuit on the examples set apart, by whole-model runs; means are those of the rest."""
    (chunk,) = Patching(model, Ablation(kind), rest.train, memory="64GiB").hold(apart)
    return lambda mask: chunk.batch.per_example(METRICS["logit_diff"](masked_run(model, chunk, mask), chunk.labels)).numpy()


def discover(model, task, algorithm="eap_ig", kind="resample", journal=None, **settings):
    return cd.discover(
        model, task, algorithm, ablation=kind, metric="logit_diff", allow_chance=True, journal=journal, **settings
    )


def test_samples_of_the_examples_give_circuits_of_the_size_that_was_chosen():
    """Stability and certificates are of the circuit that was found: all units together give it again."""
    model = shared("attention_only")
    task = random_task(model, 24)
    for seed in range(3):
        found = cd.discover(
            model, replace(task, train=task.train[seed:]), "eap", ablation="resample", metric="logit_diff", allow_chance=True,
            target=0.8, keep_units=True,
        )  # fmt: skip
        assert found.units is not None
        every = np.ones(len(found.units.sums))
        assert found.units.circuit(every) == found.circuit
        assert found.units.selection.edges == found.trace[-1]["size"]
    asked: dict[str, Any] = {"ablation": "resample", "metric": "logit_diff", "allow_chance": True, "target": 0.8}
    sure, found = cd.certify(model, task, "eap", n=20, **asked), cd.discover(model, task, "eap", **asked)
    assert sure.circuit == found.circuit
    assert sure.n_examples == 18  # of 24, six are set apart
    assert sum(sure.bounds.shares) <= found.trace[-1]["size"] + 1e-9  # every subset's circuit has no more edges


@pytest.mark.parametrize(
    ("algorithm", "kind", "target", "grow"),
    [("eap_ig", "resample", 0.7, "top_k"), ("exact", "mean", 0.9, "greedy"), ("random", "zero", 0.5, "top_k")],
)
def test_of_all_sizes_it_is_where_the_share_is_first_kept(algorithm, kind, target, grow):
    model = shared("attention_only")
    graph, task = model.graph, random_task(model, 24)
    found = discover(model, task, algorithm, kind, target=target, grow=grow)
    rest, apart = set_apart(task)
    values = per_example(model, rest, apart, kind)
    whole = discover(model, rest, algorithm, kind)
    assert found.edge_scores is not None
    assert whole.edge_scores is not None
    np.testing.assert_array_equal(found.edge_scores, whole.edge_scores)  # of the rest alone

    full, empty = (values(edges).mean() for edges in (graph.edge_mask, np.zeros_like(graph.edge_mask)))

    def share(mask):
        return (values(mask).mean() - empty) / (full - empty)

    chosen = [Selection(n, grow=grow).circuit(graph, whole.edge_scores) for n in range(1, graph.n_edges + 1)]
    shares = np.array([0.0, *(share(circuit.mask) for circuit in chosen)])
    line = found.trace[-1]
    n = line["size"]
    assert shares[n] >= target - 1e-9 > shares[n - 1] - 2e-9
    crossings = sum(before < target <= after for before, after in pairwise(shares))
    assert crossings > 1 or n == np.flatnonzero(shares >= target)[0]
    runs = [step for step in found.trace[:-1] if "size" in step]
    for step in runs:
        assert step["share"] == pytest.approx(shares[step["size"]], abs=1e-9)
    assert len(runs) <= 2 + np.ceil(np.log2(graph.n_edges))
    assert line["share"] == pytest.approx(share(found.circuit.mask), abs=1e-9)
    assert found.circuit.n_edges == line["edges"]
    if line["repair"] != "failed":
        assert line["share"] >= target
        assert found.circuit == found.circuit.prune(unreached=True)
    assert f"one edge fewer do not. The size was chosen on {len(apart)} of the 24" in found.circuit.provenance.notes[-1]


def test_the_interval_is_that_of_examples_drawn_again():
    model = shared("attention_only")
    task = random_task(model, 40)
    rest, apart = set_apart(task)
    values = per_example(model, rest, apart, "resample")
    scores = discover(model, rest).edge_scores
    assert scores is not None
    sized = smallest(model.graph, scores, Selection(), 0.8, values)
    assert partition_of(apart).n_drawn == len(apart)
    draws = np.random.default_rng(0).integers(len(apart), size=(2000, len(apart)))
    chosen = []
    for draw in draws:
        means = {n: run[draw].mean() for n, run in sized.values.items()}
        empty, full = means[0], means[model.graph.n_edges]
        chosen.append(min(n for n, mean in means.items() if n == model.graph.n_edges or (mean - empty) / (full - empty) >= 0.8))
    low, high = sized.interval(apart)
    assert (low, high) == (sorted(chosen)[49], sorted(chosen)[1949])
    assert low <= sized.n <= high


# --- the examples set apart ------------------------------------------------------------------------------------------------


def test_what_is_set_apart_is_neither_searched_on_nor_held_out():
    model = shared("attention_only")
    task = random_task(model, 40)
    task = replace(task, train=(*task.train, *task.train[:10]))  # copies, as in a bootstrap sample
    rest, apart = set_apart(task)
    assert not set(apart) & (set(rest.train) | set(task.heldout))
    assert sorted(map(id, (*rest.train, *apart))) == sorted(map(id, task.train))
    assert rest.heldout == task.heldout
    assert len(set(apart)) == 10
    assert {example.group for example in apart} == {example.group for example in rest.train} == {"a", "b"}
    assert set_apart(task)[1] == apart


@pytest.mark.filterwarnings("ignore")  # python exchanges filters of warnings for all threads at once
def test_ranks_choose_the_same_size():
    model = shared("attention_only")
    task = random_task(model, 20)
    alone = discover(model, task, "eap", target=0.8)
    for found in simulated(3, lambda _: discover(model, task, "eap", target=0.8)):
        assert found.circuit == alone.circuit
        assert [line.get("size") for line in found.trace] == [line.get("size") for line in alone.trace]


# --- repair ----------------------------------------------------------------------------------------------------------------


def literal_connected(circuit, scores):
    """Node after node, of all paths from an embedding the one whose worst new edge is best."""
    graph, mask, worst = circuit.graph, circuit.mask.copy(), list[int]()
    order = sorted(map(tuple, np.argwhere(graph.edge_mask)), key=lambda edge: -abs(scores[edge]))
    rank = {edge: place for place, edge in enumerate(order)}

    def worst_new(path):
        return max([-1, *(rank[edge] for edge in path if not mask[edge])])

    def paths(sender):
        if not graph.node_receivers[graph.senders[sender].name]:
            yield []
        for receiver in graph.node_receivers[graph.senders[sender].name]:
            for before in range(int(graph.n_upstream[receiver])):
                yield from ([*path, (receiver, before)] for path in paths(before))

    for sender in range(graph.n_senders):
        now = Circuit(graph, mask)
        if now.live_senders()[sender] and not now.reached_senders()[sender]:
            best = min(paths(sender), key=worst_new)
            worst.append(worst_new(best))
            for edge in best:
                mask[edge] = True
    return Circuit(graph, mask), worst


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 8))
def test_nodes_are_connected_by_the_path_whose_worst_edge_is_best(seed, n):
    graph = ComputationGraph(2, 1)
    scores = np.where(graph.edge_mask, np.random.default_rng(seed).normal(size=graph.edge_mask.shape), np.nan)
    circuit = top_k(graph, scores, n)
    repaired = connected(circuit, scores)
    assert circuit <= repaired
    assert repaired == repaired.prune(unreached=True)
    literal, worst = literal_connected(circuit, scores)
    order = [tuple(edge) for edge in np.argwhere(graph.edge_mask)]
    order.sort(key=lambda edge: -abs(scores[edge]))
    added = [order.index(tuple(edge)) for edge in np.argwhere(repaired.mask & ~circuit.mask)]
    assert max(added, default=-1) == max(worst, default=-1)
    assert bool(worst) == (repaired != circuit)
    assert literal == literal.prune(unreached=True)


# --- commands and refusals -------------------------------------------------------------------------------------------------


def test_a_search_to_a_target_resumes_to_the_same_journal(tmp_path, open_journal):
    model = shared("attention_only")
    task = random_task(model, 20)
    first = discover(model, task, "exact", target=0.8, journal=open_journal(tmp_path / "a.jsonl"))
    text = (tmp_path / "a.jsonl").read_text()
    for share in (0.5, 0.97, 1.0):
        (tmp_path / "b.jsonl").write_text(text[: int(len(text) * share)])
        again = discover(model, task, "exact", target=0.8, journal=open_journal(tmp_path / "b.jsonl"))
        assert again.circuit == first.circuit
        assert (tmp_path / "b.jsonl").read_text() == text


def test_a_run_says_how_its_size_came_about(tmp_path, capsys):
    toy = ["model=toys/induction", "task=induction", "task.n=24", "task.n_heldout=8", "scoring.n_random=1", "progress=false"]
    run = tmp_path / "run"
    assert main(["discover", *toy, "algorithm=exact", "algorithm.target=0.8", f"out={run}"]) == 0
    circuit = json.loads((run / "circuit.json").read_text())
    (note,) = [note for note in circuit["provenance"]["notes"] if note.startswith("target=0.8: the ")]
    assert "6 of the 24 training examples, set apart" in note
    assert circuit["provenance"]["settings"]["target"] == 0.8
    assert json.loads((run / "journal.jsonl").read_text().splitlines()[-1])["edges"] == circuit["n_edges"]
    capsys.readouterr()
    assert main(["discover", *toy, "algorithm=eap", "algorithm.target=0.8", "algorithm.edges=3", f"out={tmp_path / 'b'}"]) == 2
    assert "edges=3 and target=0.8 both say how large the circuit is" in capsys.readouterr().err
    assert "asks for" not in (run / "report.html").read_text()


def test_what_cannot_be_had_gets_a_sentence(tmp_path):
    model = model_of("attention_only")
    graph, task = model.graph, random_task(model, 20)
    for target in (0, 1, 1.5, -0.1, float("nan"), "most", True):
        with pytest.raises(BadSetting, match="target="):
            discover(model, task, target=target)
    with pytest.raises(BadSetting, match=r"4 of 19 different ones, and it needs 5, so take at least 20 \(task.n=\)"):
        discover(model, replace(task, train=task.train[:19]), target=0.5)
    with pytest.raises(BadSetting, match="threshold= and target= both"):
        discover(model, task, "information_flow", target=0.5, threshold=0.04)
    with pytest.raises(BadSetting, match="sets examples apart before a search"):
        eap(model, task, Ablation("zero"), SearchContext(), target=0.5)
    with pytest.raises(BadSetting, match="cannot be reached by any size"):
        smallest(graph, np.where(graph.edge_mask, 1.0, np.nan), Selection(), 0.5, lambda mask: np.ones(5))
    same = tuple(replace(example, corrupted=example.clean) for example in task.train)
    with pytest.raises(BadSetting, match="cannot be reached by any size"):
        discover(model, replace(task, train=same), "random", target=0.5)
    write_graph_json(tmp_path / "marked.json", Circuit.from_edges(graph, ["input->logits"]), None, d_model=16)
    with pytest.raises(BadSetting, match="these are not: give a file with scores"):
        discover(model, task, "from_file", target=0.5, path=str(tmp_path / "marked.json"))


@pytest.mark.parametrize("algorithm", ["eap", "exact"])
def test_its_runs_are_planned(algorithm):
    model = shared("gpt2")
    task = random_task(model, 20)
    cost = discover(model, task, algorithm, "mean", target=0.5).cost
    asked = {"ablation": "mean", "metric": "logit_diff", "target": 0.5}
    part = plan(model, task, algorithm, allow_chance=True, measure=0, **asked).part(algorithm)
    for name in ("model_runs", "backward_runs", "circuit_runs", "candidates", "node_evaluations"):
        low, high = getattr(part, name)
        assert low - 1e-6 <= getattr(cost, name) <= high + 1e-6
    assert "how many sizes differ" in part.why or algorithm == "exact"
