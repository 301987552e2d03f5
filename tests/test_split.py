"""A model split over processes gives what the whole one gives: logits, scores, circuits, its identity."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models import hugging_face, shared, toy
from split_worker import figures

import circuitdisc as cd
from circuitdisc.errors import BadFile, BadModel, BadSetting, CircuitdiscWarning, UnknownName
from circuitdisc.models.parallel import Parallel
from circuitdisc.models.split import check_splits

# grouped queries; a norm with an offset, read from 16 bits; a fused projection, learned positions, biases
FAMILIES = {"llama": torch.float64, "gemma": torch.bfloat16, "gpt2": torch.float64}
MORE = {"gemma2": torch.bfloat16, "granite": torch.bfloat16, "olmo2": torch.float64, "bloom": torch.float64}


def spawned(folder: Path, n: int) -> dict:
    """What n processes find in the folders of models below a folder."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("split_worker.py"))]
    errors = [folder / f"errors{rank}" for rank in range(n)]
    started: list[subprocess.Popen[bytes]] = []
    for rank, file in enumerate(errors):
        with file.open("w") as stream:
            started.append(subprocess.Popen([*command, str(rank), str(n), str(folder)], env=env, stderr=stream))
    try:
        while any(process.poll() is None for process in started) and not any(process.poll() for process in started):
            time.sleep(0.05)
    finally:
        for process in started:
            process.kill()
    assert not any(process.wait() for process in started), "\n".join(file.read_text()[-2000:] for file in errors)
    return json.loads((folder / "found.json").read_text())


def save(folder: Path, families: dict[str, torch.dtype]) -> None:
    for family, dtype in families.items():
        hugging_face(family, **({"n_layer": 2} if family == "gpt2" else {})).to(dtype).save_pretrained(folder / family)


@pytest.mark.parametrize(
    ("n", "families"),
    [(2, FAMILIES), pytest.param(4, FAMILIES, marks=pytest.mark.slow), pytest.param(2, MORE, marks=pytest.mark.slow)],
)
def test_split_equals_whole(n, families, tmp_path):
    """On 4 processes the two groups of keys and values of `llama` and `gemma` are copied."""
    save(tmp_path, families)
    found = spawned(tmp_path, n)
    for family in families:
        model = cd.load_model(tmp_path / family, dtype="float64")
        split, whole = found[family], json.loads(json.dumps(figures(model)))
        for same in ("identity", "acdc", "decisions"):
            assert split[same] == whole[same], (family, same)
        for close in ("logits", "neurons", "eap_ig", "gim", "masks"):
            np.testing.assert_allclose(split[close], whole[close], rtol=1e-9, atol=1e-9, err_msg=f"{family} {close}")
        assert_close(split["score"], whole["score"])
        every = sum(weight.numel() * 8 for weight in model.module.parameters())
        assert split["bytes"] < (0.75 if n == 2 else 0.6) * every
        assert "come apart" in split["apart"]


def assert_close(mine, theirs, where=""):
    """JSON that is the same up to rounding."""
    if isinstance(mine, dict):
        assert mine.keys() == theirs.keys(), where
        for key in mine:
            assert_close(mine[key], theirs[key], f"{where}.{key}")
    elif isinstance(mine, list):
        assert len(mine) == len(theirs), where
        for one, other in zip(mine, theirs, strict=True):
            assert_close(one, other, where)
    else:
        assert mine == (pytest.approx(theirs, rel=1e-9, abs=1e-9) if isinstance(theirs, float) else theirs), where


# --- what is refused ------------------------------------------------------------------------------------------------------


