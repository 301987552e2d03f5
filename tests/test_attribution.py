"""Attribution against the direct way: autograd through a head-by-head run with a leaf for every receiver, and a big buffer."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from direct_attribution import (
    big_buffer,
    direct_atp,
    direct_between_activations,
    direct_between_embeddings,
    direct_eap,
    gradients,
    leaf_run,
    metric_of,
)
from examples import random_examples, random_task
from models import TOYS, model_of

import circuitdisc as cd
from circuitdisc.ablation import Ablation
from circuitdisc.discovery.base import SearchContext
from circuitdisc.discovery.registry import ALGORITHMS
from circuitdisc.engine.gradients import attribution as attribution_module
from circuitdisc.engine.gradients import edge_scores
from circuitdisc.engine.gradients.attribution import Attribution
from circuitdisc.engine.gradients.memory import Gradient
from circuitdisc.engine.gradients.node_scores import node_scores
from circuitdisc.engine.gradients.path_points import equal
from circuitdisc.engine.gradients.pattern_scores import edges_through_patterns
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadSetting, BadTask
from circuitdisc.metrics import get_metric
from circuitdisc.tasks.base import Task

FAMILIES = ["gpt2", "llama", "gpt_neox", "gemma2", "gemma3_text", "olmo2", "bloom", "cohere", "granite", "mixtral", *TOYS]
LONG_FAMILIES = [name for name in FAMILIES if name not in ("gpt2", "gemma2", "olmo2", "parallel")]
KINDS = ["zero", "mean", "resample"]
METRICS = ["logit_diff", "log_prob", "prob_diff"]
POINTS = equal(0.0, 0.5)
FULL = Gradient(at_full=True)


def attribution(model, kind: Any, examples, metric="log_prob", gradient=FULL, **settings):
    return Attribution(model, Ablation(kind), examples, get_metric(metric), gradient=gradient, **settings)


def far(found, wanted):
    """The largest difference, relative to the largest score; both must be NaN at the same edges."""
    assert (np.isnan(found) == np.isnan(wanted)).all()
    return np.nanmax(np.abs(found - wanted)) / np.nanmax(np.abs(wanted))


def scores_of(algorithm, model, task, kind: Any = "resample", metric="log_prob", memory="4GiB", **settings):
    context = SearchContext(metric=metric, memory=memory)
    return ALGORITHMS[algorithm].function(model, task, Ablation(kind), context, **settings)


@pytest.mark.parametrize(("kind", "metric"), list(zip(KINDS, METRICS, strict=True)))
@pytest.mark.parametrize(
    "family", ["gpt2", "gemma2", "olmo2", "parallel", *(pytest.param(name, marks=pytest.mark.long) for name in LONG_FAMILIES)]
)
def test_scores_equal_the_direct_way(family, kind: Any, metric):
    model = model_of(family)
    examples, ablation, measure = random_examples(model, 4), Ablation(kind), get_metric(metric)
    assert (
        far(attribution(model, kind, examples, metric).edges_at_full(), direct_eap(model, ablation, examples, measure)) < 1e-9
    )
    between = attribution(model, kind, examples, metric, Gradient(rows=2, places=True))
    wanted = direct_between_embeddings(model, ablation, examples, measure, POINTS)
    assert far(between.edges_between(POINTS), wanted) < 1e-9
    wanted = direct_between_activations(model, ablation, examples, measure, POINTS)
    assert far(between.edges_between_activations(POINTS, POINTS), wanted) < 1e-9


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_ablation_and_metric_on_one_family(kind: Any, metric):
    model = model_of("gpt2", split_embeddings=True)
    examples = random_examples(model, 5)
    wanted = direct_eap(model, Ablation(kind), examples, get_metric(metric))
    assert far(attribution(model, kind, examples, metric).edges_at_full(), wanted) < 1e-9


@pytest.mark.parametrize("scope", ["group", "position", "dataset"])
def test_every_scope_of_mean_ablation(scope: Any):
    model = model_of("gemma2")
    examples, ablation = random_examples(model, 5), Ablation("mean", scope=scope, prompts="corrupted")
    found = Attribution(model, ablation, examples, get_metric("logit_diff"), gradient=FULL).edges_at_full()
    assert far(found, direct_eap(model, ablation, examples, get_metric("logit_diff"))) < 1e-9


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_kl_away_from_the_full_model(family):
    model = model_of(family)
    examples, ablation, kl = random_examples(model, 4), Ablation("resample"), get_metric("kl")
    between = attribution(model, "resample", examples, "kl", Gradient(rows=2))
    assert far(between.edges_between(POINTS), direct_between_embeddings(model, ablation, examples, kl, POINTS)) < 1e-9


@pytest.mark.parametrize(
    "family", ["gpt2", "llama", "gpt_neox", "gemma2", "olmo2", "bloom", "cohere", "bidirectional", "no_norm"]
)
def test_atp_equals_the_literal_computation_edge_by_edge(family):
    model = model_of(family)
    examples, ablation, metric = random_examples(model, 3), Ablation("resample"), get_metric("log_prob")
    found = edges_through_patterns(attribution(model, "resample", examples))
    assert far(found, direct_atp(model, ablation, examples, metric)) < 1e-9
    eap = attribution(model, "resample", examples).edges_at_full()
    linear = np.array([receiver.qkv not in ("q", "k") for receiver in model.graph.receivers])
    assert far(found[linear], eap[linear]) < 1e-12
    assert far(found[~linear], eap[~linear]) > 1e-3


def test_a_tiny_step_along_an_edge_moves_the_metric_by_its_score():
    model, metric = model_of("llama"), get_metric("log_prob")
    examples = random_examples(model, 4)
    scores = attribution(model, "resample", examples).edges_at_full()
    chunk, delta = big_buffer(model, Ablation("resample"), examples)
    step = 1e-5
    for name in ("input->a1.h2<k>", "a0.h1->a1.h0<q>", "m0->m1", "a0.h3->m0", "a1.h1->logits", "input->a0.h0<v>"):
        r, s = model.graph.parse_edge(name)
        up, down = (
            float(metric_of(metric, chunk, leaf_run(model, chunk, {}, {r: sign * step * delta[s]}))) for sign in (1, -1)
        )
        assert scores[r, s] == pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-9)


def test_edges_into_logits_are_exact_where_nothing_bends_behind_them():
    """Without a final norm logit_diff is linear in the final residual: the score is the edge's effect itself."""
    model, metric = model_of("no_norm"), get_metric("logit_diff")
    examples = random_examples(model, 4)
    scores = attribution(model, "mean", examples, "logit_diff").edges_at_full()
    patching = Patching(model, Ablation("mean"), examples)
    masks = {"full": model.graph.edge_mask}
    for sender in range(model.graph.n_senders):
        masks[str(sender)] = model.graph.edge_mask.copy()
        masks[str(sender)][-1, sender] = False
    values = {name: float(found["logit_diff"].mean()) for name, found in patching.evaluate(examples, masks, [metric]).items()}
    effects = [values[str(sender)] - values["full"] for sender in range(model.graph.n_senders)]
    np.testing.assert_allclose(scores[-1], effects, atol=1e-10)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_node_scores_equal_the_direct_way(family):
    """A sender's gradient is the sum over its readers' inputs."""
    model, metric = model_of(family), get_metric("log_prob")
    examples = random_examples(model, 4)
    chunk, delta = big_buffer(model, Ablation("resample"), examples)
    g = gradients(model, chunk, metric)
    readers = torch.as_tensor(model.graph.edge_mask.copy()).to(g)
    per_example = torch.einsum("sbtd,rbtd,rs->sb", delta, g, readers) * len(examples)
    found = node_scores(attribution(model, "resample", examples))
    np.testing.assert_allclose(found, per_example.abs().mean(1).numpy(), rtol=1e-9)


