"""A model's folder as it came from somebody: only data. Its files are looked at before anything is loaded.

Weights are read from safetensors alone, by their own names: no file that an index or a configuration points to outside of the
folder, or in another format, is ever opened.
"""

import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from circuitdisc.errors import BadFile, BadModel, CircuitdiscWarning
from circuitdisc.files import read_json
from circuitdisc.models.wording import first_line, some_names

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MOST_HEADER = 100 * 2**20  # bytes of a safetensors header; the format's own bound
PREFIXES = ("_orig_mod.", "module.", "base_model.model.")  # of torch.compile, of data parallel training, of PEFT
LOW_RANK = re.compile(r"\.(lora_[A-Za-z_]+|base_layer|modules_to_save|original_module)(\.|$)|^(prompt_encoder|ia3_l)\b")


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a model's folder.

    Raises:
        BadFile: there is none, it is malformed, or the folder holds an adapter, alone or beside the model.
    """
    adapter = (folder / ADAPTER).exists()
    if adapter and not (folder / "config.json").exists():
        raise BadFile(
            f"{folder} holds a PEFT adapter ({ADAPTER}), not a model: give its base, too, as model=BASE+{folder}, "
            "and it is merged"
        )
    if adapter:
        raise BadFile(
            f"{folder} holds a PEFT adapter ({ADAPTER}) beside a model, so that it is not clear which of the two is meant: "
            "move the adapter elsewhere; model=BASE+ADAPTER merges it into its base"
        )
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise BadFile(f"{folder / 'config.json'} holds no configuration of a model")
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model's folder; all are there, inside of it, and as long as their headers say.

    Raises:
        BadFile: one is missing, cut short or empty, or the index names something else.
    """
    files = [folder / WEIGHTS]
    if not files[0].is_file():
        files = [folder / shard for shard in shard_names(folder)]
        for file in files:
            if not file.is_file():
                raise BadFile(f"{folder} lacks {file.name}, which {INDEX} names")
    for file in files:
        check_length(file)
        with open_tensors(file):
            pass
    return files


def shard_names(folder: Path) -> list[str]:
    """The files that the index names, each a safetensors file in the same folder.

    Raises:
        BadFile: there is no index, or it names something else.
    """
    index = folder / INDEX
    if not index.is_file():
        other = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        hint = ". Convert the other file with save_pretrained(..., safe_serialization=True)" if other else ""
        raise BadFile(f"{folder} has no {WEIGHTS}: weights are read from safetensors alone{hint}")
    data = read_json(index)
    shards = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
        raise BadFile(f"{index} has no weight_map from names of tensors to files")
    for shard in sorted(set(shards.values())):
        if shard != Path(shard).name or not shard.endswith(".safetensors") or "\\" in shard:
            raise BadFile(f"{index} names {shard[:80]!r}: only safetensors files in the same folder are read")
    return sorted(set(shards.values()))


def check_length(file: Path) -> None:
    """The header's claimed length lies within the file.

    Raises:
        BadFile: it does not.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            claimed = int.from_bytes(stream.read(8), "little")
    except OSError as error:
        raise BadFile(f"cannot read {file}: {error.strerror}") from error
    if size < 8:
        raise BadFile(f"{file} is empty: it has {size} bytes, and a safetensors file begins with 8")
    if claimed > min(size - 8, MOST_HEADER):
        raise BadFile(
            f"{file} is not a whole safetensors file: its header claims {claimed:,} bytes and the file "
            f"has {size:,}; was it cut short?"
        )


def open_tensors(file: Path) -> Any:
    """A safetensors file, opened; its header is read, its tensors are not.

    Raises:
        BadFile: it is not whole.
    """
    from safetensors import safe_open

    try:
        return safe_open(file, framework="pt")
    except Exception as error:  # safetensors and the system each raise their own
        raise BadFile(f"{file} is not a whole safetensors file ({first_line(error)}); was it cut short?") from error


def read_tensors(files: Collection[Path]) -> dict[str, Tensor]:
    """All tensors of a model by name, mapped from the files, not yet in memory.

    Raises:
        BadFile: there are none, or two files hold one of the same name.
    """
    tensors: dict[str, Tensor] = {}
    for file in files:
        with open_tensors(file) as opened:
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                if name in tensors:
                    raise BadFile(f"{file} holds {name[:80]}, which another file of the model holds, too")
                try:
                    tensors[name] = opened.get_tensor(name)
                except Exception as error:  # a type that torch does not have, a shape beyond what it counts
                    raise BadFile(f"{file}: the tensor {name[:80]} cannot be read ({first_line(error)})") from error
    if not tensors:
        raise BadFile(f"{next(iter(files))} holds no tensors")
    return tensors


def without_prefixes(tensors: Mapping[str, Tensor], expected: Collection[str], where: str) -> dict[str, Tensor]:
    """Tensors under the names that the model expects, without what a training wrapper has put before them; warns of it."""
    renamed, taken = dict(tensors), []
    while prefix := next((start for start in PREFIXES if _all_begin(renamed, start) and not _any_begin(expected, start)), None):
        renamed = {name.removeprefix(prefix): tensor for name, tensor in renamed.items()}
        taken.append(prefix)
    inner = {name.replace("._orig_mod.", "."): tensor for name, tensor in renamed.items()}
    if inner.keys() != renamed.keys() and len(inner) == len(renamed):
        renamed = inner
        taken.append("_orig_mod.")
    if taken:
        words = " and ".join(f"'{prefix}'" for prefix in dict.fromkeys(taken))
        warnings.warn(f"{where}: the weights' names had {words} in them, which was taken off", CircuitdiscWarning)
    return renamed


def _all_begin(names: Collection[str], prefix: str) -> bool:
    return all(name.startswith(prefix) for name in names)


def _any_begin(names: Collection[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)


def check_low_rank(names: Collection[str], where: str) -> None:
    """No tensor is one that PEFT trains beside the weights.

    Raises:
        BadModel: some are: the weights alone are not the model that was trained.
    """
    beside = [name for name in names if LOW_RANK.search(name)]
    if beside:
        raise BadModel(
            f"{where} holds low-rank or other changes that PEFT has trained beside the weights ({some_names(beside, 2)}): "
            "merge them first (merge_and_unload, then save_pretrained)"
        )


def is_float(tensor: Tensor) -> bool:
    """Whether a stored tensor is of a type that weights may have; 8-bit floats need scales that the file does not name."""
    return tensor.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@torch.no_grad()
def leave_files(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy weights that are still mapped from a file: it may be written again while the model lives."""
    mapped = {tensor.data_ptr() for tensor in tensors.values()}
    for weight in module.parameters():
        if weight.data_ptr() in mapped:
            weight.data = weight.data.clone()
