"""Path patching against a literal two-pass implementation; maps, positions, cost."""

from typing import Any

import numpy as np
import pytest
import torch
from examples import random_examples, random_task
from models import model_of
from two_pass import PlainRun, two_pass_logits

import circuitdisc as cd
from circuitdisc.ablation import Ablation
from circuitdisc.engine.patching import Patching
from circuitdisc.engine.path_effects import PathPatching, positions_mask
from circuitdisc.errors import BadSetting, GraphMismatch, UnknownName
from circuitdisc.metrics import METRICS

FAMILIES = [
    *("gpt2", "gemma2", "gemma3_text", "no_norm", "attention_only"),
    *(pytest.param(name, marks=pytest.mark.long) for name in ("llama", "gpt_neox", "mistral", "bidirectional", "parallel")),
]
TARGETS = [
    (["logits"], "all", "all"),
    (["logits"], ["end", "end-1"], "end"),
    (["a1.h0<q>", "a1.h2<q>"], "all", "end"),
    (["a1.h1<k>"], [1, 2], "all"),
    (["a0.h1<v>", "a1.h1<v>", "a1.h3<k>", "a1.h0<q>"], "all", [1, 2, "end"]),
]


def held(model, kind: Any = "resample", n=3, metric="logit_diff", mlps: Any = "recompute", norms: Any = "recompute", seed=0):
    examples = random_examples(model, n, seed)
    patching = Patching(model, Ablation(kind), examples)
    return PathPatching(patching, patching.hold(examples), METRICS[metric], mlps, norms)


def literal(paths, model, sender, receivers, sender_positions, receiver_positions):
    """The metric of the two-pass implementation, example by example."""
    (chunk,) = paths.chunks
    replaced, set_at = (positions_mask(chunk.batch, at) for at in (sender_positions, receiver_positions))
    logits = two_pass_logits(model, chunk, sender, receivers, replaced, set_at, paths.mlps, paths.norms)
    return chunk.batch.per_example(paths.metric(logits, chunk.labels)).numpy()


def assert_equal_to_two_passes(model, paths, receivers, sender_positions, receiver_positions, senders: Any = "all"):
    found = paths.effects(senders, receivers, sender_positions, receiver_positions)
    checked = 0
    for row, sender in zip(found.patched, found.senders, strict=True):
        if np.isnan(row).any():
            assert np.isnan(row).all()
            expected = paths.metric(PlainRun(model, paths.chunks[0]).logits, paths.chunks[0].labels)
            expected = paths.chunks[0].batch.per_example(expected).numpy()
            np.testing.assert_allclose(found.clean, expected, atol=1e-9)
            continue
        expected = literal(paths, model, sender, receivers, sender_positions, receiver_positions)
        np.testing.assert_allclose(row, expected, atol=1e-9, rtol=1e-9)
        checked += bool(np.abs(row - found.clean).max() > 1e-6)
    return checked


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("receivers", "sender_positions", "receiver_positions"), TARGETS)
def test_it_equals_two_passes(family, receivers, sender_positions, receiver_positions):
    model = model_of(family)
    paths = held(model)
    moved = assert_equal_to_two_passes(model, paths, receivers, sender_positions, receiver_positions)
    assert moved or family == "no_norm" or receivers == ["a1.h1<k>"]


@pytest.mark.parametrize("family", ["gpt2", *(pytest.param(name, marks=pytest.mark.long) for name in ("llama", "gpt_neox"))])
@pytest.mark.parametrize("kind", ["zero", "mean", "resample"])
@pytest.mark.parametrize("mlps", ["recompute", "freeze"])
@pytest.mark.parametrize("norms", ["recompute", "freeze"])
def test_mlps_and_norms_recomputed_or_frozen(family, kind, mlps, norms):
    model = model_of(family)
    paths = held(model, kind, metric="kl", mlps=mlps, norms=norms)
    for receivers, *positions in (TARGETS[0], TARGETS[4], (["m1", "a1.h2<k>"], "all", "all")):
        assert_equal_to_two_passes(model, paths, receivers, *positions, senders=["a0.h1", "a0.h3", "m0", "a1.h2"])


