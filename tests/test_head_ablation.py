"""Head ablation decides as the literal loop over plain runs does."""

import math

import numpy as np
import pytest
from examples import random_examples, random_task
from hypothesis import given, settings
from hypothesis import strategies as st
from models import model_of, shared
from plain_heads import KINDS, Truth, kinds, random_heads, targets

from circuitdisc.ablation import Ablation
from circuitdisc.discovery.base import SearchContext
from circuitdisc.discovery.head_ablation import head_ablation
from circuitdisc.engine.head_removal import HeadRemoval
from circuitdisc.engine.head_run import head_circuit
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadSetting, UnknownName
from circuitdisc.metrics import METRICS
from circuitdisc.runs import Journal
from circuitdisc.tasks.base import Task


@targets
@kinds
@pytest.mark.parametrize("family", ["gpt2", "gemma2", "cohere2"])
def test_heads_ablated_and_restored_in_any_order(family, kind, target):
    model = shared(family)
    task = Task("random", (), tuple(random_examples(model, 4)))
    ablation = Ablation(kind, target=target)
    patching = Patching(model, ablation, task.heldout, memory="400kB" if target == "output" else "4GiB")
    truth = Truth(model, ablation, task.heldout, task.heldout)
    kept = random_heads(model, 3, 0.8)
    removal = HeadRemoval(patching, patching_chunks(patching, task.heldout), METRICS["logit_diff"], kept)
    assert removal.value == pytest.approx(truth.metric(kept, "logit_diff"), abs=1e-9)
    generator = np.random.default_rng(0)
    for _ in range(6):
        layer, head = int(generator.integers(model.graph.n_layers)), int(generator.integers(model.graph.n_heads))
        without = kept.copy()
        without[layer, head] = False
        assert removal.try_ablating(layer, head) == pytest.approx(truth.metric(without, "logit_diff"), abs=1e-9)
        kept[layer, head] = bool(generator.integers(2))
        value = removal.set_head(layer, head, keep=bool(kept[layer, head]))
        assert value == removal.value == pytest.approx(truth.metric(kept, "logit_diff"), abs=1e-9)
        assert (removal.kept == kept).all()


def patching_chunks(patching, examples):
    """All chunks, however small the budget makes them."""
    return list(patching.chunks(examples))


def literal_head_ablation(model, task, ablation, metric, threshold, relative, layers, n_verify=0, two_sided=True):
    """The four steps, with a run of everything for every question. Returns kept heads and (head, kept) decisions."""
    n_search = len(task.train) - n_verify
    search = Truth(model, ablation, task.train[:n_search], task.train)
    verify = Truth(model, ablation, task.train[n_search:], task.train) if n_verify else None
    kept = np.ones((model.graph.n_layers, model.graph.n_heads), dtype=bool)
    decisions = []

    def changes_too_much(baseline, value):
        change = abs(baseline - value) if two_sided else baseline - value
        return change >= (threshold * abs(baseline) if relative else threshold)

    for layer in layers:
        before = kept.copy()
        baseline = search.metric(kept, metric)
        for head in range(model.graph.n_heads):
            kept[layer, head] = False
            value = search.metric(kept, metric)
            keep = changes_too_much(baseline, value)
            kept[layer, head] = keep
            decisions.append((f"a{layer}.h{head}", keep, value))
        if verify is None:
            continue
        second_baseline = verify.metric(before, metric)
        while changes_too_much(second_baseline, verify.metric(kept, metric)) and not kept[layer].all():
            values = {}
            for head in range(model.graph.n_heads):
                if not kept[layer, head]:
                    kept[layer, head] = True
                    values[head] = verify.metric(kept, metric)
                    kept[layer, head] = False
            best = min(values, key=lambda head: abs(values[head] - second_baseline) if two_sided else -values[head])
            kept[layer, best] = True
            decisions.append((f"a{layer}.h{best}", True, values[best]))
    return kept, decisions


