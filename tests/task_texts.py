"""What the examples of a loaded task say, for tests that find answers again from the text alone."""

import re
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast
from whole_words import byte_level, model_with

from circuitdisc.tasks import Example, Task, load_task
from circuitdisc.tasks.roles import position_of

N = 60


def load(name: str, tokenizer: PreTrainedTokenizerFast | None = None, **settings: Any) -> Task:
    return load_task(name, model_with(tokenizer or byte_level()), **{"n": N, "n_heldout": 5, **settings})


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def said(tokens: Sequence[int], tokenizer: PreTrainedTokenizerFast | None = None) -> list[str]:
    """What each token says, without spaces."""
    return [str((tokenizer or byte_level()).decode([token])).strip() for token in tokens]


def at(one: Example, role: str, tokenizer: PreTrainedTokenizerFast | None = None) -> str:
    return said([one.clean[position_of(one, role)]], tokenizer)[0]


def corrupted(one: Example, tokenizer: PreTrainedTokenizerFast | None = None) -> str:
    assert one.corrupted is not None
    return str((tokenizer or byte_level()).decode(list(one.corrupted), skip_special_tokens=True)).strip()


def differing(one: Example) -> list[int]:
    assert one.corrupted is not None
    return [i for i, (x, y) in enumerate(zip(one.clean, one.corrupted, strict=True)) if x != y]
