"""From text to token ids, with every check that text needs."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from circuitdisc.errors import BadSetting, BadTask
from circuitdisc.tasks.base import Example, TextExample
from circuitdisc.tasks.check import check_example, raise_problems, resolve_position
from circuitdisc.tasks.follow import tokens_after

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIRST_TOKEN_HINT = "first_token=True (task.first_token=true on the command line)"


def encode_examples(
    texts: Sequence[TextExample],
    tokenizer: "PreTrainedTokenizerBase | None",
    *,
    first_token: bool = False,
    prepend_bos: bool | None = None,
    positions: Sequence[int] | None = None,
    where: Sequence[str] | None = None,
) -> list[Example]:
    """Turn text examples into token ids.

    An answer is read as it follows the prompt, so a tokenizer that keeps spaces wants " Mary"; one that drops
    them takes "Mary" as well.

    Args:
        texts: the examples.
        tokenizer: the model's tokenizer.
        first_token: score the first token of an answer of several; else such an answer is refused.
        prepend_bos: whether prompts begin with the BOS token; None leaves it to the tokenizer.
        positions: for each text the token whose next token is the answer, negative from the end; None: the last.
        where: what messages call each text; None: its index and its beginning.

    Returns:
        One example for each text.

    Raises:
        BadTask: there is no tokenizer, or a text cannot be used; the message names the first few.
        BadSetting: `prepend_bos` is set and the tokenizer has no BOS token.
    """
    examples: list[Example] = []
    problems: list[str] = []
    for outcome in _encode_each(texts, tokenizer, first_token, prepend_bos, positions, where):
        if isinstance(outcome, Example):
            examples.append(outcome)
        else:
            problems.append(outcome)
    raise_problems(problems, BadTask)
    return examples


def encode_fitting(
    texts: Sequence[TextExample],
    tokenizer: "PreTrainedTokenizerBase | None",
    n: int,
    *,
    first_token: bool = False,
    prepend_bos: bool | None = None,
) -> list[Example]:
    """As `encode_examples`, but texts that cannot be used are left out, and it stops after `n` that can.

    Raises:
        BadTask: there is no tokenizer, or not one text can be used.
        BadSetting: as `encode_examples`.
    """
    examples: list[Example] = []
    problems: list[str] = []
    for start in range(0, len(texts), n):
        for outcome in _encode_each(texts[start : start + n], tokenizer, first_token, prepend_bos, None, None):
            if isinstance(outcome, Example):
                examples.append(outcome)
            else:
                problems.append(outcome)
        if len(examples) >= n:
            return examples[:n]
    if not examples:
        raise_problems(problems, BadTask)
    return examples


def special_prefix(tokenizer: "PreTrainedTokenizerBase | None", prepend_bos: bool | None = None) -> tuple[int, ...]:
    """The special tokens that stand before every prompt.

    Args:
        tokenizer: the model's tokenizer; without one there are none.
        prepend_bos: True for the BOS token, False for none, None for what the tokenizer does by itself.

    Raises:
        BadSetting: a BOS token is asked for and there is none, or the value is none of the three.
    """
    if prepend_bos not in (None, True, False):
        raise BadSetting(f"prepend_bos={prepend_bos!r} cannot be used: give true, false, or leave it out")
    if prepend_bos is False or (tokenizer is None and not prepend_bos):
        return ()
    bos = None if tokenizer is None else tokenizer.bos_token_id
    if tokenizer is None or (prepend_bos and not isinstance(bos, int)):
        raise BadSetting("prepend_bos=true, but there is no BOS token: leave prepend_bos out")
    if prepend_bos and isinstance(bos, int):
        return (bos,)
    probe = "a"
    plain = tokenizer(probe, add_special_tokens=False)["input_ids"]
    full = tokenizer(probe)["input_ids"]
    starts = [start for start in range(len(full)) if full[start : start + len(plain)] == plain]
    return tuple(full[: starts[-1]]) if starts else ()


def one_token_words(
    words: Sequence[str], tokenizer: "PreTrainedTokenizerBase", *, task: str, kind: str, need: int
) -> tuple[str, ...]:
    """The words that are one known token after a space; the others are counted in a warning.

    Args:
        words: words without spaces.
        tokenizer: the model's tokenizer.
        task: the task that asks, for messages.
        kind: what the words are, for messages ("names").
        need: how many must remain.

    Raises:
        BadTask: fewer than `need` words remain.
    """
    after = tokens_after("a", [f" {word}" for word in words], tokenizer)
    kept = tuple(word for word, ids in zip(words, after, strict=True) if ids is not None and len(ids) == 1)
    if len(kept) < need:
        raise BadTask(
            f"task '{task}' needs {need} {kind} that are one token each, but this model's tokenizer has "
            f"{len(kept)} of {len(words)}: choose a model with a larger English vocabulary, or another task"
        )
    if len(kept) < len(words):
        warnings.warn(
            f"task '{task}': {len(words) - len(kept)} of {len(words)} {kind} are not one token for this model's "
            "tokenizer and are left out"
        )
    return kept


@dataclass(frozen=True)
class _Encoded:
    """Token ids of a text without special tokens, and where each token begins and ends in it (None if not known)."""

    ids: list[int]
    spans: list[tuple[int, int]] | None


def _encode_all(texts: Iterable[str], tokenizer: "PreTrainedTokenizerBase") -> dict[str, _Encoded]:
    unique = list(dict.fromkeys(texts))
    if not unique:
        return {}
    has_spans = bool(tokenizer.is_fast)
    batch = tokenizer(unique, add_special_tokens=False, return_offsets_mapping=has_spans, verbose=False)
    spans = batch["offset_mapping"] if has_spans else [None] * len(unique)
    return {text: _Encoded(ids, span) for text, ids, span in zip(unique, batch["input_ids"], spans, strict=True)}


def _unknown_word(text: str, encoded: _Encoded, tokenizer: "PreTrainedTokenizerBase") -> str | None:
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown not in encoded.ids:
        return None
    if encoded.spans is None:
        words = text.split()
        return next((word for word in words if unknown in tokenizer(word, add_special_tokens=False)["input_ids"]), None)
    words = [text[start:end] for id_, (start, end) in zip(encoded.ids, encoded.spans, strict=True) if id_ == unknown]
    return next((word for word in words if word != tokenizer.unk_token), None)


def _encode_each(
    texts: Sequence[TextExample],
    tokenizer: "PreTrainedTokenizerBase | None",
    first_token: bool,
    prepend_bos: bool | None,
    positions: Sequence[int] | None,
    where: Sequence[str] | None,
) -> Iterator[Example | str]:
    """For each text its example, or a sentence that says why it cannot be used."""
    if tokenizer is None:
        raise BadTask("this model has no tokenizer: give token ids")
    encoder = _TextEncoder(texts, tokenizer, first_token, special_prefix(tokenizer, prepend_bos))
    for index, text in enumerate(texts):
        label = f"example {index} ({text.clean[:40]!r})" if where is None else where[index]
        try:
            yield encoder.example(text, -1 if positions is None else positions[index])
        except BadTask as problem:
            yield f"{label}: {problem}"
    if encoder.run_together:
        warnings.warn(
            f"{len(encoder.run_together)} answers follow their prompt without a space, the first one as "
            f"{encoder.run_together[0]!r}: begin an answer with a space if one is meant"
        )


class _TextEncoder:
    """Encodes the prompts of many examples at once, then builds one example at a time."""

    def __init__(
        self,
        texts: Sequence[TextExample],
        tokenizer: "PreTrainedTokenizerBase",
        first_token: bool,
        prefix: tuple[int, ...],
    ) -> None:
        self.tokenizer = tokenizer
        self.first_token = first_token
        self.prefix = prefix
        self.run_together: list[str] = []  # where an answer makes one word with the end of its prompt
        answers = {answer for text in texts for answer in (*text.answers, *text.wrong)}
        prompts = [prompt for text in texts for prompt in (text.clean, text.corrupted) if prompt is not None]
        self.encoded = _encode_all([*prompts, *answers, *(f" {answer}" for answer in answers)], tokenizer)
        followed = [
            text.clean + self.glued(answer) for text in texts for answer in (*text.answers, *text.wrong)
        ]  # what answers at the last position, the usual ones, are read in
        self.encoded |= _encode_all(followed, tokenizer)

    def look_up(self, text: str) -> _Encoded:
        if text not in self.encoded:
            self.encoded |= _encode_all([text], self.tokenizer)
        return self.encoded[text]

    def glued(self, answer: str) -> str:
        """The answer as it is joined to a prompt: with a space where the tokenizer drops spaces anyway."""
        spaced = f" {answer}"
        return spaced if self.encoded[spaced].ids == self.encoded[answer].ids else answer

    def example(self, text: TextExample, position: int) -> Example:
        clean = self.prompt_ids(text.clean, "clean")
        corrupted = None if text.corrupted is None else self.prompt_ids(text.corrupted, "corrupted")
        if not clean:
            raise BadTask("the clean prompt has no tokens: give it at least one")
        position = resolve_position(position, len(clean))
        context = self.text_up_to(text.clean, position - len(self.prefix))
        if text.target is not None:
            roles = {role: self.token_at(text.clean, end - 1) for role, (_, end) in text.roles.items()}
            answers, targets = ((0,),), (text.target,)
            return Example(clean, corrupted, (position,), answers, ((),), text.group, text.clean, roles, targets=targets)
        if not text.answers:
            raise BadTask("there is no answer: give one")
        right = {answer: self.answer_ids(context, answer) for answer in text.answers}
        answers = {ids[0]: answer for answer, ids in right.items()}
        wrong = {self.answer_ids(context, answer)[0]: answer for answer in text.wrong}
        for token in answers.keys() & wrong.keys():
            raise BadTask(
                f"the answer {answers[token]!r} and the wrong answer {wrong[token]!r} are scored by the same token: "
                "choose answers that begin differently"
            )
        roles = {role: self.token_at(text.clean, end - 1) for role, (_, end) in text.roles.items()}
        first = right[text.answers[0]]
        whole = first if len(first) > 1 and position == len(clean) - 1 else ()
        example = Example(
            clean, corrupted, (position,), (tuple(answers),), (tuple(wrong),), text.group, text.clean, roles, whole
        )
        check_example(example)
        return example

    def prompt_ids(self, prompt: str, kind: str) -> tuple[int, ...]:
        encoded = self.look_up(prompt)
        if (word := _unknown_word(prompt, encoded, self.tokenizer)) is not None:
            raise BadTask(f"the tokenizer does not know {word!r} in the {kind} prompt: use words of this model's vocabulary")
        return (*self.prefix, *encoded.ids)

    def text_up_to(self, prompt: str, last: int) -> str:
        """The prompt from its beginning to the end of its token `last`; negative: nothing but special tokens."""
        encoded = self.look_up(prompt)
        if last == len(encoded.ids) - 1:
            return prompt
        if last < 0:
            return ""
        if encoded.spans is None:
            return str(self.tokenizer.decode(encoded.ids[: last + 1]))
        return prompt[: encoded.spans[last][1]]

    def token_at(self, prompt: str, character: int) -> int:
        """The index, special tokens included, of the token that holds a character of the prompt."""
        encoded = self.look_up(prompt)
        if encoded.spans is None:  # as many tokens as the text up to there has
            return len(self.prefix) + len(self.look_up(prompt[: character + 1]).ids) - 1
        holding = [index for index, (start, end) in enumerate(encoded.spans) if start <= character < end]
        if holding:  # the last one: a token that stands for a space may claim the character after it
            return len(self.prefix) + holding[-1]
        return len(self.prefix) + next(index for index, (_, end) in enumerate(encoded.spans) if end > character)

    def answer_ids(self, context: str, answer: str) -> tuple[int, ...]:
        """The tokens of an answer, of which the first scores it: what follows the context when both are encoded together."""
        joined = context + self.glued(answer)
        before, after = self.look_up(context).ids, self.look_up(joined).ids
        seam = joined[len(context) - 1 : len(context) + 1]
        if context and seam.isascii() and seam.isalpha():
            self.run_together.append(joined[-30:])
        alone = self.look_up(answer)
        if (word := _unknown_word(answer, alone, self.tokenizer)) is not None:
            raise BadTask(
                f"the tokenizer does not know {word!r} in the answer {answer!r}: use a word of this model's vocabulary"
            )
        if after[: len(before)] != before:
            raise BadTask(
                f"the answer {answer!r} merges with the end of the prompt {context[-20:]!r}: "
                "end the prompt without a space and begin the answer with one"
            )
        tokens = after[len(before) :]
        if not tokens:
            raise BadTask(f"the answer {answer!r} has no tokens: write the word that follows the prompt")
        if len(tokens) > 1 and not self.first_token:
            pieces = ", ".join(repr(self.tokenizer.decode([token])) for token in tokens)
            raise BadTask(
                f"the answer {answer!r} is {len(tokens)} tokens ({pieces}): choose one of a single token, "
                f"or score the first one alone with {FIRST_TOKEN_HINT}"
            )
        return tuple(int(token) for token in tokens)
