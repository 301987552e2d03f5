"""Every weight comes from the files: what would be filled in, dropped or cast is refused with the tensors' names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import hugging_face, toy
from safetensors.torch import load_file, save_file
from torch import Tensor

import circuitdisc as cd
from circuitdisc.checkpoints.listing import find_checkpoint
from circuitdisc.errors import BadFile, BadModel, CircuitdiscError, CircuitdiscWarning
from circuitdisc.models import read_model

Tensors = dict[str, Tensor]


def write(folder: Path, change: Callable[[Tensors], Tensors] = lambda tensors: tensors, family: str = "llama") -> str:
    """A tiny model's folder with its weights changed."""
    hugging_face(family).save_pretrained(folder)
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file({name: tensor.contiguous() for name, tensor in change(tensors).items()}, path, {"format": "pt"})
    return str(folder)


def write_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def as_type(part: str, dtype: torch.dtype) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor.to(dtype) if part in name else tensor for name, tensor in tensors.items()}


def with_value(part: str, value: float) -> Callable[[Tensors], Tensors]:
    def change(tensors: Tensors) -> Tensors:
        next(tensor for name, tensor in tensors.items() if part in name).view(-1)[3] = value
        return tensors

    return change


def prefixed(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


UP, Q = "model.layers.1.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj"
CASES: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "a layer's MLP is missing": (without("layers.1.mlp"), r"3 of the model's tensors .*layers\.1\.mlp\.down_proj.*random"),
    "a norm is missing": (without("model.norm"), r"1 of the model's tensors .*\(model\.norm\.weight\)"),
    "the untied unembedding is missing": (without("lm_head"), r"lm_head\.weight"),
    "no tensors": (lambda tensors: {}, "holds no tensors"),
    "a tensor too many": (lambda tensors: {**tensors, "model.extra": torch.ones(2)}, r"1 tensors .*no place.*model\.extra"),
    "another shape": (
        lambda tensors: {**tensors, UP: tensors[UP][:5]},
        rf"{UP} has shape \(5, 32\), and \(48, 32\)",
    ),
    "integers": (as_type("layers.1.mlp.up_proj", torch.int8), rf"integers.*{UP}"),
    "booleans": (as_type("layers.1.mlp.up_proj", torch.bool), rf"integers, booleans.*{UP}"),
    "8-bit floats": (as_type("layers.1.mlp.up_proj", torch.float8_e4m3fn), rf"8-bit.*{UP}"),
    "NaN": (with_value("layers.1.mlp.up_proj", float("nan")), rf"NaN in the weights {UP}"),
    "infinite": (with_value("layers.1.mlp.up_proj", float("-inf")), rf"infinite values in the weights {UP}"),
    "low-rank changes": (
        lambda tensors: {**tensors, f"{Q}.lora_A.weight": torch.ones(2, 32), f"{Q}.lora_B.weight": torch.ones(32, 2)},
        r"PEFT has trained beside.*lora_A.*merge",
    ),
    "PEFT's whole model": (
        lambda tensors: {
            f"base_model.model.{name.replace('q_proj', 'q_proj.base_layer')}": tensor for name, tensor in tensors.items()
        },
        r"PEFT has trained beside.*base_layer",
    ),
    "half of the names under a prefix": (
        lambda tensors: {f"module.{name}" if "layers.0" in name else name: tensor for name, tensor in tensors.items()},
        r"9 of the model's tensors.*without a place in the model: module\.model\.layers\.0",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_weights_that_are_not_the_models_are_refused_by_name(case: str, tmp_path: Path, capsys: Any) -> None:
    change, words = CASES[case]
    name = write(tmp_path / "m", change)
    capsys.readouterr()
    with pytest.raises(CircuitdiscError, match=words) as raised:
        read_model(name)  # without the self-check, which compares a model with itself
    assert len(str(raised.value)) < 500
    assert capsys.readouterr().err == ""  # transformers' own report stays away


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "qwen2", "gpt_neox", "gemma2", "qwen3"])
def test_a_whole_folder_gives_the_model_that_was_saved(family: str, tmp_path: Path, recwarn: Any) -> None:
    saved = hugging_face(family)
    saved.save_pretrained(tmp_path)
    loaded = read_model(str(tmp_path), components="fast" if family != "qwen3" else "auto")
    tokens = torch.arange(6)[None]
    expected = saved(tokens).logits
    torch.testing.assert_close(loaded.own_logits(tokens, torch.ones_like(tokens), tokens), expected, atol=1e-5, rtol=0)
    assert not [warning for warning in recwarn if issubclass(warning.category, CircuitdiscWarning)]


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model.", "module._orig_mod."])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_known_prefixes_are_taken_off_openly(prefix: str, family: str, tmp_path: Path) -> None:
    name = write(tmp_path / "m", prefixed(prefix), family)
    with pytest.warns(CircuitdiscWarning, match=prefix.split(".")[0]):
        loaded = read_model(name)
    plain = hugging_face(family).state_dict()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in loaded.module.state_dict().items())


