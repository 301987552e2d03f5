"""Names of checkpoints are expanded and checked before any weights are read."""

import json
import shutil
from pathlib import Path

import pytest
from models import hugging_face, model_of
from tiny import word_tokenizer

from circuitdisc.checkpoints.listing import LADDER, check_prompts, check_same, find_checkpoint, load, read_checkpoints
from circuitdisc.errors import BadFile, BadModel, BadSetting, UnknownName
from circuitdisc.models import Model
from circuitdisc.tasks import Example


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny checkpoints of one architecture."""
    root = tmp_path_factory.mktemp("checkpoints")
    for seed, name in enumerate(("base", "10pct", "10pct/step-2", "10pct/step-10")):
        hugging_face("gpt2", seed).save_pretrained(root / name)
    return root


def write_ladder(folder: Path, rungs: list[str], base: str) -> None:
    ladder = {"format": "circuitdisc.ladder", "version": 1, "base": base, "rungs": [{"name": name} for name in rungs]}
    (folder / LADDER).write_text(json.dumps(ladder))


def test_shipped_names_folders_patterns_and_ladders(saved: Path) -> None:
    assert read_checkpoints(["tpp/base", "tpp/lightweight"]) == ["tpp/base", "tpp/lightweight"]
    assert read_checkpoints(str(saved / "base")) == [str(saved / "base")]
    pattern = str(saved / "10pct" / "step-*")
    assert read_checkpoints(pattern) == [str(saved / "10pct" / f"step-{step}") for step in (2, 10)]  # by number, not by letter
    write_ladder(saved, ["10pct"], str(saved / "base"))
    assert read_checkpoints(saved) == [str(saved / "base"), str(saved / "10pct")]
    assert load(find_checkpoint(saved / "base")).graph == load(str(saved / "10pct")).graph


def test_a_ladder_with_a_missing_rung_names_it(saved: Path) -> None:
    write_ladder(saved, ["10pct", "30pct"], str(saved / "base"))
    with pytest.raises(BadFile, match=r"has no 30pct/config.json: .*finetune"):
        read_checkpoints(saved)


@pytest.mark.parametrize("text", ["[1]", "{", '{"format": "circuitdisc.ladder"}', '{"format": "other"}'])
def test_a_broken_ladder_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / LADDER).write_text(text)
    with pytest.raises(BadFile, match=LADDER):
        read_checkpoints(tmp_path)


@pytest.mark.parametrize(
    ("names", "error", "words"),
    [
        (["tpp/bas"], UnknownName, "Did you mean tpp/base"),
        (["tpp/base", "tpp/base"], BadSetting, "named twice"),
        ([], BadSetting, "at least 1 checkpoint"),
        (["tpp/base", "multitask/base"], BadModel, "vocab_size 443 and 311"),
        (["tpp/base", "toys/induction"], BadModel, "another kind of file"),
        ("nowhere/step-*", BadFile, "no folder"),
    ],
)
def test_what_does_not_fit_is_refused(names: list[str] | str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        read_checkpoints(names)


def test_too_few_for_the_command(saved: Path) -> None:
    with pytest.raises(BadSetting, match="a comparison needs at least 2 checkpoints, not 1"):
        read_checkpoints("tpp/base", least=2, what="a comparison")


def test_missing_files_are_named(saved: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(saved / "base", copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(BadFile, match=r"no model.safetensors"):
        find_checkpoint(copy)
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "model-00001-of-00001.safetensors"}}))
    with pytest.raises(BadFile, match=r"lacks model-00001-of-00001.safetensors"):
        find_checkpoint(copy)
    (copy / "config.json").unlink()
    with pytest.raises(BadFile, match=r"no config.json"):
        find_checkpoint(copy)


def test_another_tokenizer_is_refused(saved: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        shutil.copytree(saved / "base", folder)
        word_tokenizer().save_pretrained(folder)
    check_same([find_checkpoint(folder) for folder in folders])
    path = folders[1] / "tokenizer.json"
    data = json.loads(path.read_text())
    words = data["model"]["vocab"]
    words["implies"], words["then"] = words["then"], words["implies"]
    path.write_text(json.dumps(data))
    with pytest.raises(BadModel, match=r"token 'implies' has another number"):
        check_same([find_checkpoint(folder) for folder in folders])
    example = Example((1,), None, (0,), ((5,),), ((),), text="a implies b")
    with pytest.raises(BadModel, match=r"read 'a implies b' differently"):
        check_prompts([find_checkpoint(folder) for folder in folders], [example])
    check_prompts([find_checkpoint(folders[0])] * 2, [example])


def test_loaded_models_are_compared_by_their_graphs() -> None:
    gpt2, llama = model_of("gpt2"), model_of("llama")
    check_same([gpt2, model_of("gpt2")])
    with pytest.raises(BadModel, match="3 layers x 4 heads"):
        check_same([gpt2, llama])


def test_a_model_and_a_shipped_name_together(lightweight: Model) -> None:
    check_same([lightweight, "tpp/base"])
    with pytest.raises(BadModel, match="vocab_size"):
        check_same([lightweight, "multitask/base"])


@pytest.mark.parametrize("length", [10, 1000, -1])
def test_weights_that_were_cut_short_are_seen_before_anything_runs(saved: Path, tmp_path: Path, length: int) -> None:
    shutil.copytree(saved / "base", tmp_path / "cut")
    path = tmp_path / "cut" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(BadFile, match="cut short"):
        read_checkpoints([saved / "base", tmp_path / "cut"])


@pytest.mark.parametrize("name", ["tpp/lightwieght", "no-such-model-anywhere"])
def test_an_unknown_name_is_asked_for_once_and_never_downloaded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def no_network(_: object, repo: str, **__: object) -> None:
        asked.append(repo)
        raise ConnectionError("no network")

    def download(*_: object, **__: object) -> None:
        raise AssertionError("nothing is to be downloaded")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", no_network)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", download)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", download)
    with pytest.raises(UnknownName, match=name):
        load(name)
    with pytest.raises(UnknownName, match=name):
        read_checkpoints([name])
    assert asked == ([] if name.startswith("tpp/") else [name, name])  # a shipped family is known without asking
