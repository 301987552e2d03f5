"""A PEFT adapter merged into its base: every tensor of it has a place, and every change is part of the weights afterwards.

The adapter's folder is only data: its weights are read from safetensors alone, and its layers take no memory before the shapes
were seen to fit. Adapters whose first values were taken out of the base (PiSSA and its kin) were trained on other weights than
the base's, and are refused.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models"; the `peft` package.
"""

import re
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuitdisc.errors import BadFile, BadModel, BadSetting, CircuitdiscWarning, shown
from circuitdisc.files import read_json
from circuitdisc.models.pretrained import quiet_transformers
from circuitdisc.models.stored import ADAPTER, ADAPTER_WEIGHTS, LOW_RANK, PREFIXES, check_length, is_float, read_tensors
from circuitdisc.models.wording import first_line, some_names

MERGED = 1e-3  # of the logits: what merging may change by rounding
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # ways to begin that change the base's own weights


def read_adapter(folder: Path) -> tuple[dict[str, Any], Path]:
    """The configuration of an adapter's folder, and the file of its weights; both seen to be there.

    Raises:
        BadFile: one is missing or malformed.
        BadModel: it cannot be merged into its base.
        BadSetting: the package `peft` is not installed.
    """
    if find_spec("peft") is None:
        raise BadSetting(f"{folder} is merged by the package peft: pip install 'circuitdisc[lora]'")
    if not (folder / ADAPTER).is_file():
        raise BadFile(f"{folder} holds no PEFT adapter: it has no {ADAPTER}")
    said = read_json(folder / ADAPTER)
    if not isinstance(said, dict) or not isinstance(said.get("peft_type"), str):
        raise BadFile(f"{folder / ADAPTER} holds no configuration of an adapter (no peft_type)")
    _check_patterns(said, folder)
    begun = said.get("init_lora_weights", True)
    if isinstance(begun, str) and begun.lower().startswith(CHANGES_BASE):
        raise BadModel(
            f"the adapter {folder} was begun by {shown(begun)}, which changes the base's own weights, too: merge it where "
            "it was trained, and give the merged folder"
        )
    file = folder / ADAPTER_WEIGHTS
    if not file.is_file():
        raise BadFile(f"{folder} has no {ADAPTER_WEIGHTS}: weights are read from safetensors alone")
    check_length(file)
    return said, file


def merge_adapter(module: Any, folder: Path, base: str) -> Any:
    """A base with an adapter merged into it; the base itself is used up.

    Args:
        module: the base, in float32 at least.
        base: its name, for messages.

    Raises:
        BadFile, BadSetting: as `read_adapter`.
        BadModel: the adapter does not fit the base, or holds no finite floating-point numbers.
    """
    said, file = read_adapter(folder)
    _check_base(said, folder, base)
    tensors, names = read_tensors([file]), f"the adapter {folder} does not fit {base}"
    _check_layers(said, tensors, module, names)
    wrapped, expected = _wrapped(module, said, folder, names)
    _check_tensors(expected, tensors, names)
    return _merged(wrapped, tensors, folder, names)


def _check_layers(said: dict[str, Any], tensors: dict[str, Tensor], module: Any, names: str) -> None:
    """The layers that the file's changes stand beside are in the base, and no rank is larger than the file's tensors."""
    pattern = said.get("rank_pattern")
    ranks = [said.get("r"), *(pattern.values() if isinstance(pattern, dict) else ())]
    largest = max(max(tensor.shape, default=0) for tensor in tensors.values())
    if too_large := [rank for rank in ranks if isinstance(rank, int) and rank > largest]:
        raise BadModel(f"{names}: its configuration asks for rank {too_large[0]:,}, which none of its tensors has")
    beside = {name[: at.start()].removeprefix(PREFIXES[-1]) for name in tensors if (at := LOW_RANK.search(name)) and at.start()}
    if odd := beside - {name for name, _ in module.named_modules()}:
        raise BadModel(
            f"{names}: it changes layers that are not in it ({some_names(odd)}). Is it the adapter of another model?"
        )
    if _may_take_long(said.get("target_modules")):
        said["target_modules"] = sorted(beside)  # those of the file; a list is no pattern


