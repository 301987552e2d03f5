"""Greater-than: "The war lasted from the year 1732 to the year 17" is continued with any ending above 32.

The beginning of the end year stands in the prompt, and its ending is one token. How much that is, the tokenizer decides, and
it is tried, not known by a name:

- A tokenizer that joins two digits, as GPT-2's does, writes a year as two tokens. The prompt ends with the century, and what is
  read is the ending of two digits: all of 00 to 99.
- One that writes digits one by one, or three together, ends it with the century and the decade, and what is read is the last
  digit: after "from the year 1732 to the year 173" all of 3 to 9 are right. Every digit is right or wrong at this one place, as
  every ending is above. The third digit by itself would not do: where it equals the start year's, the fourth decides.

The answers are all endings above the start year's, the wrong answers all others; the metric is `prob_diff`, which sums over
both. In the corrupted prompt the start year ends in 01, or in the digit 1, so that nearly every ending is right. Years that
the tokenizer does not write in this way are neither shown nor counted as endings; a note says how many they are. Examples of
one frame form a group.

Roles: `noun`; `century1` and `year`, the beginning and the ending of the start year; `century2`, the end year's beginning,
which is also `end`. Where digits are read, the beginning is that of three digits and stands at its last one.

Source: Hanna et al. 2023, section 2 (two digits); own frames and nouns; the reading of the last digit is ours.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from circuitdisc.errors import BadTask
from circuitdisc.tasks.base import TextExample
from circuitdisc.tasks.drawn import Draw, Names, Setup, drawn_task, pick
from circuitdisc.tasks.follow import tokens_after
from circuitdisc.tasks.notes import note
from circuitdisc.tasks.roles import fill

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FRAMES: dict[str, str] = {
    "lasted": "The {noun} lasted from the year {century1}{year} to the year {century2}",
    "began": "The {noun} began in the year {century1}{year} and ended in the year {century2}",
    "records": "Records of the {noun} reach from the year {century1}{year} up to the year {century2}",
    "went_on": "Having started in the year {century1}{year}, the {noun} went on until the year {century2}",
}

NOUNS: tuple[str, ...] = (
    *("war", "siege", "drought", "famine", "reign", "voyage", "expedition", "dispute", "campaign", "project", "journey"),
    *("trial", "truce", "alliance", "occupation", "rebellion", "exile", "strike", "tour", "revolt", "conflict", "crisis"),
    *("boycott", "blockade", "ceasefire", "construction", "partnership", "marriage", "friendship", "epidemic", "plague"),
    *("migration", "negotiations", "operation", "pilgrimage", "quarantine", "experiment", "recession", "revolution"),
    *("invasion", "investigation", "survey", "treaty", "embargo", "feud", "lease", "monopoly", "regime", "excavation"),
)

CENTURIES: tuple[str, ...] = ("11", "12", "13", "14", "15", "16", "17")


class YearReading(NamedTuple):
    """What of a year is read.

    Args:
        beginnings: what a year may begin with.
        endings: what may follow it, in the order of the numbers.
        corrupted: the ending of the corrupted prompt's start year.
        first, last: endings that a clean prompt's start year may have.
    """

    beginnings: tuple[str, ...]
    endings: tuple[str, ...]
    corrupted: str
    first: str
    last: str

    def starts(self, usable: Sequence[str]) -> list[str]:
        """The endings that a start year may have: another of the usable ones is above it."""
        return [ending for ending in usable if self.first <= ending <= self.last and ending < usable[-1]]


READINGS = (
    YearReading(CENTURIES, tuple(f"{ending:02d}" for ending in range(100)), "01", "02", "98"),
    YearReading(
        tuple(f"{century}{decade}" for century in CENTURIES for decade in range(10)), tuple("0123456789"), "1", "2", "8"
    ),
)
"""The first that a tokenizer can be read by is taken."""


@drawn_task("greater_than", metric="prob_diff")
def build(setup: Setup, *, frames: Names = None) -> Draw:
    """Draw greater-than examples.

    Args:
        setup: the model's tokenizer.
        frames: names of the frames to draw from; None: all.

    Raises:
        BadTask: the tokenizer writes no ending of two digits, and no last digit, as one token.
    """
    chosen = setup.names("frame", frames, FRAMES)
    reading, endings = _reading(setup.tokenizer)
    nouns = setup.words(NOUNS, "nouns")
    centuries = list(endings)

    def draw(rng: np.random.Generator) -> TextExample:
        frame, noun, century = pick(rng, chosen), pick(rng, nouns), pick(rng, centuries)
        start = pick(rng, reading.starts(endings[century]))
        words = {"noun": noun, "century1": century, "century2": century}
        clean = fill(FRAMES[frame], **words, year=start)
        corrupted = fill(FRAMES[frame], **words, year=reading.corrupted).text
        answers = tuple(ending for ending in endings[century] if ending > start)
        wrong = tuple(ending for ending in endings[century] if ending <= start)
        return TextExample(clean.text, corrupted, answers, wrong, group=frame, roles=clean.roles)

    return draw


def _reading(tokenizer: "PreTrainedTokenizerBase") -> tuple[YearReading, dict[str, tuple[str, ...]]]:
    """What can be read of this tokenizer's years, and for each beginning the endings that are one token after it."""
    for reading in READINGS:
        if usable := _endings(reading, tokenizer):
            total, kept = len(reading.beginnings) * len(reading.endings), sum(map(len, usable.values()))
            if kept < total:
                note(
                    f"task 'greater_than': {total - kept} of {total} years are not written as a beginning and one token of "
                    f"{len(reading.corrupted)} digits by this model's tokenizer and are left out"
                )
            return reading, usable
    ids = tokens_after("year", [" 1732"], tokenizer)[0]
    pieces = ", ".join(repr(tokenizer.decode([token])) for token in ids) if ids else "a word it does not know"
    raise BadTask(
        "task 'greater_than' needs years whose last two digits, or last digit, are one token, as 17 and 32 for 1732, but this "
        f"model's tokenizer writes 1732 as {pieces}: choose a model with another tokenizer, or another task"
    )


def _endings(reading: YearReading, tokenizer: "PreTrainedTokenizerBase") -> dict[str, tuple[str, ...]]:
    """For each beginning that can be used the endings that are one token after it."""
    usable: dict[str, tuple[str, ...]] = {}
    for beginning in reading.beginnings:
        whole = tokens_after("year", [f" {beginning}"], tokenizer)[0]
        if whole is None or (len(reading.corrupted) == 2 and len(whole) != 1):  # two digits of several tokens are read by digit
            continue
        after = tokens_after(f"year {beginning}", reading.endings, tokenizer)
        kept = tuple(ending for ending, ids in zip(reading.endings, after, strict=True) if ids is not None and len(ids) == 1)
        if reading.corrupted in kept and reading.starts(kept):
            usable[beginning] = kept
    return usable
