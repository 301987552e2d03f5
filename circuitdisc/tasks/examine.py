"""A token too many or too few: what the tokens of a task's examples give away, in sentences that show them.

Each check looks at all examples and yields at most a few sentences: how many examples, the tokens of the first, what to do.
What makes an example useless is refused elsewhere (`check.py`, `encode.py`); what is said here may be meant.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from circuitdisc.tasks.base import Example
from circuitdisc.tasks.show import (
    is_space,
    keeps_spaces,
    lacks_space,
    marks_turns,
    shorten,
    show_token,
    show_tokens,
    special_id,
    token_text,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    Tokenizer = PreTrainedTokenizerBase | None

LEAST_TO_VARY = 4  # fewer examples may agree by chance
SAME_SHARE = 0.9  # of the examples: from here on the others hardly count


def examine(examples: Sequence[Example], tokenizer: "Tokenizer") -> list[str]:
    """What is odd about the tokens of these examples.

    Args:
        examples: all examples of a task, or of a file.
        tokenizer: the model's tokenizer; without one ids are compared with each other alone.
    """
    checks = (_begins_twice, _chat_marker, _looks_padded, _special_tokens, _spaces, _pieces, _shared_tokens, _change_too_late)
    return [sentence for check in checks for sentence in check(examples, tokenizer)]


def examine_variety(examples: Sequence[Example], tokenizer: "Tokenizer") -> list[str]:
    """Right or wrong answers that are the same all over the task, although its prompts differ."""
    if len({example.clean for example in examples}) < LEAST_TO_VARY or any(example.targets for example in examples):
        return []  # too few to tell, or answers that are numbers
    notes: list[str] = []
    for what, tokens_of in (("right", lambda example: example.answers), ("wrong", lambda example: example.wrong)):
        counts = Counter(tuple(tuple(sorted(tokens)) for tokens in tokens_of(example)) for example in examples)
        tokens, count = counts.most_common(1)[0]
        if not all(tokens) or count < SAME_SHARE * len(examples):
            continue
        shown = "; ".join(show_tokens(at_position, tokenizer) for at_position in tokens[:3])
        notes.append(
            f"{count} of {len(examples)} examples have the same {what} answer, {shown}, although their prompts differ: "
            + (
                "a circuit that always says it scores as well as one that reads the prompt"
                if what == "right"
                else "a circuit that only lowers this token scores as well as one that reads the prompt"
            )
        )
    return notes


def examine_ids(examples: Sequence[Example], tokenizer: "Tokenizer", prefix: Sequence[int]) -> list[str]:
    """What is odd about examples that a user gave as ids: what a tokenizer would have added, and lost spaces.

    Args:
        examples: the examples.
        tokenizer: the model's tokenizer.
        prefix: the special tokens that it puts before a text by itself.
    """
    notes: list[str] = []
    bare = [example for example in examples if example.clean[: len(prefix)] != tuple(prefix)]
    if bare:
        notes.append(
            f"{len(bare)} of {len(examples)} prompts of ids do not begin with {show_tokens(prefix, tokenizer)}, which the "
            f"tokenizer puts before every text; the first begins with {show_tokens(bare[0].clean[:3], tokenizer)}: add it to "
            "the ids if the model was trained with it"
        )
    if tokenizer is None or not keeps_spaces(tokenizer):
        return notes
    seams = [(example.clean[position], token) for example, position, tokens in _readings(examples) for token in tokens]
    texts = {token: token_text(token, tokenizer) or "" for token in {token for seam in seams for token in seam}}
    glued = [(before, token) for before, token in seams if lacks_space(texts[before], texts[token])]
    if glued:
        notes.append(
            f"{len(glued)} answers given as ids follow their prompt without a space, the first one as "
            f"{show_tokens(glued[0], tokenizer)}: encode an answer together with its prompt, not alone"
        )
    return notes


def _prompts(examples: Sequence[Example]) -> Iterator[tuple[int, ...]]:
    for example in examples:
        yield example.clean
        if example.corrupted is not None:
            yield example.corrupted


def _readings(examples: Sequence[Example]) -> Iterator[tuple[Example, int, tuple[int, ...]]]:
    """Each example's positions with all tokens, right and wrong, that are scored there."""
    for example in examples:
        for position, right, wrong in zip(example.positions, example.answers, example.wrong, strict=True):
            yield example, position, (*right, *wrong)


