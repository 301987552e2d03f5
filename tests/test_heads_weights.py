"""Weights of heads: their products against patterns and outputs of a run; the regression toy's against its study's claims."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from models import model_of, toy

import circuitdisc as cd
from circuitdisc.errors import BadSetting
from circuitdisc.models import ToyConfig

training = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent.parent / "scripts" / "train_linear_regression.py")))
LABEL = 4


@pytest.fixture(scope="module")
def regression():
    model = cd.load_model("toys/linear_regression", dtype="float64")
    return model, cd.heads.head_matrices(model)


def own_run(model, tokens):
    """Patterns [H, B, T, T], and the values that heads pass on [B, T, D], by the toy's own formulas, one head at a time."""
    weights = dict(model.module.named_parameters())
    x = weights["embed.W_E"][tokens]
    patterns, written = [], torch.zeros_like(x)
    for head in range(model.graph.n_heads):
        q, k, v = (x @ weights[f"blocks.0.attn.W_{name}"][head] for name in "QKV")
        scores = q @ k.mT / model.module.config.d_head**0.5
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        patterns.append(scores.masked_fill(ahead, -torch.inf).softmax(-1))
        written = written + patterns[-1] @ v @ weights["blocks.0.attn.W_O"][head]
    return torch.stack(patterns), x, written


@torch.no_grad()
def test_products_give_a_runs_patterns_and_outputs(regression):
    model, found = regression
    assert found.note == ""
    tokens = training.draw(3, training.codebook(), torch.Generator().manual_seed(9)).tokens
    patterns, x, written = own_run(model, tokens)
    scores = torch.einsum("bti,hij,bqj->hbqt", x, torch.tensor(found.kq[0]), x)[:, :, -1]
    assert torch.allclose(scores.softmax(-1), patterns[:, :, -1], atol=1e-12)
    moved = torch.einsum("hbt,bti,hij->bj", scores.softmax(-1), x, torch.tensor(found.ov[0]))
    assert torch.allclose(moved, written[:, -1], atol=1e-12)
    assert torch.allclose(moved[:, LABEL], model.module(tokens)[:, -1, 0], atol=1e-12)  # the unembedding reads the last axis


def test_heads_that_share_keys_and_values_have_the_same_factors():
    model = model_of("llama")
    found = cd.heads.head_matrices(model)
    module: Any = model.module
    attention = module.model.layers[1].self_attn
    W_Q, W_K, W_V = (part.weight.detach().numpy() for part in (attention.q_proj, attention.k_proj, attention.v_proj))
    W_O, K = attention.o_proj.weight.detach().numpy(), 8
    for head, group in enumerate((0, 0, 1, 1)):
        mine, theirs = slice(head * K, head * K + K), slice(group * K, group * K + K)
        assert np.allclose(found.kq[1, head], W_K[theirs].T @ W_Q[mine] / K**0.5, atol=1e-12)
        assert np.allclose(found.ov[1, head], W_V[theirs].T @ W_O[:, mine].T, atol=1e-12)
    assert "the norm's scale is left out; rotary angles are left out" in found.note
    assert "the answer is read from other axes than the label's" in found.note


def test_the_regression_toy_has_the_weights_of_its_study(regression):
    _, found = regression
    rows = found.table()
    assert sorted(np.sign(row["KQ diagonal"]) for row in rows) == [-1, 1]  # a head for each sign
    for row in rows:
        assert row["spread"] < 0.1 * abs(row["KQ diagonal"])
        assert row["off the diagonal"] < 0.1 * abs(row["KQ diagonal"])
        assert row["key's label"] < 0.1 * abs(row["KQ diagonal"])
        assert row["OV of the inputs"] < 0.02 * abs(row["OV of the label"])
    (total,) = found.sums()
    assert abs(total["sum over heads"]) < 0.02 * total["of absolute values"]


def test_the_regression_toy_does_about_as_well_as_a_gradient_step():
    shipped = cd.load_model("toys/linear_regression").module
    errors = training.errors(shipped, seed=5, n=1000)
    assert errors["least squares"] < errors["toy"] < 1.2 * errors["gradient step"] < 0.2 * errors["zero"]
    kept = json.loads((training.OUT / "config.json").read_text())["squared_error"]
    assert errors == pytest.approx(kept, rel=0.25)


def test_a_table_says_what_the_matrices_say():
    kq, ov = np.zeros((1, 2, 3, 3)), np.zeros((1, 2, 3, 3))
    kq[0, 0] = [[2, 3, 9], [5, 4, 9], [6, 8, 9]]
    ov[0, :, 2, 2], ov[0, 0, :2, 2] = (1.5, -1.0), (3, 4)
    found = cd.heads.HeadMatrices(kq, ov, inputs=(0, 1), label=2)
    row = found.table()[0]
    assert (row["head"], row["KQ diagonal"], row["spread"]) == ("a0.h0", 3, 1)
    assert row["off the diagonal"] == pytest.approx(17**0.5)
    assert row["key's label"] == pytest.approx(50**0.5)
    assert (row["OV of the label"], row["OV of the inputs"]) == (1.5, pytest.approx(12.5**0.5))
    assert found.sums() == [{"layer": 0, "sum over heads": 0.5, "of absolute values": 2.5}]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"label": 16}, "label=16 is no axis"),
        ({"label": True}, "label=True must be a whole number"),
        ({"inputs": [0, 15]}, "without label=15"),
        ({"inputs": [1, 1]}, "different axes"),
        ({"inputs": []}, "different axes"),
        ({"inputs": [99]}, "from 0 to 15"),
        ({"inputs": [-1]}, "inputs"),
    ],
)
def test_axes_that_there_are_not(settings, words):
    with pytest.raises(BadSetting, match=words):
        cd.heads.head_matrices(model_of("attention_only"), **settings)


def test_a_large_model_is_refused(monkeypatch):
    monkeypatch.setattr("circuitdisc.heads.matrices.LARGEST", 100)
    with pytest.raises(BadSetting, match="it is for toys"):
        cd.heads.head_matrices(model_of("attention_only"))


def test_an_odd_head_width_is_no_rotation():
    config = {**vars(toy("attention_only").config), "d_head": 5}
    assert ToyConfig.from_dict(config).d_head == 5
