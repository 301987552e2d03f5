"""The sums of the arithmetic task: how they are written, and which of them have a result that one token can score."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from circuitdisc.errors import BadTask
from circuitdisc.tasks.follow import tokens_after

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_DIGITS = 3
LARGEST_RESULT = 9999
FRAME = "{operand1} {operator} {operand2} {equals}"
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
        digits: the most digits of an operand.
        negative: whether results may be below 0.
        first_token: whether a result of several tokens may be scored by its first.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", style: Style, *, digits: int, negative: bool, first_token: bool
    ) -> None:
        self.space = space_before_numbers(tokenizer, style.equals)
        self.largest = 10**digits - 1
        self.widths: Int[np.ndarray, "N"] = np.array([len(str(number)) for number in range(1, self.largest + 1)])
        lowest = -self.largest if negative else 0
        numbers = range(lowest, LARGEST_RESULT + 1)
        written = [self.answer(number) for number in numbers]
        ids = tokens_after(f"{style.equals}{self.space}", written, tokenizer)
        token_of = np.array([one[0] if one and (first_token or len(one) == 1) else NONE for one in ids])
        self.results: dict[str, Int[np.ndarray, "N N"]] = {}
        self.tokens: dict[str, Int[np.ndarray, "N N"]] = {}  # the token that scores each result
        for operator in OPERATORS:
            result, is_whole = _compute(operator, self.largest)
            usable = is_whole & (result >= lowest) & (result <= LARGEST_RESULT)
            self.results[operator] = result
            self.tokens[operator] = np.where(usable, token_of[np.where(usable, result - lowest, 0)], NONE)

    def answer(self, result: int) -> str:
        """The result as it follows the prompt."""
        return f"{result}" if self.space else f" {result}"

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
        found = np.flatnonzero(fits).tolist()
        return [(index, fixed) if replaced == 0 else (fixed, index) for index in found]


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
