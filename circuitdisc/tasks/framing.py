"""What stands around the prompts of a task: solved examples before them (`shots`), and the turns of a chat (`chat_template`).

The one place for every task, drawn or of a file. A task is built as ever; then its prompts are framed as text, and read by the
tokenizer again, so that a token at a seam is what the model would read:

    plain    prompt answer, an empty line, prompt answer, an empty line, prompt
    chat     user: prompt, assistant: answer, user: prompt, assistant: answer, user: prompt, assistant:

The same solved examples stand before every prompt of a task, clean and corrupted, so that positions agree all over a group and
what differs within a pair is the question alone; another seed draws others. They are no prompt, clean or corrupted, of the task
itself. In a chat the answer is the first token of the assistant's turn: it has no space before it, and a word that is several
tokens there is scored by its first. Prompts of bare ids are framed as ids.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from circuitdisc.errors import BadSetting, BadTask
from circuitdisc.tasks.base import SPLITS, Example, Task, TextExample
from circuitdisc.tasks.drawn import pick, sizes_in_proportion
from circuitdisc.tasks.encode import encode_examples, encode_fitting, special_prefix
from circuitdisc.tasks.model import TaskModel
from circuitdisc.tasks.notes import collect_notes, note
from circuitdisc.tasks.show import runs_together, shorten

BETWEEN = "\n\n"
"""What stands between solved examples."""
MOST_DRAWN = 16
"""Where too few prompts can be used in their frame twice as many are drawn, and again, until so many times those asked for."""
OFFERED = 16
"""Prompts drawn apart, of which solved examples are chosen; more where more are needed."""
OTHER_SEED = 1_000_003
"""Solved examples are drawn with a seed of their own, so that they are the same whatever `n` and `n_heldout` are."""

BEGINNING = "_"
"""A role of framed texts: where the prompt itself begins."""

Ids: TypeAlias = tuple[int, ...]
Build: TypeAlias = Callable[[int | None, int | None, int], Task]
"""Builds a task of these sizes (n, n_heldout) with this seed."""


@dataclass(frozen=True)
class Framing:
    """How a task's prompts are framed.

    Args:
        model: whose tokenizer and template are used.
        shots: solved examples before each prompt.
        chat: whether the tokenizer's chat template stands around them.
        prepend_bos: of the task; in a chat None means that the template says all.
        first_token: of the task.
        seed: of the choice of solved examples.
    """

    model: TaskModel
    shots: int
    chat: bool
    prepend_bos: bool | None = None
    first_token: bool = False
    seed: int = 0

    def frame_drawn(self, build: Build, n: int, n_heldout: int) -> Task:
        """A drawn task in its frame; prompts that cannot be used in it are left out, and others drawn.

        Raises:
            BadTask, BadSetting: as `frame_given`; or not two prompts can be used.
        """
        with collect_notes():  # what is to be said of the task is said below
            apart = build(max(OFFERED, 4 * self.shots), 1, (self.seed + OTHER_SEED) % 2**32).train if self.shots else ()
        solved, shown = self._choose(apart)
        wanted = n + n_heldout
        asked = wanted + 2 * self.shots
        while True:
            with collect_notes() as notes:  # those of the last round count
                task = build(asked - n_heldout, n_heldout, self.seed)
                pool = (*task.heldout, *task.train)
                rest = [example for example in pool if not {example.clean, example.corrupted} & shown]
                framed = self._framed(rest, solved, task.name, all_fit=False)[:wanted]
            if len(framed) == wanted or len(pool) < asked or asked > MOST_DRAWN * wanted:
                break
            asked *= 2
        for sentence in notes:
            note(sentence)
        n, n_heldout = sizes_in_proportion(task.name, len(framed), n, n_heldout)
        sizes = {"n": n, "n_heldout": n_heldout}
        train, heldout = tuple(framed[n_heldout : n_heldout + n]), tuple(framed[:n_heldout])
        return replace(task, train=train, heldout=heldout, settings={**task.settings, **sizes})

    def frame_given(self, build: Build, n: int | None, n_heldout: int | None) -> Task:
        """A file's task in its frame; solved examples are taken from what is its train split where no sizes are given.

        Raises:
            BadTask: an example cannot be used in its frame, or there are too few examples.
            BadSetting: there is no chat template, or it cannot be used.
        """
        solved, shown = self._choose(build(None, None, self.seed).train if self.shots else ())
        task = build(n, n_heldout, self.seed)
        splits: dict[str, tuple[Example, ...]] = {}
        for name in SPLITS:
            kept = [example for example in task.split(name) if not {example.clean, example.corrupted} & shown]
            if not kept:
                raise BadTask(f"task '{task.name}' has no {name} examples beside {self.shots} solved ones: add lines")
            splits[name] = tuple(self._framed(kept, solved, task.name))
        if self.shots:
            gone = len(task.train) + len(task.heldout) - sum(map(len, splits.values()))
            note(
                f"{self.shots} examples of task '{task.name}' stand solved before its prompts; {gone} examples, which hold one "
                "of their prompts, are in neither split"
            )
        return replace(task, **splits)

    def _choose(self, offered: Sequence[Example]) -> tuple[list[Example], set[Ids | None]]:
        """Solved examples, and their prompts, which are then no prompts of the task.

        Those whose prompt is nobody's corrupted prompt come first, then those with an answer, and of a group, of their own.
        """
        corrupted = {example.corrupted for example in offered}
        order = np.random.default_rng(self.seed).permutation(len(offered))
        left = [offered[index] for index in order.tolist()]
        if len(left) < self.shots:
            raise BadTask(
                f"shots={self.shots}, but there are {len(left)} prompts to choose solved examples from: ask for fewer"
            )
        solved: list[Example] = []
        for _ in range(self.shots):
            seen = {example.answers for example in solved} | {example.group for example in solved}
            solved.append(min(left, key=lambda each: (each.clean in corrupted, each.answers in seen, each.group in seen)))
            left.remove(solved[-1])
        return solved, {example.clean for example in solved}

    def _framed(self, examples: Sequence[Example], solved: Sequence[Example], task: str, all_fit: bool = True) -> list[Example]:
        """The examples in their frame; without `all_fit` those that cannot be used are left out."""
        if not examples:
            return []
        for example in (*examples, *solved):
            if example.targets or example.positions != (len(example) - 1,):
                raise BadTask(
                    f"{self._words} needs prompts that end where the answer begins, and {shorten(example.text)!r} of task "
                    f"'{task}' " + ("has a number as its answer" if example.targets else "is read elsewhere")
                )
        frame = chat_frame(self.model, self.shots) if self.chat else plain_frame(self.shots)
        as_text = all(example.source is not None for example in (*examples, *solved))
        framed = self._as_text(examples, solved, frame, all_fit) if as_text else self._as_ids(examples, solved, frame)
        if len(framed) < len(examples):
            note(
                f"task '{task}': {len(examples) - len(framed)} of {len(examples)} prompts cannot be used in their frame (an "
                "answer that one token does not tell apart there, or sides of unequal length) and are left out"
            )
        several = sum(bool(example.whole) for example in framed)
        if self.chat and several and not self.first_token:
            note(f"{several} of {len(framed)} answers are several tokens as the assistant's first word: the first scores them")
        longest = max(map(len, framed), default=0)
        if longest > self.model.n_ctx:
            raise BadTask(
                f"with {self._words} the longest prompt of task '{task}' has {longest} tokens, but model '{self.model.name}' "
                f"reads at most {self.model.n_ctx}: "
                + ("ask for fewer shots" if self.shots else "leave it out, or use shorter prompts")
            )
        return framed

    @property
    def _words(self) -> str:
        return " and ".join([f"shots={self.shots}"] * bool(self.shots) + ["chat_template=true"] * self.chat)

    # --- prompts that are text

    def _as_text(
        self, examples: Sequence[Example], solved: Sequence[Example], frame: "Surroundings", all_fit: bool
    ) -> list[Example]:
        rng, before, turns = np.random.default_rng(self.seed), "", list[str]()
        for example, (before_prompt, before_answer) in zip(solved, frame.solved, strict=True):
            text = _source(example)
            answer = pick(rng, text.answers)
            turns += [text.clean.strip(), answer.strip()] if self.chat else [text.clean, glued(text.clean, answer)]
            before += before_prompt + turns[-2] + before_answer + turns[-1]
        before += frame.before
        framed = [self._within(_source(example), before, frame) for example in examples]
        if self.chat and _filled(self.model, [*turns, _source(examples[0]).clean.strip()], True) != framed[0].clean:
            raise BadSetting(f"the chat template of model '{self.model.name}' changes what is said: leave chat_template out")
        owners = {id(text): example for text, example in zip(framed, examples, strict=True)}
        given: dict[str, Any] = {
            "first_token": self.first_token or self.chat,
            "prepend_bos": False if self.chat and self.prepend_bos is None else self.prepend_bos,
            "where": [f"the prompt {_source(example).clean[:40]!r}" for example in examples],
        }
        if all_fit:
            encoded = encode_examples(framed, self.model.tokenizer, **given)
        else:
            encoded = encode_fitting(framed, self.model.tokenizer, len(framed), **given)
        prefix = special_prefix(self.model.tokenizer, self.prepend_bos)
        return [_with_indices(owners[id(example.source)], example, prefix) for example in encoded]

    def _within(self, text: TextExample, before: str, frame: "Surroundings") -> TextExample:
        """A prompt in its frame, with its roles where they now stand."""

        def said(prompt: str) -> str:
            return before + (prompt.strip() if self.chat else prompt) + frame.after

        def heard(answers: Sequence[str]) -> tuple[str, ...]:
            return tuple(dict.fromkeys(frame.before_answer + answer.strip() if self.chat else answer for answer in answers))

        shift = len(before) - (len(text.clean) - len(text.clean.lstrip()) if self.chat else 0)
        roles = {role: (start + shift, end + shift) for role, (start, end) in text.roles.items()}
        return replace(
            text,
            clean=said(text.clean),
            corrupted=None if text.corrupted is None else said(text.corrupted),
            answers=heard(text.answers),
            wrong=heard(text.wrong),
            roles={**roles, BEGINNING: (len(before), len(before) + 1)},
        )

    # --- prompts that are ids

    def _as_ids(self, examples: Sequence[Example], solved: Sequence[Example], frame: "Surroundings") -> list[Example]:
        tokenizer = self.model.tokenizer
        prefix = special_prefix(tokenizer, self.prepend_bos)

        def ids_of(segment: str) -> Ids:
            return () if tokenizer is None else tuple(tokenizer(segment, add_special_tokens=False)["input_ids"])

        before: Ids = ()
        for example, (before_prompt, before_answer) in zip(solved, frame.solved, strict=True):
            answer = example.whole or example.answers[0][:1]
            before += ids_of(before_prompt) + _bare(example.clean, prefix) + ids_of(before_answer) + answer
        before, after = before + ids_of(frame.before), ids_of(frame.after)
        lead = () if (self.chat and self.prepend_bos is None) or before[: len(prefix)] == prefix else prefix

        def within(example: Example) -> Example:
            own = lead if example.clean[: len(prefix)] == prefix else ()
            clean, corrupted = (
                None if ids is None else (*own, *before, *_bare(ids, prefix), *after)
                for ids in (example.clean, example.corrupted)
            )
            assert clean is not None
            shift = len(own) + len(before) - (len(example) - len(_bare(example.clean, prefix)))
            roles = {role: at + shift for role, at in example.roles.items()}
            text = example.text if tokenizer is None else str(tokenizer.decode(list(clean)))
            return replace(example, clean=clean, corrupted=corrupted, positions=(len(clean) - 1,), roles=roles, text=text)

        return [within(example) for example in examples]


def behind_solved(task: Task, model: TaskModel, examples: Sequence[Example], shots: int) -> tuple[Example, ...]:
    """Examples of a task behind solved ones, which are chosen among them and left out.

    Args:
        examples: of the task, without a frame.
        shots: solved examples before each prompt, the same before all.

    Raises:
        BadTask: no prompt is left beside the solved ones, or none can be used behind them.
        BadSetting: the task's prompts stand in a frame already.
    """
    settings = dict[str, Any](task.settings)
    if "shots" in settings or "chat_template" in settings:
        raise BadSetting("the task's prompts have a frame already: leave out shots= and chat_template= of the task")
    framing = Framing(
        model, shots, False, settings.get("prepend_bos"), bool(settings.get("first_token")), int(settings.get("seed", 0))
    )
    solved, shown = framing._choose(examples)
    kept = [example for example in examples if not {example.clean, example.corrupted} & shown]
    framed = tuple(framing._framed(kept, solved, task.name, all_fit=False))
    if not framed:
        raise BadTask(
            f"of {len(examples)} examples none can be used behind {shots} solved ones: ask for more, or for fewer shots"
        )
    return framed


def _source(example: Example) -> TextExample:
    assert example.source is not None, "prompts that are text have one"
    return example.source


def _bare(ids: Ids, prefix: Ids) -> Ids:
    return ids[len(prefix) :] if ids[: len(prefix)] == prefix else ids


def glued(prompt: str, answer: str) -> str:
    """An answer as it follows its prompt, where it may be written without the space that a tokenizer drops."""
    return f" {answer}" if runs_together(prompt, answer) else answer


def _with_indices(old: Example, new: Example, prefix: Ids) -> Example:
    """An example that was read again, with the roles that were given as a token's index.

    Raises:
        BadTask: the prompt's tokens are others in the frame, so that an index says nothing.
    """
    roles = {role: at for role, at in new.roles.items() if role != BEGINNING}
    given = [role for role in old.roles if role not in roles]
    bare = _bare(old.clean, prefix)
    start = new.roles[BEGINNING]
    if given and new.clean[start : start + len(bare)] != bare:
        raise BadTask(
            f"the tokens of {shorten(old.text)!r} are others in its frame, so that the index of role '{given[0]}' says "
            "nothing: give the role as words"
        )
    shift = start - (len(old) - len(bare))
    return replace(new, roles={role: roles[role] if role in roles else at + shift for role, at in old.roles.items()})


# --- frames ---------------------------------------------------------------------------------------------------------------


class Surroundings(NamedTuple):
    """What is written around prompts and answers.

    Args:
        solved: for each solved example what stands before its prompt, and before its answer.
        before, after: what stands around the prompt itself.
        before_answer: the space that an answer begins with, if any, where a frame settles that.
    """

    solved: tuple[tuple[str, str], ...]
    before: str
    after: str
    before_answer: str = ""


def plain_frame(shots: int) -> Surroundings:
    """Solved examples with an empty line after each."""
    return Surroundings(tuple((BETWEEN if at else "", "") for at in range(shots)), BETWEEN if shots else "", "")


def chat_frame(model: TaskModel, shots: int) -> Surroundings:
    """What the tokenizer's chat template writes around earlier turns, the user's turn, and up to the assistant's.

    Raises:
        BadSetting: there is no template, it cannot be filled in, or does not show every turn once.
    """
    *turns, after = _around(model, 2 * shots + 1, True)
    answered = _around(model, 2, False)[1]  # what stands between a user's and an assistant's words
    space = answered[len(after) :] if answered.startswith(after) else ""
    pairs = tuple(zip(turns[:-1:2], turns[1::2], strict=True))
    return Surroundings(pairs, turns[-1], after, space if space.isspace() else "")


def _around(model: TaskModel, turns: int, asks: bool) -> list[str]:
    """What a template writes around as many turns, with the beginning of the assistant's next turn if it is asked for."""
    marks = [f"qz{turn}zq" for turn in range(turns)]
    text = _filled(model, marks, asks)
    if re.findall(r"qz\d+zq", text) != marks:
        raise BadSetting(f"the chat template of model '{model.name}' does not show every turn once: leave chat_template out")
    return re.split(r"qz\d+zq", text)


def _filled(model: TaskModel, turns: Sequence[str], asks: bool) -> str:
    """A talk of user and assistant in the tokenizer's template."""
    tokenizer = model.tokenizer
    if tokenizer is None or not tokenizer.chat_template:
        raise BadSetting(
            f"chat_template=true, but the tokenizer of model '{model.name}' has no chat template: leave it out, or use a "
            "checkpoint that was tuned for chats"
        )
    talk = [{"role": ("user", "assistant")[at % 2], "content": said} for at, said in enumerate(turns)]
    try:
        return str(tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=asks))
    except Exception as error:  # a template is another's program and raises what it likes
        why = shorten(str(error), 200)
        raise BadSetting(f"the chat template of model '{model.name}' cannot be filled in: {why}") from error
