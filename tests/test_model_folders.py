"""A stranger's model folder is only data: nothing of it runs, nothing outside of it is read, and its sizes are bounded."""

import io
import json
import pickle
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import hugging_face, toy
from safetensors.torch import save_file
from tiny import word_tokenizer

import circuitdisc as cd
from circuitdisc.checkpoints.cmap.plan import plan_model
from circuitdisc.checkpoints.listing import find_checkpoint
from circuitdisc.errors import BadFile, BadModel, BadSetting, CircuitdiscError, CircuitdiscWarning, UnknownName
from circuitdisc.models import read_model
from circuitdisc.models.toy import ToyConfig

ONE_GIB = 2**30


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    hugging_face("gpt2").save_pretrained(folder)
    return folder


def changed(base: Path, folder: Path, **config: Any) -> Path:
    """A copy with its configuration changed."""
    shutil.copytree(base, folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def refused(call: Callable[[], Any], words: str) -> str:
    """The sentence of a refusal that comes at once, in less than 5 s of work and 1 GiB."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, time.process_time()
    with pytest.raises(CircuitdiscError, match=words) as raised:
        call()
    assert time.process_time() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < ONE_GIB
    assert len(str(raised.value)) < 500
    return str(raised.value)


# --- code ------------------------------------------------------------------------------------------------------------------

CODE = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
class Config(GPT2Config):
    model_type = "stranger"
class Model(GPT2LMHeadModel):
    config_class = Config
class Tokens(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def yes(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A user who answers yes to all that is asked."""
    answers = io.StringIO("y\n" * 20)
    monkeypatch.setattr(sys, "stdin", answers)
    return answers


@pytest.mark.parametrize("model_type", ["stranger", "gpt2"])
def test_code_in_a_folder_never_runs_and_nobody_is_asked(base: Path, tmp_path: Path, yes: io.StringIO, model_type: str) -> None:
    mark = tmp_path / "ran"
    auto = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model", "AutoTokenizer": ["code.Tokens", None]}
    folder = changed(base, tmp_path / "m", model_type=model_type, auto_map=auto)
    (folder / "code.py").write_text(CODE.format(mark=str(mark)))
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(CODE.format(mark=str(mark)))
    calls: list[Callable[[], Any]] = [
        lambda: read_model(str(folder)),
        lambda: find_checkpoint(str(folder)),
        lambda: plan_model(str(folder)),
    ]
    for call in calls:
        if model_type == "gpt2":
            with pytest.warns(CircuitdiscWarning, match=r"auto_map.*not run: the model is transformers' own 'gpt2'"):
                call()  # whatever the folder brings
        else:
            refused(call, r"code from its own folder \(auto_map\).*never run")
    assert not mark.exists()
    assert yes.tell() == 0


def test_a_tokenizers_code_never_runs(base: Path, tmp_path: Path, yes: io.StringIO) -> None:
    mark, folder = tmp_path / "ran", changed(base, tmp_path / "m")
    (folder / "code.py").write_text(CODE.format(mark=str(mark)))
    config = {"tokenizer_class": "Tokens", "auto_map": {"AutoTokenizer": ["code.Tokens", "code.Tokens"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    refused(lambda: read_model(str(folder)), "cannot load the tokenizer")
    refused(lambda: find_checkpoint(str(folder)).tokenizer(), "cannot load the tokenizer")
    assert not mark.exists()
    assert yes.tell() == 0


class _Mark:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("shard", ["pytorch_model.bin", "../other/model.safetensors", "/etc/passwd", "a\\b.safetensors", ""])
def test_an_index_stays_in_its_folder_and_with_safetensors(base: Path, tmp_path: Path, shard: str) -> None:
    folder, mark = changed(base, tmp_path / "m"), tmp_path / "ran"
    shutil.copytree(base, tmp_path / "other")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Mark(mark)))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"transformer.wte.weight": shard}}))
    for call in (lambda: read_model(str(folder)), lambda: find_checkpoint(str(folder))):
        refused(call, "only safetensors files in the same folder")
    assert not mark.exists()


def test_a_configuration_does_not_name_other_weights(base: Path, tmp_path: Path) -> None:
    """transformers reads the file that `transformers_weights` names; here it is model.safetensors or nothing."""
    folder, other = changed(base, tmp_path / "m", transformers_weights="../other.safetensors"), tmp_path / "other.safetensors"
    weights = hugging_face("gpt2").transformer.state_dict()
    save_file({name: tensor.clone() * 2 for name, tensor in weights.items()}, other)
    loaded = read_model(str(folder)).module.state_dict()
    assert torch.equal(loaded["transformer.wte.weight"], weights["wte.weight"])