def test_heads_that_do_not_divide_are_refused_and_keys_are_copied():
    components = shared("llama").components
    with pytest.raises(BadModel, match=r"4 heads a layer.*take one of 1, 2, 4"):
        check_splits(components.spec, components.weights, 3, "llama")
    with pytest.warns(CircuitdiscWarning, match="2 groups of heads do not divide over 4 processes"):
        check_splits(components.spec, components.weights, 4, "llama")
    narrow = replace(components.weights, W_E=components.weights.W_E[:5])
    with pytest.raises(BadModel, match=r"too narrow for parallel\.tensor=4"):
        check_splits(components.spec, narrow, 4, "llama")
    experts = shared("mixtral").components
    with pytest.raises(BadModel, match=r"mixtures of experts.*device_map=auto"):
        check_splits(experts.spec, experts.weights, 2, "mixtral")


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"tensor": 2}, BadSetting, "splits the model over 2 processes, and this is a single one"),
        ({"tensor": 0}, BadSetting, r"parallel\.tensor"),
        ({"tensors": 2}, UnknownName, "tensor"),
        (2, BadSetting, "no table"),
        ({"device_map": "everywhere"}, BadSetting, "neither auto nor a table"),
        ({"tensor": 2, "device_map": "auto"}, BadSetting, "give one of them"),
    ],
)
def test_settings_that_cannot_be(given, error, words, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(error, match=words):
        cd.load_model("tpp/lightweight", parallel=given)
    assert Parallel.of(None) == Parallel()


def test_a_module_in_memory_is_whole_already():
    with pytest.raises(BadSetting, match="in memory is whole"):
        cd.load_model(toy("attention_only"), parallel={"tensor": 2})


# --- layers spread --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_spread_equals_whole(family, tmp_path):
    """Weights in memory, on disk, and some of each: the same model with the same identity as through hooks."""
    from circuitdisc.engine.selfcheck import _chunk, _logits, _probe
    from circuitdisc.identity import hash_model

    layers = "transformer.h" if family == "gpt2" else "model.layers"
    hugging_face(family).save_pretrained(tmp_path)
    whole = cd.load_model(tmp_path, components="hooks", dtype="float64")
    mask = np.random.default_rng(0).random(whole.graph.edge_mask.shape) < 0.7
    logits = _logits(whole, _chunk(whole, _probe(whole)), mask & whole.graph.edge_mask)
    for device_map in ("auto", {"": "disk"}, {"": "cpu", f"{layers}.1": "disk"}):
        model = cd.load_model(tmp_path, dtype="float64", parallel={"device_map": device_map})
        assert hash_model(model) == hash_model(whole)
        mine = _logits(model, _chunk(model, _probe(model)), mask & model.graph.edge_mask)
        torch.testing.assert_close(mine, logits, rtol=1e-9, atol=1e-9)


def test_a_map_that_does_not_fit(tmp_path):
    hugging_face("llama").save_pretrained(tmp_path)
    for device_map, words in (
        ({"layers.0": "disk"}, "no part 'layers.0'; its parts are model.embed_tokens, model.layers.0"),
        ({"model.layers.0": "disk"}, "gives no place for 'model.embed_tokens'"),
        ({"": "cuda:77"}, "cannot be spread"),
    ):
        with pytest.raises(BadSetting, match=words):
            cd.load_model(tmp_path, parallel={"device_map": device_map})
    with pytest.raises(BadSetting, match="components=hooks, and components=fast"):
        cd.load_model(tmp_path, components="fast", parallel={"device_map": "auto"})


def test_a_part_is_lent_weights_while_it_runs():
    from circuitdisc.models.spread import _run_on

    part = torch.nn.Linear(3, 3)
    x, before = torch.ones(1, 3), part.weight
    expected = part(x)
    _run_on(part, "cpu", lends=True)
    assert torch.equal(part(x), expected)
    assert part.weight is before


# --- packed weights -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, r"quantised \(bitsandbytes, 4 bits\)"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, r"quantised \(bitsandbytes, 8 bits\)"),
        ({"quant_method": "torchao", "quant_type": "int8_weight_only"}, r"quantised \(torchao\)"),
        ({"quant_method": "gptq", "bits": 3}, r"quantised \(gptq, 3 bits\)"),
    ],
)
def test_packed_weights_are_refused_with_what_to_do(config, words, tmp_path):
    hugging_face("llama").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": config}))
    with pytest.raises(BadFile, match=f"{words}.*dequantize"):
        cd.load_model(tmp_path)
