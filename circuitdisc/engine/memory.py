"""How much memory a run takes, from shapes alone, and how many examples or rows fit in a budget."""

import re

from circuitdisc.errors import BadSetting, shown
from circuitdisc.files import size_words
from circuitdisc.models.model import Model

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
# clean, ablated, live and live-minus-ablated values of every sender, and as much again in passing
COPIES_OF_SENDERS = 5
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


def parse_memory(text: str | int) -> int:
    """Bytes from `8GiB`, `500MB` or a number.

    Raises:
        BadSetting: not a size.
    """
    words = str(text) if isinstance(text, str | int) and not isinstance(text, bool) and len(shown(text)) < 30 else ""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?|)b?\s*", words.lower())
    size = 0 if match is None else int(float(match[1]) * UNITS[match[2]])
    if not 1 <= size <= MOST_BYTES:
        raise BadSetting(f"memory={shown(text)} is not a size from 1 byte to {size_words(MOST_BYTES)}; write memory=8GiB")
    return size


def bytes_per_token(model: Model) -> int:
    """What holding every sender of one token takes."""
    return COPIES_OF_SENDERS * model.graph.n_senders * _width(model) * _itemsize(model)


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


def _itemsize(model: Model) -> int:
    return model.dtype.itemsize


def _width(model: Model) -> int:
    return model.backend.d_model
