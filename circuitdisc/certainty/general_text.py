"""A circuit on general text: how far its next-token distribution is from the model's.

1. Read each text's first tokens, and take the logits at every one of them.
2. Cut what is not in the circuit, under the circuit's own ablation if what it puts in place knows no position or group (zero, a
   mean over the data set, a learned constant), else under the mean over all tokens of the task's train prompts.
3. KL(model || circuit), a text's mean over its tokens; then the mean over texts with its interval, beside the empty circuit and
   random ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from circuitdisc.ablation import Ablation
from circuitdisc.certainty.forwards import Spending
from circuitdisc.engine.memory import parse_memory
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadTask
from circuitdisc.metrics import METRICS
from circuitdisc.models.model import Model
from circuitdisc.results import Result
from circuitdisc.stats import interval
from circuitdisc.tasks.base import Example, Task
from circuitdisc.tasks.encode import special_prefix
from circuitdisc.tasks.measured import need_choice
from circuitdisc.tasks.model import need_tokenizer

COPIES = 6
"""Of the logits of a text in float32, at most at once."""


@dataclass(frozen=True, repr=False)
class TextDivergence(Result):
    """KL of the circuit's next-token distribution to the model's, in nats.

    Args:
        n, n_tokens: texts, and tokens behind which a distribution was read.
        ablation: label of the ablation.
        kl, low, high: mean over texts, with its interval.
        empty: the same of the empty circuit.
        random: of random circuits.
        worst, worst_text: the largest of a text, and its beginning.
    """

    n: int
    n_tokens: int
    ablation: str
    kl: float
    low: float | None
    high: float | None
    confidence: float
    empty: float
    random: tuple[float, ...]
    worst: float
    worst_text: str


def text_examples(model: Model, texts: Sequence[str], max_tokens: int) -> tuple[Example, ...]:
    """Each text's first tokens, read at every one but the last; texts of less than two tokens are left out.

    Raises:
        BadTask: the model has no tokenizer, or no text has two tokens.
    """
    tokenizer = need_tokenizer(model, "texts")
    prefix, examples = special_prefix(tokenizer), []
    for text in texts:
        own = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        ids = (*prefix, *own)[: min(max_tokens, model.n_ctx)]
        if len(own) > 1 and len(ids) > 1:
            places = tuple(range(len(ids) - 1))
            examples.append(Example(ids, None, places, tuple((ids[at + 1],) for at in places), ((),) * len(places), text=text))
    if not examples:
        raise BadTask("no text has two tokens or more: give a file with a text a line")
    return tuple(examples)


def for_any_text(ablation: Ablation) -> Ablation:
    """The ablation itself if what it puts in place is the same at every token, else the mean over the data set."""
    alike = ablation.kind in ("zero", "zero_folded", "optimal") or (ablation.kind == "mean" and ablation.scope == "dataset")
    return ablation if alike and ablation.target == "output" else Ablation("mean", "dataset")


def text_divergence(
    model: Model,
    task: Task,
    texts: Sequence[str],
    masks: Mapping[str, Bool[np.ndarray, "R S"]],
    ablation: Ablation,
    max_tokens: int,
    given: Mapping[str, Any],
) -> tuple[TextDivergence, float]:
    """Of the circuit `circuit` among the masks, beside `empty` and all others; and its forward passes of a text.

    Raises:
        BadTask: no text can be read.
        BadSetting: the model puts out one number.
    """
    need_choice(model, "general text")
    examples, general = text_examples(model, texts, max_tokens), for_any_text(ablation)
    patching = Patching(model, general, task.train, memory=given["memory"])
    spending = Spending(patching, task)
    longest = max(map(len, examples))
    at_once = max(1, parse_memory(given["memory"]) // (4 * COPIES * model.d_vocab_out * longest))
    parts: dict[str, list[Float[np.ndarray, "B"]]] = {name: [] for name in masks}
    forwards = 0.0
    for first in range(0, len(examples), at_once):
        some = examples[first : first + at_once]
        before = spending.on(len(some))
        for name, row in patching.evaluate(some, masks, [METRICS["kl"]]).items():
            parts[name].append(-row["kl"].double().cpu().numpy())
        forwards += spending.on(len(some)) - before * (first > 0)
    values = {name: np.concatenate(rows) for name, rows in parts.items()}
    own = values.pop("circuit")
    ends = interval((own,), confidence=given["confidence"], seed=given["seed"]).within(0.0)
    worst = int(own.argmax())
    random = tuple(float(row.mean()) for name, row in values.items() if name.startswith("random"))
    about = (len(examples), sum(len(example.positions) for example in examples), general.label)
    rest = (given["confidence"], float(values["empty"].mean()), random, float(own[worst]), examples[worst].text[:200])
    return TextDivergence(*about, float(own.mean()), *ends.ends, *rest), forwards
