"""Integrated gradients: points and weights against autograd, sums against the metric, no point where a norm measures eps."""

import warnings

import numpy as np
import pytest
from direct_attribution import (
    big_buffer,
    direct_between_activations,
    direct_between_embeddings,
    embedding_senders,
    leaf_run,
    metric_of,
)
from examples import random_task
from models import model_of

import circuitdisc as cd
from circuitdisc.ablation import Ablation
from circuitdisc.discovery.base import SearchContext
from circuitdisc.discovery.registry import ALGORITHMS
from circuitdisc.engine.gradients.path_points import (
    GAUSS_WITH_CLEAN_END,
    PUBLISHED_ENDS,
    PathPoints,
    gauss_between,
    published_between,
)
from circuitdisc.errors import BadSetting, CircuitdiscWarning, UnknownName
from circuitdisc.metrics import get_metric

INTEGRATED = ["eap_ig", "eap_ig_activations", "clean_corrupted"]


def run(algorithm, model, task, kind, metric="log_prob", **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CircuitdiscWarning)
        return ALGORITHMS[algorithm].function(model, task, Ablation(kind), SearchContext(metric=metric), **settings)


def far(found, wanted):
    return np.nanmax(np.abs(found - wanted)) / np.nanmax(np.abs(wanted))


def change_of_embedding(model, task, kind, metric):
    """Metric with the ablated embedding minus the clean run's, by a run of every head."""
    chunk, delta = big_buffer(model, Ablation(kind), task.train)
    overrides = {s: chunk.clean[s] + delta[s] for s in embedding_senders(model)}
    ablated, clean = (metric_of(get_metric(metric), chunk, leaf_run(model, chunk, some, {})) for some in (overrides, {}))
    return float(ablated - clean)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_rules_integrate_polynomials(steps):
    """Gauss-Legendre up to degree 2 m - 1, Gauss-Radau of two points up to 2; all weights add up to 1."""
    for points, degree in ((gauss_between(steps), 2 * steps - 1), (GAUSS_WITH_CLEAN_END, 2), (published_between(steps), 0)):
        for power in range(degree + 1):
            found = sum(w * s**power for s, w in zip(points.shares, points.weights, strict=True))
            assert found == pytest.approx(1 / (power + 1), abs=1e-12)
    assert published_between(4) == PathPoints((0.0, 0.25, 0.5, 0.75), (0.25,) * 4)
    assert PUBLISHED_ENDS.shares == (1.0, 0.0)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "parallel"])
@pytest.mark.parametrize("kind", ["zero", "resample"])
def test_unequal_weights_equal_the_direct_way(family, kind):
    model = model_of(family)
    task, metric = random_task(model, 3), get_metric("log_prob")
    shared = (model, Ablation(kind), task.train, metric)
    found = {name: run(name, model, task, kind, points="gauss", steps=3).edge_scores for name in INTEGRATED[:2]}
    assert far(found["eap_ig"], direct_between_embeddings(*shared, gauss_between(3))) < 1e-9
    assert far(found["eap_ig_activations"], direct_between_activations(*shared, gauss_between(3))) < 1e-9
    ends = run("clean_corrupted", model, task, kind, points="gauss").edge_scores
    assert far(ends, direct_between_embeddings(*shared, GAUSS_WITH_CLEAN_END)) < 1e-9


@pytest.mark.parametrize("algorithm", INTEGRATED)
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "no_norm"])
def test_by_default_only_an_embedding_of_zero_before_a_norm_changes_the_published_points(algorithm, family):
    model = model_of(family)
    task, metric = random_task(model, 3), get_metric("log_prob")
    for kind in ("mean", "resample"):
        found, published = (run(algorithm, model, task, kind, points=points) for points in ("auto", "published"))
        np.testing.assert_array_equal(found.edge_scores, published.edge_scores)
    found = run(algorithm, model, task, "zero").edge_scores
    gauss, shared = family != "no_norm", (model, Ablation("zero"), task.train, metric)
    of_embedding = (gauss_between if gauss else published_between)(5)
    wanted = {
        "eap_ig": lambda: direct_between_embeddings(*shared, of_embedding),
        "eap_ig_activations": lambda: direct_between_activations(*shared, published_between(5), of_embedding),
        "clean_corrupted": lambda: direct_between_embeddings(*shared, GAUSS_WITH_CLEAN_END if gauss else PUBLISHED_ENDS),
    }[algorithm]()
    assert far(found, wanted) < 1e-9


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "parallel"])
@pytest.mark.parametrize(("kind", "metric"), [("resample", "log_prob"), ("mean", "logit_diff"), ("resample", "kl")])
def test_with_many_points_the_scores_out_of_the_embedding_add_up(family, kind, metric):
    model = model_of(family, split_embeddings=family == "gpt2")
    task = random_task(model, 3)
    true = change_of_embedding(model, task, kind, metric)
    for name in INTEGRATED[:2]:
        found = run(name, model, task, kind, metric, points="gauss", steps=30)
        scores, path = found.edge_scores, found.path_sum
        assert scores is not None
        assert path is not None
        assert path.change == pytest.approx(true, abs=1e-9)
        assert path.scores == pytest.approx(np.nansum(scores[:, embedding_senders(model)]), abs=1e-12)
        assert path.scores == pytest.approx(true, abs=2e-3 * path.size)
        assert path.off < 2e-3


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_the_published_points_measure_eps_where_the_default_does_not(family):
    """Rotary models, whose first norm reads the embedding alone. Scores of the default stay in the range of real effects."""
    model = model_of(family)
    task = random_task(model, 6)

    def largest(name, **settings):
        scores = run(name, model, task, "zero", "logit_diff", **settings).edge_scores
        assert scores is not None
        return np.nanmax(np.abs(scores))

    exact = largest("exact")
    for name in INTEGRATED:
        published, default = (largest(name, points=points) for points in ("published", "auto"))
        assert default < 5 * exact
        assert published > 20 * exact


def test_sums_are_said_and_warned_about_when_far_off():
    model = model_of("llama")
    task = random_task(model, 6)
    settings = {"metric": "logit_diff", "edges": 20, "allow_chance": True}
    with pytest.warns(CircuitdiscWarning, match="out of the embedding add up") as caught:
        found = cd.discover(model, task, "eap_ig", ablation="zero", points="published", **settings)
    assert found.circuit.provenance.notes[-1] == str(caught[-1].message)
    assert found.path_sum is not None
    assert f"{found.path_sum.change:.4g}" in str(caught[-1].message)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*add up", CircuitdiscWarning)
        close = cd.discover(model, task, "eap_ig", ablation="resample", points="gauss", steps=20, **settings)
        plain = cd.discover(model, task, "eap", ablation="resample", **settings)
    assert any("add up" in note for note in close.circuit.provenance.notes), "said on every page"
    assert not any("add up" in note for note in plain.circuit.provenance.notes)
    with pytest.raises((BadSetting, UnknownName), match="points"):
        cd.discover(model, task, "eap_ig", ablation="resample", points="midpoint", **settings)
