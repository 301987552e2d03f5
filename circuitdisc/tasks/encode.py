"""From text to token ids, with every check that text needs."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from circuitdisc.errors import BadSetting, BadTask
from circuitdisc.tasks.base import Example, TextExample
from circuitdisc.tasks.check import check_example, raise_problems, resolve_position
from circuitdisc.tasks.follow import tokens_after
from circuitdisc.tasks.notes import note
from circuitdisc.tasks.show import (
    is_space,
    keeps_spaces,
    lacks_space,
    runs_together,
    shorten,
    show_difference,
    show_token,
    show_tokens,
    token_text,
)

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
    them takes "Mary" as well. A prompt that already begins with the special tokens that would be put before it gets
    them once. What a tokenizer puts at the end of a text (EOS) is left out, since the answer follows there.

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
    where: Sequence[str] | None = None,
) -> list[Example]:
    """As `encode_examples`, but texts that cannot be used are left out, and it stops after `n` that can.

    Raises:
        BadTask: there is no tokenizer, or not one text can be used.
        BadSetting: as `encode_examples`.
    """
    examples: list[Example] = []
    problems: list[str] = []
    for start in range(0, len(texts), n):
        labels = None if where is None else where[start : start + n]
        for outcome in _encode_each(texts[start : start + n], tokenizer, first_token, prepend_bos, None, labels):
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
        BadSetting: a BOS token is asked for and there is none, the value is none of the three, or None and what the
            tokenizer does cannot be told.
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
    plain, full = (list(tokenizer("a", add_special_tokens=add)["input_ids"]) for add in (False, True))
    if plain == full:
        return ()
    starts = [start for start in range(len(full)) if plain and full[start : start + len(plain)] == plain]
    if not starts:
        raise BadSetting(
            "what the tokenizer puts before a text cannot be told: it reads 'a' as "
            f"{show_tokens(plain, tokenizer) or 'nothing'}, and with special tokens as {show_tokens(full, tokenizer)}: set "
            "prepend_bos to true or false"
        )
    return tuple(full[: starts[-1]])


def one_token_words(
    words: Sequence[str], tokenizer: "PreTrainedTokenizerBase", *, task: str, kind: str, need: int
) -> tuple[str, ...]:
    """The words that are one known token after a space; the others are counted in a note.

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
        note(
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
        rest = text.replace(str(tokenizer.unk_token), " ")
        if unknown not in tokenizer(rest, add_special_tokens=False)["input_ids"]:
            return None
        words = rest.split()
        return next((word for word in words if unknown in tokenizer(word, add_special_tokens=False)["input_ids"]), rest)
    words = [text[start:end] for id_, (start, end) in zip(encoded.ids, encoded.spans, strict=True) if id_ == unknown]
    return next((word for word in words if word != tokenizer.unk_token), None)


def _leaves_out(text: str, encoded: _Encoded) -> bool:
    """True if no token stands for some characters of a text, spaces aside; False where it is not known."""
    end = 0
    for start, stop in [*(encoded.spans or [(0, len(text))]), (len(text), len(text))]:
        if text[end:start].strip():
            return True
        end = max(end, stop)
    return False


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
    encoder.note_oddities()


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
        self.special = prefix
        self.keeps_spaces = keeps_spaces(tokenizer)
        self.run_together: dict[tuple[str, str], str] = {}  # where an answer makes one word with the end of its prompt
        self.has_special: dict[str, None] = {}  # prompts that begin with the special tokens by themselves
        self.bos_inside: dict[str, None] = {}  # prompts that hold BOS elsewhere, while it is put before them
        self.left_out: dict[str, None] = {}  # prompts with characters that the tokenizer drops
        answers = {answer for text in texts for answer in (*text.answers, *text.wrong)}
        prompts = [prompt for text in texts for prompt in (text.clean, text.corrupted) if prompt is not None]
        self.encoded = _encode_all([*prompts, *answers, *(f" {answer}" for answer in answers)], tokenizer)
        followed = [
            text.clean + self.glued(text.clean, answer) for text in texts for answer in (*text.answers, *text.wrong)
        ]  # what answers at the last position, the usual ones, are read in
        self.encoded |= _encode_all(followed, tokenizer)

    def look_up(self, text: str) -> _Encoded:
        if text not in self.encoded:
            self.encoded |= _encode_all([text], self.tokenizer)
        return self.encoded[text]

    def glued(self, context: str, answer: str) -> str:
        """The answer as it is joined to a prompt.

        With a space where the tokenizer drops spaces anyway; also where one that puts a space before every text would
        otherwise join two words. Elsewhere as it is written: after "= " a second space would be another token.
        """
        spaced = f" {answer}"
        if self.encoded[spaced].ids != self.encoded[answer].ids:
            return answer
        return answer if self.keeps_spaces and not runs_together(context, answer) else spaced

    def example(self, text: TextExample, position: int) -> Example:
        clean = self.prompt_ids(text.clean, "clean")
        corrupted = None if text.corrupted is None else self.prompt_ids(text.corrupted, "corrupted")
        if not clean:
            raise BadTask("the clean prompt has no tokens: give it at least one")
        position = resolve_position(position, len(clean))
        context = self.text_up_to(text.clean, position - len(self.prefix_of(text.clean)))
        self.check_seam(text.clean, context, position)
        if text.target is not None:
            roles = {role: self.token_at(text.clean, end - 1) for role, (_, end) in text.roles.items()}
            answers, targets = ((0,),), (text.target,)
            read = (position,), answers, ((),)
            return Example(clean, corrupted, *read, text.group, text.clean, roles, targets=targets, source=text)
        if not text.answers:
            raise BadTask("there is no answer: give one")
        right = {answer: self.answer_ids(context, answer) for answer in text.answers}
        answers = {ids[0]: answer for answer, ids in right.items()}
        wrong = {self.answer_ids(context, answer)[0]: answer for answer in text.wrong}
        for token in answers.keys() & wrong.keys():
            raise BadTask(
                f"the answer {shorten(answers[token])!r} and the wrong answer {shorten(wrong[token])!r} are scored by the same "
                f"token, {show_token(token, self.tokenizer)}: choose answers that begin differently"
            )
        roles = {role: self.token_at(text.clean, end - 1) for role, (_, end) in text.roles.items()}
        first = right[text.answers[0]]
        whole = first if len(first) > 1 and position == len(clean) - 1 else ()
        example = Example(
            clean, corrupted, (position,), (tuple(answers),), (tuple(wrong),), text.group, text.clean, roles, whole, source=text
        )
        if clean == corrupted and text.clean != text.corrupted:
            raise BadTask(
                f"the corrupted prompt is the same as the clean one to this tokenizer, which reads both as "
                f"{show_tokens(clean, self.tokenizer)}: change it"
            )
        check_example(example, tokenizer=self.tokenizer)
        return example

    def prompt_ids(self, prompt: str, kind: str) -> tuple[int, ...]:
        encoded = self.look_up(prompt)
        if (word := _unknown_word(prompt, encoded, self.tokenizer)) is not None:
            raise BadTask(
                f"the tokenizer does not know {shorten(word)!r} in the {kind} prompt: use words of this model's vocabulary"
            )
        if _leaves_out(prompt, encoded):
            self.left_out[prompt] = None
        prefix = self.prefix_of(prompt)
        if self.special and not prefix:
            if tuple(encoded.ids[: 2 * len(self.special)]) != 2 * self.special:  # else it is said that it stands there twice
                self.has_special[prompt] = None
        elif prefix and self.tokenizer.bos_token_id in prefix and self.tokenizer.bos_token_id in encoded.ids:
            self.bos_inside[prompt] = None
        return (*prefix, *encoded.ids)

    def prefix_of(self, prompt: str) -> tuple[int, ...]:
        """The special tokens that are put before a prompt: none if it begins with them by itself."""
        begins = tuple(self.look_up(prompt).ids[: len(self.special)])
        return () if begins == self.special else self.special

    def check_seam(self, prompt: str, context: str, position: int) -> None:
        """Refuse a position at which the prompt's text cannot be cut without changing its tokens."""
        ids, before = self.look_up(prompt).ids, self.look_up(context).ids
        here = ids[: max(0, position + 1 - len(self.prefix_of(prompt)))]
        if before != here:
            raise BadTask(
                f"the prompt up to position {position} has other tokens by itself "
                f"({show_difference(here, before, self.tokenizer)}), so that text cannot say what follows there: read another "
                "position, or give token ids"
            )

    def way_out(self, context: str, answer: str, tokens: Sequence[int]) -> str:
        """What to do about an answer of several tokens."""
        first_alone = f"score the first one alone with {FIRST_TOKEN_HINT}"
        if is_space(token_text(tokens[0], self.tokenizer)):
            further = "" if len(tokens) == 2 else f"; choose answers of one token there, or {first_alone}"
            return "the first is only a space, so end the prompts with it and begin the answers after it" + further
        spaced = self.look_up(f"{context} {answer}").ids[len(self.look_up(context).ids) :]
        if not answer[:1].isspace() and len(spaced) == 1:
            return f"begin it with a space, since {show_tokens(spaced, self.tokenizer)} is one"
        return f"choose one of a single token, or {first_alone}"

    def note_oddities(self) -> None:
        """What was seen in prompts and answers that may not be meant."""
        shown = show_tokens(self.special, self.tokenizer)
        if self.has_special:
            prompt = next(iter(self.has_special))
            note(
                f"{len(self.has_special)} prompts already begin with {shown}, which would be put before them, the first one as "
                f"{shorten(prompt)!r}: it stands there once. If it is part of a chat template, check that the model saw it once"
            )
        if self.bos_inside:
            prompt = next(iter(self.bos_inside))
            note(
                f"{shown} is put before {len(self.bos_inside)} prompts that hold the BOS token elsewhere, the first one "
                f"{shorten(prompt)!r} with {show_tokens(self.look_up(prompt).ids, self.tokenizer)}: take it out of the text, "
                "or set prepend_bos=false if the text is complete"
            )
        if self.left_out:
            prompt = next(iter(self.left_out))
            note(
                f"the tokenizer drops characters of {len(self.left_out)} prompts, which the model then does not see; the "
                f"first, {shorten(prompt)!r}, is read as {show_tokens(self.look_up(prompt).ids, self.tokenizer)}"
            )
        if self.run_together:
            note(
                f"{len(self.run_together)} answers follow their prompt without a space, the first one as "
                f"{next(iter(self.run_together.values()))!r}: begin an answer with a space if one is meant"
            )

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
        encoded, offset = self.look_up(prompt), len(self.prefix_of(prompt))
        if encoded.spans is None:  # as many tokens as the text up to there has
            return offset + len(self.look_up(prompt[: character + 1]).ids) - 1
        holding = [index for index, (start, end) in enumerate(encoded.spans) if start <= character < end]
        if holding:  # the last one: a token that stands for a space may claim the character after it
            return offset + holding[-1]
        return offset + next(index for index, (_, end) in enumerate(encoded.spans) if end > character)

    def answer_ids(self, context: str, answer: str) -> tuple[int, ...]:
        """The tokens of an answer, of which the first scores it: what follows the context when both are encoded together."""
        joined = context + self.glued(context, answer)
        before, after = self.look_up(context).ids, self.look_up(joined).ids
        if lacks_space(context, joined[len(context) :]):
            self.run_together[context, answer] = joined[-30:]
        alone = self.look_up(answer)
        if (word := _unknown_word(answer, alone, self.tokenizer)) is not None:
            raise BadTask(
                f"the tokenizer does not know {shorten(word)!r} in the answer {shorten(answer)!r}: use a word of this model's "
                "vocabulary"
            )
        if after[: len(before)] != before:
            raise BadTask(
                f"the answer {shorten(answer)!r} merges with the end of the prompt {context[-20:]!r} "
                f"({show_difference(before, after, self.tokenizer)}): end the prompt without a space and begin the answer "
                "with one"
            )
        tokens = after[len(before) :]
        if not tokens:
            raise BadTask(f"the answer {shorten(answer)!r} has no tokens: write the word that follows the prompt")
        if len(tokens) > 1 and not self.first_token:
            raise BadTask(
                f"the answer {shorten(answer)!r} is {len(tokens)} tokens ({show_tokens(tokens, self.tokenizer)}): "
                + self.way_out(context, answer, tokens)
            )
        return tuple(int(token) for token in tokens)
