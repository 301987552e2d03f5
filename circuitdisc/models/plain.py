"""A user's module as a plain Hugging Face model: out of its wrappers, low-rank changes merged, its weights floating point."""

import copy
from inspect import ismethod
from typing import Any

import torch
from torch import nn

from circuitdisc.errors import BadModel
from circuitdisc.models.own_run import is_adapter_layer
from circuitdisc.models.wording import first_line, some_names


def plain_module(module: Any, name: str) -> Any:
    """The Hugging Face model in what a user has; the user's own module stays as it is.

    Args:
        module: a causal language model, perhaps compiled, in data parallel, or with PEFT's layers in it. Such layers are
            merged into a copy of the weights.

    Raises:
        BadModel: it is none, its weights are quantised, or what was trained beside them cannot be merged into them.
    """
    if not isinstance(module, nn.Module):
        raise BadModel(f"{name}: a {type(module).__name__} is not a model; give a Hugging Face causal language model")
    plain: Any = unwrapped(module)
    prompts = [kind for kind in getattr(plain, "peft_config", {}).values() if getattr(kind, "is_prompt_learning", False)]
    if prompts and hasattr(plain, "get_base_model"):
        raise BadModel(
            f"{name}: this PEFT model adds trained vectors to the prompt ({prompts[0].peft_type}), which no weights can hold: "
            "its circuit cannot be searched"
        )
    if any(is_adapter_layer(part) for part in plain.modules()):
        plain = _merged(plain, name)
    if hasattr(plain, "get_base_model"):  # a PEFT model whose layers are gone
        plain = plain.get_base_model()
    model_type = getattr(getattr(plain, "config", None), "model_type", None)
    if not isinstance(model_type, str) or not hasattr(plain, "get_output_embeddings") or plain.get_output_embeddings() is None:
        raise BadModel(
            f"{name}: a {type(plain).__name__} is not a Hugging Face causal language model "
            "(it has no configuration with a model_type, or no output embedding)"
        )
    _check_plain_weights(plain, name)
    return plain


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside of `torch.compile`, `DataParallel` and `DistributedDataParallel`."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = module.module
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def _merged(module: Any, name: str) -> Any:
    """A copy without PEFT's layers, each merged into the layer that it stands beside, as the active adapters have it."""
    try:
        merged = copy.deepcopy(module)
        while layer := next((where for where, part in merged.named_modules() if is_adapter_layer(part)), None):
            parent, _, leaf = layer.rpartition(".")
            holder = merged.get_submodule(parent)
            setattr(holder, leaf, _plain_layer(getattr(holder, leaf)))
    except Exception as error:  # peft raises many kinds, each for a layer that cannot be merged
        raise BadModel(
            f"{name}: what PEFT has trained beside the weights cannot be merged into them ({first_line(error)}): "
            "its circuit cannot be searched"
        ) from error
    return merged.requires_grad_(False)


def _plain_layer(layer: Any) -> nn.Module:
    off = bool(getattr(layer, "disable_adapters", False))
    if hasattr(layer, "unload_and_optionally_merge_module"):
        return layer.original_module if off else layer.unload_and_optionally_merge_module(True, False, None)
    if not off:
        layer.merge(safe_merge=False, adapter_names=None)
    elif layer.merged:
        layer.unmerge()
    return layer.get_base_layer()


def _check_plain_weights(module: Any, name: str) -> None:
    if getattr(module, "is_quantized", False) or getattr(module, "hf_quantizer", None) is not None:
        raise BadModel(
            f"{name}: its weights are quantised: unpack them first (model.dequantize()), or load it without quantisation"
        )
    whole = [where for where, weight in module.named_parameters() if not weight.is_floating_point()]
    packed = [where for where, part in module.named_modules() if ismethod(getattr(part, "weight", None))]
    if whole or packed:
        names = ", ".join([*whole, *packed][:3])
        raise BadModel(f"{name}: layers without plain floating-point weights ({names}): quantised models cannot be searched")


def check_finite(module: nn.Module, name: str) -> None:
    """All weights are finite numbers.

    Raises:
        BadModel: some are not; their names are given.
    """
    odd = {where: weight.detach() for where, weight in module.named_parameters() if not _is_finite(weight.detach())}
    if odd:
        nan = [where for where, weight in odd.items() if bool(weight.isnan().any())]
        dtype = str(next(iter(odd.values())).dtype).removeprefix("torch.")
        raise BadModel(
            f"{name}: {'NaN' if nan else 'infinite values'} in the weights {some_names(nan or odd)} (as {dtype}). "
            "Was it trained until the loss was no longer a number, is the file damaged, or is a 16-bit type too narrow?"
        )


def _is_finite(weight: torch.Tensor) -> bool:
    if not weight.is_floating_point() or not weight.numel():
        return True
    if bool(weight.sum(dtype=torch.float32).isfinite()):  # one pass without a copy; the sum may be too large where no weight is
        return True
    return bool(weight.isfinite().all())
