"""Subject-verb agreement: "The keys to the cabinet" is continued with "are", "were" or "have", not with "is", "was" or "has".

The verb agrees with the subject, whatever the nearer noun, the attractor, says. In the corrupted prompt the subject has the
other number, and nothing else differs, so that the wrong verbs become right. Examples of one beginning, one number of the
subject and one kind of attractor form a group.

Roles: `subject`; `attractor`, where there is one; the last token, which is the attractor or the subject, is `end`.

Source: Linzen et al. 2016 (agreement across attractors); Finlayson et al. 2021 (pairs of the subject's number); own words.
"""

from collections.abc import Sequence

import numpy as np

from circuitdisc.errors import BadTask
from circuitdisc.tasks.base import Task, TextExample
from circuitdisc.tasks.check import check_names
from circuitdisc.tasks.encode import one_token_words
from circuitdisc.tasks.library.drawn import draw_examples
from circuitdisc.tasks.library.subject_verb_agreement_text import ATTRACTED, BEGINNINGS, NOUNS, PREPOSITIONS, VERBS
from circuitdisc.tasks.model import TaskModel, need_tokenizer
from circuitdisc.tasks.roles import fill
from circuitdisc.tasks.split import split_examples

ATTRACTORS = {"opposite": ("opposite",), "same": ("same",), "both": ("opposite", "same"), "none": ("none",)}
NUMBERS = ("singular", "plural")


def build(
    model: TaskModel,
    *,
    n: int,
    n_heldout: int,
    seed: int,
    beginnings: str | Sequence[str] | None = None,
    attractor: str = "opposite",
    prepend_bos: bool | None = None,
) -> Task:
    """Draw subject-verb agreement examples.

    Args:
        model: the model whose tokenizer reads the prompts.
        n: train examples.
        n_heldout: held-out examples.
        seed: seed of the draw.
        beginnings: names of the beginnings to draw from; None: all.
        attractor: number of the attractor in the clean prompt: `opposite` to the subject's, the `same`, `both`, or `none`
            for prompts that end with the subject.
        prepend_bos: whether prompts begin with the BOS token; None leaves it to the tokenizer.

    Raises:
        UnknownName: there is no such beginning or attractor.
        BadSetting: `beginnings` is not a list of names.
        BadTask: the model has no tokenizer, or it knows too few of the words as single tokens.
    """
    task = "subject_verb_agreement"
    chosen = check_names(f"beginning of task '{task}'", beginnings, BEGINNINGS)
    check_names(f"attractor of task '{task}'", attractor, ATTRACTORS)
    tokenizer = need_tokenizer(model, task)
    known = set(one_token_words([word for pair in NOUNS for word in pair], tokenizer, task=task, kind="nouns", need=4))
    nouns = [pair for pair in NOUNS if known.issuperset(pair)]
    if len(nouns) < 2:
        raise BadTask(
            f"task '{task}' needs two nouns of one token each in both numbers, but this model's tokenizer has {len(nouns)}: "
            "choose a model with a larger English vocabulary, or another task"
        )
    prepositions = one_token_words(PREPOSITIONS, tokenizer, task=task, kind="prepositions", need=1)
    rng = np.random.default_rng(seed)

    def draw() -> TextExample:
        beginning = chosen[int(rng.integers(len(chosen)))]
        kind = ATTRACTORS[attractor][int(rng.integers(len(ATTRACTORS[attractor])))]
        number = int(rng.integers(2))
        subject, near = (nouns[i] for i in rng.choice(len(nouns), size=2, replace=False))
        words = {"_preposition": prepositions[int(rng.integers(len(prepositions)))]}
        words["attractor"] = near[number if kind == "same" else 1 - number]
        frame = BEGINNINGS[beginning] if kind == "none" else f"{BEGINNINGS[beginning]} {ATTRACTED}"
        clean = fill(frame, **words, subject=subject[number])
        corrupted = fill(frame, **words, subject=subject[1 - number]).text
        answers, wrong = (tuple(f" {verb[one]}" for verb in VERBS) for one in (number, 1 - number))
        group = f"{beginning}_{NUMBERS[number]}_{kind}"
        return TextExample(clean.text, corrupted, answers, wrong, group=group, roles=clean.roles)

    examples = draw_examples(draw, tokenizer, n + n_heldout, task, prepend_bos=prepend_bos)
    split = split_examples(examples, n, None, n_heldout=n_heldout)
    return Task(task, split.train, split.heldout)
