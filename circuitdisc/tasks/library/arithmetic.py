"""Arithmetic: "3 + 5 =" is continued with 8.

Two numbers from 1, an operator, and a whole result of at most four digits that the tokenizer writes as one token after the
prompt. Results below 0 are drawn only if asked for. In the corrupted prompt of `operand` one of the two operands is another
number of as many digits, and the result another, which is the wrong answer. That of `operator` has a sign in place of the
operator that asks for no computation ("3 < 5 ="); the wrong answer is then what another operator gives. Examples of one
operator form a group.

With spaces a sum is written as the tokenizer reads it in running text: where it writes the space before a number as a token
of its own, as those of Llama, Gemma and SmolLM2 do, the prompt ends with that space. Whether it does is tried, not known by its
name. `spaces=False` writes "3+5=", of which no tokenizer makes a space.

Roles: `operand1`, `operator`, `operand2`, `equals`; the last token, which is `equals` or the space after it, is `end`.

Source: Stolfo et al. 2023 (another operand); Zhang et al. 2024 (a sign in place of the operator); own wording.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from circuitdisc.checks import Whole, bounded
from circuitdisc.errors import BadSetting, BadTask
from circuitdisc.tasks.base import TextExample
from circuitdisc.tasks.drawn import Draw, Names, Setup, drawn_task, pick
from circuitdisc.tasks.follow import tokens_after
from circuitdisc.tasks.roles import fill

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CORRUPTIONS = ("operand", "operator")
TRIES = 1000  # sums drawn for one that has a corrupted partner
MOST_DIGITS = 3
LARGEST_RESULT = 9999
SPACED, TIGHT = "{operand1} {operator} {operand2} {equals}", "{operand1}{operator}{operand2}{equals}"
NONE = -1  # stands for a token where a sum cannot be asked


class Style(NamedTuple):
    """How a sum is written.

    Args:
        operators: the sign or word of each operator.
        no_operator: one in their place that asks for no computation.
        equals: what stands before the result.
    """

    operators: dict[str, str]
    no_operator: str
    equals: str


STYLES: dict[str, Style] = {
    "symbols": Style({"add": "+", "subtract": "-", "multiply": "*", "divide": "/"}, "<", "="),
    "words": Style({"add": "plus", "subtract": "minus", "multiply": "times", "divide": "over"}, "or", "equals"),
}
OPERATORS = tuple(STYLES["symbols"].operators)


@bounded(digits=Whole(1, MOST_DIGITS))
@drawn_task("arithmetic")
def build(
    setup: Setup,
    *,
    operators: Names = None,
    digits: int = 2,
    style: str = "symbols",
    spaces: bool = True,
    corruption: str = "operand",
    negative: bool = False,
    first_token: bool = False,
) -> Draw:
    """Draw arithmetic examples.

    Args:
        setup: the model's tokenizer.
        operators: some of `add`, `subtract`, `multiply` and `divide`; None: all.
        digits: the most digits of an operand, 1 to 3.
        style: `symbols` ("3 + 5 =") or `words` ("3 plus 5 equals").
        spaces: "3 + 5 =", which ends with a space where the tokenizer does not join it to the number; False: "3+5=".
        corruption: `operand` or `operator`.
        negative: draw results below 0 too; most tokenizers write them as two tokens, so that they need `first_token`.
        first_token: use results of any number of tokens and score the first; else only results of one token.

    Raises:
        BadSetting: words without spaces are asked for.
        BadTask: there are no sums of an operator, or no corrupted partners.
    """
    chosen = setup.names("operator", operators, OPERATORS)
    setup.names("style", style, STYLES)
    setup.names("corruption", corruption, CORRUPTIONS)
    if not spaces and style == "words":
        raise BadSetting("spaces=false writes 3+5= and cannot be used with style=words: leave one of the two out")
    way = STYLES[style]
    frame, space = (SPACED, space_before_numbers(setup.tokenizer, way.equals)) if spaces else (TIGHT, None)
    sums = Sums(setup.tokenizer, way, space, digits=digits, negative=negative, first_token=first_token)
    pairs = {operator: sums.pairs(operator) for operator in chosen}

    def draw(rng: np.random.Generator) -> TextExample:
        for _ in range(TRIES):
            operator = pick(rng, chosen)
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
        sign, other_sign = way.operators[operator], way.no_operator if corruption == "operator" else way.operators[operator]
        clean, corrupted = (
            fill(frame, operand1=f"{left + 1}", operator=between, operand2=f"{right + 1}", equals=way.equals)
            for left, between, right in ((first, sign, second), (other1, other_sign, other2))
        )
        answers, wrong = ((sums.answer(int(result)),) for result in (sums.results[operator][first, second], wrong))
        prompts = (clean.text + (space or ""), corrupted.text + (space or ""))
        return TextExample(*prompts, answers, wrong, group=operator, roles=clean.roles)

    return draw


def space_before_numbers(tokenizer: "PreTrainedTokenizerBase", equals: str) -> str:
    """The space that ends the prompt where the tokenizer does not join it to the number that follows; else nothing."""
    joined = tokens_after(equals, [" 8"], tokenizer)[0]
    apart = tokens_after(f"{equals} ", ["8"], tokenizer)[0]
    return " " if joined is not None and len(joined) > 1 and apart is not None and len(apart) == 1 else ""


class Sums:
    """The sums of two numbers from 1 to `largest` that can be asked. N numbers; index i stands for number i + 1.

    Args:
        tokenizer: the model's tokenizer.
        style: how they are written.
        space: what ends the prompt before a number that has no space of its own; empty: the number has; None: there is none.
        digits: the most digits of an operand.
        negative: whether results may be below 0.
        first_token: whether a result of several tokens may be scored by its first.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        style: Style,
        space: str | None,
        *,
        digits: int,
        negative: bool,
        first_token: bool,
    ) -> None:
        self.joins_space = space == ""
        self.largest = 10**digits - 1
        self.widths: Int[np.ndarray, "N"] = np.array([len(str(number)) for number in range(1, self.largest + 1)])
        lowest = -self.largest if negative else 0
        numbers = range(lowest, LARGEST_RESULT + 1)
        written = [self.answer(number) for number in numbers]
        ids = tokens_after(f"{style.equals}{space or ''}", written, tokenizer)
        token_of = np.array([tokens[0] if tokens and (first_token or len(tokens) == 1) else NONE for tokens in ids])
        self.results: dict[str, Int[np.ndarray, "N N"]] = {}
        self.tokens: dict[str, Int[np.ndarray, "N N"]] = {}  # the token that scores each result
        for operator in OPERATORS:
            result, is_whole = _compute(operator, self.largest)
            usable = is_whole & (result >= lowest) & (result <= LARGEST_RESULT)
            self.results[operator] = result
            self.tokens[operator] = np.where(usable, token_of[np.where(usable, result - lowest, 0)], NONE)

    def answer(self, result: int) -> str:
        """The result as it follows the prompt."""
        return f" {result}" if self.joins_space else f"{result}"

    def pairs(self, operator: str) -> Int[np.ndarray, "P"]:
        """The sums of an operator, as indices into its flattened table.

        Raises:
            BadTask: there are none.
        """
        pairs = np.flatnonzero(self.tokens[operator] != NONE)
        if not len(pairs):
            raise BadTask(
                f"task 'arithmetic' has no sums with operator '{operator}', since this model's tokenizer writes none of their "
                "results as one token: set first_token=True to score the first one"
            )
        return pairs

    def others(self, operator: str, first: int, second: int, replaced: int) -> list[tuple[int, int]]:
        """The operands of sums that differ from one in operand 0 or 1, of as many digits, and in the result's token."""
        table = self.tokens[operator] if replaced == 0 else self.tokens[operator].T
        mine, fixed = (first, second) if replaced == 0 else (second, first)
        column = table[:, fixed]
        fits = (column != NONE) & (column != column[mine]) & (self.widths == self.widths[mine])
        return [(index, fixed) if replaced == 0 else (fixed, index) for index in np.flatnonzero(fits).tolist()]


def _compute(operator: str, largest: int) -> tuple[Int[np.ndarray, "N N"], Bool[np.ndarray, "N N"]]:
    """The results of all pairs of numbers from 1, and where they are whole."""
    first = np.arange(1, largest + 1)[:, None]
    second = first.T
    every = np.ones((largest, largest), dtype=bool)
    if operator == "add":
        return first + second, every
    if operator == "subtract":
        return first - second, every
    if operator == "multiply":
        return first * second, every
    return first // second, first % second == 0


def _partner(
    sums: Sums, operator: str, first: int, second: int, corruption: str, rng: np.random.Generator
) -> tuple[tuple[int, int], int] | None:
    """The operands of the corrupted prompt, as indices, and the wrong answer; None if there is none for this sum."""
    if corruption == "operand":
        partners = sums.others(operator, first, second, int(rng.integers(2)))
        if not partners:
            return None
        operands = pick(rng, partners)
        return operands, int(sums.results[operator][operands])
    token = sums.tokens[operator][first, second]
    others = [other for other in OPERATORS if sums.tokens[other][first, second] not in (NONE, token)]
    if not others:
        return None
    return (first, second), int(sums.results[pick(rng, others)][first, second])
