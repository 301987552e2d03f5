"""The families that have fast components: one file each, found by the `model_type` of a Hugging Face configuration.

A family's `translate(hf_model)` reads the weights of a loaded Hugging Face model and returns its `ModelSpec` and `Weights`.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from circuitdisc.models.components import ModelSpec, Weights

FAMILIES = {
    "gpt2": "gpt2",
    "gpt_neox": "gpt_neox",
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "llama",
    "gemma2": "gemma2",
}


def find_translator(model_type: str) -> Callable[[Any], tuple[ModelSpec, Weights]] | None:
    """The translator of a Hugging Face `model_type`, or None: then the hook-based fallback runs the model."""
    if model_type not in FAMILIES:
        return None
    return import_module(f"{__name__}.{FAMILIES[model_type]}").translate
