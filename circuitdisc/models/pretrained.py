"""A Hugging Face folder as a model: nothing that it brings is run, nothing is filled in, dropped or cast without a word.

1. The configuration makes the model without memory (on torch's meta device), once its number of layers is seen to fit the
   weights' file; what it asks for is compared with what the file holds.
2. Known prefixes of training wrappers are taken off the tensors' names, with a warning.
3. transformers fills the model from these tensors and reports what was missing, left over or of another shape: any of it ends
   the load with the tensors' names. So do integers in place of weights, NaN and infinite values.
"""

import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from logging import CRITICAL
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuitdisc.errors import BadFile, BadModel, CircuitdiscWarning, shorten
from circuitdisc.models.families import find_family
from circuitdisc.models.plain import check_finite
from circuitdisc.models.stored import (
    check_low_rank,
    is_float,
    leave_files,
    read_config,
    read_tensors,
    weight_files,
    without_prefixes,
)
from circuitdisc.models.wording import first_line, some_names

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json")
NO_CODE: dict[str, Any] = {"trust_remote_code": False}  # of every call that reads a stranger's folder; never a question, either
SLACK = 2**26  # bytes that a model may need beyond its file, before it is said which tensors are missing
BUFFERS = 2**30  # bytes of buffers, which no file holds
MOST_EXPERTS = 8192
UNPACK = (
    "edges are weighed with plain numbers, and packed ones are not unpacked here. Take the checkpoint that it was made of, or "
    "unpack it where its package runs (AutoModelForCausalLM.from_pretrained(...).dequantize(), then save_pretrained) and give "
    "that folder; parallel.tensor and parallel.device_map hold what one GPU does not"
)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' own reports and progress bars: what they say that matters, circuitdisc says."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(CRITICAL)
    logging.disable_progress_bar()  # for good: a small file needs none
    try:
        yield
    finally:
        logging.set_verbosity(before)


def pretrained_config(where: Path | str, revision: str | None = None) -> Any:
    """The configuration of a folder or a hub name, as transformers has it.

    Args:
        revision: of a hub name.

    Raises:
        BadFile: it is malformed, unknown, brings code of its own, or is of quantised weights.
    """
    from transformers import AutoConfig

    local = isinstance(where, Path)
    brings_code = isinstance(where, Path) and "auto_map" in read_config(where)
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(where, local_files_only=local, **_at(revision), **NO_CODE)
    except Exception as error:  # transformers and json each raise their own
        if brings_code:
            raise BadFile(
                f"the config.json of {where} asks for code from its own folder (auto_map). Code that comes with a model is "
                "never run: use a version of the model that transformers knows by itself"
            ) from error
        raise BadFile(f"the configuration of {where} cannot be read: {first_line(error)}") from error
    if brings_code:
        warnings.warn(
            f"the config.json of {where} names code from its own folder (auto_map), which is not run: the model is "
            f"transformers' own '{config.model_type}'",
            CircuitdiscWarning,
            stacklevel=2,
        )
    if quantised := getattr(config, "quantization_config", None):
        raise BadFile(f"the weights of {where} are quantised ({_packing(quantised)}): {UNPACK}")
    for patch in ("fusion_config", "kernel_config"):  # would have transformers replace parts of the model
        if hasattr(config, patch):
            delattr(config, patch)
    return config


def _packing(quantised: Any) -> str:
    """How weights are packed, in words: `bitsandbytes, 4 bits`."""
    said = quantised if isinstance(quantised, Mapping) else quantised.to_dict()
    bits = 4 if said.get("load_in_4bit") else 8 if said.get("load_in_8bit") else said.get("bits") or said.get("quant_type")
    method = str(getattr(said.get("quant_method"), "value", said.get("quant_method", "quantization_config")))
    return shorten(f"{method}, {bits} bits" if isinstance(bits, int) else method, 60)


def load_pretrained(folder: Path, dtype: torch.dtype, mapped: bool = False) -> Any:
    """The causal language model in a folder, every weight from its files.

    Args:
        mapped: see `fill_model`.

    Raises:
        BadFile: files are missing, malformed or cut short.
        BadModel: the weights are not those that the configuration asks for, or no finite floating-point numbers.
    """
    config = pretrained_config(folder)
    tensors = read_tensors(weight_files(folder))
    empty = empty_model(config, len(tensors), folder)
    check_low_rank(tensors, str(folder))
    module = fill_model(empty, without_prefixes(tensors, empty.state_dict(), str(folder)), dtype, folder, mapped)
    _read_generation(module, folder)
    return module


