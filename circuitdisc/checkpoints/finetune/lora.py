"""Low-rank fine-tuning (LoRA) through `peft`: trained beside the weights, merged into them before they are saved.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models".
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch

from circuitdisc.errors import BadModel, BadSetting


def check_peft() -> None:
    """`peft` is installed.

    Raises:
        BadSetting: it is not.
    """
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise BadSetting("method=lora needs the package peft: pip install 'circuitdisc[lora]'") from error


def with_lora(module: Any, *, rank: int, alpha: int, targets: Sequence[str] | None, seed: int) -> Any:
    """The model with a low-rank change beside each target layer; the weights themselves are frozen.

    Args:
        rank: of the change.
        alpha: the change is multiplied by alpha / rank.
        targets: names of linear layers, for example `c_attn`; None: peft's own choice for the architecture (q and v).
        seed: of the change's first values (it is 0 as a whole).

    Raises:
        BadModel: the architecture has no such layers, or peft has no choice of its own for it.
    """
    check_peft()
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(seed)
    conv = any(isinstance(part, Conv1D) for part in module.modules())  # layers that hold inputs first
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=None if targets is None else list(targets),
        fan_in_fan_out=conv,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(module, config)
    except ValueError as error:
        raise BadModel(
            f"no low-rank change fits '{module.config.model_type}': {str(error).splitlines()[0]}; name lora_targets="
        ) from error


def merged(module: Any, in_place: bool = False) -> Any:
    """The model with the low-rank change added to its weights, in the layout that it had before.

    Args:
        in_place: take the weights of `module` itself, which is of no use afterwards; else those of a copy.
    """
    return (module if in_place else copy.deepcopy(module)).merge_and_unload()
