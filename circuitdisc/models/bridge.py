"""A Hugging Face model out of TransformerLens's bridge, which puts parts of its own between the layers."""

import copy
import sys
from pathlib import Path
from typing import Any

from circuitdisc.errors import BadModel
from circuitdisc.models.own_run import is_bridge
from circuitdisc.models.plain import plain_module, unwrapped
from circuitdisc.models.pretrained import empty_model, fill_model


def plain_model(module: Any, name: str) -> Any:
    """The plain Hugging Face model in what a user has, a bridge or not; raises as `plain_module`."""
    inner = unwrapped(module)
    return out_of_bridge(inner, name) if is_bridge(inner) else plain_module(module, name)


def out_of_bridge(bridge: Any, name: str) -> Any:
    """The Hugging Face model that a bridge wraps, with a copy of its weights; the bridge stays as it is.

    Raises:
        BadModel: it wraps another kind of model, or its weights are no longer those of the model.
    """
    inner = bridge.original_model
    if not hasattr(inner, "config") or not hasattr(inner, "get_output_embeddings"):
        raise BadModel(f"{name}: this bridge wraps a {type(inner).__name__}, not a Hugging Face causal language model")
    empty = empty_model(copy.deepcopy(inner.config), sys.maxsize, Path(name))
    tensors = {weight.replace("._original_component", ""): tensor for weight, tensor in inner.state_dict().items()}
    # q, k and v of a joint layer, and biases of 0, are there beside the model's own weights; the self-check compares the logits
    mine = {weight: tensors[weight].detach() for weight in empty.state_dict() if weight in tensors}
    return fill_model(empty, mine, next(inner.parameters()).dtype, Path(name)).to(next(inner.parameters()).device)
