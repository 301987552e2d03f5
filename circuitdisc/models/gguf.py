"""A GGUF file, as llama.cpp has it, as a model: its weights dequantised, each accounted for, and its tokenizer.

1. The header is walked first, and everything that it counts is bounded by the file's size: no other reader sees a file whose
   header asks for more than the file holds.
2. transformers translates header and tensors; a tensor or a setting that it would leave out is refused or named.
3. The model is filled and checked as one from a folder (`pretrained.py`).

Source: the GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import math
import mmap
import re
import struct
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from circuitdisc.errors import BadFile, BadModel, BadSetting, CircuitdiscWarning, shown
from circuitdisc.files import size_words
from circuitdisc.models.pretrained import NO_CODE, check_size, empty_model, fill_model, quiet_transformers
from circuitdisc.models.wording import first_line, some_names

SUFFIX = ".gguf"
MOST_ITEMS = 8_000_000  # values in a header's arrays: transformers makes an object of each; Gemma's vocabulary has 0.8 million
MOST_TENSORS, MOST_DIMS = 100_000, 4
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
SHORT = 2**16  # bytes of a text that is kept: names, not chat templates
# settings whose value another part of the header, or a tensor's shape, says again
SAID_TWICE = ("vocab_size", "feed_forward_length", "rope.dimension_count")
COMPUTED = re.compile("scal|softcap|sliding|clamp|rope|expert|alibi")  # in names of settings that change what is computed
ALIASES = {"key_length": "head_dim", "value_length": "head_dim"}


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says before its tensors' data.

    Args:
        values: its settings: numbers and short texts; of arrays their lengths.
        tensors: name -> shape, as torch has it.
    """

    values: Mapping[str, Any]
    tensors: Mapping[str, tuple[int, ...]]

    @property
    def architecture(self) -> str:
        return str(self.values.get("general.architecture", ""))


def is_gguf(path: Path) -> bool:
    """Whether a path is a file that is named as GGUF files are."""
    try:
        return path.suffix.lower() == SUFFIX and path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def read_header(file: Path) -> GgufHeader:
    """The header of a GGUF file whose tensors all lie in the file.

    Raises:
        BadFile: it is no such file, cut short, or asks for more than it holds.
        BadSetting: the package `gguf` is not installed.
    """
    if find_spec("gguf") is None:
        raise BadSetting(f"{file} is a GGUF file, which the package gguf reads: pip install 'circuitdisc[gguf]'")
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Walk(data, file).header()
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise BadFile(f"{file} is not a whole GGUF file ({first_line(error)}); was it cut short?") from error
    except (OSError, ValueError) as error:  # ValueError: an empty file has nothing to map
        raise BadFile(f"cannot read {file}: {first_line(error)}") from error


