"""keep=, threshold=auto, prune_first= and order=attribution: what they say, against loops that are written out."""

import numpy as np
import pytest
from examples import random_task
from hypothesis import given, settings
from hypothesis import strategies as st
from models import model_of
from reference import masked_metric
from sequential import decided, sequential_acdc

import circuitdisc as cd
from circuitdisc.ablation import Ablation
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.acdc import acdc
from circuitdisc.discovery.base import SearchContext
from circuitdisc.discovery.bisect import bisect
from circuitdisc.discovery.head_ablation import head_ablation
from circuitdisc.discovery.ranking import edge_ranking, proposed
from circuitdisc.discovery.rules import KeepRule, auto_threshold
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadRun, BadSetting
from circuitdisc.metrics import METRICS


@pytest.mark.parametrize("family", ["attention_only", "rms_rotary_grouped", "parallel"])
@settings(max_examples=settings().max_examples // 12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["zero", "mean", "resample"]),
    metric=st.sampled_from(["logit_diff", "log_prob", "kl"]),
    keep=st.sampled_from([None, 0.5, 0.9, 0.99]),
    order=st.sampled_from(["descending", "attribution"]),
    prune_first=st.sampled_from([None, 5, 20]),
    speculation=st.sampled_from([None, 3]),
)
def test_same_decisions_as_the_sequential_walk(family, seed, kind, metric, keep, order, prune_first, speculation):
    model, ablation = model_of(family), Ablation(kind)
    task, context = random_task(model, n=3, seed=seed), SearchContext(metric=metric, seed=seed)
    rule = {"keep": keep, "threshold": 0.01, "order": order}
    scores, _ = edge_ranking("eap_ig", model, task, ablation, context)
    start = None if prune_first is None else proposed(model.graph, scores, prune_first)
    if keep is not None and start is not None:
        chunks = Patching(model, ablation, task.train).hold(task.train)
        edges = (model.graph.edge_mask.copy(), np.zeros_like(start), start)
        full, empty, begun = (masked_metric(model, chunks, mask, METRICS[metric]) for mask in edges)
        if not keep <= (begun - empty) / (full - empty) <= 2 - keep:  # what is promised cannot be had
            with pytest.raises(BadSetting, match="before anything is cut"):
                acdc(model, task, ablation, context, **rule, prune_first=prune_first, speculation=speculation)
            return
    discovery = acdc(model, task, ablation, context, **rule, prune_first=prune_first, speculation=speculation)
    mask, decisions = sequential_acdc(model, task, ablation, metric, **rule, start=start, scores=scores)
    assert decided(discovery) == decisions
    assert discovery.circuit == Circuit(model.graph, mask).prune()


@pytest.mark.parametrize("algorithm", [acdc, pytest.param(bisect, marks=pytest.mark.long)])
def test_the_circuit_keeps_its_share_on_the_examples_it_was_searched_on(lightweight, algorithm):
    task = cd.load_task("tpp", lightweight, n=12, n_heldout=3)
    discovery = algorithm(lightweight, task, Ablation("mean"), SearchContext(), keep=0.9)
    patching = Patching(lightweight, Ablation("mean"), task.train)
    chunks, metric = patching.hold(task.train), METRICS["logit_diff"]
    full, empty, _ = patching.ends(chunks, metric, lightweight.graph.edge_mask)
    share = (patching.measure(chunks, discovery.circuit.mask, metric) - empty) / (full - empty)
    assert 0.9 - 1e-4 <= share <= 1.1 + 1e-4
    assert discovery.circuit.n_edges < lightweight.graph.n_edges / 2
    assert "keep=0.9" in discovery.notes[0]


def test_heads_go_while_the_share_is_kept():
    """One head after the other, each against a head circuit run by itself; the empty circuit has every head cut."""
    model = model_of("rms_rotary_grouped")
    task = random_task(model, n=3)
    discovery = head_ablation(model, task, Ablation("mean"), SearchContext(), keep=0.8)
    chunks = Patching(model, Ablation("mean"), task.train).hold(task.train)

    def value(heads):
        return masked_metric(model, chunks, Circuit.from_heads(model.graph, heads).mask, METRICS["logit_diff"])

    full, empty = value(model.graph.heads), value([])
    kept = list(model.graph.heads)
    for head in model.graph.heads:
        fewer = [one for one in kept if one != head]
        if 0.8 <= (value(fewer) - empty) / (full - empty) <= 1.2:
            kept = fewer
    assert list(discovery.circuit.heads()) == kept


