"""Norms that couple heads, held at the full run's size or computed anew: both against Hugging Face's own module."""

import numpy as np
import pytest
import torch
from examples import random_examples, random_task
from literal import compared, ungrouped
from models import hugging_face, model_of

import circuitdisc as cd
from circuitdisc.ablation import Ablation
from circuitdisc.circuit import Circuit
from circuitdisc.engine.patching import Patching
from circuitdisc.engine.selfcheck import check_model
from circuitdisc.errors import BadSetting


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text", "olmo2", "exaone4"])
def test_single_edges_are_those_of_the_module_with_nothing_held(kind):
    found = compared(ungrouped(hugging_face(kind).double()), n_edges=20, exact_norm=True)
    assert found["full"] < 1e-6
    assert found["edges"] < 1e-6
    assert found["effect"] > 1e-3


@pytest.mark.parametrize("kind", ["gemma3_text", "olmo2"])
def test_held_and_exact_differ_where_heads_are_cut_and_nowhere_else(kind):
    held, exact = model_of(kind), model_of(kind, exact_norm=True)
    check_model(exact)
    examples, graph = random_examples(held, 4), held.graph
    runs = [Patching(model, Ablation("resample"), examples) for model in (held, exact)]
    chunks = [next(iter(run.hold(examples))) for run in runs]

    def far(mask):
        one, other = (run.circuit_logits(chunk, mask) for run, chunk in zip(runs, chunks, strict=True))
        return float((one - other).abs().max())

    mlps = graph.edge_mask.copy()
    for layer in range(graph.n_layers):
        mlps[graph.receiver_index[f"m{layer}"]] = False
    last = graph.edge_mask.copy()
    last[graph.receiver_index["logits"]] = False
    assert far(graph.edge_mask) < 1e-12
    assert far(last) < 1e-12  # what reads the residual at the end is behind all norms after attention
    some = graph.edge_mask & (np.random.default_rng(0).random(graph.edge_mask.shape) < 0.5)
    assert far(some) > 1e-3


def test_every_search_that_runs_whole_circuits_does_so_and_the_others_say_why():
    model = model_of("gemma3_text", exact_norm=True)
    task = random_task(model, 3)
    found = cd.discover(model, task, "acdc", threshold=0.5, ablation="resample", allow_chance=True)
    scores = cd.score(model, task, found.circuit, ablation="resample", n_random=0)
    assert scores.scores
    with pytest.raises(BadSetting, match=r"recomputes the norms that couple its heads \(model.exact_norm=true\)"):
        cd.discover(model, task, "eap", edges=5, ablation="resample", allow_chance=True)
    with pytest.raises(BadSetting, match="exact_norm=true"):
        _ = model.components


def test_a_circuit_found_with_the_scale_held_is_scored_both_ways():
    held, exact = model_of("gemma3_text"), model_of("gemma3_text", exact_norm=True)
    task = random_task(held, 6)
    circuit = cd.discover(held, task, "eap", edges=60, ablation="resample", allow_chance=True).circuit
    assert isinstance(circuit, Circuit)
    assert any("model.exact_norm=true" in note for note in circuit.provenance.notes)
    values = [
        next(score.value for score in cd.score(model, task, circuit, ablation="resample", n_random=0).scores)
        for model in (held, exact)
    ]
    assert values[0] != values[1]


def test_it_is_refused_where_there_is_nothing_to_recompute():
    with pytest.raises(BadSetting, match="changes nothing: no norm of llama couples its heads"):
        model_of("llama", exact_norm=True)
    with pytest.raises(BadSetting, match="this model runs through hooks"):
        model_of("gemma2", components="hooks", exact_norm=True)
    with pytest.raises(BadSetting, match="exact_norm='yes' must be true or false"):
        cd.load_model("tpp/lightweight", exact_norm="yes")


def test_float32_and_padding():
    model = model_of("olmo2", torch.float32, exact_norm=True)
    check_model(model)