def fill_model(empty: Any, tensors: Mapping[str, Tensor], dtype: torch.dtype, where: Path, mapped: bool = False) -> Any:
    """An empty model with these weights, of which each is accounted for.

    Args:
        where: the folder or file that they are from.
        mapped: the weights stay in their files, in the files' precision, and are read whenever they are looked at; whoever runs
            the module lends it weights of `dtype` (`models/streamed.py`). Buffers are those of a model of `dtype`.

    Raises:
        BadFile: transformers cannot load them.
        BadModel: they are not those that the configuration asks for, or no finite floating-point numbers.
    """
    check_size(empty, tensors, where)
    expected = empty.state_dict()
    tensors = {_name(name, tensor, expected): tensor for name, tensor in tensors.items()}
    given = {name: _stand_in(tensor, dtype) for name, tensor in tensors.items()} if mapped else tensors
    try:
        with quiet_transformers():
            module, report = type(empty).from_pretrained(
                None,
                config=empty.config,
                state_dict=given,
                dtype=dtype,
                attn_implementation=_attention(empty.config),
                ignore_mismatched_sizes=True,  # they are read from the report
                output_loading_info=True,
            )
    except Exception as error:  # transformers, torch and a model's own code each raise their own
        raise BadFile(f"cannot load the model in {where}: {first_line(error)}") from error
    _check_report(report, tensors, where)
    if mapped:
        _put_back(module, {given[name].data_ptr(): tensor for name, tensor in tensors.items()}, dtype, where)
    else:
        leave_files(module, tensors)
    check_finite(module, str(where))
    _warn_untied(module, where)
    module.config.use_cache = False
    module.name_or_path = module.config.name_or_path = str(where)
    return module.eval().requires_grad_(False)


def _stand_in(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor of the same shape that takes no memory, for a weight that stays in its file."""
    return torch.zeros((), dtype=dtype).expand(tensor.shape) if is_float(tensor) else tensor


def _put_back(module: Any, tensors: Mapping[int, Tensor], dtype: torch.dtype, where: Path) -> None:
    """The files' own weights in place of what stood in for them; a weight that several parts share stays shared.

    Args:
        tensors: place of what stands in -> the file's tensor.

    Raises:
        BadModel: the model's weights are made out of several tensors of the files.
    """
    made = {id(weight): name for name, weight in module.named_parameters() if weight.data_ptr() not in tensors}
    if made:
        raise BadModel(
            f"{where}: {len(made)} weights are made out of several tensors of its files ({some_names(made.values())}), so "
            "that they cannot be read share by share: leave parallel.tensor out, and spread the model's layers with "
            "parallel.device_map=auto"
        )
    weights: dict[int, torch.nn.Parameter] = {}
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                stored = weights.setdefault(id(weight), torch.nn.Parameter(tensors[weight.data_ptr()], requires_grad=False))
                part._parameters[name] = stored
    module.runs_as = dtype


def _attention(config: Any) -> str:
    """Which of transformers' ways to compute attention is taken: the written-out one, but where a family names another.

    A mixture of experts is computed expert by expert, since the grouped products know no float64.
    """
    inner = config.get_text_config() if hasattr(config, "get_text_config") else config
    if any(hasattr(inner, name) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        config._experts_implementation = "eager"
    family = find_family(config.model_type)
    return "eager" if family is None else family.attention


def _asker(where: Path) -> str:
    """What asks for a model's weights, for messages."""
    return "its header" if where.is_file() else "config.json"


def empty_model(config: Any, n_tensors: int, where: Path) -> Any:
    """The model without memory; a configuration beyond all bounds is refused before it takes time.

    Args:
        n_tensors: in its files.

    Raises:
        BadModel: it asks for more than the files hold, or transformers makes no causal language model of it.
    """
    from transformers import AutoModelForCausalLM

    inner = config.get_text_config() if hasattr(config, "get_text_config") else config
    n_layers = getattr(inner, "num_hidden_layers", None)
    if isinstance(n_layers, int) and n_layers > n_tensors:
        raise BadModel(
            f"{where}: {_asker(where)} asks for {n_layers:,} layers, and the weights' files hold {n_tensors:,} tensors in all"
        )
    experts = {key: value for key, value in inner.to_dict().items() if "expert" in key and isinstance(value, int)}
    if too_many := next((key for key, value in experts.items() if value > MOST_EXPERTS), None):
        raise BadModel(f"{where}: {_asker(where)} asks for {too_many}={experts[too_many]}; at most {MOST_EXPERTS} are possible")
    try:
        with quiet_transformers(), torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, attn_implementation=_attention(config), **NO_CODE)
    except Exception as error:  # each architecture checks its configuration in its own way, or not at all
        raise BadModel(
            f"{where}: transformers makes no causal language model of it "
            f"(model_type {getattr(config, 'model_type', None)!r}): {first_line(error)}"
        ) from error


