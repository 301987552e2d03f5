"""Write the few-shot prompts of docs/studies-real.md: `python scripts/study_prompts.py runs/prompts`.

`arithmetic.jsonl`: "1+3=4, 2+7=" is continued with 9. Sums and products of two numbers from 1 to 9 whose result is one digit,
after one demonstration; in the corrupted prompt one operand is another number, and so is the result. No sum is in both splits;
2+3 and 3+2 count as two sums.

`capitals.jsonl`: "France:" is continued with Paris. Nothing in the prompt asks for it: only solved examples say what is wanted.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from circuitdisc.tasks.library.factual_recall import CAPITAL

DEMONSTRATIONS = ("1+3=4, ", "2*3=6, ")
OPERATORS = {"+": int.__add__, "*": int.__mul__}
LARGEST = 9
ROLES = {"operand1": -4, "operator": -3, "operand2": -2, "equals": -1}


def arithmetic(rng: np.random.Generator) -> Iterator[dict[str, object]]:
    """The lines of the file: every sum after each demonstration."""
    numbers = range(1, LARGEST + 1)
    for sign, operator in OPERATORS.items():
        results = {(a, b): r for a in numbers for b in numbers if (r := operator(a, b)) <= LARGEST}
        sums = [pair for pair in results if not any(shown.startswith(f"{pair[0]}{sign}{pair[1]}=") for shown in DEMONSTRATIONS)]
        for at, (a, b) in enumerate(sums[i] for i in rng.permutation(len(sums))):
            others = [(c, d) for c, d in results if (c == a) != (d == b) and results[c, d] != results[a, b]]
            for shown in DEMONSTRATIONS:
                c, d = others[int(rng.integers(len(others)))]
                yield {
                    "clean": f"{shown}{a}{sign}{b}=",
                    "corrupted": f"{shown}{c}{sign}{d}=",
                    "answers": f"{results[a, b]}",
                    "wrong": f"{results[c, d]}",
                    "roles": ROLES,
                    "group": f"{shown}{sign}",
                    "split": "heldout" if at % 2 else "train",
                }


def capitals(rng: np.random.Generator) -> Iterator[dict[str, object]]:
    """The lines of the file: every country, the capital of another as the wrong answer."""
    pairs = list(CAPITAL.facts.items())
    order = rng.permutation(len(pairs)).tolist()
    for at, (here, there) in enumerate(zip(order, order[1:] + order[:1], strict=True)):
        (country, city), (_, other) = pairs[here], pairs[there]
        split = "train" if at % 2 else "heldout"
        yield {"clean": f"{country}:", "answers": f" {city}", "wrong": f" {other}", "split": split}


def write(path: Path, lines: Sequence[dict[str, object]], order: Sequence[int]) -> None:
    path.write_text("".join(json.dumps(lines[at]) + "\n" for at in order), encoding="utf-8")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    lines = list(arithmetic(rng))
    write(folder / "arithmetic.jsonl", lines, rng.permutation(len(lines)).tolist())  # so that the first n are of all groups
    lines = list(capitals(rng))
    write(folder / "capitals.jsonl", lines, range(len(lines)))
