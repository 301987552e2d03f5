"""What a model's name may stand for beside a folder: a base with an adapter, a revision of a hub name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_files import tiny_llama, write_gguf
from models import hugging_face
from safetensors.torch import load_file, save_file
from tiny import word_tokenizer

import circuitdisc as cd
from circuitdisc.checkpoints.listing import find_checkpoint, read_checkpoints
from circuitdisc.cli import main
from circuitdisc.errors import BadFile, BadModel, BadSetting, CircuitdiscError, CircuitdiscWarning, UnknownName
from circuitdisc.identity import hash_model
from circuitdisc.models import read_model

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def own_logits(model: Any) -> torch.Tensor:
    return model.own_logits(TOKENS, torch.ones_like(TOKENS), torch.arange(8)[None])


# --- adapters -------------------------------------------------------------------------------------------------------------


def write_adapter(folder: Path, module: Any, base: str = "", **settings: Any) -> Any:
    """A trained adapter of a module, saved; gives the adapted model."""
    peft = pytest.importorskip("peft")
    settings = {"r": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM", **settings}
    adapted = peft.get_peft_model(module, peft.LoraConfig(**settings))
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.3)
    adapted.save_pretrained(folder)
    said = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**said, "base_model_name_or_path": base}))
    return adapted.eval()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    hugging_face("llama").save_pretrained(tmp_path / "base")
    word_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize(
    "settings", [{}, {"use_dora": True}, {"use_rslora": True, "rank_pattern": {"q_proj": 2}}, {"modules_to_save": ["lm_head"]}]
)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_an_adapter_is_merged_into_its_base(settings: dict[str, Any], dtype: str, base: Path, tmp_path: Path) -> None:
    adapted = write_adapter(tmp_path / "adapter", hugging_face("llama"), "base", **settings)
    expected = adapted(TOKENS).logits.detach()
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    model = cd.load_model(f"{base}+{tmp_path / 'adapter'}", dtype=dtype)
    assert str(model.dtype) == f"torch.{dtype}"
    assert model.tokenizer is not None
    assert model.name == f"{base}+{tmp_path / 'adapter'}"
    close = {"float32": 1e-5, "float64": 1e-5, "bfloat16": 0.1}[dtype]
    torch.testing.assert_close(own_logits(model).float(), expected, rtol=close, atol=close)
    assert not torch.allclose(own_logits(read_model(base)), expected, atol=1e-2)
    merged = read_model(tmp_path / "merged", dtype=dtype)
    assert model.module.state_dict().keys() == merged.module.state_dict().keys()
    if dtype == "float32":
        assert hash_model(model) == hash_model(merged) != hash_model(read_model(base))


def test_an_adapter_on_a_gguf_file_and_in_a_list(tmp_path: Path) -> None:
    adapted = write_adapter(tmp_path / "adapter", tiny_llama(), "tiny.gguf")
    file = write_gguf(tmp_path / "tiny.gguf", tiny_llama())
    name = f"{file}+{tmp_path / 'adapter'}"
    torch.testing.assert_close(own_logits(cd.load_model(name)), adapted(TOKENS).logits.detach())
    assert read_checkpoints([str(file), name]) == [str(file), name]
    task = {"name": "induction", "n": 4, "n_heldout": 4, "length": 6}
    words = ["task=induction", "task.n=4", "task.n_heldout=4", "task.length=6", "allow_chance=true", "algorithm=random"]
    call = ["discover", f"model={name}", *words, "scoring.n_random=1", f"out={tmp_path / 'run'}", "progress=false"]
    assert main(call) == 0
    assert cd.Circuit.load(tmp_path / "run" / "circuit.json").provenance.model == name
    assert name in json.dumps(cd.baselines([str(file), name], task, n_others=4).to_dict())


def test_a_base_of_another_name_is_said(base: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", hugging_face("llama"), "org/another")
    with pytest.warns(
        CircuitdiscWarning, match=r"names 'org/another' as its base, and is merged into .*base: is that the same"
    ):
        read_model(f"{base}+{tmp_path / 'adapter'}")


def changed(folder: Path, change: Any) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = dict(load_file(path))
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop(FIRST), rf"1 of its tensors are not in its file \({FIRST}\)"),
        (lambda tensors: tensors.update({FIRST: torch.zeros(4, 16)}), r"has shape \(4, 16\), and \(4, 32\) is asked for"),
        (lambda tensors: tensors.update({FIRST: tensors[FIRST].to(torch.int8)}), "integers, booleans or 8-bit"),
        (lambda tensors: tensors.update({"extra": torch.zeros(3)}), r"no place for 1 of its tensors \(extra\)"),
        (lambda tensors: tensors[FIRST].fill_(float("nan")), "NaN in the weights"),
    ],
)
def test_adapters_whose_tensors_do_not_fit(change: Any, words: str, base: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", hugging_face("llama"), "base")
    changed(tmp_path / "adapter", change)
    with pytest.raises(BadModel, match=words):
        read_model(f"{base}+{tmp_path / 'adapter'}")


def test_pairs_that_do_not_fit(base: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    write_adapter(adapter, hugging_face("llama"), "base")
    hugging_face("gpt2").save_pretrained(tmp_path / "gpt2")
    for name, words in (
        (f"{tmp_path / 'gpt2'}+{adapter}", r"changes layers that are not in it \(model\.layers\.0\.mlp\.down_proj"),
        (f"toys/induction+{adapter}", "adapters are merged into Hugging Face models alone"),
        (f"{base}+{base}", "holds no PEFT adapter: it has no adapter_config.json"),
        (f"{base}+{tmp_path / 'none'}", r"there is no adapter .*none"),
        (f"{tmp_path / 'none'}+{adapter}", r"unknown model .*none"),
        (f"{base}+", r"write BASE\+ADAPTER"),
    ):
        with pytest.raises(CircuitdiscError, match=words):
            read_model(name)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    for read in (read_model, find_checkpoint):
        with pytest.raises(BadFile, match="weights are read from safetensors alone"):
            read(f"{base}+{adapter}")


@pytest.mark.parametrize(
    "pattern", [r".*(q|down)_proj", r"(?:.*?(?:attn|mlp).*?(?:q_proj|down_proj).*?)|(?:x{1,})", "(([a-z]+)+.?)+"]
)
def test_layers_named_by_a_pattern(pattern: str, base: Path, tmp_path: Path) -> None:
    adapted = write_adapter(tmp_path / "adapter", hugging_face("llama"), "base")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "target_modules": pattern}))
    model = read_model(f"{base}+{tmp_path / 'adapter'}")
    torch.testing.assert_close(own_logits(model), adapted(TOKENS).logits.detach())


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4', which changes the base's own weights"),
        ({"peft_type": "NONE_SUCH"}, "does not fit"),
        ({"peft_type": 7}, "no configuration of an adapter"),
        ({"r": 10**9}, "asks for rank 1,000,000,000, which none of its tensors has"),
        ({"r": 8}, r"has shape \(4, 48\), and \(8, 48\) is asked for"),
        ({"r": "four"}, "does not fit"),
        ({"exclude_modules": "(([a-z]+)+.)+x"}, "names layers by the pattern"),
        ({"rank_pattern": {"(a|a)*(a|a)*b": 2}}, "names layers by the pattern"),
        ({"use_next_years_trick": True}, r"does not know \(use_next_years_trick\): update peft"),
        ({"alora_invocation_tokens": [1, 2]}, "does not fit .* aLoRA does not support merging"),
        ({"target_modules": ["nowhere"]}, "does not fit"),
        ({"target_modules": ["(("]}, "does not fit"),
    ],
)
def test_configurations_of_adapters(said: dict[str, Any], words: str, base: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", hugging_face("llama"), "base")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **said}))
    with pytest.raises(CircuitdiscError, match=words) as caught:
        read_model(f"{base}+{tmp_path / 'adapter'}")
    assert "\n" not in str(caught.value)


def test_without_the_package(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_adapter(tmp_path / "adapter", hugging_face("llama"), "base")
    monkeypatch.setattr("circuitdisc.models.adapters.find_spec", lambda name: None)
    with pytest.raises(BadSetting, match=r"pip install 'circuitdisc\[lora\]'"):
        read_model(f"{base}+{tmp_path / 'adapter'}")


@pytest.mark.parametrize(
    "name", ["@", "+", "a@", "@b", "{x@,y", "a/b/c@d", "a+@", "\0@x", "\0+x", "x.gguf+y", "~@~", "../x@y", "a@b@c", "+" * 40]
)
def test_odd_names(name: str) -> None:
    for read in (read_model, find_checkpoint, read_checkpoints):
        with pytest.raises(CircuitdiscError) as caught:
            read(name)
        assert "\n" not in str(caught.value)


def test_folders_with_the_signs_in_their_names(tmp_path: Path) -> None:
    for name in ("a@b", "c+d"):
        hugging_face("llama").save_pretrained(tmp_path / name)
        assert read_model(tmp_path / name).name == str(tmp_path / name)
    write_adapter(tmp_path / "e+f", hugging_face("llama"), "c+d")
    assert not torch.equal(own_logits(read_model(f"{tmp_path}/c+d+{tmp_path}/e+f")), own_logits(read_model(tmp_path / "c+d")))


# --- revisions ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache as the hub's client fills it: `some/tiny` at two revisions with names and one without, and `some/adapter`."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "models--some--tiny"
    (place / "refs").mkdir(parents=True)
    for seed, revision in enumerate(("main", "step1000", "")):
        commit = "abc"[seed] * 40
        hugging_face("llama", seed).save_pretrained(place / "snapshots" / commit)
        word_tokenizer(add_bos=seed == 1).save_pretrained(place / "snapshots" / commit)
        if revision:
            (place / "refs" / revision).write_text(commit)
    return tmp_path


def test_a_revision_of_a_hub_name(hub: Path) -> None:
    for name, seed in (("some/tiny", 0), ("some/tiny@main", 0), ("some/tiny@step1000", 1), (f"some/tiny@{'c' * 40}", 2)):
        model, weights = cd.load_model(name, dtype="float64"), hugging_face("llama", seed).double().state_dict()
        assert all(torch.equal(tensor, weights[key]) for key, tensor in model.module.state_dict().items())
        assert model.name == name
        assert (model.tokenizer("If")["input_ids"][0] == model.tokenizer.bos_token_id) == (seed == 1)
        assert find_checkpoint(name).sizes["num_hidden_layers"] == 2
    assert read_checkpoints(["some/tiny@main", "some/tiny@step1000"]) == ["some/tiny@main", "some/tiny@step1000"]
    with pytest.raises(
        UnknownName, match=rf"unknown revision of some/tiny 'step2000'.*In the cache: main, step1000, {'c' * 40}"
    ):
        cd.load_model("some/tiny@step2000")
    with pytest.raises(UnknownName, match="unknown model 'some/other@step1000'"):
        cd.load_model("some/other@step1000")


def test_an_adapter_from_the_hub_on_a_revision(hub: Path) -> None:
    place = hub / "models--some--adapter"
    adapted = write_adapter(place / "snapshots" / ("d" * 40), hugging_face("llama", 1), "some/tiny")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("d" * 40)
    model = cd.load_model("some/tiny@step1000+some/adapter")
    torch.testing.assert_close(own_logits(model), adapted(TOKENS).logits.detach())
    with pytest.raises(BadFile, match=r"holds a PEFT adapter .* give its base, too"):
        cd.load_model("some/adapter")
