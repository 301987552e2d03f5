"""`positions`: attribution span by span against autograd, search and figures against whole masked runs, the command."""

import json
import warnings
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from direct_attribution import big_buffer, embedding_senders, gradients, interpolated
from examples import TINY_RUN, unchecked
from models import model_of, shared
from positioned import reference, role_task, some_units, with_roles

import circuitdisc as cd
from circuitdisc.ablation import Ablation
from circuitdisc.circuit import Circuit
from circuitdisc.cli import main
from circuitdisc.discovery.rules import KeepRule
from circuitdisc.discovery.scored import takes_gauss
from circuitdisc.engine.gradients.attribution import Attribution
from circuitdisc.engine.gradients.memory import Gradient
from circuitdisc.engine.gradients.path_points import gauss_between, published_between
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import (
    BadRun,
    BadSetting,
    CircuitdiscError,
    CircuitdiscWarning,
)
from circuitdisc.metrics import get_metric
from circuitdisc.pages.positions import positions_parts, positions_verdict
from circuitdisc.positioned.attribution import unit_scores
from circuitdisc.positioned.circuit import PositionedCircuit, live_units
from circuitdisc.positioned.positions import Positions
from circuitdisc.positioned.search import PositionedRuns, plain_of_size, random_positioned
from circuitdisc.tasks.spans import Spans

# --- attribution --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "kind"), [("gpt2", "resample"), ("parallel", "mean"), ("bidirectional", "zero")])
@pytest.mark.parametrize("ranking", ["eap", "eap_ig"])
def test_scores_of_units_are_those_of_autograd_with_a_leaf_a_token(family, kind, ranking):
    model, task, ablation, metric = shared(family), role_task(shared(family)), Ablation(kind), get_metric("logit_diff")
    spans = Spans.of(task.train, causal=model.backend.causal)
    chunk, delta = big_buffer(model, ablation, task.train)
    if ranking == "eap":
        g = gradients(model, chunk, metric)
    else:
        points = (gauss_between if kind == "zero" and takes_gauss("auto", model, ablation) else published_between)(5)
        g = interpolated(model, chunk, delta, metric, embedding_senders(model), points)
    products = torch.einsum("sbtd,rbtd->btrs", delta, g).numpy()
    of_tokens, edges = spans.of_batch(chunk.batch), model.graph.edge_mask
    scores, cost = unit_scores(model, task, spans, ablation, metric, ranking=ranking)
    for span in range(len(spans)):
        np.testing.assert_allclose(scores[span][edges], products[of_tokens == span].sum(0)[edges], atol=1e-9)
    plain = cd.discover(model, task, ranking, ablation=ablation, allow_chance=True)
    assert plain.edge_scores is not None
    np.testing.assert_allclose(scores.sum(0)[edges], plain.edge_scores[edges], atol=1e-9)
    assert cost.backward_runs == plain.cost.backward_runs, "the spans cost no pass more"


def test_scores_of_units_need_room():
    task = role_task(shared("gpt2"), 2)
    attribution = Attribution(shared("gpt2"), Ablation("zero"), task.train, get_metric("logit_diff"), gradient=Gradient())
    attribution.memory = 10_000
    with pytest.raises(BadSetting, match=r"the scores of 6 spans take .*raise memory=, or name fewer roles"):
        attribution.keep_spans([], 6)


# --- the search ---------------------------------------------------------------------------------------------------------------


class Slow:
    """Metrics of positioned circuits, each by a masked run of the whole model."""

    def __init__(self, model, task, kind, spans):
        self.model, self.spans, self.metric = model, spans, get_metric("logit_diff")
        patching = Patching(model, Ablation(kind), task.train)
        self.chunks = {split: patching.hold(task.split(split)) for split in ("train", "heldout")}

    def values(self, mask, split="train"):
        (chunk,) = self.chunks[split]
        circuit = PositionedCircuit(self.model.graph, self.spans, mask)
        return chunk.batch.per_example(self.metric(reference(self.model, chunk, circuit), chunk.labels)).numpy()

    def mean(self, mask):
        return float(self.values(mask).mean())