# --- bounds before memory --------------------------------------------------------------------------------------------------


def header(length: int, text: bytes = b"") -> bytes:
    return length.to_bytes(8, "little") + text


def described(shape: list[int], size: int) -> bytes:
    text = json.dumps({"embed.W_E": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()
    return header(len(text), text)


FILES = {
    "empty": (b"", "is empty"),
    "seven bytes": (b"1234567", "is empty"),
    "a header of 2^53 bytes": (header(2**53, b"{}"), "header claims 9,007,199,254,740,992 bytes"),
    "a tensor of 2^53 numbers": (described([2**53], 2**55), "not a whole safetensors file"),
    "a tensor of 2^80 numbers": (described([2**40, 2**40], 4), "not a whole safetensors file"),
    "no JSON": (header(4, b"abcd"), "not a whole safetensors file"),
    "nested JSON": (header(200_000, b"[" * 200_000), "not a whole safetensors file"),
    "a shape below 0": (described([-1], 4), "not a whole safetensors file"),
}


@pytest.mark.parametrize("case", FILES)
def test_malformed_weights(base: Path, tmp_path: Path, case: str) -> None:
    content, words = FILES[case]
    folder, small = changed(base, tmp_path / "m"), tmp_path / "toy"
    small.mkdir()
    (small / "config.json").write_text(json.dumps(vars(toy("no_norm").config)))
    for one in (folder, small):
        (one / "model.safetensors").write_bytes(content)
        refused(lambda one=one: read_model(str(one)), words)
        refused(lambda one=one: find_checkpoint(str(one)), words)


HUGE: dict[str, tuple[dict[str, Any], str]] = {
    "the default size of another family": (
        {"model_type": "llama"}, r"model_type 'llama'\) asks for 6,[0-9,]+ weights, and the files hold [0-9,]+;.*another model",
    ),
    "a million layers": ({"n_layer": 10**6}, "asks for 1,000,000 layers"),
    "positions": ({"n_positions": 10**9}, r"asks for 32,[0-9,]+ weights.*wpe"),
    "a vocabulary of 2^62": ({"vocab_size": 2**62}, "asks for|makes no causal"),
    "experts": ({"model_type": "mixtral", "num_local_experts": 10**7, "num_hidden_layers": 2}, "experts"),
    "no heads": ({"n_head": 0}, "cannot be read|makes no causal"),
    "a word for a number": ({"n_embd": "wide"}, "cannot be read|makes no causal"),
    "minus one layer": ({"n_layer": -1}, "no place for|makes no causal|cannot be read"),
    "quantised": ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "quantised"),
    "an encoder": ({"model_type": "t5"}, "makes no causal|asks for"),
    "an unknown architecture": ({"model_type": "nothing"}, "cannot be read"),
    "a model_type that is a list": ({"model_type": ["gpt2"]}, "cannot be read|model_type"),
}  # fmt: skip


@pytest.mark.parametrize("case", HUGE)
def test_configurations_beyond_their_weights_are_refused_at_once(base: Path, tmp_path: Path, case: str) -> None:
    config, words = HUGE[case]
    folder = changed(base, tmp_path / "m", **config)
    refused(lambda: read_model(str(folder)), words)


TOYS: dict[str, tuple[dict[str, Any], str]] = {
    "a million layers": ({"n_layers": 10**6}, "1,000,000 layers"),
    "no layers": ({"n_layers": 0}, "n_layers='0' cannot be used; a whole number from 1"),
    "half a layer": ({"n_layers": 1.5}, "n_layers"),
    "a truth for a number": ({"n_heads": True}, "n_heads"),
    "a word for a number": ({"d_model": "16"}, "d_model"),
    "a huge width": ({"d_model": 10**12}, "d_model"),
    "a wide MLP": ({"d_mlp": 10**9}, r"W_in has shape \(16, 24\), config.json asks for"),
    "a list": ({"d_head": [4]}, "d_head"),
    "none": ({"d_vocab": None}, "d_vocab"),
    "minus": ({"n_ctx": -3}, "n_ctx"),
    "no number": ({"eps": float("nan")}, "eps"),
    "heads that keys do not divide": ({"n_key_value_heads": 3}, "no multiple"),
    "an odd rotation": ({"positional_embedding_type": "rotary", "rotary_dim": 3}, "must be even"),
    "a wide rotation": ({"positional_embedding_type": "rotary", "rotary_dim": 10**9}, "at most d_head"),
    "a norm that is a list": ({"normalization_type": ["LN"]}, "normalization_type"),
    "a number for a truth": ({"gated_mlp": 3}, "gated_mlp='3' cannot be used; true or false"),
}


@pytest.mark.parametrize("case", TOYS)
def test_toy_configurations_with_wrong_numbers(tmp_path: Path, case: str) -> None:
    changes, words = TOYS[case]
    model = toy("no_norm")
    save_file(dict(model.state_dict()), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**vars(model.config), **changes}))
    refused(lambda: read_model(str(tmp_path)), words)