def test_shipped_models_equal_two_passes(lightweight):
    task = cd.load_task("tpp", lightweight, n=3)
    patching = Patching(lightweight, Ablation("resample"), task.train)
    paths = PathPatching(patching, patching.hold(task.train), METRICS["logit_diff"])
    for receivers, at in ((["logits"], "end"), (["a3.h0<q>", "a2.h4<q>"], "end"), (["a3.h1<k>", "a2.h1<v>"], "all")):
        assert assert_equal_to_two_passes(lightweight, paths, receivers, "all", at, ["a0.h1", "a1.h3", "m1", "a2.h1"])


def test_the_shipped_multi_task_model_equals_two_passes():
    model = cd.load_model("multitask/base", dtype="float64")
    task = cd.load_task("ioi", model, n=4)
    patching = Patching(model, Ablation("resample"), task.train)
    paths = PathPatching(patching, patching.hold(task.train), METRICS["logit_diff"])
    senders = ["a0.h4", "a1.h6", "a2.h1", "m2", "a3.h7"]
    for receivers, *positions in ((["logits"], "all", "end"), (["a3.h7<v>", "a2.h1<q>"], "all", ["s1+1", "end", "s2"])):
        assert assert_equal_to_two_passes(model, paths, receivers, *positions, senders=senders)


def test_the_shipped_toy_equals_two_passes():
    model = cd.load_model("toys/induction", dtype="float64")
    task = cd.load_task("induction", model, n=3, length=6)
    patching = Patching(model, Ablation("resample"), task.train)
    paths = PathPatching(patching, patching.hold(task.train), METRICS["logit_diff"])
    for receivers, at in ((["logits"], "end"), (["a1.h0<k>", "a1.h1<k>"], "all"), (["a1.h0<q>", "a1.h1<v>"], ["b1", "end"])):
        assert_equal_to_two_passes(model, paths, receivers, "all", at)


def test_chunks_and_padding_do_not_matter():
    model = model_of("gpt2")
    task = random_task(model, 6)
    whole = cd.path_patch(model, task, receivers=["a2.h0<k>", "a2.h1<q>"])
    for side in ("left", "right"):
        patching = Patching(model, Ablation("resample"), task.train, padding_side=side)
        chunks = [chunk for example in task.train for chunk in patching.chunks([example])]
        parts = PathPatching(patching, chunks, METRICS["logit_diff"]).effects(receivers=["a2.h0<k>", "a2.h1<q>"])
        np.testing.assert_allclose(parts.patched, whole.patched, atol=1e-9)
        np.testing.assert_allclose(parts.clean, whole.clean, atol=1e-9)


def test_a_map_has_a_place_for_every_head():
    model = model_of("gpt2")
    effects = cd.path_patch(model, random_task(model, 4), receivers="a1.h2<v>")
    assert effects.head_map().shape == (3, 4)
    assert np.isfinite(effects.head_map()[0]).all()
    assert np.isnan(effects.head_map()[1:]).all()
    np.testing.assert_allclose(effects.relative * abs(effects.clean.mean()), effects.absolute)
    np.testing.assert_allclose(effects.head_map(relative=True)[0], effects.relative[:4])


def test_a_map_costs_a_few_forwards():
    """All direct effects of 36 heads on one late answer cost less than the 2 x 36 forwards of the two-pass form by far."""
    model = model_of("gpt2")
    examples = [example for example in random_examples(model, 8) if len(example.positions) == 1]
    patching = Patching(model, Ablation("resample"), examples)
    effects = PathPatching(patching, patching.hold(examples), METRICS["logit_diff"]).effects()
    assert effects.cost.node_evaluations < 3 * model.graph.n_senders


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"receivers": "a1.h0"}, GraphMismatch, "named with its input"),
        ({"receivers": []}, BadSetting, "at least one receiver"),
        ({"senders": "a9.h0"}, GraphMismatch, "not a sender"),
        ({"sender_positions": "s2"}, UnknownName, "s2"),
        ({"mlps": "froze"}, UnknownName, "freeze"),
        ({"ablation": Ablation("mean", target="pattern")}, BadSetting, "pattern"),
    ],
)
def test_bad_settings_get_a_sentence(settings, error, words):
    model = model_of("gpt2")
    with pytest.raises(error, match=words):
        cd.path_patch(model, random_task(model, 2), **settings)


def test_models_behind_hooks_are_refused():
    model = model_of("gpt2", torch.float32, components="hooks")
    with pytest.raises(BadSetting, match="fast components"):
        cd.path_patch(model, random_task(model, 2))