def check_size(empty: Any, tensors: Mapping[str, Tensor], where: Path) -> None:
    """The model needs no more memory than its file holds: what is missing would be made up, at any size.

    Raises:
        BadModel: it needs more; the first tensors that are missing or of another shape are named.
    """
    asked = sum(weight.numel() for weight in empty.parameters())
    given = sum(tensor.numel() for tensor in tensors.values())
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in empty.buffers())
    if 4 * (asked - given) <= SLACK and buffers <= BUFFERS + 4 * given:
        return
    odd = [name for name, weight in empty.state_dict().items() if name not in tensors or tensors[name].shape != weight.shape]
    raise BadModel(
        f"{where}: {_asker(where)} (model_type {empty.config.model_type!r}) asks for {asked:,} weights, and the files hold "
        f"{given:,}; missing or of another shape: {some_names(odd)}. Is it the configuration of another model?"
    )


def _name(name: str, tensor: Tensor, expected: Mapping[str, Tensor]) -> str:
    """A tensor's name; one that is no floating-point number gets a name that no weight has, or it would be cast to one."""
    wanted = expected.get(name)
    if is_float(tensor) or (wanted is not None and wanted.dtype == tensor.dtype):
        return name
    return f"{name} ({str(tensor.dtype).removeprefix('torch.')})"


def _check_report(report: Mapping[str, Any], given: Collection[str], where: Path) -> None:
    """Refuse what transformers filled in, left over or could not fit.

    Raises:
        BadModel: with the tensors' names.
    """
    missing, unexpected = set(report["missing_keys"]), set(report["unexpected_keys"])
    cast = {name for name in given if name.endswith(")") and name.partition(" (")[0] in missing}
    if cast:
        raise BadModel(
            f"{where} holds integers, booleans or 8-bit numbers where weights should be ({some_names(cast)}): "
            "quantised weights cannot be read; save them dequantised, as float32, float16 or bfloat16"
        )
    if mismatched := report["mismatched_keys"]:
        name, stored, asked = sorted(mismatched)[0]
        rest = f", and {len(mismatched) - 1} more differ" if len(mismatched) > 1 else ""
        raise BadModel(
            f"{where}: the weights do not fit {_asker(where)}: {name} has shape {tuple(stored)}, and {tuple(asked)} is asked "
            f"for{rest}"
        )
    if missing:
        hint = f"; without a place in the model: {some_names(unexpected, 2)}" if unexpected else ""
        raise BadModel(
            f"{where}: {len(missing)} of the model's tensors are not in its files ({some_names(missing)}){hint}. They would "
            "be filled with random numbers: save the model again, whole"
        )
    if unexpected:
        raise BadModel(
            f"{where} holds {len(unexpected)} tensors that a model of its configuration has no place for "
            f"({some_names(unexpected)}): they would be dropped. Is it the configuration of another model?"
        )


def _warn_untied(module: Any, where: Path) -> None:
    if not getattr(module.config, "tie_word_embeddings", False):
        return
    inputs, outputs = module.get_input_embeddings(), module.get_output_embeddings()
    if inputs is not None and outputs is not None and inputs.weight is not outputs.weight:
        warnings.warn(
            f"{where}: {_asker(where)} ties the embedding to the unembedding, and the files hold two that differ: "
            "both are used",
            CircuitdiscWarning,
        )


def _read_generation(module: Any, folder: Path) -> None:
    """Settings of generation, which a fine-tuned copy of the model keeps; a file of them that cannot be read is left out."""
    from transformers import GenerationConfig

    if not (folder / "generation_config.json").is_file():
        return
    try:
        with quiet_transformers():
            module.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    except Exception:  # no run of a circuit generates
        return


def _at(revision: str | None) -> dict[str, str]:
    return {} if revision is None else {"revision": revision}


def load_tokenizer(where: Path | str, revision: str | None = None) -> Any:
    """The tokenizer of a folder or a hub name; None for a folder without one.

    Args:
        revision: of a hub name.

    Raises:
        BadFile: its files cannot be read, or ask for code of their own.
    """
    local = isinstance(where, Path)
    if isinstance(where, Path) and not any((where / file).is_file() for file in TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(where, local_files_only=local, **_at(revision), **NO_CODE)
    except Exception as error:  # transformers, tokenizers and json each raise their own
        raise BadFile(f"cannot load the tokenizer of {where}: {first_line(error)}") from error
