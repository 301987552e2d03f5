"""What every head writes to the residual stream of the uncut model, token by token.

Shape letters: L layers, H heads, X tokens (of all examples), D residual width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdisc.engine.backends import full_run
from circuitdisc.engine.memory import examples_that_fit, parse_memory
from circuitdisc.engine.requirements import components_of
from circuitdisc.errors import BadSetting
from circuitdisc.files import size_words
from circuitdisc.models.model import Model
from circuitdisc.tasks.base import Example, collate


@dataclass(frozen=True)
class HeadOutputs:
    """What every head writes at some tokens.

    Args:
        values: in the model's precision, on the CPU. [L, H, X, D]
        example: the example that each token belongs to. [X]
    """

    values: Float[Tensor, "L H X D"]
    example: Int[np.ndarray, "X"]


def head_outputs(model: Model, examples: Sequence[Example], at: str | int = "all", memory: str | int = "4GiB") -> HeadOutputs:
    """Run the clean prompts and keep what every head writes.

    Args:
        at: `all` tokens, or a position as `PromptBatch.position` names it.
        memory: budget; half is for what is kept, half for the run.

    Raises:
        BadSetting: what is to be kept does not fit, or the model has no fast components.
        UnknownName: an example has no such role.
    """
    graph, budget = model.graph, parse_memory(memory) // 2
    n_tokens = sum(len(example) for example in examples) if at == "all" else len(examples)
    heads = [place for place, node in enumerate(graph.senders) if node.kind == "head"]
    width = components_of(model, "looking at what heads write").spec.d_model
    need = n_tokens * len(heads) * width * model.dtype.itemsize
    if need > budget:
        raise BadSetting(
            f"the outputs of {len(heads):,} heads at {n_tokens:,} tokens take {size_words(need)}, more than half of "
            f"memory={memory}: give more memory, fewer examples, or one position, as in at=end"
        )
    size = examples_that_fit(model, budget, max(len(example) for example in examples))
    values, owners = [], []
    for start in range(0, len(examples), size):
        batch = collate(examples[start : start + size], device=model.device)
        run = full_run(model, batch.clean, batch.is_token, batch.position_ids)
        if at == "all":
            rows, columns = batch.is_token.nonzero(as_tuple=True)
        else:
            rows, columns = torch.arange(batch.n_examples, device=model.device), batch.position(at)
        values.append(run.senders[heads][:, rows, columns].cpu())
        owners.append(rows.cpu().numpy() + start)
    together = torch.cat(values, dim=1)
    return HeadOutputs(together.unflatten(0, (graph.n_layers, graph.n_heads)), np.concatenate(owners))
