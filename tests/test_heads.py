"""Head circuits: the fast run, cut patterns and head ablation against one plain run for each prompt and each head."""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from examples import random_examples, random_task
from hypothesis import given, settings
from hypothesis import strategies as st
from models import model_of
from reference import norm, rotate, run_mlp

from circuitdisc.ablation import Ablation
from circuitdisc.circuit import Circuit, kept_heads
from circuitdisc.discovery.base import SearchContext
from circuitdisc.discovery.head_ablation import head_ablation
from circuitdisc.engine.head_removal import HeadRemoval
from circuitdisc.engine.head_run import head_circuit, head_logits
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadSetting, BadTask, UnknownName
from circuitdisc.metrics import METRICS
from circuitdisc.models import Model
from circuitdisc.runs import Journal
from circuitdisc.tasks.base import Example, Task, collate

FAMILIES = ["gpt2", "llama", "gpt_neox", "gemma2", "attention_only"]
KINDS = ["zero", "mean", "resample"]
families = pytest.mark.parametrize("family", FAMILIES)
kinds = pytest.mark.parametrize("kind", KINDS)
targets = pytest.mark.parametrize("target", ["output", "pattern"])


@cache
def shared(family: str) -> Model:
    return model_of(family)


def random_heads(model, seed, share=0.5):
    shape = (model.graph.n_layers, model.graph.n_heads)
    return np.random.default_rng(seed).random(shape) < share


# --- the truth: one prompt at a time, one head after the other -----------------------------------------------------------


@dataclass
class PlainRun:
    """One prompt: logits [T, V]; what every head wrote [T, D] and attended to [T, T], by (layer, head)."""

    logits: torch.Tensor
    outputs: dict
    patterns: dict
    scales: dict


@cache
def in_reach(length, window):
    """True where query i may attend to key j. [T, T]"""
    return torch.tensor([[j <= i and (window is None or i - j < window) for j in range(length)] for i in range(length)])


def plain_run(model, tokens, outputs=None, patterns=None, scales=None):
    """Run a prompt, some heads' outputs or attention patterns replaced.

    Args:
        scales: of the norm after attention, by layer, held where heads are cut; None computes them.
    """
    cut, outputs, patterns = model.components, outputs or {}, patterns or {}
    spec, weights = cut.spec, cut.weights
    positions, length = torch.arange(len(tokens)), len(tokens)
    x = weights.W_E[torch.tensor(tokens)] * spec.embed_scale
    if weights.W_pos is not None:
        x = x + weights.W_pos[positions]
    run = PlainRun(x, {}, {}, {})
    for layer, block in enumerate(weights.layers):
        normed = norm(spec, x, block.norm_attention)
        for head in range(spec.n_heads):
            group = head // (spec.n_heads // spec.n_kv_heads)
            q, k, v = normed @ block.W_Q[head], normed @ block.W_K[group], normed @ block.W_V[group]
            if block.b_Q is not None and block.b_K is not None and block.b_V is not None:
                q, k, v = q + block.b_Q[head], k + block.b_K[group], v + block.b_V[group]
            if weights.inverse_frequencies is not None:
                q, k = (rotate(y[None], positions[None], weights.inverse_frequencies)[0] for y in (q, k))
            scores = q @ k.T * spec.attn_scale[layer]
            if spec.score_softcap:
                scores = spec.score_softcap * (scores / spec.score_softcap).tanh()
            window = spec.window[layer] if spec.window else None
            scores = torch.where(in_reach(length, window), scores, -math.inf)
            pattern = patterns.get((layer, head), scores.softmax(-1))
            run.patterns[layer, head] = pattern
            run.outputs[layer, head] = pattern @ v @ block.W_O[head]
        if block.norm_after_attention is not None:
            total = torch.stack([run.outputs[layer, head] for head in range(spec.n_heads)]).sum(0)
            run.scales[layer] = 1 / (total.pow(2).mean(-1, keepdim=True) + spec.eps).sqrt() if scales is None else scales[layer]
            for head in range(spec.n_heads):
                run.outputs[layer, head] = run.outputs[layer, head] * run.scales[layer] * block.norm_after_attention.scale
        after = x if block.b_O is None else x + block.b_O
        for head in range(spec.n_heads):
            run.outputs[layer, head] = outputs.get((layer, head), run.outputs[layer, head])
            after = after + run.outputs[layer, head]
        if model.graph.has_mlp:
            after = after + run_mlp(spec, block, x if spec.parallel else after)
        x = after
    logits = norm(spec, x, weights.norm_final) @ weights.W_U
    logits = logits if weights.b_U is None else logits + weights.b_U
    run.logits = logits if not spec.logit_softcap else spec.logit_softcap * (logits / spec.logit_softcap).tanh()
    return run


