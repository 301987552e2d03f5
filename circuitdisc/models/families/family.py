"""What a model family declares of itself."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from circuitdisc.models.components import ModelSpec, Weights


@dataclass(frozen=True)
class Family:
    """Architectures that one translator reads.

    Args:
        titles: `model_type` of a Hugging Face configuration -> the architecture's name in messages.
        translate: reads the weights of a loaded Hugging Face model.
        gated: its MLPs have a gate beside the input matrix.
        not_by_hooks: why the hook fallback does not fit it, as a sentence; empty where it does.
    """

    titles: Mapping[str, str]
    translate: Callable[[Any], tuple[ModelSpec, Weights]]
    gated: bool = False
    not_by_hooks: str = ""