class _Walk:
    """A walk through a mapped header: a place in the file that only goes forward, and never past its end."""

    def __init__(self, data: mmap.mmap, file: Path) -> None:
        self.data, self.file, self.at, self.items = data, file, 0, 0

    def header(self) -> GgufHeader:
        if self.data[:4] != b"GGUF":
            raise BadFile(f"{self.file} is not a GGUF file: it does not begin with GGUF")
        self.at = 4
        version, n_tensors, n_values = self._unpack("IQQ")
        if version not in (2, 3):
            raise BadFile(f"{self.file} is a GGUF file of version {version}; versions 2 and 3 are read, in little-endian order")
        if n_tensors > MOST_TENSORS or n_values > MOST_ITEMS or 12 * (n_tensors + n_values) > len(self.data):
            raise self._too_much(f"{n_tensors:,} tensors and {n_values:,} settings")
        values = {self._name(): self._value() for _ in range(n_values)}
        infos = [self._tensor() for _ in range(n_tensors)]
        alignment = values.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 2**20:
            raise BadFile(f"{self.file}: its alignment is {shown(alignment)}, which is none")
        room = len(self.data) - -(-self.at // alignment) * alignment
        for name, shape, n_bytes, offset in infos:
            if offset + n_bytes > room:
                raise BadFile(
                    f"{self.file} is cut short or damaged: its tensor {name[:80]} {list(shape)} ends beyond the file's "
                    f"{size_words(len(self.data))}"
                )
        if sum(n_bytes for *_, n_bytes, _ in infos) > room:
            raise self._too_much("tensors that lie on one another")
        return GgufHeader(values, {name: shape for name, shape, *_ in infos})

    def _too_much(self, what: str) -> BadFile:
        return BadFile(f"{self.file} is damaged: its header claims {what} in a file of {size_words(len(self.data))}")

    def _unpack(self, kinds: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + kinds, self.data, self.at)
        self.at += struct.calcsize("<" + kinds)
        return values

    def _skip(self, n_bytes: int) -> None:
        self.at += n_bytes
        if self.at > len(self.data):
            raise self._too_much(f"{size_words(n_bytes)} for one of its values")

    def _text(self) -> str:
        (length,) = self._unpack("Q")
        self._skip(length)
        return self.data[self.at - length : self.at].decode() if length <= SHORT else f"{length:,} bytes"

    def _name(self) -> str:
        name = self._text()
        if not name.isprintable():
            raise BadFile(f"{self.file} is damaged: its header has the name {shown(name)}")
        return name

    def _value(self) -> Any:
        (kind,) = self._unpack("I")
        if kind == STRING:
            return self._text()
        if kind in SCALARS:
            return self._unpack(SCALARS[kind])[0]
        if kind != ARRAY:
            raise BadFile(f"{self.file} is damaged: its header has a value of kind {kind}, which there is not")
        inner, length = self._unpack("IQ")
        self.items += length
        if self.items > MOST_ITEMS:
            raise self._too_much(f"{self.items:,} values in arrays")
        if inner == STRING:
            for _ in range(length):
                self._skip(self._unpack("Q")[0])
        elif inner in SCALARS:
            self._skip(length * struct.calcsize("<" + SCALARS[inner]))
        else:
            raise BadFile(f"{self.file}: its header has an array of kind {inner}, which transformers does not read")
        return length

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, bytes in the file, and where they begin."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        name, (n_dims,) = self._name(), self._unpack("I")
        if n_dims > MOST_DIMS:
            raise BadFile(f"{self.file} is damaged: its tensor {name[:80]} has {n_dims:,} dimensions")
        shape = tuple(reversed(self._unpack(f"{n_dims}Q")))
        kind, offset = self._unpack("IQ")
        try:
            block, n_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise BadFile(
                f"{self.file}: its tensor {name[:80]} is of type {kind}, which the package gguf does not know"
            ) from None
        if not shape or 0 in shape or shape[-1] % block:
            raise BadFile(f"{self.file} is damaged: its tensor {name[:80]} of type {kind} has the shape {list(shape)}")
        return name, shape, math.prod(shape) // block * n_bytes, offset


# --- what transformers makes of it ----------------------------------------------------------------------------------------


def gguf_config(file: Path, header: GgufHeader | None = None) -> Any:
    """The configuration of a GGUF file, as transformers has it.

    Raises:
        BadFile: it is malformed, one file of several, or of an architecture that transformers does not read from GGUF.
        BadModel: it has a setting that transformers would leave out.
        BadSetting: the package `gguf` is not installed.
    """
    from transformers import AutoConfig
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES, load_gguf_checkpoint

    header = header or read_header(file)
    if (n_files := header.values.get("split.count", 1)) != 1:
        raise BadFile(f"{file} is one of {n_files} files of a model: join them first (llama-gguf-split --merge)")
    known = sorted(set(GGUF_SUPPORTED_ARCHITECTURES) - {"general", "tokenizer"})
    if header.architecture not in known:
        raise BadFile(
            f"{file} is of the architecture {header.architecture[:40]!r}, which transformers does not read from GGUF files; it "
            f"reads {', '.join(known)}"
        )
    try:
        with quiet_transformers():
            said = load_gguf_checkpoint(str(file))["config"]
            config = AutoConfig.for_model(**said)
    except Exception as error:  # gguf and transformers each raise their own
        raise BadFile(f"the header of {file} cannot be read: {first_line(error)}") from error
    if config.model_type == "gpt2":  # transformers reads the context into a name that the model does not use
        config.n_positions = int(header.values.get("gpt2.context_length", config.n_positions))
    if "vocab_size" not in said and (embedding := header.tensors.get("token_embd.weight")):
        config.vocab_size = embedding[0]
    _check_settings(file, header, config)
    return config


def _check_settings(file: Path, header: GgufHeader, config: Any) -> None:
    """The header's settings that transformers leaves out are said; what changes positions is refused."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_TO_TRANSFORMERS_MAPPING

    read = GGUF_TO_TRANSFORMERS_MAPPING["config"][header.architecture]
    mine = header.architecture + "."
    unread = {name.removeprefix(mine): value for name, value in header.values.items() if name.startswith(mine)}
    unread = {name: value for name, value in unread.items() if name not in (*read, *SAID_TWICE)}
    odd = {name: value for name, value in unread.items() if not _same(config, name, value)}
    if computed := {name: value for name, value in odd.items() if COMPUTED.search(name)}:
        raise BadModel(
            f"{file} says {_settings(computed)}, which transformers does not read from GGUF files of '{config.model_type}': "
            "its numbers would be those of another model"
        )
    scalar = getattr(config, "query_pre_attn_scalar", None)
    if scalar is not None and scalar != config.head_dim:  # of the largest Gemma models, by a rule that stands in no header
        raise BadModel(
            f"{file} does not say by what its queries are scaled, which is not the width of a head ({config.head_dim}) in all "
            f"models of '{config.model_type}': give the model as a Hugging Face folder"
        )
    if odd:
        warnings.warn(
            f"{file}: transformers does not read {_settings(odd)} from GGUF files and takes the usual values of "
            f"'{config.model_type}': compare with the model's own config.json",
            CircuitdiscWarning,
            stacklevel=2,
        )


def _same(config: Any, name: str, value: Any) -> bool:
    leaf = name.rpartition(".")[2]
    if value in ("none", "") or (leaf == "freq_base_swa" and value == 10_000):  # Gemma 3's, which transformers has, too
        return True
    usual = getattr(config, ALIASES.get(leaf, leaf), None)
    usual = config.hidden_size // config.num_attention_heads if usual is None and ALIASES.get(leaf) == "head_dim" else usual
    return usual == value or (
        isinstance(usual, float) and isinstance(value, float) and math.isclose(usual, value, rel_tol=1e-6)
    )


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name[:60]}={shown(value)}" for name, value in sorted(values.items())[:4])


def load_gguf(file: Path, dtype: torch.dtype) -> Any:
    """The causal language model in a GGUF file, dequantised.

    Raises:
        BadFile, BadSetting: as `gguf_config`; BadFile also if a tensor cannot be dequantised.
        BadModel: its tensors are not those that its header asks for, or transformers would leave some out.
    """
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    header = read_header(file)
    config = gguf_config(file, header)
    empty = empty_model(config, len(header.tensors), file)
    names = _names(empty, header, config)
    if dropped := [name for name in header.tensors if name not in names]:
        raise BadModel(
            f"{file}: transformers has no place in a '{config.model_type}' for {some_names(dropped)}, which would be dropped: "
            "its numbers would be those of another model"
        )
    claimed = {names[name]: torch.empty(shape, device="meta") for name, shape in header.tensors.items()}
    check_size(empty, claimed, file)
    try:
        with quiet_transformers(), redirect_stderr(StringIO()):  # its bar
            tensors = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=empty, torch_dtype=dtype)["tensors"]
    except Exception as error:  # gguf, numpy and transformers each raise their own
        raise BadFile(f"the tensors of {file} cannot be read: {first_line(error)}") from error
    return fill_model(empty, tensors, dtype, file)


def _names(empty: Any, header: GgufHeader, config: Any) -> dict[str, str]:
    """Name in the file -> name in the model, of every tensor that transformers reads."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)(config=config.to_dict())
    return get_gguf_hf_weights_map(empty, processor)


def load_gguf_tokenizer(file: Path) -> Any:
    """The tokenizer in a GGUF file; None if it has none.

    Raises:
        BadFile: it is of a kind that transformers does not know.
    """
    if "tokenizer.ggml.model" not in read_header(file).values:
        return None
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True, **NO_CODE)
    except Exception as error:  # transformers, tokenizers and gguf each raise their own
        raise BadFile(f"cannot load the tokenizer of {file}: {first_line(error)}") from error
