"""What must hold of every example before a model sees it."""

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from circuitdisc.errors import BadSetting, BadTask, CircuitdiscError, UnknownName
from circuitdisc.tasks.base import Example
from circuitdisc.tasks.model import TaskModel
from circuitdisc.tasks.show import show_difference, show_token, show_tokens, special_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN = 3  # problems named in one message
MOST_LETTERS = 450  # of a message; the first problem is named whatever its length


def raise_problems(problems: Sequence[str], error: type[CircuitdiscError]) -> None:
    """Raise one error that names the first few problems, or none if there are none."""
    distinct = list(dict.fromkeys(problems))
    if not distinct:
        return
    shown = distinct[:SHOWN]
    while len(shown) > 1 and len("\n".join(shown)) > MOST_LETTERS:
        shown.pop()
    more = len(distinct) - len(shown)
    raise error("\n".join(shown) + (f"\n... and {more:,} more" if more > 0 else ""))


def check_names(kind: str, given: str | Sequence[str] | None, known: Collection[str]) -> list[str]:
    """The names a setting lists, one being enough; all that are known if it is None.

    Raises:
        UnknownName: one of them is not known.
        BadSetting: the setting is not a list of names, or an empty one.
    """
    names = list(known) if given is None else [given] if isinstance(given, str) else given
    if not isinstance(names, Sequence) or not names:
        raise BadSetting(f"{given!r} is not a list of names ({kind}): leave it out, or give some of {', '.join(known)}")
    for name in names:
        if not isinstance(name, str) or name not in known:
            raise UnknownName(kind, str(name), known)
    return list(dict.fromkeys(names))


def resolve_position(position: int, length: int) -> int:
    """The index of a position that may count from the end.

    Raises:
        BadTask: the prompt has no such position.
    """
    if not -length <= position < length:
        raise BadTask(
            f"position {position} is outside the prompt, which has {length} tokens: "
            f"use 0 to {length - 1}, or -1 to -{length} from the end"
        )
    return position % length


def check_example(example: Example, model: TaskModel | None = None, tokenizer: "PreTrainedTokenizerBase | None" = None) -> None:
    """Refuse an example that cannot be used.

    Args:
        example: the example.
        model: if given, ids and length must also fit it.
        tokenizer: what says the tokens in messages; None: the model's.

    Raises:
        BadTask: what is wrong with the example and what to do.
    """
    length = len(example)
    tokenizer = tokenizer or (None if model is None else model.tokenizer)
    if length == 0:
        raise BadTask("the clean prompt has no tokens: give it at least one")
    if example.corrupted is not None and len(example.corrupted) != length:
        raise BadTask(
            f"the clean prompt has {length} tokens and the corrupted one {len(example.corrupted)} "
            f"({show_difference(example.clean, example.corrupted, tokenizer)}): reword one of them so that both have as many"
        )
    if example.corrupted == example.clean:
        raise BadTask(
            f"the corrupted prompt is the same as the clean one ({show_tokens(example.clean, tokenizer)}): change it, or "
            "leave it out of the whole file"
        )
    if not len(example.positions) == len(example.answers) == len(example.wrong) > 0:
        raise BadTask("positions, answers and wrong answers must have one entry for each position")
    if example.targets and len(example.targets) != len(example.positions):
        raise BadTask("targets must have one number for each position")
    if not all(math.isfinite(target) for target in example.targets):
        raise BadTask("a target is not a finite number")
    for position, answers, wrong in zip(example.positions, example.answers, example.wrong, strict=True):
        if not 0 <= position < length:
            raise BadTask(f"position {position} is outside the prompt, which has {length} tokens")
        if not answers:
            raise BadTask(f"there is no answer at position {position}: give one")
        if both := set(answers) & set(wrong):
            shown = show_token(min(both), tokenizer)
            raise BadTask(f"token {shown} is both a right and a wrong answer: take it from one of the two")
    _refuse_padding(example, tokenizer)
    if model is not None:
        _check_fits(example, model)


def _refuse_padding(example: Example, tokenizer: "PreTrainedTokenizerBase | None") -> None:
    """Padding that came with the ids would be attended to as if it were text; prompts are padded and masked here."""
    pad = None if tokenizer is None else special_id("pad", tokenizer)
    last = max(example.positions)
    for ids, kind in ((example.clean, "clean"), (example.corrupted or (), "corrupted")):
        if tokenizer is None or not ids or pad not in (ids[0], ids[last]):
            continue
        if pad in (special_id(other, tokenizer) for other in ("bos", "eos", "unk")):
            return  # the token may have been meant as one of the others
        where = "begins with" if ids[0] == pad else "is read at"
        shown = show_tokens(ids[:4] if ids[0] == pad else ids[max(0, last - 3) : last + 1], tokenizer)
        raise BadTask(f"the {kind} prompt {where} the padding token ({shown}): give it without padding")


def _check_fits(example: Example, model: TaskModel) -> None:
    if len(example) > model.n_ctx:
        raise BadTask(f"the prompt has {len(example)} tokens, but model '{model.name}' reads at most {model.n_ctx}: shorten it")
    read = {*example.clean, *(example.corrupted or ())}
    said = {token for tokens in (*example.answers, *example.wrong) for token in tokens}
    for tokens, size, what in ((read, model.d_vocab, "input"), (said, model.d_vocab_out, "output")):
        outside = sorted(token for token in tokens if not 0 <= token < size)
        if outside:
            raise BadTask(f"token id {outside[0]} is not in the {what} vocabulary of model '{model.name}': use 0 to {size - 1}")


def check_examples(examples: Sequence[Example], where: Sequence[str], model: TaskModel | None = None) -> None:
    """Refuse a list of examples, naming the first few that cannot be used.

    Args:
        examples: the examples.
        where: what messages call each of them.
        model: if given, ids and lengths must also fit it.

    Raises:
        BadTask: at least one example cannot be used.
    """
    problems: list[str] = []
    for example, label in zip(examples, where, strict=True):
        try:
            check_example(example, model)
        except BadTask as problem:
            problems.append(f"{label}: {problem}")
    raise_problems(problems, BadTask)
