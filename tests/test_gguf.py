"""A GGUF file is the model that it was written from, each tensor accounted for; a malformed one ends in one sentence."""

import copy
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_files import tensors_of, tiny_llama, write_gguf
from models import hugging_face
from tiny import bpe_tokenizer

import circuitdisc as cd
from circuitdisc.checkpoints.listing import read_checkpoints
from circuitdisc.cli import main
from circuitdisc.errors import BadFile, BadModel, BadSetting, CircuitdiscError, CircuitdiscWarning
from circuitdisc.identity import hash_model
from circuitdisc.models import gguf as gguf_files
from circuitdisc.models import read_model
from circuitdisc.models.gguf import load_gguf, read_header

gguf = pytest.importorskip("gguf")
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def own_logits(model: Any) -> torch.Tensor:
    return model.own_logits(TOKENS, torch.ones_like(TOKENS), torch.arange(8)[None])


@pytest.fixture(scope="module")
def module() -> Any:
    return tiny_llama()


@pytest.fixture
def file(module: Any, tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf", module)


# --- the model that it was written from ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_it_is_the_same_model_as_its_folder(tied: bool, tmp_path: Path) -> None:
    tokenizer = bpe_tokenizer()
    module: Any = tiny_llama(len(tokenizer), tie_word_embeddings=tied)
    module.save_pretrained(tmp_path / "folder")
    tokenizer.save_pretrained(tmp_path / "folder")
    file = write_gguf(tmp_path / "tiny.gguf", module, tokenizer)
    ours: Any = cd.load_model(str(file))
    theirs: Any = cd.load_model(tmp_path / "folder")
    assert ours.module.state_dict().keys() == theirs.module.state_dict().keys()
    assert all(torch.equal(tensor, ours.module.state_dict()[name]) for name, tensor in theirs.module.state_dict().items())
    torch.testing.assert_close(own_logits(ours), module(TOKENS).logits)
    text = "Then, Mary and John went to the store. John gave a drink to"
    assert ours.tokenizer(text)["input_ids"] == theirs.tokenizer(text)["input_ids"]
    assert not hasattr(ours.module, "hf_quantizer")
    assert not getattr(ours.module, "is_quantized", False)
    assert not hasattr(ours.module.config, "quantization_config")
    ours.module.save_pretrained(tmp_path / "again")
    assert read_model(str(tmp_path / "again")).architecture == "llama"
    assert hash_model(ours) == hash_model(cd.load_model(file))
    assert read_checkpoints([tmp_path / "folder", file]) == [str(tmp_path / "folder"), str(file)]
    assert read_checkpoints(f"{tmp_path}/*.gguf") == [str(file)]


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_blocks_of_8_bits_are_dequantised(dtype: str, module: Any, tmp_path: Path) -> None:
    expected = copy.deepcopy(module)
    kind = gguf.GGMLQuantizationType.Q8_0
    with torch.no_grad():
        for weight in expected.parameters():
            if weight.ndim == 2:
                blocks = gguf.quants.quantize(weight.numpy(), kind)
                weight.copy_(torch.from_numpy(gguf.quants.dequantize(blocks, kind)))
    model = cd.load_model(write_gguf(tmp_path / "q8.gguf", module, q8=True), dtype=dtype)
    assert str(model.dtype) == f"torch.{dtype}"
    wanted = expected.to(model.dtype).state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.module.state_dict().items())
    assert not torch.equal(wanted["lm_head.weight"].float(), module.lm_head.weight)


@pytest.mark.parametrize("family", ["gpt2", "mistral", "qwen2", "qwen3", "gemma2"])
def test_the_other_families(family: str, tmp_path: Path) -> None:
    module = hugging_face(family)
    changes = {
        "gemma2": {"head_dim": 256, "query_pre_attn_scalar": 256},
        "qwen3": {"head_dim": 128},
        "mistral": {"sliding_window": None},
    }
    if family in changes:  # as in all of Qwen 3, and of Gemma 2 but the largest
        config = copy.deepcopy(module.config)
        config.update(changes[family])
        module = type(module)(config).eval().requires_grad_(False)
    file = write_gguf(tmp_path / "m.gguf", module)
    weights = load_gguf(file, torch.float32).state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in module.state_dict().items())
    torch.testing.assert_close(own_logits(cd.load_model(file)), module(TOKENS).logits.detach())