@cache
def run_on(family):
    """A model, a task, and a circuit that does it about as well as the model."""
    model = shared(family)
    task, fraction = role_task(model), {"attention_only": 0.5, "parallel": 0.85}[family]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CircuitdiscWarning)
        found = cd.discover(model, task, "eap_ig", ablation="zero", fraction=fraction, allow_chance=True)
    return model, task, found.circuit


FEW: dict[str, Any] = {"n_random": 2, "ablation": "zero", "metric": "logit_diff"}


@pytest.mark.parametrize("start", ["circuit", "graph"])
def test_the_search_decides_by_whole_masked_runs_and_no_unit_can_be_cut(start, monkeypatch):
    model, task, circuit = run_on("attention_only")
    result = cd.positions(model, task, circuit, start=start, keep=0.5 if start == "graph" else "auto", prune_first=None, **FEW)
    slow = Slow(model, task, "zero", result.spans)
    full = np.repeat(model.graph.edge_mask[None], len(result.spans), 0)
    ends = slow.mean(full), slow.mean(np.zeros_like(full))
    rule = KeepRule(result.keep, *ends)
    if start == "circuit":
        own = slow.mean(np.repeat(circuit.mask[None], len(result.spans), 0))
        assert result.keep == pytest.approx(1 - abs(1 - rule.share(own)) - 0.02)
        assert result.circuit <= PositionedCircuit.from_circuit(circuit, result.spans)
    mask = result.circuit.mask
    assert 0 < mask.sum() < result.n_tried
    assert rule.margin(0.0, slow.mean(mask)) >= -1e-9
    for unit in np.argwhere(mask):
        left = mask.copy()
        left[tuple(unit)] = False
        assert rule.margin(0.0, slow.mean(left)) < 1e-9, unit
    if start == "circuit":
        return  # the same again by the reference takes long
    monkeypatch.setattr("circuitdisc.positioned.search.PositionedRuns.mean", lambda self, ready, mask: slow.mean(mask))
    again = cd.positions(model, task, circuit, start=start, keep=0.5, prune_first=None, **FEW)
    assert again.edges == result.edges, "decided by the reference, the same"


def test_every_figure_is_that_of_whole_masked_runs():
    model, task, circuit = run_on("parallel")
    result = cd.positions(model, task, circuit, others={"itself": (model, task)}, **FEW)
    slow = Slow(model, task, "zero", result.spans)
    full = np.repeat(model.graph.edge_mask[None], len(result.spans), 0)

    def share(mask, split="heldout"):
        top, value, nothing = (slow.values(each, split).mean() for each in (full, mask, np.zeros_like(full)))
        return (value - nothing) / (top - nothing)

    own = np.repeat(circuit.mask[None], len(result.spans), 0)
    mask = result.circuit.mask
    flat = np.repeat(result.circuit.flat().mask[None], len(result.spans), 0)
    for name, each in (("positioned", mask), ("run's circuit", own), ("its edges at all spans", flat)):
        row = result.named(name)
        assert row.faithfulness == pytest.approx(share(each), abs=1e-9)
        assert row.searched == pytest.approx(share(each, "train"), abs=1e-9)
        assert (row.n_units, row.n_edges) == (live_units(model.graph, result.spans, each).sum(), each.any(0).sum())
        if name != "positioned":
            assert row.nearer == pytest.approx(abs(1 - share(each)) - abs(1 - share(mask)), abs=1e-9)
    assert result.rest == pytest.approx(share(full & ~mask), abs=1e-9)
    scores, _ = unit_scores(model, task, result.spans, Ablation("zero"), get_metric("logit_diff"))
    live = live_units(model.graph, result.spans, full)
    best = np.zeros_like(full)
    best.flat[sorted(np.flatnonzero(live), key=lambda unit: -abs(scores.flat[unit]))[: mask.sum()]] = True
    assert result.named("best units").faithfulness == pytest.approx(share(best), abs=1e-9)
    units, edges = result.named("best edges, as many units"), result.named("best edges, as many edges")
    assert units.n_units <= mask.sum()
    assert edges.n_edges <= mask.any(0).sum()
    assert result.traded == pytest.approx(abs(1 - (units.faithfulness or 0)) - abs(1 - share(best)), abs=1e-9)
    (there,) = result.checkpoints
    assert (there.positioned, there.plain) == pytest.approx((share(mask), share(own)), abs=1e-9)


