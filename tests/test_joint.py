"""Joint searches decide as a literal loop over edges (heads) and checkpoints does, and as the plain search for one."""

from typing import Any

import numpy as np
import pytest
import torch
from examples import random_task
from models import model_of, toy
from reference import masked_metric

from circuitdisc.ablation import get_ablation
from circuitdisc.checkpoints.joint import joint_discover, share_of_memory
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.acdc import acdc
from circuitdisc.discovery.base import SearchContext
from circuitdisc.discovery.head_ablation import head_ablation
from circuitdisc.discovery.registry import get_algorithm
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadSetting, GraphMismatch, UnknownName
from circuitdisc.metrics import METRICS
from circuitdisc.models import cut_toy
from circuitdisc.runs import Journal

PLAIN = {"acdc": acdc, "head_ablation": head_ablation}


def checkpoint(seed, family="no_norm"):
    """A toy in float64; each seed has weights of its own."""
    return cut_toy(toy(family, seed).to(torch.float64), name=f"toy-{seed}")


def search(models, task, algorithm="acdc", ablation="resample", metric="logit_diff", journal=None, **settings):
    context = SearchContext(metric, seed=3, journal=journal or Journal())
    return joint_discover(models, task, algorithm, get_ablation(ablation), context, **settings)


def plain(model, task, algorithm="acdc", ablation="resample", metric="logit_diff", **settings):
    return PLAIN[algorithm](model, task, get_ablation(ablation), SearchContext(metric, seed=3), **settings)


def decided(found):
    return [(line.get("edge") or line["head"], line["kept"]) for line in found.trace if "dead" not in line]


class Loop:
    """The slow truth: the metric of every checkpoint, each by a run of the whole masked model."""

    def __init__(self, models, examples, means_of, ablation, metric):
        self.models, self.metric = models, METRICS[metric]
        self.chunks = []
        for model in models:
            patching = Patching(model, get_ablation(ablation), means_of)
            self.chunks.append(list(patching.chunks(examples)))

    def __call__(self, mask):
        pairs = zip(self.models, self.chunks, strict=True)
        return [masked_metric(model, chunks, mask, self.metric) for model, chunks in pairs]


def needed(before, after, threshold, relative, two_sided=True):
    """Whether some checkpoint's metric changes (falls, if not two-sided) by the threshold or more."""
    size = abs if two_sided else float
    return any(size(b - a) >= (threshold * abs(b) if relative else threshold) for b, a in zip(before, after, strict=True))


def loop_over_edges(models, task, ablation, metric, threshold, relative, order="descending", spared=None):
    graph = models[0].graph
    measure = Loop(models, task.train, task.train, ablation, metric)
    mask, decisions = graph.edge_mask.copy(), []
    current = measure(mask)
    for receiver in reversed(range(graph.n_receivers)):
        node = graph.receivers[receiver].node
        if node.kind != "logits" and not mask[:, graph.sender_index[node.name]].any():
            mask[receiver] = False
            continue
        senders = range(graph.n_upstream[receiver])
        for sender in senders if order == "ascending" else reversed(senders):
            if spared is not None and spared[receiver, sender]:
                continue
            mask[receiver, sender] = False
            new = measure(mask)
            keep = needed(current, new, threshold, relative, metric != "kl")
            mask[receiver, sender] = keep
            current = current if keep else new
            decisions.append((graph.edge_name(receiver, sender), keep))
    return mask, decisions


