"""A loaded model: its name, its graph, the model itself cut into components, and its tokenizer."""

import io
import pickle
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn

from circuitdisc.errors import BadModel, BadSetting
from circuitdisc.graph import ComputationGraph
from circuitdisc.models.backend import Backend, Capability
from circuitdisc.models.components import Components
from circuitdisc.models.families import family_titles
from circuitdisc.models.own_run import OwnRun
from circuitdisc.models.wording import first_line


@dataclass(frozen=True)
class Model:
    """One checkpoint, ready to be run as a graph.

    Args:
        name: as the user wrote it.
        graph: its computation graph.
        backend: the model cut at senders and receivers: `Components` (fast, from the weights) or `HookedModel` (any other
            architecture of the TransformerLens bridge, whole-model runs with hooks).
        module: the model itself, as Hugging Face or `ToyTransformer` runs it; of a model with PEFT's layers, a merged copy.
        own_logits: (tokens [B, T], attention mask [B, T], position ids [B, T]) -> the user's own module's logits [B, T, V].
        tokenizer: a transformers tokenizer, or None: then tasks give token ids.
        d_vocab, d_vocab_out, n_ctx: input vocabulary, output vocabulary, longest prompt.
        architecture: family, for messages and the report.
        guessed: no family declares the architecture; it was read by its usual shape, and the self-check found it right.
    """

    name: str
    graph: ComputationGraph
    backend: Backend
    module: nn.Module = field(repr=False)
    own_logits: OwnRun = field(repr=False)
    tokenizer: Any
    d_vocab: int
    d_vocab_out: int
    n_ctx: int
    architecture: str
    guessed: bool = False

    def __repr__(self) -> str:
        return f"Model({self.name!r}, {self.architecture}, {self.graph.describe()}, {self.dtype} on {self.device})"

    @property
    def dtype(self) -> torch.dtype:
        return self.backend.dtype

    @property
    def device(self) -> torch.device:
        return self.backend.device

    def __reduce__(self) -> tuple[Any, ...]:
        """By torch's own pickle, in which the module and the components go on sharing their weights.

        Raises:
            BadModel: something in it cannot be pickled, as in all that TransformerLens's bridge wraps.
        """
        data = io.BytesIO()
        try:
            torch.save({part.name: getattr(self, part.name) for part in fields(self)}, data)
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            raise BadModel(
                f"{self.name} cannot be pickled ({first_line(error)}): TransformerLens's bridge and hooks of one's own hold "
                "functions that pickle does not take. Load the model in each worker"
            ) from error
        return _from_bytes, (data.getvalue(),)

    @property
    def n_processes(self) -> int:
        """Over how many processes it is split."""
        return getattr(self.backend, "n_processes", 1)

    def can(self, capability: Capability) -> bool:
        """Whether the model's backend can do this."""
        return capability in self.backend.capabilities

    @property
    def components(self) -> Components:
        """The model's fast components.

        Raises:
            BadSetting: it has none.
        """
        return fast_components(self, "this")


def _from_bytes(data: bytes) -> Model:
    """What `Model.__reduce__` has written. Pickles run code as they are read: no file is ever read in this way."""
    return Model(**torch.load(io.BytesIO(data), weights_only=False))


def fast_components(model: Model, what: str, whole: bool = False) -> Components:
    """The model's fast components.

    Args:
        what: needs them, for the message.
        whole: it reads weights itself, which must all be in this process.

    Raises:
        BadSetting: it has none, or they are split.
    """
    if whole and model.n_processes > 1:
        raise BadSetting(
            f"{what} reads whole matrices of weights, and {model.name} is split over {model.n_processes} processes: "
            "leave parallel.tensor out"
        )
    if not isinstance(model.backend, Components):  # whoever reads weights needs them, whatever other backends can do
        raise BadSetting(
            f"{what} needs a model with fast components; {model.name} ({model.architecture}) {model.backend.how}: "
            f"use a model of another family ({', '.join(family_titles())}, toys), or load it without "
            "components=hooks and exact_norm=true"
        )
    return model.backend