def _begins_twice(examples: Sequence[Example], tokenizer: "Tokenizer") -> Iterator[str]:
    """BOS, or another special token, twice at the beginning."""
    if tokenizer is None:
        return
    special = set(tokenizer.all_special_ids) - {special_id("unk", tokenizer)} | {special_id("bos", tokenizer)}
    twice = [ids for ids in _prompts(examples) if len(ids) > 1 and ids[0] == ids[1] and ids[0] in special]
    if twice:
        yield (
            f"{len(twice)} prompts begin with the same special token twice, the first with "
            f"{show_tokens(twice[0][:3], tokenizer)}: leave it out where it is written (a chat template may have added it), or "
            "set prepend_bos=false"
        )


def _chat_marker(examples: Sequence[Example], tokenizer: "Tokenizer") -> Iterator[str]:
    """A BOS token that was put before prompts and is what begins a turn of a chat."""
    if tokenizer is None or not isinstance(bos := tokenizer.bos_token_id, int):
        return
    begun = [
        example for example in examples if example.clean[0] == bos and not example.text.startswith(str(tokenizer.bos_token))
    ]
    if begun and marks_turns(tokenizer):
        yield (
            f"{show_token(bos, tokenizer)} is put before {len(begun)} prompts as the BOS token, and the tokenizer's chat "
            "template begins every turn with it: the prompts look like a turn without a role. Leave prepend_bos out, or set "
            "chat_template=true for whole turns"
        )


def _looks_padded(examples: Sequence[Example], tokenizer: "Tokenizer") -> Iterator[str]:
    """Runs of one token, of varying length, that fill all prompts to one length, and the token stands nowhere else."""
    prompts = list(_prompts(examples))
    if len(prompts) < LEAST_TO_VARY or len({len(ids) for ids in prompts}) > 1:
        return
    for side, where in ((1, "begin"), (-1, "end")):
        sided = [ids[::side] for ids in prompts]
        token = Counter(ids[0] for ids in sided).most_common(1)[0][0]
        runs = [next((i for i, id_ in enumerate(ids) if id_ != token), len(ids)) for ids in sided]
        elsewhere = any(token in ids[run:] for ids, run in zip(sided, runs, strict=True))
        if (
            not elsewhere
            and max(runs) > 1
            and len(set(runs)) > 1
            and min(len(ids) - run for ids, run in zip(sided, runs, strict=True))
        ):
            yield (
                f"the prompts {where} with up to {max(runs)} times the token {show_token(token, tokenizer)} and have one "
                "length, as if they were padded: give them without padding, which would be read as text (prompts of different "
                "lengths are padded and masked when they are run)"
            )


def _special_tokens(examples: Sequence[Example], tokenizer: "Tokenizer") -> Iterator[str]:
    """Answers read after the end of a text, unknown tokens, special tokens as answers."""
    if tokenizer is None:
        return
    bos, eos, sep, cls, pad, unknown = (special_id(kind, tokenizer) for kind in ("bos", "eos", "sep", "cls", "pad", "unk"))
    ends = {eos, sep} - {None}
    begun = [ids for ids in _prompts(examples) if ids[0] in ends - {bos, cls}]
    if begun:
        yield (
            f"{len(begun)} prompts begin with a token that ends a text, the first with {show_tokens(begun[0][:3], tokenizer)}: "
            "leave it out, also where it is padding (prompts are padded and masked when they are run)"
        )
    after_end = [
        (example, position)
        for example, position, _ in _readings(examples)
        if example.clean[position] in ends and not (position == 0 and example.clean[0] == bos)
    ]
    if after_end:
        example, position = after_end[0]
        yield (
            f"{len(after_end)} answers are read after a token that ends a text, the first after "
            f"{show_tokens(example.clean[max(0, position - 2) : position + 1], tokenizer)}: end the prompt before it"
        )
    if unknown is not None and unknown not in (bos, eos, pad):
        holding = sum(unknown in (*example.clean, *(example.corrupted or ())) for example in examples)
        if holding:
            yield (
                f"{holding} of {len(examples)} examples hold {show_token(unknown, tokenizer)}, which stands for words that the "
                "tokenizer does not know: use words of its vocabulary"
            )
    never = {bos, pad, unknown} - ends - {None}
    said = [token for _, _, tokens in _readings(examples) for token in tokens if token in never]
    if said:
        yield (
            f"{len(said)} answers are the special token {show_token(said[0], tokenizer)}: encode answers without special "
            "tokens (the first id that a tokenizer gives may be its BOS token)"
        )