def test_random_circuits_keep_the_wiring_or_the_edges():
    model = shared("gpt2")
    spans = Spans.of(with_roles(model, 4))
    mask = some_units(model.graph, spans, 0, 0.2).prune().mask
    drawn = dict(random_positioned(mask, model.graph, spans, 3, np.random.default_rng(0)))
    assert len(drawn) == 6
    full = live_units(model.graph, spans, np.repeat(model.graph.edge_mask[None], len(spans), 0))
    for name, other in drawn.items():
        assert not np.array_equal(other, mask)
        assert not (other & ~model.graph.edge_mask).any()
        if name.startswith("other spans"):
            assert np.array_equal(other.sum(0), mask.sum(0))
            assert not (other & ~full).any()
        else:
            assert np.array_equal(other.sum((1, 2)), mask.sum((1, 2)))
            assert live_units(model.graph, spans, other).sum() == mask.sum()


def test_the_largest_plain_circuit_of_a_size():
    model = shared("gpt2")
    spans = Spans.of(with_roles(model, 4))
    scores = np.random.default_rng(0).normal(size=(len(spans), *model.graph.edge_mask.shape))
    order = np.flatnonzero(model.graph.edge_mask)[np.argsort(-abs(scores.sum(0))[model.graph.edge_mask])]

    def size(k, units):
        mask = np.zeros_like(model.graph.edge_mask)
        mask.flat[order[:k]] = True
        live = live_units(model.graph, spans, np.repeat(mask[None], len(spans), 0))
        return (live if units else live.any(0)).sum()

    for n, units in ((40, True), (25, False), (0, True)):
        plain = plain_of_size(model.graph, spans, scores, n, units)
        most = max(k for k in range(model.graph.n_edges + 1) if size(k, units) <= n)
        assert (plain if units else plain.any(0)).sum() == size(most, units)


def test_a_killed_search_goes_on_to_the_same_result(tmp_path, monkeypatch):
    about = run_on("attention_only")
    whole = cd.positions(*about, **FEW)
    journal, calls = tmp_path / "journal.jsonl", []
    with monkeypatch.context() as patch:
        own = PositionedRuns._mean

        def killed(self, *args):
            calls.append(args)
            if len(calls) > 12:
                raise KeyboardInterrupt
            return own(self, *args)

        patch.setattr(PositionedRuns, "_mean", killed)
        with pytest.raises(KeyboardInterrupt):
            cd.positions(*about, journal=journal, **FEW)
    again = cd.positions(*about, journal=journal, **FEW)
    assert replace(again, seconds=0.0) == replace(whole, seconds=0.0)
    with pytest.raises(BadRun, match="another keep"):
        cd.positions(*about, journal=journal, keep=0.5, **FEW)


def test_bad_input():
    about = run_on("attention_only")
    for given, words in (
        ({"keep": 0.99999}, "keep=1: the run's circuit has .* lower keep="),
        ({"keep": 0.99999, "start": "graph", "prune_first": 3}, "the units that attribution proposed have"),
        ({"keep": 2.0}, "keep=2.0 must be"),
        ({"ranking": "acdc"}, "unknown value of ranking 'acdc'"),
        ({"start": "nowhere"}, "unknown value of start"),
        ({"metric": "accuracy"}, "follows the metric's gradient"),
        ({"roles": ["nobody"]}, "unknown position 'nobody'"),
    ):
        with pytest.raises(CircuitdiscError, match=words):
            cd.positions(*about, **unchecked({**FEW, **given}))
    with pytest.raises(BadSetting, match="runs through hooks"):
        cd.positions(model_of("gpt2", components="hooks"), about[1], Circuit.full(shared("gpt2").graph), **FEW)