@pytest.mark.parametrize("algorithm", ["eap", "eap_ig", "eap_ig_activations", "clean_corrupted", "atp"])
def test_the_split_into_chunks_and_blocks_changes_nothing(algorithm, monkeypatch):
    model = model_of("gpt2")
    task = random_task(model, 7)
    for kind in KINDS:
        whole = scores_of(algorithm, model, task, kind).edge_scores
        with monkeypatch.context() as patch:
            patch.setattr(attribution_module, "examples_in_budget", lambda *args: 2)
            patch.setattr(edge_scores, "tokens_a_block", lambda *args: 3)
            split = scores_of(algorithm, model, task, kind).edge_scores
        assert far(split, whole) < 1e-12


def test_padding_counts_nothing():
    """A batch of unequal lengths scores as its examples do one by one, whatever tokens stand behind the last reading."""
    model = model_of("llama")
    examples = random_examples(model, 5)
    whole = attribution(model, "resample", examples).edges_at_full()
    alone = [attribution(model, "resample", [example]).edges_at_full() for example in examples]
    assert far(np.mean(alone, axis=0), whole) < 1e-12
    longer = [replace(one, clean=(*one.clean, 3), corrupted=(*one.corrupted, 5)) for one in examples if one.corrupted]
    assert far(attribution(model, "resample", longer).edges_at_full(), whole) < 1e-12