@pytest.mark.parametrize(
    ("ablation", "metric", "threshold", "relative", "order", "speculation"),
    [
        ("resample", "logit_diff", 0.05, False, "descending", None),
        ("mean", "kl", 0.01, False, "ascending", 3),
        ("zero", "log_prob", 0.02, True, "descending", 1),
    ],
)
def test_joint_acdc_decides_as_the_loop(ablation, metric, threshold, relative, order, speculation):
    models = [checkpoint(seed) for seed in (0, 1)]
    task = random_task(models[0], 4 if ablation == "mean" else 2)  # a mean over one example of a group is that example
    found = search(
        models, task, "acdc", ablation, metric, threshold=threshold, relative=relative, order=order, speculation=speculation
    )
    mask, decisions = loop_over_edges(models, task, ablation, metric, threshold, relative, order)
    assert decided(found) == decisions
    assert found.circuit == Circuit(models[0].graph, mask).prune()
    assert 0 < sum(kept for _, kept in decisions) < len(decisions)
    assert any(a != b for a, b in zip(decisions, decided(plain(models[0], task, "acdc", ablation, metric,
        threshold=threshold, relative=relative, order=order)), strict=False))  # fmt: skip  # the other checkpoints have a say


def loop_over_heads(models, task, ablation, threshold, relative, verify, spared=()):
    graph = models[0].graph
    n_verify = round(len(task.train) * verify)
    first, second = task.train[: len(task.train) - n_verify], task.train[len(task.train) - n_verify :]
    searched = Loop(models, first, task.train, ablation, "log_prob")
    verified = Loop(models, second, task.train, ablation, "log_prob") if second else None
    kept = [f"a{layer}.h{head}" for layer in range(graph.n_layers) for head in range(graph.n_heads)]

    def without(*heads):
        return Circuit.from_heads(graph, [head for head in kept if head not in heads]).mask

    for layer in range(graph.n_layers):
        start, removed = searched(without()), []
        baseline = verified(without()) if verified else []
        for head in [f"a{layer}.h{number}" for number in range(graph.n_heads)]:
            if head not in spared and not needed(start, searched(without(*removed, head)), threshold, relative):
                removed.append(head)
        while verified and removed and needed(baseline, verified(without(*removed)), threshold, relative):
            margins = []
            for head in removed:
                values = verified(without(*[other for other in removed if other != head]))
                allowed = [threshold * (abs(b) if relative else 1) for b in baseline]
                margins.append(min(a - abs(v - b) for v, b, a in zip(values, baseline, allowed, strict=True)))
            removed.pop(int(np.argmax(margins)))
        kept = [head for head in kept if head not in removed]
    return kept


@pytest.mark.parametrize(("threshold", "relative", "verify"), [(0.03, True, 0.0), (0.1, False, 0.0), (0.05, True, 0.5)])
def test_joint_head_ablation_decides_as_the_loop(threshold, relative, verify):
    models = [checkpoint(seed, "rms_rotary_grouped") for seed in (0, 1)]
    task = random_task(models[0], 8)
    settings: dict[str, Any] = {"threshold": threshold, "relative": relative, "verify": verify}
    found = search(models, task, "head_ablation", "mean", "log_prob", **settings)
    expected = loop_over_heads(models, task, "mean", threshold, relative, verify)
    assert found.circuit.heads() == expected
    assert 0 < len(expected) < 8
    assert expected != plain(models[0], task, "head_ablation", "mean", "log_prob", **settings).circuit.heads()


CASES: dict[str, dict[str, Any]] = {"acdc": {"threshold": 0.03}, "head_ablation": {"threshold": 0.03, "verify": 0.4}}


@pytest.mark.parametrize("algorithm", PLAIN)
@pytest.mark.parametrize("n", [1, 2])
def test_one_checkpoint_or_the_same_one_twice_is_the_plain_algorithm(algorithm, n):
    models = [checkpoint(4) for _ in range(n)]
    task = random_task(models[0], 5)
    found, alone = (
        call(models if call is search else models[0], task, algorithm, **CASES[algorithm]) for call in (search, plain)
    )
    assert decided(found) == decided(alone)
    assert found.circuit == alone.circuit
    measured = [line["metric"] for line in found.trace if "metric" in line]
    expected = [line["metric"] for line in alone.trace if "metric" in line]
    np.testing.assert_allclose(measured, np.repeat(np.array(expected)[:, None], n, axis=1), atol=1e-9)