def test_transformer_lens_words_for_a_default() -> None:
    config = {**vars(toy("attention_only").config), "d_vocab_out": -1, "attn_scale": -1.0, "model_name": "x", "seed": None}
    assert ToyConfig.from_dict(config) == toy("attention_only").config


# --- settings ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"name": None}, BadSetting, "names no model"),
        ({"name": 3}, BadSetting, "names no model"),
        ({"name": ""}, BadSetting, "names no model"),
        ({"name": "x" * 5000}, UnknownName, "unknown model"),
        ({"name": "a\0b"}, UnknownName, "unknown model"),
        ({"device": 9e22}, BadSetting, r"device=9e\+22"),
        ({"device": None}, BadSetting, "device=None"),
        ({"device": "meta"}, BadSetting, "device='meta'"),
        ({"device": "warp"}, BadSetting, "'warp'"),
        ({"device": "cuda:77"}, BadSetting, "'cuda:77'"),
        ({"dtype": 3}, UnknownName, "dtype '3'"),
        ({"dtype": ["float32"]}, UnknownName, "dtype"),
        ({"components": {}}, UnknownName, "components"),
        ({"split_embeddings": "maybe"}, BadSetting, "split_embeddings"),
    ],
)
def test_settings_that_cannot_be_used(settings: dict[str, Any], error: type[CircuitdiscError], words: str) -> None:
    settings = {"name": "tpp/lightweight", **settings}
    with pytest.raises(error, match=words):
        cd.load_model(**settings)


def test_a_path_is_a_name(base: Path) -> None:
    assert cd.load_model(base).name == str(base)  # pyright: ignore[reportArgumentType] - what users do


# --- architectures -----------------------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt_bigcode": {"vocab_size": 64, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64},
    "deepseek_v3": {
        **SMALL, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "q_lora_rank": 8,
        "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "first_k_dense_replace": 1,
        "moe_intermediate_size": 16,
    },
    "mamba": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}  # fmt: skip


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_architectures_that_cannot_be_cut_end_in_a_sentence(model_type: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from circuitdisc.engine.selfcheck import check_model
    from circuitdisc.models import cut_hugging_face

    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **ARCHITECTURES[model_type]))
    with pytest.raises(BadModel, match=model_type) as raised:
        check_model(cut_hugging_face(module, name=model_type))
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("components", ["fast", "hooks"])
def test_llama_with_biases_in_its_mlp(components: str) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig

    from circuitdisc.engine.selfcheck import check_model
    from circuitdisc.models import cut_hugging_face

    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL, mlp_bias=True, attention_bias=True))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    differences = check_model(cut_hugging_face(module.double(), name="biased", components=components))
    assert max(differences.values()) < 1e-6


def test_other_formats_are_named(base: Path, tmp_path: Path) -> None:
    folder = changed(base, tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BadFile, match=r"weights are read from safetensors alone\. Convert the other file"):
        read_model(str(folder))


def test_a_cached_hub_name_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files come from the cache, as a folder's would, with the same refusals."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    revision, place = "a" * 40, tmp_path / "models--some--tiny"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(revision)
    folder = place / "snapshots" / revision
    hugging_face("gpt2").save_pretrained(folder, max_shard_size="20KB")
    word_tokenizer().save_pretrained(folder)
    loaded, weights = read_model("some/tiny"), hugging_face("gpt2").state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.module.state_dict().items())
    assert loaded.tokenizer is not None
    with pytest.raises(UnknownName, match="unknown model 'some/other'"):
        read_model("some/other")
    next(folder.glob("*-00002-*.safetensors")).unlink()
    with pytest.raises(BadFile, match=r"lacks model-00002-of-.*\.safetensors"):
        read_model("some/tiny")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(BadFile, match="PEFT adapter"):
        read_model("some/tiny")