def test_what_a_header_does_not_say_or_transformers_does_not_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match=r"says attention\.sliding_window=4, which transformers does not read"):
        read_model(write_gguf(tmp_path / "m.gguf", hugging_face("mistral")))
    with pytest.raises(BadModel, match="does not say by what its queries are scaled"):
        read_model(write_gguf(tmp_path / "m.gguf", hugging_face("gemma2")))


def test_a_command_finds_a_circuit_in_it(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["task=induction", "task.n=4", "task.n_heldout=4", "task.length=6", "allow_chance=true", "algorithm=eap"]
    call = ["discover", f"model={file}", *words, "algorithm.edges=20", "scoring.n_random=1", f"out={tmp_path / 'run'}"]
    assert main([*call, "progress=false"]) == 0
    assert {"circuit.json", "scores.json", "report.html"} <= {path.name for path in (tmp_path / "run").iterdir()}


# --- what is refused ------------------------------------------------------------------------------------------------------


def test_without_the_package(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_files, "find_spec", lambda name: None)
    with pytest.raises(BadSetting, match=r"which the package gguf reads: pip install 'circuitdisc\[gguf\]'"):
        cd.load_model(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"there is no file .*none\.gguf"):
        cd.load_model(tmp_path / "none.gguf")


def without(name: str) -> Any:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def with_more(name: str, *shape: int) -> Any:
    return lambda tensors: {**tensors, name: np.ones(shape, np.float32)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("blk.1.ffn_up.weight"), r"model\.layers\.1\.mlp\.up_proj\.weight.*random"),
        (with_more("rope_freqs.weight", 4), r"no place in a 'llama' for rope_freqs\.weight, which would be dropped"),
        (with_more("blk.2.attn_q.weight", 32, 32), r"blk\.2\.attn_q\.weight"),
        (with_more("blk.0.ffn_gate_exps.weight", 2, 64, 32), r"ffn_gate_exps"),
        (with_more("blk.1.ffn_up.weight", 48, 32), r"up_proj\.weight has shape \(48, 32\), and \(64, 32\) is asked for"),
        (with_more("output_norm.weight", 32), None),
        (lambda tensors: {**tensors, "output_norm.weight": np.full(32, np.nan, np.float32)}, "NaN in the weights model.norm"),
        (lambda tensors: {**tensors, "output_norm.weight": np.ones(32, np.int32)}, "cannot be read"),
    ],
)
def test_every_tensor_is_accounted_for(change: Any, words: str | None, module: Any, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", module, tensors=change(tensors_of(module)))
    if words is None:
        assert read_model(file).architecture == "llama"
        return
    with pytest.raises((BadModel, BadFile), match=words):
        read_model(file)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"architecture": "mistral9"}, r"of the architecture 'mistral9', which transformers does not read.*llama"),
        ({"architecture": "clip"}, "'clip'"),
        ({"architecture": "t5encoder"}, "'t5encoder'"),
        (
            {"llama__rope__scaling__type": "yarn", "llama__rope__scaling__factor": 4.0},
            r"says rope\.scaling\.factor=4\.0, rope\.scaling\.type='yarn', which",
        ),
        ({"llama__attention__scale": 0.5}, r"says attention\.scale=0\.5"),
        ({"split__count": 3}, "one of 3 files"),
        ({"llama__block_count": 10**9}, r"its header asks for 1,000,000,000 layers"),
        ({"llama__embedding_length": 2**20}, r"its header.* asks for .* weights, and the files hold"),
        ({"llama__vocab_size": 2**31}, r"its header.* asks for .* weights"),
        ({"llama__attention__head_count": 0}, "tiny.gguf|m.gguf"),
        ({"llama__block_count": "two"}, "m.gguf"),
        ({"llama__block_count": None}, "m.gguf"),
    ],
)
def test_headers_that_are_refused(values: dict[str, Any], words: str, module: Any, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", module, **values)
    with pytest.raises(CircuitdiscError, match=words) as caught:
        read_model(file)
    assert "\n" not in str(caught.value)


def test_settings_that_transformers_leaves_out_are_named(module: Any, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", module, llama__pooling_type=1, llama__rope__scaling__type="none")
    with pytest.warns(CircuitdiscWarning, match=r"does not read pooling_type=1 from GGUF files"):
        read_model(file)


def text(words: bytes) -> bytes:
    return struct.pack("<Q", len(words)) + words


HEAD = b"GGUF" + struct.pack("<I", 3)
ARCHITECTURE = text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")
ONE = HEAD + struct.pack("<QQ", 1, 1) + ARCHITECTURE
MALFORMED = {
    "empty": (b"", "cannot read"),
    "another format": (b"PK\x03\x04" + bytes(100), "does not begin with GGUF"),
    "magic alone": (b"GGUF", "cut short"),
    "version 1": (b"GGUF" + struct.pack("<I", 1) + bytes(100), "version 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + bytes(100), "version 50331648"),
    "more tensors than bytes": (HEAD + struct.pack("<QQ", 2**60, 0) + bytes(100), "1,152,921,504,606,846,976 tensors"),
    "more settings than bytes": (HEAD + struct.pack("<QQ", 0, 2**20) + bytes(100), "1,048,576 settings"),
    "a giant name": (HEAD + struct.pack("<QQQ", 0, 1, 2**62) + bytes(100), "for one of its values"),
    "a giant array": (HEAD + struct.pack("<QQ", 0, 1) + text(b"a") + struct.pack("<IIQ", 9, 4, 2**50) + bytes(99), "values in"),
    "an array of bytes beyond the end": (
        HEAD + struct.pack("<QQ", 0, 1) + text(b"a") + struct.pack("<IIQ", 9, 0, 10**6) + bytes(99), "for one of its values",
    ),
    "arrays in arrays": (HEAD + struct.pack("<QQ", 0, 1) + text(b"a") + struct.pack("<IIQ", 9, 9, 1) + bytes(9), "of kind 9"),
    "a kind that there is not": (HEAD + struct.pack("<QQ", 0, 1) + text(b"a") + struct.pack("<I", 77) + bytes(99), "kind 77"),
    "not UTF-8": (HEAD + struct.pack("<QQ", 0, 1) + text(b"\xff\xfe") + bytes(99), "cut short"),
    "many dimensions": (ONE + text(b"t") + struct.pack("<I", 2**31) + bytes(99), "dimensions"),
    "a giant tensor": (ONE + text(b"t") + struct.pack("<IQQIQ", 2, 2**40, 2**40, 0, 0) + bytes(99), "ends beyond the file"),
    "an unknown type": (ONE + text(b"t") + struct.pack("<IQIQ", 1, 32, 999, 0) + bytes(999), "type 999"),
    "half a block": (ONE + text(b"t") + struct.pack("<IQIQ", 1, 31, 8, 0) + bytes(999), "of type 8 has the shape"),
    "no tensors": (HEAD + struct.pack("<QQ", 0, 1) + ARCHITECTURE, "m.gguf"),
    "no architecture": (HEAD + struct.pack("<QQ", 0, 0) + bytes(99), "architecture ''"),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files(case: str, tmp_path: Path) -> None:
    data, words = MALFORMED[case]
    file = tmp_path / "m.gguf"
    file.write_bytes(data)
    with pytest.raises(CircuitdiscError) as caught:
        read_model(file)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tensors_that_lie_on_one_another(module: Any, tmp_path: Path) -> None:
    """Ten thousand tensors of the same bytes would take ten thousand times the file's size."""
    infos = b"".join(text(b"t%d" % number) + struct.pack("<IQIQ", 1, 2**14, 0, 0) for number in range(1000))
    (tmp_path / "m.gguf").write_bytes(HEAD + struct.pack("<QQ", 1000, 1) + ARCHITECTURE + infos + bytes(2**17))
    with pytest.raises(BadFile, match="lie on one another"):
        read_model(tmp_path / "m.gguf")


def test_a_file_that_is_cut_short_anywhere(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    for length in (*range(0, 600, 7), *range(600, len(whole), len(whole) // 40), len(whole) - 33):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(BadFile):
            read_header(tmp_path / "cut.gguf")


def test_damaged_bytes_end_in_a_sentence_or_in_a_model(file: Path, tmp_path: Path) -> None:
    whole, generator = file.read_bytes(), np.random.default_rng(0)
    head = whole.index(b"output_norm.weight") + 60
    for number in range(60):
        damaged = bytearray(whole)
        for at in generator.integers(4, head, 1 + number % 3):
            damaged[at] = generator.integers(256)
        (tmp_path / "damaged.gguf").write_bytes(damaged)
        try:
            read_model(tmp_path / "damaged.gguf")
        except CircuitdiscError as error:
            assert "\n" not in str(error)  # noqa: PT017 - either may happen
