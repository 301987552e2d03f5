"""Factual recall: "The capital of France is the city of" is continued with Paris.

Three relations, each with frames of its own: a country's capital, the language that most people in a country speak, and the
kind of animal that an animal is. The corrupted prompt names another subject of the same relation, of as many tokens and with
another answer, which is the wrong answer. Answers that are not one token are left out with their subjects, and so are
subjects for which there is no partner; notes count both. Examples of one relation and frame form a group.

Roles: `subject` (its last token, where a factual-recall circuit gathers what it knows of it); `relation`, the word that says
what is asked for; the last token is `end`.

Source: Meng et al. 2022 (the subject's last token); Chughtai et al. 2024 (relation and subject add up); own facts and frames.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from circuitdisc.errors import BadTask
from circuitdisc.tasks.base import Task, TextExample
from circuitdisc.tasks.check import check_names
from circuitdisc.tasks.encode import one_token_words
from circuitdisc.tasks.follow import tokens_after
from circuitdisc.tasks.library.drawn import draw_examples
from circuitdisc.tasks.library.factual_recall_text import RELATIONS
from circuitdisc.tasks.model import TaskModel, need_tokenizer
from circuitdisc.tasks.notes import note
from circuitdisc.tasks.roles import fill
from circuitdisc.tasks.split import split_examples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def build(
    model: TaskModel,
    *,
    n: int,
    n_heldout: int,
    seed: int,
    relations: str | Sequence[str] | None = None,
    first_token: bool = False,
    prepend_bos: bool | None = None,
) -> Task:
    """Draw factual-recall examples.

    Args:
        model: the model whose tokenizer reads the prompts.
        n: train examples.
        n_heldout: held-out examples.
        seed: seed of the draw.
        relations: names of the relations to draw from; None: all.
        first_token: use answers of any number of tokens and score the first; else only answers of one token.
        prepend_bos: whether prompts begin with the BOS token; None leaves it to the tokenizer.

    Raises:
        UnknownName: there is no such relation.
        BadSetting: `relations` is not a list of names.
        BadTask: the model has no tokenizer, it knows too few of the answers, or there are fewer facts than asked for.
    """
    chosen = check_names("relation of task 'factual_recall'", relations, RELATIONS)
    tokenizer = need_tokenizer(model, "factual_recall")
    partners = {relation: _partners(relation, tokenizer, first_token) for relation in chosen}
    chosen = [relation for relation in chosen if partners[relation]]
    if not chosen:
        raise BadTask(
            "task 'factual_recall' needs two subjects of as many tokens with different answers of one token, but this "
            "model's tokenizer has none: set first_token=True, or choose a model with a larger English vocabulary"
        )
    rng = np.random.default_rng(seed)

    def draw() -> TextExample:
        relation = chosen[int(rng.integers(len(chosen)))]
        word, frames, facts = RELATIONS[relation]
        frame = list(frames)[int(rng.integers(len(frames)))]
        subjects = list(partners[relation])
        subject = subjects[int(rng.integers(len(subjects)))]
        others = partners[relation][subject]
        other = others[int(rng.integers(len(others)))]
        clean = fill(frames[frame], relation=word, subject=subject)
        corrupted = fill(frames[frame], relation=word, subject=other).text
        answers, wrong = ((f" {facts[one]}",) for one in (subject, other))
        return TextExample(clean.text, corrupted, answers, wrong, group=f"{relation}_{frame}", roles=clean.roles)

    examples = draw_examples(draw, tokenizer, n + n_heldout, "factual_recall", first_token=first_token, prepend_bos=prepend_bos)
    split = split_examples(examples, n, None, n_heldout=n_heldout)
    return Task("factual_recall", split.train, split.heldout)


def _partners(relation: str, tokenizer: "PreTrainedTokenizerBase", first_token: bool) -> dict[str, list[str]]:
    """For each subject that can be used the others of as many tokens that have another answer."""
    facts = RELATIONS[relation].facts
    if not first_token:
        answers = tuple(dict.fromkeys(facts.values()))
        known = one_token_words(answers, tokenizer, task="factual_recall", kind=f"answers to '{relation}'", need=0)
        facts = {subject: answer for subject, answer in facts.items() if answer in known}
    after = tokens_after("of", [f" {subject}" for subject in facts], tokenizer)
    lengths = {subject: len(ids) for subject, ids in zip(facts, after, strict=True) if ids is not None}
    partners = {
        subject: [other for other in lengths if lengths[other] == length and facts[other] != facts[subject]]
        for subject, length in lengths.items()
    }
    kept = {subject: others for subject, others in partners.items() if others}
    if len(kept) < len(facts):
        note(
            f"task 'factual_recall': {len(facts) - len(kept)} of {len(facts)} subjects of '{relation}' have no partner of as "
            "many tokens with another answer, for this model's tokenizer, and are left out"
        )
    return kept
