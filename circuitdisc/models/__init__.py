"""Models: loading them, and cutting them at senders and receivers."""

from circuitdisc.models.load import cut_hugging_face, cut_toy, read_model, toy_from_weights
from circuitdisc.models.model import Model
from circuitdisc.models.toy import ToyConfig, ToyTransformer

__all__ = [
    "Model",
    "ToyConfig",
    "ToyTransformer",
    "cut_hugging_face",
    "cut_toy",
    "read_model",
    "toy_from_weights",
]
