"""`exact` is the literal change for every edge; `bisect` returns what its docstring promises."""

import json

import numpy as np
import pytest
from examples import random_task
from hypothesis import given, settings
from hypothesis import strategies as st
from models import model_of
from reference import masked_metric

import circuitdisc as cd
from circuitdisc.ablation import Ablation
from circuitdisc.cli import main
from circuitdisc.discovery.base import SearchContext
from circuitdisc.discovery.bisect import bisect
from circuitdisc.discovery.exact import exact
from circuitdisc.discovery.rules import Rule
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadRun, BadSetting
from circuitdisc.files import read_arrays
from circuitdisc.jobs.pipeline import export
from circuitdisc.known.compiled import build
from circuitdisc.metrics import METRICS
from circuitdisc.scoring.against_truth import against_truth
from circuitdisc.scoring.truth import Truth


def held(model, task, kind):
    return Patching(model, Ablation(kind), task.train).hold(task.train)


@pytest.mark.parametrize(
    "family", ["gpt2", "llama", "gemma2", "gemma3_text", "olmo2", "falcon_alibi", "parallel", "bidirectional", "attention_only"]
)
@pytest.mark.parametrize(("kind", "metric"), [("zero", "kl"), ("mean", "logit_diff"), ("resample", "log_prob")])
def test_exact_scores_are_the_change_of_the_masked_run(family, kind, metric):
    model = model_of(family)
    task, generator = random_task(model, n=4), np.random.default_rng(0)
    found = exact(model, task, Ablation(kind), SearchContext(metric=metric, memory="200MB"))
    scores, graph, chunks = found.edge_scores, model.graph, held(model, task, kind)
    assert scores is not None
    assert (np.isfinite(scores) == graph.edge_mask).all()
    full = masked_metric(model, chunks, graph.edge_mask, METRICS[metric])
    for receiver, sender in generator.permutation(np.argwhere(graph.edge_mask))[:25]:
        mask = graph.edge_mask.copy()
        mask[receiver, sender] = False
        assert scores[receiver, sender] == pytest.approx(masked_metric(model, chunks, mask, METRICS[metric]) - full, abs=1e-9)


def test_exact_resumes_to_the_same_scores(tmp_path, open_journal):
    model = model_of("no_norm")
    task = random_task(model)
    whole = exact(model, task, Ablation("mean"), SearchContext(journal=open_journal(tmp_path / "a.jsonl")))
    text = (tmp_path / "a.jsonl").read_text()
    (tmp_path / "b.jsonl").write_text(text[: len(text) // 2])
    again = exact(model, task, Ablation("mean"), SearchContext(journal=open_journal(tmp_path / "b.jsonl")))
    np.testing.assert_array_equal(whole.edge_scores, again.edge_scores)
    assert (tmp_path / "b.jsonl").read_text() == text


@pytest.mark.parametrize("family", ["attention_only", "bidirectional", "rms_rotary_grouped"])
@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["zero", "mean", "resample"]),
    metric=st.sampled_from(["logit_diff", "log_prob", "kl"]),
    threshold=st.sampled_from([0.003, 0.03, 0.3]),
    two_sided=st.booleans(),
    ranking=st.sampled_from(["eap_ig", "random", "exact"]),
)
def test_bisect_keeps_its_promises(family, seed, kind, metric, threshold, two_sided, ranking):
    """Against whole-model runs: edge by edge minimal, and within the bound of the accepted tests."""
    model = model_of(family)
    task = random_task(model, n=3, seed=seed)
    context = SearchContext(metric=metric, seed=seed)
    found = bisect(model, task, Ablation(kind), context, threshold=threshold, two_sided=two_sided, ranking=ranking)
    chunks = held(model, task, kind)

    def measure(mask):
        return masked_metric(model, chunks, mask, METRICS[metric])

    value = measure(found.circuit.mask)
    for receiver, sender in np.argwhere(found.circuit.mask):
        mask = found.circuit.mask.copy()
        mask[receiver, sender] = False
        assert not Rule(threshold - 1e-12, False, two_sided).passes(value, measure(mask))
    accepted = sum(line.get("kept") is False for line in found.trace)
    fall = measure(model.graph.edge_mask) - value
    assert (abs(fall) if two_sided else fall) <= threshold * accepted + 1e-9