def _spaces(examples: Sequence[Example], tokenizer: "Tokenizer") -> Iterator[str]:
    """Answers that are only the space before a word, and prompts that end in a space before an answer that begins with one."""
    if tokenizer is None or not keeps_spaces(tokenizer):
        return
    texts: dict[int, str | None] = {}

    def text(token: int) -> str | None:
        if token not in texts:
            texts[token] = token_text(token, tokenizer)
        return texts[token]

    empty = [example for example, _, tokens in _readings(examples) if any(is_space(text(token)) for token in tokens)]
    if empty:
        token = next(token for _, _, tokens in _readings(empty) for token in tokens if is_space(text(token)))
        wholes = {example.whole for example in empty if example.whole}
        going_on = next((example.whole for example in empty if example.whole and example.whole[0] == token), ())
        alike = f", with which {len(wholes)} different answers begin" if len(wholes) > 1 else ""
        yield (
            f"{len(empty)} examples are scored by {show_token(token, tokenizer)} alone, which is only a space{alike}"
            + (f" (the first is {show_tokens(going_on, tokenizer)})" if going_on else "")
            + ": end the prompts with the space and begin the answers after it"
        )
    doubled = [
        (example, position, token)
        for example, position, tokens in _readings(examples)
        for token in tokens[:1]
        if _ends_in_lone_space(example.clean, position, text) and (text(token) or "").startswith(" ")
    ]
    if doubled:
        example, position, token = doubled[0]
        yield (
            f"{len(doubled)} prompts end in a space and their answers begin with another, the first one as "
            f"{show_tokens((*example.clean[max(0, position - 1) : position + 1], token), tokenizer)}: write one of the two"
        )


def _ends_in_lone_space(ids: Sequence[int], position: int, text) -> bool:
    """True if the token is one space that follows a word; more of them indent a line."""
    before = text(ids[position - 1]) if position else ""
    return text(ids[position]) == " " and bool(before) and not before[-1].isspace()


def _pieces(examples: Sequence[Example], tokenizer: "Tokenizer") -> Iterator[str]:
    """Answers of several tokens that are scored by a part of a character."""
    if tokenizer is None:
        return
    parts = {first for first in {example.whole[0] for example in examples if example.whole} if _is_part(first, tokenizer)}
    hit = [example.whole for example in examples if example.whole and example.whole[0] in parts]
    if hit:
        whole = shorten(str(tokenizer.decode(list(hit[0]))))
        yield (
            f"{len(hit)} answers are scored by a part of a character, the first of {whole!r} by "
            f"{tokenizer.convert_ids_to_tokens(hit[0][0])!r} [{hit[0][0]}]: choose answers whose first token is a whole "
            "character, or read the scores as those of the part"
        )


def _is_part(token: int, tokenizer: "PreTrainedTokenizerBase") -> bool:
    piece, text = tokenizer.convert_ids_to_tokens(token), token_text(token, tokenizer)
    fallback = isinstance(piece, str) and piece.startswith("<0x") and piece.endswith(">") and int(piece[3:-1], 16) >= 0x80
    return fallback or (text is not None and "\ufffd" in text)


def _shared_tokens(examples: Sequence[Example], tokenizer: "Tokenizer") -> Iterator[str]:
    """Different answers of several tokens that begin with the same one, which scores them all."""
    wholes: dict[int, dict[tuple[int, ...], None]] = {}
    for example in examples:
        for first in example.answers[-1][:1]:
            whole = example.whole if example.whole[:1] == (first,) else (first,)
            wholes.setdefault(first, {})[whole] = None
    shared = {first: list(answers) for first, answers in wholes.items() if len(answers) > 1}
    if tokenizer is not None:  # said by `_spaces`
        shared = {first: answers for first, answers in shared.items() if not is_space(token_text(first, tokenizer))}
    if shared:
        first, answers = next(iter(shared.items()))
        yield (
            f"{sum(map(len, shared.values()))} different answers are scored by {len(shared)} tokens, the first of each alone: "
            + " and ".join(f"({show_tokens(answer, tokenizer)})" for answer in answers[:2])
            + f" both by {show_token(first, tokenizer)}"
        )


def _change_too_late(examples: Sequence[Example], tokenizer: "Tokenizer") -> Iterator[str]:
    """Corrupted prompts that differ from the clean ones only after the last answer is read."""
    late = [
        example
        for example in examples
        if example.corrupted is not None
        and example.clean[: max(example.positions) + 1] == example.corrupted[: max(example.positions) + 1]
    ]
    if late:
        end = max(late[0].positions)
        changed = next(
            i for i, pair in enumerate(zip(late[0].clean, late[0].corrupted or (), strict=True)) if pair[0] != pair[1]
        )
        yield (
            f"{len(late)} corrupted prompts differ from the clean ones only after the answer is read: the first at token "
            f"{changed}, {show_token(late[0].clean[changed], tokenizer)}, while the answer is read at token {end}, "
            f"{show_token(late[0].clean[end], tokenizer)}. A model that reads from left to right cannot see the change"
        )