def test_a_prefix_inside_of_the_names_is_taken_off_openly(tmp_path: Path) -> None:
    name = write(
        tmp_path / "m", lambda tensors: {key.replace("layers.0.", "layers.0._orig_mod."): t for key, t in tensors.items()}
    )
    with pytest.warns(CircuitdiscWarning, match="_orig_mod"):
        loaded = read_model(name)
    plain = hugging_face("llama").state_dict()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in loaded.module.state_dict().items())


def test_tied_weights(tmp_path: Path) -> None:
    """One of two tied tensors is enough; neither is not; two that differ are both used, with a warning."""
    embedding, unembedding = "transformer.wte.weight", "lm_head.weight"
    read_model(write(tmp_path / "one", family="gpt2"))
    as_unembedding = lambda tensors: {unembedding if name == embedding else name: t for name, t in tensors.items()}  # noqa: E731
    loaded = read_model(write(tmp_path / "other", as_unembedding, "gpt2"))
    assert torch.equal(loaded.module.state_dict()[embedding], hugging_face("gpt2").state_dict()[embedding])
    with pytest.raises(BadModel, match=r"lm_head.weight, transformer.wte.weight"):
        read_model(write(tmp_path / "none", without("wte"), "gpt2"))
    name = write(tmp_path / "two", lambda tensors: {**tensors, unembedding: torch.ones(40, 32)}, "gpt2")
    with pytest.warns(CircuitdiscWarning, match="two that differ"):
        loaded = read_model(name)
    assert torch.equal(loaded.module.state_dict()[unembedding], torch.ones(40, 32))


def test_old_buffers_that_a_family_passes_over_are_no_fault(tmp_path: Path) -> None:
    mask = torch.ones(1, 1, 64, 64, dtype=torch.uint8).tril()
    read_model(write(tmp_path / "m", lambda tensors: {**tensors, "transformer.h.0.attn.bias": mask}, "gpt2"))


def test_half_precision_that_is_too_narrow_is_named(tmp_path: Path) -> None:
    name = write(tmp_path / "m", with_value("layers.1.mlp.up_proj", 1e6))
    read_model(name)
    with pytest.raises(BadModel, match=rf"infinite values in the weights {UP} \(as float16\)"):
        read_model(name, dtype="float16")


def test_float64_weights_stay_float64(tmp_path: Path) -> None:
    model = toy("no_norm").double()
    weights = {name: tensor + 1e-12 for name, tensor in model.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors")
    write_toy(tmp_path, model)
    loaded = read_model(str(tmp_path), dtype="float64")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.module.state_dict().items())