class Truth:
    """Logits of head circuits on some examples, every run from scratch.

    Args:
        reference: the examples that `mean` averages over.
    """

    def __init__(self, model, ablation, examples, reference):
        self.model, self.ablation, self.examples = model, ablation, examples
        self.clean = [plain_run(model, example.clean) for example in examples]
        self.reference = [plain_run(model, example.clean) for example in reference] if ablation.kind == "mean" else []
        self.cut = [self._cut(index, reference) for index in range(len(examples))]

    def _cut(self, index, reference):
        """What every head of this example carries, or attends to, when cut."""
        model, ablation, example = self.model, self.ablation, self.examples[index]
        which = "outputs" if ablation.target == "output" else "patterns"
        if ablation.kind == "zero":
            own = getattr(self.clean[index], which)
            return {key: torch.zeros_like(value) for key, value in own.items()}
        if ablation.kind == "resample":
            return getattr(plain_run(model, example.corrupted), which)
        runs = [
            getattr(run, which)
            for run, other in zip(self.reference, reference, strict=True)
            if ablation.scope != "group" or other.group == example.group
        ]
        return {key: self._mean([run[key] for run in runs], len(example.clean)) for key in runs[0]}

    def _mean(self, rows, length):
        """Mean at each position over the prompts that reach it; a pattern's rows are as wide as this prompt."""
        width = rows[0].shape[-1] if self.ablation.target == "output" else length
        found = torch.zeros(length, width, dtype=torch.float64)
        for position in range(length):
            reaching = [row[position] for row in rows if len(row) > position]
            for row in reaching:
                found[position, : min(width, len(row))] += row[:width] / len(reaching)
        return found

    def logits(self, kept):
        """Logits [V] at every reading when only these heads are kept."""
        found = []
        for example, clean, cut in zip(self.examples, self.clean, self.cut, strict=True):
            dropped = {key: value for key, value in cut.items() if not kept[key]}
            replaced = {"outputs" if self.ablation.target == "output" else "patterns": dropped}
            run = plain_run(self.model, example.clean, **replaced, scales=clean.scales)
            found += [run.logits[position] for position in example.positions]
        return torch.stack(found)

    def metric(self, kept, name):
        """Mean over examples of the mean over an example's readings."""
        batch = collate(self.examples)
        return float(batch.per_example(METRICS[name](self.logits(kept), batch.labels)).mean())


# --- one run of a head circuit -------------------------------------------------------------------------------------------


@families
@kinds
@pytest.mark.parametrize("side", ["right", "left"])
def test_head_runs_equal_the_edge_runs(family, kind, side):
    """Whole heads replaced in one residual stream give the logits of `Circuit.from_heads`, run edge by edge."""
    model = shared(family)
    task = random_task(model)
    patching = Patching(model, Ablation(kind), task.train, padding_side=side)
    (chunk,) = patching.hold(task.heldout)
    for seed, share in enumerate([0.0, 0.5, 1.0]):
        kept = random_heads(model, seed, share)
        logits, seen = head_logits(model.components, model.graph, chunk, kept)
        circuit = Circuit.from_heads(model.graph, [f"a{layer}.h{head}" for layer, head in np.argwhere(kept)])
        torch.testing.assert_close(logits, patching.circuit_logits(chunk, circuit.mask), atol=1e-9, rtol=0)
        for layer in range(model.graph.n_layers):  # from any layer on, nothing changes
            again, rest = head_logits(model.components, model.graph, chunk, kept, "output", layer, seen[layer])
            assert torch.equal(again, logits)
            assert len(rest) == model.graph.n_layers - layer


@pytest.mark.parametrize("family", ["gpt2", "attention_only"])
def test_head_runs_equal_the_edge_runs_with_embeddings_apart(family):
    model = model_of(family, split_embeddings=True)
    task = random_task(model)
    patching = Patching(model, Ablation("mean"), task.train)
    (chunk,) = patching.hold(task.heldout)
    kept = random_heads(model, 1)
    logits, _ = head_logits(model.components, model.graph, chunk, kept)
    torch.testing.assert_close(logits, patching.circuit_logits(chunk, head_circuit(model.graph, kept).mask), atol=1e-9, rtol=0)


