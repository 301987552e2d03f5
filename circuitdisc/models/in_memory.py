"""A model that is in memory, whatever it came in: Hugging Face, PEFT, TransformerLens's bridge, nnsight, or a toy of ours.

Its weights are shared wherever they can be, and the user's own object stays as it is.
"""

import copy
from typing import Any

import torch
from torch import nn

from circuitdisc.errors import BadModel
from circuitdisc.models.bridge import plain_model
from circuitdisc.models.load import DTYPES, check_place, cut_hugging_face, cut_toy
from circuitdisc.models.model import Model
from circuitdisc.models.toy import ToyTransformer


def model_in_memory(given: Any, tokenizer: Any = None, *, name: str = "local", **settings: Any) -> Model:
    """Wrap a model that is in memory.

    Args:
        given: a Hugging Face causal language model, a PEFT model, a `TransformerBridge` of one, an nnsight `LanguageModel`, or
            a `ToyTransformer`.
        tokenizer: None: the one that a bridge or an nnsight model brings, if it brings one.
        name: what results call it.
        settings: `split_embeddings`, `components`, `exact_norm` and `accepts`, as of `read_model`.

    Raises:
        BadModel: it is none of these, or cannot be cut.
    """
    if isinstance(given, ToyTransformer):
        return cut_toy(given, name=name, split_embeddings=settings.get("split_embeddings", False))
    if isinstance(given, Model):
        raise BadModel(f"{given.name} is loaded already: it goes to cd.discover and cd.score as it is")
    tokenizer = tokenizer if tokenizer is not None else _own_tokenizer(given)
    return cut_hugging_face(module_in(given, name), tokenizer, name=name, **settings)


def module_in(given: Any, name: str) -> Any:
    """The module in what a user has: that of an nnsight model, or what is given itself.

    Raises:
        BadModel: it has not loaded its weights.
    """
    of_nnsight = _is_of(given, "nnsight")
    module = (getattr(given, "_module", None) or getattr(given, "_model", None)) if of_nnsight else given  # as of 0.5; before
    if of_nnsight and not isinstance(module, nn.Module):
        raise BadModel(f"{name}: this {type(given).__name__} of nnsight holds no module")
    if isinstance(module, nn.Module) and any(weight.is_meta for weight in module.parameters()):
        remedy = (
            "make it with dispatch=True" if of_nnsight else "load it whole, or give its folder and parallel.device_map=auto"
        )
        raise BadModel(f"{name}: some of its weights are not in memory (they are on torch's meta device): {remedy}")
    return module


def _own_tokenizer(given: Any) -> Any:
    return getattr(given, "tokenizer", None) if _is_of(given, "nnsight") or _is_of(given, "transformer_lens") else None


def _is_of(given: Any, package: str) -> bool:
    """Whether an object's class, or one that it is derived from, is a package's; the package is not imported."""
    return any(kind.__module__.partition(".")[0] == package for kind in type(given).__mro__)


def converted(given: Any, name: str, dtype: str | None, device: str | None) -> nn.Module:
    """A copy of the plain model in what a user has, in another precision or elsewhere.

    Args:
        dtype, device: None leaves it.

    Raises:
        UnknownName, BadSetting: there is no such precision or device.
    """
    if dtype is not None:
        check_place(dtype, "cpu")
    if device is not None:
        check_place("float32", device)
    plain = given if isinstance(given, ToyTransformer) else plain_model(module_in(given, name), name)
    target = None if device is None else torch.device(device)
    return copy.deepcopy(plain).to(device=target, dtype=None if dtype is None else DTYPES[dtype])