def _wrapped(module: Any, said: dict[str, Any], folder: Path, names: str) -> tuple[Any, dict[str, Tensor]]:
    """The base with the adapter's layers, without memory for their weights, and the tensors that these are."""
    import peft

    try:
        with quiet_transformers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of layers held both ways round, of settings not known: checked below
            config: Any = peft.PeftConfig.from_peft_type(**said)
            known = config.to_dict()
            config.inference_mode = True
            if hasattr(config, "init_lora_weights"):
                config.init_lora_weights = True  # the values are those of the file
            wrapped: Any = peft.get_peft_model(module, config, low_cpu_mem_usage=True)
            expected = peft.get_peft_model_state_dict(wrapped, state_dict=wrapped.state_dict(), save_embedding_layers=False)
    except Exception as error:  # peft raises many kinds, most for layers that are not there
        raise BadModel(f"{names}: {first_line(error)}") from error
    if getattr(config, "is_prompt_learning", False):
        raise BadModel(
            f"the adapter {folder} adds trained vectors to the prompt ({config.peft_type}), which no weights can hold"
        )
    if odd := sorted(key for key, value in said.items() if key not in known and value):
        raise BadModel(
            f"{folder / ADAPTER} has settings that this version of peft does not know ({some_names(odd)}): update peft"
        )
    return wrapped, expected


def _merged(wrapped: Any, tensors: dict[str, Tensor], folder: Path, names: str) -> Any:
    """The base with the changes added to its weights, which computes what it computed with them beside it."""
    import peft

    try:
        with quiet_transformers():
            peft.set_peft_model_state_dict(wrapped, tensors, low_cpu_mem_usage=True)
            wrapped.to(wrapped.get_base_model().dtype).eval()  # what is narrower would be rounded before it is added
            before = _probe(wrapped)
            merged = wrapped.merge_and_unload()
            difference = float((_probe(merged) - before).abs().max() / before.abs().max().clamp(min=1e-6))
    except Exception as error:  # peft and torch each raise their own
        raise BadModel(f"{names}: {first_line(error)}") from error
    if difference > MERGED:  # NaN is said by name later
        raise BadModel(f"the adapter {folder} does more than weights can hold: merged, the logits differ by {difference:.1e}")
    return merged.eval().requires_grad_(False)


@torch.no_grad()
def _probe(model: Any) -> Tensor:
    """Logits of a few tokens."""
    tokens = torch.arange(5)[None] % model.config.vocab_size
    return model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits


def _check_patterns(said: dict[str, Any], folder: Path) -> None:
    """The names of layers that peft takes as regular expressions are none that take longer than anybody waits."""
    named = [said.get(key) for key in ("exclude_modules", "layers_pattern")]
    named += [name for key in ("rank_pattern", "alpha_pattern") if isinstance(said.get(key), dict) for name in said[key]]
    if slow := [pattern for pattern in named if _may_take_long(pattern)]:
        raise BadModel(
            f"{folder / ADAPTER} names layers by the pattern {shown(slow[0])}, which repeats too often to be searched for: "
            "name the layers themselves"
        )


def _may_take_long(pattern: Any) -> bool:
    """Whether a regular expression repeats a group, or more than three times."""
    if not isinstance(pattern, str):
        return False
    return bool(re.search(r"\)[*+{]", pattern)) or len(re.findall(r"[*+{]", pattern)) > 3


def _check_base(said: dict[str, Any], folder: Path, base: str) -> None:
    named = said.get("base_model_name_or_path")
    if isinstance(named, str) and named and Path(named).name != Path(base.partition("@")[0]).name:
        warnings.warn(
            f"the adapter {folder} names {shown(named)} as its base, and is merged into {base}: is that the same model?",
            CircuitdiscWarning,
            stacklevel=2,
        )


def _check_tensors(expected: dict[str, Tensor], given: dict[str, Tensor], names: str) -> None:
    """Every tensor of the file has a place of its shape, and every place gets one."""
    if odd := [name for name, tensor in given.items() if not is_float(tensor)]:
        raise BadModel(f"{names}: it holds integers, booleans or 8-bit numbers where weights should be ({some_names(odd)})")
    if unfit := [name for name, tensor in given.items() if name in expected and tensor.shape != expected[name].shape]:
        first = min(unfit)
        raise BadModel(
            f"{names}: {first} has shape {tuple(given[first].shape)}, and {tuple(expected[first].shape)} is asked for"
        )
    if missing := expected.keys() - given.keys():
        raise BadModel(f"{names}: {len(missing)} of its tensors are not in its file ({some_names(missing)})")
    if unexpected := given.keys() - expected.keys():
        raise BadModel(f"{names}: there is no place for {len(unexpected)} of its tensors ({some_names(unexpected)})")