@families
@targets
@pytest.mark.parametrize(
    "ablation", [Ablation("zero"), Ablation("mean"), Ablation("mean", "position"), Ablation("resample")], ids=lambda a: a.label
)
def test_head_circuits_equal_the_plain_runs(family, target, ablation):
    """Through `circuit_logits`, with the averages of the train split, on held-out prompts."""
    model = shared(family)
    task = same_lengths(random_task(model, n=4))
    ablation = Ablation(ablation.kind, ablation.scope, target=target)
    patching = Patching(model, ablation, task.train)
    (chunk,) = patching.hold(task.heldout)
    truth = Truth(model, ablation, task.heldout, task.train)
    for seed, share in enumerate([0.0, 0.5, 1.0]):
        kept = random_heads(model, seed, share)
        logits = patching.circuit_logits(chunk, head_circuit(model.graph, kept).mask)
        torch.testing.assert_close(logits, truth.logits(kept), atol=1e-9, rtol=0)


def same_lengths(task):
    """Held-out prompts as long as train prompts of their group, so that no position is without an average."""
    lengths = {group: max(len(e.clean) for e in task.train if e.group == group) for group in "ab"}
    kept = tuple(example for example in task.heldout if len(example.clean) <= lengths[example.group])
    assert len({len(example.clean) for example in kept}) > 1
    return Task(task.name, task.train, kept)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@kinds
def test_cut_patterns_do_not_depend_on_the_side_of_the_padding(family, kind):
    model = shared(family)
    task = same_lengths(random_task(model))
    runs = []
    for side in ("right", "left"):
        patching = Patching(model, Ablation(kind, target="pattern"), task.train, padding_side=side)
        (chunk,) = patching.hold(task.heldout)
        runs.append(patching.circuit_logits(chunk, head_circuit(model.graph, random_heads(model, 1)).mask))
    torch.testing.assert_close(runs[0], runs[1], atol=1e-9, rtol=0)


@targets
@kinds
def test_head_circuits_do_not_depend_on_the_memory_budget(kind, target):
    model = shared("gpt2")
    task = same_lengths(random_task(model))
    mask = head_circuit(model.graph, random_heads(model, 1)).mask
    found = []
    for memory in ("4GiB", "200kB"):
        patching = Patching(model, Ablation(kind, target=target), task.train, memory=memory)
        found.append(patching.evaluate(task.heldout, {"c": mask}, [METRICS["logit_diff"]])["c"]["logit_diff"])
    torch.testing.assert_close(found[0], found[1], atol=1e-12, rtol=0)


def test_an_edge_circuit_has_no_pattern_to_cut():
    model = shared("gpt2")
    task = random_task(model)
    patching = Patching(model, Ablation("zero", target="pattern"), task.train)
    (chunk,) = patching.hold(task.train)
    mask = model.graph.edge_mask.copy()
    mask[-1, 1] = False
    with pytest.raises(BadSetting, match="head circuits"):
        patching.circuit_logits(chunk, mask)


def test_a_pattern_that_was_never_averaged_is_refused():
    model = shared("gpt2")
    task = random_task(model)
    with pytest.raises(BadSetting, match=r"no average over positions.*scope=group"):
        Patching(model, Ablation("mean", "dataset", target="pattern"), task.train)
    patching = Patching(model, Ablation("mean", target="pattern"), task.train)
    long = Example((1,) * 20, None, (19,), ((1,),), ((2,),))
    with pytest.raises(BadTask, match="20 tokens is longer than any"):
        list(patching.chunks([long]))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1))
def test_kept_heads_is_the_inverse_of_head_circuit(seed, share):
    model = shared("gpt2")
    kept = random_heads(model, seed, share)
    circuit = head_circuit(model.graph, kept)
    assert circuit.heads() == [f"a{layer}.h{head}" for layer, head in np.argwhere(kept)]
    assert (kept_heads(model.graph, circuit.mask) == kept).all()


# --- heads ablated one after the other -----------------------------------------------------------------------------------


@targets
@kinds
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
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


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "attention_only"])
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