def test_a_donors_circuit_is_completed_by_what_the_other_needs():
    a, b = checkpoint(0), checkpoint(1)
    task = random_task(a, 4)
    donor = search([a], task, threshold=0.05).circuit
    found = search([b], task, donor=donor, threshold=0.05)
    mask, decisions = loop_over_edges([b], task, "resample", "logit_diff", 0.05, False, spared=donor.mask)
    assert decided(found) == decisions
    assert found.circuit == Circuit(a.graph, mask).prune()
    assert donor <= found.circuit
    assert donor != found.circuit
    assert search([a], task, donor=donor, threshold=0.05).circuit == donor
    assert found.circuit.provenance.settings["donor"] == donor.provenance.model == "toy-0"


def test_donor_heads_are_never_asked_about():
    a, b = checkpoint(0), checkpoint(1)
    task = random_task(a, 8)
    donor = search([a], task, "head_ablation", "mean", "log_prob", threshold=0.02).circuit
    found = search([b], task, "head_ablation", "mean", "log_prob", donor=donor, threshold=0.02)
    assert found.circuit.heads() == loop_over_heads([b], task, "mean", 0.02, True, 0.0, donor.heads())
    assert donor.heads()
    assert not set(donor.heads()) & {name for name, _ in decided(found)}
    assert search([a], task, "head_ablation", "mean", "log_prob", donor=donor, threshold=0.02).circuit == donor


@pytest.mark.parametrize("algorithm", PLAIN)
def test_a_killed_joint_search_goes_on_to_the_same_circuit(algorithm, tmp_path, open_journal):
    models = [checkpoint(seed) for seed in (0, 1)]
    task, settings = random_task(models[0], 5), CASES[algorithm]
    whole = open_journal(tmp_path / "whole")
    found = search(models, task, algorithm, journal=whole, **settings)
    lines = (tmp_path / "whole").read_text().splitlines(keepends=True)
    (tmp_path / "killed").write_text("".join(lines[: int(0.7 * len(lines))]) + lines[-1][:9])
    again = search(models, task, algorithm, journal=open_journal(tmp_path / "killed"), **settings)
    assert again.circuit == found.circuit
    assert (tmp_path / "killed").read_text() == (tmp_path / "whole").read_text()
    assert again.cost.candidates < found.cost.candidates


def test_what_cannot_be_searched_jointly_gets_a_sentence():
    models = [checkpoint(seed) for seed in (0, 1)]
    task = random_task(models[0], 4)
    with pytest.raises(BadSetting, match="'eap' cannot search on several checkpoints"):
        search(models, task, "eap")
    with pytest.raises(UnknownName, match="Did you mean threshold"):
        search(models, task, treshold=0.1)
    with pytest.raises(GraphMismatch, match="must be the same"):
        search([models[0], model_of("attention_only")], task)
    for algorithm in ("acdc", "head_ablation"):
        with pytest.raises(BadSetting, match=r"keep=0\.9.*no such setting"):
            search(models, task, algorithm, keep=0.9)
        every = dict(get_algorithm(algorithm).settings)  # as the command gives them, what the joint form lacks at its default
        assert search(models, task, algorithm, **every).circuit == search(models, task, algorithm).circuit


def test_all_checkpoints_must_fit_the_budget_with_their_weights():
    models = [checkpoint(seed) for seed in (0, 1)]
    task = random_task(models[0], 4)
    with pytest.raises(BadSetting, match=r"holds all 2 checkpoints at once.*weights.*4 examples.*raise memory="):
        share_of_memory(models, task.train, "100kB")
    weights = sum(tensor.numel() * 8 for tensor in models[0].module.state_dict().values())
    assert share_of_memory(models, task.train, 2**30) == 2**29 - weights
    assert share_of_memory(models[:1], task.train, "100kB") == "100kB"