# --- the command --------------------------------------------------------------------------------------------------------------


def test_words():
    model, task, circuit = run_on("attention_only")
    result = cd.positions(model, task, circuit, others={"itself": (model, task)}, **FEW)
    again = Positions.from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False)))
    assert again.circuit == result.circuit
    circuits, senders, elsewhere = positions_parts(again)
    assert [part.title for part in (circuits, senders)] == ["Positions", "Positions: who sends where"]
    assert circuits.rows[0][:2] == ("positioned, by exact search", f"{result.circuit.n_units:,}")
    assert len(circuits.rows) == 6 + 1 + 2
    assert senders.rows[-1][0] == "all"
    assert sum(int(cell) for cell in senders.rows[-1][1:]) == result.circuit.n_units
    ends = dict.fromkeys(result.edges, ("end",))
    (table,) = [part for part in positions_parts(replace(result, edges=ends)) if part.title == senders.title]
    assert {len(row) for row in (table.headers, *table.rows)} == {2}, "spans at which nothing is kept have no column"
    assert table.headers == ("Sender", "end")
    assert elsewhere.rows[0][:2] == ("itself", str(len(task.heldout)))
    said = positions_verdict(result)
    assert said.headline.startswith(f"Of the {result.n_tried:,} units (edges at spans) of the run's circuit, ")
    assert any("positions" in line for line in said.lines)
    assert "Only 6 examples stand behind it" in said.caveats[-1]
    ways = ((0.1, 0.2, "positions pay"), (-0.2, -0.1, "positions cost"), (-0.1, 0.1, "no clear"), (-2e-8, -1e-8, "no clear"))
    for low, high, words in ways:
        assert words in positions_verdict(replace(result, traded_low=low, traded_high=high)).lines[1]
    off = tuple(replace(row, nearer=-0.2, nearer_low=-0.3, nearer_high=-0.1) for row in result.circuits)
    bad = positions_verdict(replace(result, circuits=off, start="graph"))
    assert "the search has fitted its 6 examples" in bad.caveats[0]
    assert "by 20 % [10 %, 30 %] of the gap" in bad.caveats[0]
    assert "farther from the full model (by 20 % [10 %, 30 %] of the gap)" in bad.lines[2]


def test_the_command(tmp_path, capsys):
    run = tmp_path / "run"
    search = [word.replace("=random", "=eap") for word in TINY_RUN]
    assert main([*search, "algorithm.edges=400", "explorer=false", f"out={run}"]) == 0
    capsys.readouterr()
    command = ["positions", str(run), "roles=c1", "n_random=1", "keep=0.5", "progress=false"]
    assert main([*command, "checkpoints=tpp/lightweight"]) == 0
    out = capsys.readouterr().out
    assert "Positions: who sends where" in out
    assert "times the run's own search" in out
    assert "units (edges at spans) of the run's circuit" in out.split("verdict\n")[1]
    assert "On tpp/lightweight it has" in out
    record = json.loads((run / "positions.json").read_text())
    assert record["format"] == "circuitdisc.positions"
    assert record["spans"]["names"] == ["before:all", "c1", "after:c1"]
    circuit = PositionedCircuit.load(run / "positioned_circuit.json")
    assert circuit.edge_spans() == {edge: list(at) for edge, at in record["edges"].items()}
    assert circuit.provenance.algorithm == "positions"
    assert "<h3>Positions: who sends where</h3>" in (run / "report.html").read_text()
    assert not list(run.glob("*.partial.jsonl"))
    record["circuits"][0]["n_units"] = "many"
    (run / "positions.json").write_text(json.dumps(record))
    assert main(["report", str(run)]) == 2
    assert "`circuitdisc positions RUN` writes it again" in capsys.readouterr().err
    assert main([*command, "roles=c9"]) == 2
    assert "unknown position 'c9'" in capsys.readouterr().err