def test_a_reading_named_twice_counts_twice():
    model = model_of("gpt2")
    examples = [
        replace(one, positions=one.positions * 2, answers=one.answers * 2, wrong=one.wrong * 2)
        for one in random_examples(model, 3)
    ]
    wanted = direct_eap(model, Ablation("resample"), examples, get_metric("log_prob"))
    assert far(attribution(model, "resample", examples).edges_at_full(), wanted) < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_narrow_dtypes(family, dtype):
    examples = random_examples(model_of(family), 5)
    wanted = attribution(model_of(family), "resample", examples, "logit_diff").edges_at_full()
    found = attribution(model_of(family, dtype), "resample", examples, "logit_diff").edges_at_full()
    assert far(found, wanted) < (1e-4 if dtype == torch.float32 else 0.1)
    edges = ~np.isnan(wanted)
    assert np.corrcoef(found[edges], wanted[edges])[0, 1] > 0.99


def test_costs():
    model = model_of("gpt2")
    task = random_task(model, 6)
    eap, ig = scores_of("eap", model, task).cost, scores_of("eap_ig", model, task, steps=3).cost
    assert (eap.model_runs, eap.backward_runs) == (2, 1)
    assert (ig.model_runs, ig.backward_runs) == (5, 3)
    places = scores_of("eap_ig_activations", model, task, steps=3).cost
    assert places.backward_runs < 3 * len(attribution_module.sender_groups(model.graph))


# --- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["eap", "hisp", "atp"])
def test_a_gradient_that_vanishes_at_the_full_model_is_refused(algorithm):
    model = model_of("gpt2")
    with pytest.raises(BadSetting, match=r"'kl' is at its maximum and the gradient is 0.*logit_diff"):
        scores_of(algorithm, model, random_task(model), metric="kl")


@pytest.mark.parametrize("algorithm", ["eap", "eap_ig", "eap_ig_activations", "clean_corrupted", "hisp", "atp"])
def test_accuracy_has_no_gradient(algorithm):
    model = model_of("gpt2")
    with pytest.raises(BadSetting, match="constant almost everywhere"):
        scores_of(algorithm, model, random_task(model), metric="accuracy")


def test_what_cannot_be_attributed_is_refused_with_a_sentence():
    model = model_of("gpt2")
    task = random_task(model)
    with pytest.raises(BadSetting, match=r"ablation\.target=output"):
        ALGORITHMS["eap"].function(model, task, Ablation("mean", target="pattern"), SearchContext())
    with pytest.raises(BadSetting, match="runs through hooks: it works with GPT-2"):
        scores_of("eap", model_of("gpt2", components="hooks"), task)
    with pytest.raises(BadSetting, match=r"needs about .* over the budget"):
        scores_of("eap", model, task, memory="1KiB")
    with pytest.raises(BadSetting, match="steps=0 must be a whole number from 1 to 10,000"):
        scores_of("eap_ig", model, task, steps=0)
    bare = tuple(replace(example, corrupted=None) for example in task.train)
    with pytest.raises(BadTask, match="needs a corrupted prompt"):
        scores_of("eap", model, Task("bare", bare, ()))


def test_hisp_keeps_the_best_heads_and_everything_that_is_no_head():
    model = model_of("gpt2")
    found = scores_of("hisp", model, random_task(model), heads=3)
    assert found.circuit.granularity == "head"
    assert found.node_scores is not None
    scores = {name: found.node_scores[index] for name, index in model.graph.sender_index.items()}
    heads = sorted((name for name in scores if name.startswith("a")), key=lambda name: -scores[name])
    assert sorted(found.circuit.heads()) == sorted(heads[:3])
    with pytest.raises(BadSetting, match="heads=99"):
        scores_of("hisp", model, random_task(model), heads=99)


def test_the_induction_toy_is_found():
    """Half of the textbook circuit's edges suffice to recognise it: the previous-token head into the keys, and the way out."""
    model = cd.load_model("toys/induction")
    task = cd.load_task("induction", model, n=60, length=8)
    found = cd.discover(model, task, "eap_ig", ablation="resample", edges=5)
    assert {"a0.h1->a1.h0<k>", "a0.h1->a1.h1<k>"} & set(found.circuit.edge_names())