def test_a_file_that_is_written_again_does_not_change_a_loaded_model(tmp_path: Path) -> None:
    for name in (write(tmp_path / "m"), str(write_toy(tmp_path / "toy", toy("no_norm")))):
        loaded = read_model(name)
        before = {key: tensor.clone() for key, tensor in loaded.module.state_dict().items()}
        path = Path(name) / "model.safetensors"
        content = path.read_bytes()
        with path.open("r+b") as file:
            file.seek(len(content) // 2)
            file.write(bytes(len(content) // 2))
        assert all(torch.equal(tensor, before[key]) for key, tensor in loaded.module.state_dict().items())


# --- toys -----------------------------------------------------------------------------------------------------------------


def write_toy(folder: Path, model: Any, change: Callable[[Tensors], Tensors] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(vars(model.config)))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if change is not None or not (folder / "model.safetensors").exists():
        save_file(change(weights) if change else weights, folder / "model.safetensors")
    return folder


TOY_CASES: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "weights missing": (without("blocks.1.mlp.W"), r"2 weights are missing: blocks\.1\.mlp\.W_in, blocks\.1\.mlp\.W_out"),
    "one layer's biases missing": (without("blocks.1.attn.b_Q"), r"1 weights are missing: blocks\.1\.attn\.b_Q"),
    "a weight too many": (lambda tensors: {**tensors, "blocks.0.mlp.W": torch.ones(2)}, "no place for: blocks"),
    "another shape": (lambda tensors: {**tensors, "unembed.b_U": torch.ones(3)}, r"b_U has shape \(3,\)"),
    "integers": (as_type("blocks.0.attn.W_K", torch.int64), r"integers.*blocks\.0\.attn\.W_K"),
    "NaN": (with_value("blocks.1.attn.W_V", float("nan")), r"NaN in the weights blocks\.1\.attn\.W_V"),
    "no tensors": (lambda tensors: {}, "holds no tensors"),
    "low-rank changes": (lambda tensors: {**tensors, "blocks.0.attn.lora_A": torch.ones(2)}, "PEFT"),
}


@pytest.mark.parametrize("case", TOY_CASES)
def test_weights_that_are_not_a_toys_are_refused_by_name(case: str, tmp_path: Path) -> None:
    change, words = TOY_CASES[case]
    with pytest.raises(CircuitdiscError, match=words):
        read_model(str(write_toy(tmp_path, toy("no_norm"), change)))


def test_a_toy_without_biases_and_one_under_a_prefix(tmp_path: Path) -> None:
    no_bias = lambda tensors: {name: t for name, t in tensors.items() if not name.split(".")[-1].startswith("b")}  # noqa: E731
    loaded = cd.load_model(str(write_toy(tmp_path / "a", toy("no_norm"), no_bias)))
    assert not loaded.module.state_dict()["blocks.0.attn.b_Q"].any()
    with pytest.warns(CircuitdiscWarning, match="_orig_mod"):
        loaded = cd.load_model(str(write_toy(tmp_path / "b", toy("no_norm"), prefixed("_orig_mod."))))
    assert torch.equal(loaded.module.state_dict()["embed.W_E"], toy("no_norm").state_dict()["embed.W_E"])


# --- adapters, and every place that loads ---------------------------------------------------------------------------------


def test_an_adapters_folder_and_an_adapter_beside_a_model(tmp_path: Path) -> None:
    alone, beside = tmp_path / "alone", Path(write(tmp_path / "beside"))
    alone.mkdir()
    for folder in (alone, beside):
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "nowhere"}')
    for read in (read_model, find_checkpoint):
        with pytest.raises(BadFile, match=r"holds a PEFT adapter \(adapter_config.json\), not a model: give its base"):
            read(str(alone))
        with pytest.raises(BadFile, match=r"adapter .* beside a model.*merges"):
            read(str(beside))


def test_every_command_that_loads_refuses(tmp_path: Path) -> None:
    name = write(tmp_path / "m", without("h.1.mlp"), "gpt2")
    task = {"name": "induction", "n": 4, "n_heldout": 4}
    from circuitdisc.checkpoints.baselines import baselines
    from circuitdisc.checkpoints.finetune.finetune import finetune

    for call in (
        lambda: cd.load_model(name),
        lambda: finetune(name, task, tmp_path / "out"),
        lambda: baselines([name, "tpp/base"], task),
    ):
        with pytest.raises(BadModel, match=r"h\.1\.mlp|differ"):
            call()
    assert not (tmp_path / "out").exists()