def test_bisect_needs_few_runs_for_a_small_circuit(lightweight):
    """About k log2(N / k) tests of groups: far fewer than edges."""
    task = cd.load_task("tpp", lightweight, n=28, n_heldout=3)
    found = cd.discover(lightweight, task, "bisect", ablation="mean", threshold=0.5)
    n, k = lightweight.graph.n_edges, found.circuit.n_edges
    tests = sum("group" in line for line in found.trace)
    assert 5 < k < n / 20
    assert tests < 2 * k * np.log2(n / k)


@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_bisect_resumes_to_the_same_circuit_and_journal(tmp_path, share, open_journal):
    model = model_of("bidirectional")
    task = random_task(model)
    first = bisect(model, task, Ablation("mean"), SearchContext(journal=open_journal(tmp_path / "a.jsonl")), threshold=0.003)
    text = (tmp_path / "a.jsonl").read_text()
    (tmp_path / "b.jsonl").write_text(text[: int(len(text) * share)])
    again = bisect(model, task, Ablation("mean"), SearchContext(journal=open_journal(tmp_path / "b.jsonl")), threshold=0.003)
    assert again.circuit == first.circuit
    assert (tmp_path / "b.jsonl").read_text() == text


def test_bisect_refuses_to_go_on_with_another_ranking(tmp_path, open_journal):
    model = model_of("bidirectional")
    task = random_task(model)
    journal = open_journal(tmp_path / "a.jsonl")
    bisect(model, task, Ablation("mean"), SearchContext(journal=journal, seed=1), threshold=0.01, ranking="random")
    context = SearchContext(journal=open_journal(tmp_path / "a.jsonl"), seed=2)
    with pytest.raises(BadRun, match="another order"):
        bisect(model, task, Ablation("mean"), context, threshold=0.01, ranking="random")


def test_bisect_says_why_there_is_no_ranking():
    model = model_of("attention_only")
    with pytest.raises(BadSetting, match="ranking=exact"):
        bisect(model, random_task(model), Ablation("zero"), SearchContext(metric="accuracy"))


# --- what ordered the tests is not the result ----------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["induction", "histogram", "sort"])
@pytest.mark.parametrize("ranking", ["eap_ig", "random"])
def test_bisect_is_judged_by_its_circuit_against_the_truth(program, ranking):
    """In compiled models it finds the true circuit whatever the ranking; half of these rankings put wrong edges first."""
    case = build(program, distractors=2, n=32, n_heldout=8)
    found = cd.discover(case.model, case.task, "bisect", ablation="resample", threshold=1e-4, ranking=ranking)
    true = case.truth.edges("resample")
    assert set(found.circuit.edge_names()) == set(true)
    truth = Truth(case.model.graph, {"resample": tuple(true)}, program)
    judged = against_truth(found, truth)
    assert not judged.scored
    assert (judged.edges.precision, judged.edges.recall, judged.edges.auroc) == (1.0, 1.0, 1.0)
    assert judged.to_dict() == against_truth(found.circuit, truth).to_dict()
    assert found.ranking is not None
    by_ranking = against_truth(found.ranking, truth, ablation="resample").edges.precision
    assert by_ranking != 1 or ranking != "random", "what judging by the ranking would say"


def test_no_other_size_is_chosen_from_what_ordered_the_tests():
    model = model_of("no_norm")
    task = random_task(model)
    found = cd.discover(model, task, "bisect", ablation="mean", threshold=0.01, allow_chance=True)
    assert found.edge_scores is None
    assert found.ranking is not None
    for choose in (found.top_k, found.greedy, lambda n: cd.curve(model, task, found, shares=(n / 100, 1.0))):
        with pytest.raises(BadSetting, match="its scores are only their order"):
            choose(5)


def test_a_run_keeps_the_ranking_apart_from_scores(tmp_path):
    """Its page and its export are those of a circuit without scores."""
    run, exported = tmp_path / "run", tmp_path / "graph.json"
    toy = ["model=toys/induction", "task=induction", "task.n=8", "task.n_heldout=8", "scoring.n_random=1", "progress=false"]
    assert main(["discover", *toy, "algorithm=bisect", "algorithm.threshold=0.5", f"out={run}"]) == 0
    assert set(read_arrays(run / "edge_scores.npz")) == {"ranking", "identity"}
    page = (run / "report.html").read_text()
    assert "in the graph's order" in page or "in the graph&#39;s order" in page
    assert "largest |score| first" not in page
    export(run, exported)
    edges = json.loads(exported.read_text())["edges"]
    assert {abs(edge["score"]) for edge in edges.values()} == {0.0, 1.0}
    assert all((edge["score"] != 0) == edge["in_graph"] for edge in edges.values())
