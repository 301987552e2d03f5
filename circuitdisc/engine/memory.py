"""How much memory a run takes, from shapes alone, and how many examples or rows fit in a budget."""

import re
from collections.abc import Iterable

from torch import Tensor

from circuitdisc.engine.reach import HeadsStep, Reach, RerunPlan
from circuitdisc.errors import BadSetting, shown
from circuitdisc.files import size_words
from circuitdisc.models.components import Components
from circuitdisc.models.model import Model

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
# clean, ablated, live and live-minus-ablated values of every sender, and as much again in passing
COPIES_OF_SENDERS = 5
COPIES_TO_PREPARE = 3  # clean and ablated values, and those of the run at hand while it is put together
COPIES_OF_LOGITS = 4  # in float32 at least: logits, their log-softmax, and what a metric makes of them in passing
# On a CPU a block of logits stays in the cache from its matrix product to its last sum; elsewhere it is large enough to fill
# the device.
BYTES_OF_BLOCK = {"cpu": 2**22}
BYTES_OF_BLOCK_ELSEWHERE = 2**26
LEAST_COLUMNS = 256  # narrower matrix products are slow
MOST_BYTES = 2**50
MOST_ROWS = 64
# On a CPU work is quickest when what one sender writes, for all examples of a chunk, stays in the cache.
CPU_BYTES_PER_SENDER = 2**21


def parse_memory(text: str | int, name: str = "memory") -> int:
    """Bytes from `8GiB`, `500MB` or a number.

    Args:
        name: of the setting, for the message.

    Raises:
        BadSetting: not a size.
    """
    words = str(text) if isinstance(text, str | int) and not isinstance(text, bool) and len(shown(text)) < 30 else ""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?|)b?\s*", words.lower())
    size = 0 if match is None else int(float(match[1]) * UNITS[match[2]])
    if not 1 <= size <= MOST_BYTES:
        raise BadSetting(f"{name}={shown(text)} is not a size from 1 byte to {size_words(MOST_BYTES)}; write {name}=8GiB")
    return size


def bytes_per_token(model: Model, copies: int = COPIES_OF_SENDERS) -> int:
    """What holding every sender of one token takes."""
    return copies * model.graph.n_senders * _width(model) * _itemsize(model)


def examples_that_fit(model: Model, budget: int, length: int) -> int:
    """How many prompts of `length` tokens make a chunk: as many as fit in the budget, and on a CPU in the cache."""
    n_tokens = budget // bytes_per_token(model)
    if model.device.type == "cpu":
        n_tokens = min(n_tokens, CPU_BYTES_PER_SENDER // (_width(model) * _itemsize(model)))
    return max(1, n_tokens // length)


def rows_that_fit(model: Model, budget: int, n_tokens: int, n_live_receivers: int, n_live_senders: int, n_logits: int) -> int:
    """How many candidates can be tried at once, if every live node after the receiver changes.

    Args:
        n_tokens: examples x positions of the chunk.
        n_logits: readings x columns of the unembedding that the metric needs at once.
    """
    if not model.can("partial runs"):
        return 1
    spec = model.components.spec
    per_token = n_live_receivers * (spec.d_model + 2 * spec.d_head) + n_live_senders * 3 * spec.d_model
    per_row = per_token * n_tokens * _itemsize(model) + COPIES_OF_LOGITS * n_logits * max(4, _itemsize(model))
    return max(1, min(MOST_ROWS, budget // max(1, per_row)))


def columns_at_once(model: Model, n_readings: int) -> int:
    """Columns of the unembedding in a block of logits, for as many rows as there can be."""
    size = BYTES_OF_BLOCK.get(model.device.type, BYTES_OF_BLOCK_ELSEWHERE)
    return max(LEAST_COLUMNS, size // (MOST_ROWS * n_readings * max(4, _itemsize(model))))


def rows_in(model: Model, budget: int, each: int, n_changed: int) -> int:
    """How many rows are tried at once: as many as fit in the budget, and on a CPU in the cache; at least one.

    Args:
        each: bytes of a row.
        n_changed: tokens at which a row's senders change.
    """
    most = min(MOST_ROWS, budget // max(1, each))
    if model.device.type == "cpu":
        most = min(most, CPU_BYTES_PER_SENDER // max(1, n_changed * _width(model) * _itemsize(model)))
    return max(1, most)


def d_mlp(components: Components) -> int:
    """Width of the MLPs, 0 without."""
    return max(block.d_mlp for block in components.weights.layers)


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """What these tensors take, each storage once."""
    storages = {storage.data_ptr(): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storages.values())


def row_bytes(components: Components, reach: Reach, plan: RerunPlan | None) -> int:
    """What one row of an `IncrementalRun` takes: what it keeps until the row is let go, and a step in passing.

    Args:
        plan: what has to run again; None: nothing.
    """
    if plan is None:
        return 0
    spec, n_tokens = components.spec, reach.shape[0] * reach.shape[1]
    D, K, U = spec.d_model, spec.d_head, plan.n_changed
    n_set = [len(tokens) for tokens in plan.set_tokens.values()]
    kept = D * (sum(n_set) + 2 * U + 3 * len(plan.readings))
    most = kept + 3 * D * max(n_set, default=0)  # the inputs that are set, while they are made
    M = d_mlp(components)
    in_norm = 3 if components.dtype.itemsize >= 4 else 6  # an input, and what its norm makes of it, in float32 at least
    for step in plan.steps:
        n = len(step.tokens)
        if not isinstance(step, HeadsStep):
            kept += D * ((step.receiver not in plan.set_tokens) * n + n + U)  # input, output and its change
            most = max(most, kept + n * max(3 * M, M + in_norm * D))
            continue
        n_heads = len(step.heads)
        reading = 0
        for read in step.reads.values():
            n_read, computed = len(read.tokens), [receiver for receiver in read.receivers if receiver not in plan.set_tokens]
            n_inputs = reach.n_inputs(computed)
            kept += n_read * (n_inputs * D + len(read.heads) * K)
            alike = n_inputs + len(read.receivers) - len(computed) == 1
            reading = max(reading, n_read * (in_norm * (1 if alike else len(read.heads)) * D + 3 * len(read.heads) * K))
        turned = {head for qkv in ("q", "k") if qkv in step.reads for head in step.reads[qkv].heads}
        pattern = len(turned) * reach.shape[0] * len(step.positions) * reach.shape[1]
        attending = 3 * n_heads * K * n_tokens + 2 * pattern + 2 * n_heads * n * K
        kept += pattern
        most = max(most, kept + max(reading, attending), kept + n_heads * D * (n + U) + D * n)
        kept += n_heads * D * (n + U)  # outputs and their changes
    return components.dtype.itemsize * max(most, kept)


def _itemsize(model: Model) -> int:
    return model.dtype.itemsize


def _width(model: Model) -> int:
    return model.backend.d_model
