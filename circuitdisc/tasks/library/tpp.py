"""The Transitive Property Problem: from "a R b" and "b R c" follows "a R c", and the prompt stops before c.

The corrupted prompt has a fourth noun in place of b in the second premise, so that nothing links a to c. The wrong
answer is b, which an induction head would give. Examples of one template form a group.

Roles: `a1` and `b1`, the nouns of the first premise; `b2` and `c1`, those of the second (`b2` is the one that the corrupted
prompt replaces); `a2`, the noun of the conclusion; the last token is `end`.

Source: Transitive Property Problem study (CS224N); own wording and nouns.
"""

from collections.abc import Sequence

from circuitdisc.errors import BadTask
from circuitdisc.tasks.base import Task, TextExample
from circuitdisc.tasks.check import check_names
from circuitdisc.tasks.encode import encode_examples, encode_fitting, one_token_words
from circuitdisc.tasks.library.nouns import NOUNS
from circuitdisc.tasks.library.tpp_text import TEMPLATES, tpp_examples
from circuitdisc.tasks.model import TaskModel, need_tokenizer
from circuitdisc.tasks.split import split_examples

LEAST_NOUNS = 4
TRIES = 8  # prompts drawn for each one wanted, where some are left out


def build(
    model: TaskModel,
    *,
    n: int,
    n_heldout: int,
    seed: int,
    templates: str | Sequence[str] | None = None,
    first_token: bool = False,
    prepend_bos: bool | None = None,
) -> Task:
    """Draw TPP examples.

    Args:
        model: the model whose tokenizer reads the prompts.
        n: train examples.
        n_heldout: held-out examples.
        seed: seed of the draw.
        templates: names of the templates to draw from; None: all seven.
        first_token: draw nouns of any number of tokens and score the first; else only nouns of one token.
        prepend_bos: whether prompts begin with the BOS token; None leaves it to the tokenizer.

    Raises:
        UnknownName: there is no such template.
        BadSetting: `templates` is not a list of names.
        BadTask: the model has no tokenizer, or too few prompts can be drawn for it.
    """
    tokenizer = need_tokenizer(model, "tpp")
    by_name = {template.name: template for template in TEMPLATES}
    chosen = [by_name[name] for name in check_names("template of task 'tpp'", templates, by_name)]
    wanted = n + n_heldout
    if first_token:
        nouns, drawn = NOUNS, TRIES * wanted
    else:
        nouns, drawn = one_token_words(NOUNS, tokenizer, task="tpp", kind="nouns", need=LEAST_NOUNS), wanted
    most = len(chosen) * len(nouns) * (len(nouns) - 1) * (len(nouns) - 2) // 2
    if drawn > most:
        raise BadTask(
            f"task 'tpp' draws at most {most} prompts of {len(nouns)} nouns and {len(chosen)} templates, but "
            f"{drawn} are needed: ask for fewer, or allow more templates"
        )
    texts = [
        TextExample(one.clean, one.corrupted, (f" {one.answer}",), (f" {one.wrong}",), one.template, one.roles)
        for one in tpp_examples(drawn, seed, nouns, templates=chosen)
    ]
    if first_token:  # nouns of unequal length leave prompts of unequal length, which cannot be used
        examples = encode_fitting(texts, tokenizer, wanted, first_token=True, prepend_bos=prepend_bos)
    else:
        examples = encode_examples(texts, tokenizer, prepend_bos=prepend_bos)
    split = split_examples(examples, n, None, n_heldout=n_heldout)
    return Task("tpp", split.train, split.heldout)
