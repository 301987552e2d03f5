"""The self-check at load (contract 1): the graph must be exactly the model, or the model is refused with the numbers."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitdisc.ablation import Ablation
from circuitdisc.errors import BadModel
from circuitdisc.models.components import Components
from circuitdisc.models.load import read_model
from circuitdisc.models.model import Model
from circuitdisc.patching.engine import Patching
from circuitdisc.patching.uncut import uncut_run
from circuitdisc.tasks.base import Example, collate

# Largest difference accepted, relative to the largest value compared. Float64 models are held to float32's bound, since
# several families compute norms and softmaxes in float32 themselves.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 1e-1}


def load_model(name: str, **settings: Any) -> Model:
    """Load a model and check that its graph is exactly the model.

    Args:
        name: a shipped name (`tpp/lightweight`), a folder, or a Hugging Face name (`gpt2`).
        settings: `dtype`, `device`, `split_embeddings`, `components`; see `circuitdisc.models.read_model`.

    Raises:
        UnknownName, BadFile, BadModel, BadSetting: as `read_model`; BadModel also if the self-check fails.
    """
    model = read_model(name, **settings)
    check_model(model)
    return model


def check_model(model: Model) -> dict[str, float]:
    """Compare the cut model with the model itself, on two short prompts of unequal length.

    Checks: input + head outputs + MLP outputs (+ biases) add up to the final residual; the run of the full circuit gives the
    model's own logits; the run of the empty circuit gives those of the biases alone (every sender cut).

    Returns:
        check -> largest relative difference.

    Raises:
        BadModel: one of them is beyond the tolerance for the model's dtype.
    """
    examples = _probe(model)
    patching = Patching(model, Ablation("zero"), examples)
    chunk = next(patching.chunks(examples))
    batch = chunk.batch
    own = model.own_logits(batch.clean, batch.is_token.long(), batch.position_ids)
    own = own[batch.read_example, batch.read_position]
    mask = model.graph.edge_mask
    found = {
        "sum of all senders against the final residual": _sum_of_parts(model, examples),
        "full circuit against the model's own logits": _difference(patching.circuit_logits(chunk, mask), own),
    }
    if isinstance(model.cut, Components):
        constant = model.cut.constant_before(model.graph.n_layers)
        alone = model.cut.unembed(constant.expand(1, len(own), -1))[0]
        empty = patching.circuit_logits(chunk, np.zeros_like(mask))
        found["empty circuit against every sender cut"] = _difference(empty, alone)
    tolerance = TOLERANCE[model.dtype]
    for name, difference in found.items():
        if not difference <= tolerance:
            raise BadModel(
                f"{model.name} ({model.architecture}): the computation graph is not the model. {name.capitalize()}: "
                f"relative difference {difference:.1e}, {tolerance:.0e} is allowed in {model.dtype}. "
                "Architectures whose heads do not add up (a norm after attention, say) cannot be cut this way"
            )
    return found


def _probe(model: Model) -> list[Example]:
    generator = np.random.default_rng(0)
    lengths = (min(7, model.n_ctx), min(5, model.n_ctx))
    prompts = [tuple(int(i) for i in generator.integers(0, model.d_vocab, length)) for length in lengths]
    return [Example(prompt, None, tuple(range(len(prompt))), ((0,),) * len(prompt), ((),) * len(prompt)) for prompt in prompts]


def _sum_of_parts(model: Model, examples: list[Example]) -> float:
    batch = collate(examples, device=model.device)
    run = uncut_run(model, batch.clean, batch.is_token, batch.position_ids)
    rest = (run.residual - run.senders.sum(0))[batch.is_token]
    # beside the senders there are only biases, the same at every token
    cut = model.cut
    constant = cut.constant_before(model.graph.n_layers) if isinstance(cut, Components) else rest.mean(0)
    return _difference(rest + run.residual[batch.is_token], constant + run.residual[batch.is_token])


def _difference(left: Tensor, right: Tensor) -> float:
    scale = right.abs().max().clamp(min=1e-6)
    return float(((left - right).abs().max() / scale).item())
