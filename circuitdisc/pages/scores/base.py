"""What every score's part of the page is made of: the part itself, its words, and the frame of its figures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from circuitdisc.errors import BadFile
from circuitdisc.pages.drawing import KIND_COLOURS
from circuitdisc.pages.verdict import Verdict
from circuitdisc.wording import SPLIT_WORDS, number, percent, span

CIRCUIT, RANDOM = KIND_COLOURS["logits"], KIND_COLOURS["q"]
NAMED_AT_MOST = 5  # parts of one set in a label

ScoreData = Mapping[str, Any]
"""What judgement.json holds of one score."""

Table = tuple[str, Sequence[Mapping[str, Any]]]
"""Title and lines of a table in the terminal."""


@dataclass(frozen=True)
class Part:
    """One score of the judgement.

    Args:
        title: its heading.
        of: examples, metric, ablation and coverage of the intervals, in words.
        lines: what it says, a sentence each.
        headers, rows: a table; none without rows.
        caption: of the table.
        figures: name, figure, description and caption of each.
    """

    title: str
    of: str = ""
    lines: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    caption: str = ""
    figures: tuple[tuple[str, go.Figure, str, str], ...] = ()


@dataclass(frozen=True)
class ShownScore:
    """How a score is shown. Page and verdict are made from what judgement.json holds.

    Args:
        part: its part of the page.
        verdict: its sentences of the verdict.
        tables: those of the terminal, from the score itself; what `part` says stands below the first.
    """

    part: Callable[[ScoreData], Part]
    verdict: Callable[[ScoreData], Verdict]
    tables: Callable[[Any], Sequence[Table]]


@contextmanager
def reads(file: str, what: str, command: str) -> Iterator[None]:
    """Names the file and the command that writes it again where its numbers are not those that are read.

    Raises:
        BadFile: they are not.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, StopIteration) as error:
        raise BadFile(f"{file} is not {what} (missing or malformed: {error}): `{command}` writes it again") from error


def of_words(n: int, split: str, metric: str, ablation: str, confidence: float | None = None, method: str = "") -> str:
    """`On 300 held-out examples; metric logit_diff; cut edges carry resample; 95 % intervals, Wilson's over ...`."""
    words = f"On {n:,} {SPLIT_WORDS.get(split, split)}; metric {metric}; cut edges carry {ablation}"
    return words + ("" if confidence is None else f"; {percent(confidence)} intervals{method and f', {method}'}")


def about(score: ScoreData) -> str:
    """The same of a score."""
    method = str(score.get("method") or score.get("cmd", {}).get("method") or "")
    return of_words(score["n"], score["split"], score["metric"], score["ablation"], score["confidence"], method)


def valued(name: str, value: float | None, low: float | None, high: float | None) -> str:
    """`0.40 [0.13, 0.79]`."""
    between = span(name, low, high)
    return (percent(value) if name == "faithfulness" else number(value)) + (f" {between}" if between else "")


def brackets(between: str) -> str:
    """` [0.13, 0.79]`; nothing without an interval."""
    return f" {between}" if between else ""


def named(parts: Sequence[str], at_most: int = NAMED_AT_MOST) -> str:
    """`a0.h1, m2`; nothing for the empty set, and a long one is cut."""
    shown = ", ".join(parts[:at_most])
    return (shown + (f" and {len(parts) - at_most} more" if len(parts) > at_most else "")) or "nothing"


def reach(low: float | None, high: float | None) -> float:
    """Length of an error bar; 0 where an end is unknown."""
    return 0.0 if low is None or high is None else high - low