def check_against_the_literal_loop(model, task, ablation, metric="logit_diff", seed=0, n_verify=0, **rule):
    n_layers = model.graph.n_layers
    layers = {
        "ascending": range(n_layers),
        "descending": range(n_layers - 1, -1, -1),
        "random": np.random.default_rng(seed).permutation(n_layers).tolist(),
    }[rule.get("order", "ascending")]
    found = head_ablation(model, task, ablation, SearchContext(metric=metric, seed=seed), **rule)
    threshold, relative, sides = rule["threshold"], rule["relative"], rule.get("two_sided", True)
    kept, decisions = literal_head_ablation(model, task, ablation, metric, threshold, relative, layers, n_verify, sides)
    assert [(line["head"], line["kept"]) for line in found.trace] == [one[:2] for one in decisions]
    assert [line["metric"] for line in found.trace] == pytest.approx([one[2] for one in decisions], abs=1e-9)
    assert found.circuit == head_circuit(model.graph, kept)
    assert found.circuit.granularity == "head"
    return found


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gemma3_text", "falcon_alibi", "attention_only"])
@settings(max_examples=5, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(KINDS),
    metric=st.sampled_from(["logit_diff", "log_prob", "prob_diff"]),
    rule=st.sampled_from([(0.002, False), (0.02, False), (0.03, True), (0.3, True)]),
    order=st.sampled_from(["ascending", "descending", "random"]),
    two_sided=st.booleans(),
)
def test_same_decisions_as_the_literal_loop(family, seed, kind, metric, rule, order, two_sided):
    model = shared(family)
    task = random_task(model, n=3, seed=seed)
    rules = {"threshold": rule[0], "relative": rule[1], "order": order, "two_sided": two_sided}
    check_against_the_literal_loop(model, task, Ablation(kind), metric, seed % 7, **rules)


@pytest.mark.parametrize("order", ["ascending", "descending", "random"])
@pytest.mark.parametrize("relative", [False, True])
def test_same_decisions_with_verification(relative, order):
    """Over several tasks at least one head is restored, or the test would say nothing about step 4."""
    model, restored = shared("attention_only" if relative else "gpt2"), 0
    for seed in range(2):
        task = random_task(model, n=5, seed=seed)
        rule = {"threshold": 0.2 if relative else 0.005, "relative": relative, "order": order, "verify": 0.4}
        rule["two_sided"] = order == "random"
        found = check_against_the_literal_loop(model, task, Ablation("mean"), seed=seed, n_verify=2, **rule)
        restored += sum("restored" in line for line in found.trace)
    assert restored


@kinds
def test_same_decisions_when_patterns_are_cut(kind):
    model = shared("llama")
    for seed in range(2):
        task = random_task(model, n=4, seed=seed)
        ablation = Ablation(kind, target="pattern")
        check_against_the_literal_loop(model, task, ablation, threshold=0.05, relative=True, verify=0.5, n_verify=2)


def test_a_search_that_was_killed_resumes_to_the_same_heads(tmp_path):
    model = shared("gpt2")
    task = random_task(model, n=5)
    rule = {"threshold": 0.2, "verify": 0.4, "order": "random"}

    def run(path):
        journal = Journal(path)
        found = head_ablation(model, task, Ablation("mean"), SearchContext(seed=1, journal=journal), **rule)
        journal.close()
        return found.circuit, path.read_text()

    circuit, text = run(tmp_path / "whole.jsonl")
    for cut_at in range(0, len(text), 151):
        (tmp_path / "killed.jsonl").write_text(text[:cut_at])
        assert run(tmp_path / "killed.jsonl") == (circuit, text)


def test_hook_based_models_decide_the_same():
    fast, slow = shared("gpt2"), model_of("gpt2", components="hooks")
    task = random_task(fast, n=3)
    found = [head_ablation(model, task, Ablation("mean"), SearchContext(), threshold=0.1) for model in (fast, slow)]
    assert found[0].circuit == found[1].circuit
    with pytest.raises(BadSetting, match=r"fast components.*target=output"):
        head_ablation(slow, task, Ablation("zero", target="pattern"), SearchContext())


@pytest.mark.parametrize(
    "rule",
    [{"threshold": -0.1}, {"threshold": math.nan}, {"threshold": "x"}, {"verify": 1.0}, {"verify": -1}, {"verify": 0.01}],
)
def test_settings_out_of_bounds_are_refused(rule):
    model = shared("attention_only")
    with pytest.raises(BadSetting, match=f"{next(iter(rule))}="):
        head_ablation(model, random_task(model), Ablation("zero"), SearchContext(), **rule)


def test_an_unknown_order_is_refused_with_the_nearest():
    model = shared("attention_only")
    with pytest.raises(UnknownName, match="Did you mean ascending"):
        head_ablation(model, random_task(model), Ablation("zero"), SearchContext(), order="ascend")
