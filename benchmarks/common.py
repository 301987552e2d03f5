"""What the benchmarks share: random-weight models and prompts, timing in turn, tables."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers

from circuitdisc.models import Model, cut_hugging_face
from circuitdisc.runs import versions
from circuitdisc.tasks.base import Example, Task

CLOCK = time.perf_counter if torch.cuda.is_available() else time.process_time
"""Processor seconds, so that other work of the machine does not count; seconds of the clock where a GPU works."""


def random_gpt2(sizes: Mapping[str, Any], seed: int = 0) -> Model:
    """A GPT-2 with random weights. Nothing is downloaded.

    Args:
        sizes: fields of `transformers.GPT2Config` that differ from GPT-2 small's.
    """
    torch.manual_seed(seed)
    config = transformers.GPT2Config(bos_token_id=0, eos_token_id=0, **sizes)
    return cut_hugging_face(transformers.GPT2LMHeadModel(config).eval(), name="random gpt2")


def random_task(model: Model, n: int, length: int, differ_at: int | None, seed: int = 0) -> Task:
    """Random prompts of one length, answered at the last position.

    Args:
        differ_at: the one position at which clean and corrupted prompts differ; None: all positions.
    """
    generator = np.random.default_rng(seed)
    examples = []
    for _ in range(n):
        clean, other = generator.integers(0, model.d_vocab, (2, length))
        corrupted = other if differ_at is None else clean.copy()
        if differ_at is not None:
            corrupted[differ_at] = (clean[differ_at] + 1 + generator.integers(model.d_vocab - 1)) % model.d_vocab
        right, wrong = generator.choice(model.d_vocab, 2, replace=False).tolist()
        examples.append(Example(tuple(clean.tolist()), tuple(corrupted.tolist()), (length - 1,), ((right,),), ((wrong,),)))
    return Task("random", tuple(examples), ())


def in_turn(work: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Median seconds (`CLOCK`) of several things, done in turn, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for repetition in range(repetitions + 1):
        for name, function in work.items():
            started = CLOCK()
            function()
            if repetition:
                seconds[name].append(CLOCK() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return ["| " + " | ".join(cells) + " |" for cells in (headers, ["---"] * len(headers), *rows)]


def machine() -> str:
    """Machine and versions in one line."""
    found = ", ".join(f"{name} {version}" for name, version in versions().items())
    return f"{found}; {platform.machine()}, {torch.get_num_threads()} threads."