def test_auto_is_the_size_that_carries_the_effects():
    rng = np.random.default_rng(0)
    scores = np.where(rng.random((40, 30)) < 0.8, rng.standard_t(2, (40, 30)), np.nan)
    threshold = auto_threshold(scores)
    squares = scores[np.isfinite(scores)] ** 2
    assert squares[squares >= threshold**2].sum() >= 0.999 * squares.sum()
    assert squares[squares > threshold**2].sum() < 0.999 * squares.sum()


@pytest.mark.parametrize("algorithm", [acdc, bisect])
def test_auto_is_the_same_as_its_number(algorithm):
    model = model_of("attention_only")
    task, ablation, context = random_task(model, n=3), Ablation("mean"), SearchContext()
    scores, _ = edge_ranking("eap_ig", model, task, ablation, context)
    auto = algorithm(model, task, ablation, SearchContext(), threshold="auto")
    number = algorithm(model, task, ablation, SearchContext(), threshold=auto_threshold(scores))
    assert auto.circuit == number.circuit
    assert f"threshold=auto came to {auto_threshold(scores):.3g}" in auto.notes[0]


def test_what_was_never_tried_is_said(lightweight):
    task = cd.load_task("tpp", lightweight, n=6, n_heldout=3)
    discovery = cd.discover(lightweight, task, "acdc", ablation="mean", threshold=0.5, prune_first=100)
    (note,) = [note for note in discovery.circuit.provenance.notes if "never tried" in note]
    n = len(decided(discovery)) + sum(line["edges"] for line in discovery.trace if "dead" in line)
    assert note.startswith(f"eap_ig proposed {n:,} of the 1,519 edges")
    assert f"the other {1519 - n:,} were cut" in note
    assert discovery.edge_scores is None


def test_bisect_tries_what_was_proposed():
    model = model_of("rms_rotary_grouped")
    task, ablation, context = random_task(model, n=3), Ablation("mean"), SearchContext()
    scores, _ = edge_ranking("eap_ig", model, task, ablation, context)
    start = proposed(model.graph, scores, 40)
    discovery = bisect(model, task, ablation, context, threshold=0.001, prune_first=40)
    assert discovery.circuit.n_edges > 0
    assert not (discovery.circuit.mask & ~start).any()
    assert any(f"proposed {start.sum()} of the" in note for note in discovery.notes)


@pytest.mark.parametrize("share", [0.0, 0.4, 0.9])
def test_resumes_to_the_same_circuit_and_journal(tmp_path, share, open_journal):
    model = model_of("bidirectional")
    task, given_ = random_task(model), {"keep": 0.5, "prune_first": 90, "order": "attribution"}
    first = acdc(model, task, Ablation("mean"), SearchContext(journal=open_journal(tmp_path / "a.jsonl")), **given_)
    text = (tmp_path / "a.jsonl").read_text()
    (tmp_path / "b.jsonl").write_text(text[: int(len(text) * share)])
    again = acdc(model, task, Ablation("mean"), SearchContext(journal=open_journal(tmp_path / "b.jsonl")), **given_)
    assert again.circuit == first.circuit
    assert (tmp_path / "b.jsonl").read_text() == text


def test_another_ranking_is_not_gone_on_with(tmp_path, open_journal):
    model = model_of("bidirectional")
    task, given_ = random_task(model), {"prune_first": 30, "ranking": "random"}
    acdc(model, task, Ablation("mean"), SearchContext(journal=open_journal(tmp_path / "a.jsonl"), seed=1), **given_)
    context = SearchContext(journal=open_journal(tmp_path / "a.jsonl"), seed=2)
    with pytest.raises(BadRun, match="another order"):
        acdc(model, task, Ablation("mean"), context, **given_)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"keep": 1.0}, "keep=1.0 must be a number above 0 and below 1"),
        ({"keep": "most"}, "keep='most' is not a number"),
        ({"threshold": "automatic"}, "is not a number: it must be a number from 0 to 1,000,000,000, or auto"),
        ({"threshold": "auto", "relative": True}, "use relative=false"),
        ({"threshold": "auto", "ranking": "random"}, "random scores estimate no effect"),
        ({"keep": 0.99, "prune_first": 1}, "before anything is cut: raise prune_first"),
        ({"prune_first": 0}, "prune_first=0 must be a whole number from 1"),
        ({"order": "scores"}, "order"),
    ],
)
def test_bad_settings_get_a_sentence(setting, words):
    model = model_of("attention_only")
    with pytest.raises(cd.CircuitdiscError, match=words):
        acdc(model, random_task(model, n=3), Ablation("mean"), SearchContext(), **setting)


def test_nothing_to_keep_a_share_of():
    with pytest.raises(BadSetting, match="nothing to keep a share of"):
        KeepRule(0.9, 1.0, 1.0)
