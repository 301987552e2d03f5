"""Arithmetic: "3 + 5 =" is continued with 8.

Two numbers from 1, an operator, and a whole result of at most four digits that the tokenizer writes as one token after the
prompt. Results below 0 are drawn only if asked for. In the corrupted prompt of `operand` one of the two operands is another
number of as many digits, and the result another, which is the wrong answer. That of `operator` has a sign in place of the
operator that asks for no computation ("3 < 5 ="); the wrong answer is then what another operator gives. Examples of one
operator form a group.

Where a tokenizer writes the space before a number as a token of its own, as Llama's do, the prompt ends with that space.

Roles: `operand1`, `operator`, `operand2`, `equals`; the last token, which is `equals` or the space after it, is `end`.

Source: Stolfo et al. 2023 (another operand); Zhang et al. 2024 (a sign in place of the operator); own wording.
"""

from collections.abc import Sequence

import numpy as np

from circuitdisc.checks import Whole, bounded
from circuitdisc.errors import BadTask
from circuitdisc.tasks.base import Task, TextExample
from circuitdisc.tasks.check import check_names
from circuitdisc.tasks.library.arithmetic_sums import FRAME, MOST_DIGITS, NONE, OPERATORS, STYLES, Sums
from circuitdisc.tasks.library.drawn import draw_examples
from circuitdisc.tasks.model import TaskModel, need_tokenizer
from circuitdisc.tasks.roles import fill
from circuitdisc.tasks.split import split_examples

CORRUPTIONS = ("operand", "operator")
TRIES = 1000  # sums drawn for one that has a corrupted partner


@bounded(digits=Whole(1, MOST_DIGITS))
def build(
    model: TaskModel,
    *,
    n: int,
    n_heldout: int,
    seed: int,
    operators: str | Sequence[str] | None = None,
    digits: int = 2,
    style: str = "symbols",
    corruption: str = "operand",
    negative: bool = False,
    first_token: bool = False,
    prepend_bos: bool | None = None,
) -> Task:
    """Draw arithmetic examples.

    Args:
        model: the model whose tokenizer reads the prompts.
        n: train examples.
        n_heldout: held-out examples.
        seed: seed of the draw.
        operators: some of `add`, `subtract`, `multiply` and `divide`; None: all.
        digits: the most digits of an operand, 1 to 3.
        style: `symbols` ("3 + 5 =") or `words` ("3 plus 5 equals").
        corruption: `operand` or `operator`.
        negative: draw results below 0 too; most tokenizers write them as two tokens, so that they need `first_token`.
        first_token: use results of any number of tokens and score the first; else only results of one token.
        prepend_bos: whether prompts begin with the BOS token; None leaves it to the tokenizer.

    Raises:
        UnknownName: there is no such operator, style or corruption.
        BadSetting: `operators` is not a list of names, or `digits` is not 1, 2 or 3.
        BadTask: the model has no tokenizer, or there are too few sums for it.
    """
    chosen = check_names("operator of task 'arithmetic'", operators, OPERATORS)
    check_names("style of task 'arithmetic'", style, STYLES)
    check_names("corruption of task 'arithmetic'", corruption, CORRUPTIONS)
    tokenizer = need_tokenizer(model, "arithmetic")
    way = STYLES[style]
    sums = Sums(tokenizer, way, digits=digits, negative=negative, first_token=first_token)
    pairs = {operator: sums.pairs(operator) for operator in chosen}
    rng = np.random.default_rng(seed)

    def draw() -> TextExample:
        for _ in range(TRIES):
            operator = chosen[int(rng.integers(len(chosen)))]
            pair = int(pairs[operator][int(rng.integers(len(pairs[operator])))])
            first, second = divmod(pair, sums.largest)
            partner = _partner(sums, operator, first, second, corruption, rng)
            if partner is not None:
                break
        else:
            raise BadTask(
                "task 'arithmetic' finds no corrupted partner for its sums with these settings: "
                "allow more digits or operators, or another corruption"
            )
        (other1, other2), wrong = partner
        no_sum = corruption == "operator"
        clean, corrupted = (
            fill(FRAME, operand1=f"{one + 1}", operator=sign, operand2=f"{two + 1}", equals=way.equals)
            for one, two, sign in (
                (first, second, way.operators[operator]),
                (other1, other2, way.no_operator if no_sum else way.operators[operator]),
            )
        )
        answer = int(sums.results[operator][first, second])
        return TextExample(
            clean.text + sums.space,
            corrupted.text + sums.space,
            (sums.answer(answer),),
            (sums.answer(wrong),),
            group=operator,
            roles=clean.roles,
        )

    examples = draw_examples(draw, tokenizer, n + n_heldout, "arithmetic", first_token=first_token, prepend_bos=prepend_bos)
    split = split_examples(examples, n, None, n_heldout=n_heldout)
    return Task("arithmetic", split.train, split.heldout)


def _partner(
    sums: Sums, operator: str, first: int, second: int, corruption: str, rng: np.random.Generator
) -> tuple[tuple[int, int], int] | None:
    """The operands of the corrupted prompt, as indices, and the wrong answer; None if there is none for this sum."""
    if corruption == "operand":
        others = sums.others(operator, first, second, int(rng.integers(2)))
        if not others:
            return None
        operands = others[int(rng.integers(len(others)))]
        return operands, int(sums.results[operator][operands])
    token = sums.tokens[operator][first, second]
    found = [one for one in OPERATORS if sums.tokens[one][first, second] not in (NONE, token)]
    if not found:
        return None
    return (first, second), int(sums.results[found[int(rng.integers(len(found)))]][first, second])
