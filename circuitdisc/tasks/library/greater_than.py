"""Greater-than: "The war lasted from the year 1732 to the year 17" is continued with any ending above 32.

A year is written as two tokens of two digits, so that the end year's century stands in the prompt and its ending is one
token. The answers are all endings above the start year's, the wrong answers all others; the metric is `prob_diff`, which
sums over both. In the corrupted prompt the start year ends in 01, so that nearly every ending is right. Years that the
tokenizer does not write in this way are neither shown nor counted as endings; a note says how many they are. Examples
of one frame form a group.

Roles: `noun`; `century1` and `year`, the two halves of the start year; `century2`, the end year's century, which is also
`end`.

Source: Hanna et al. 2023, section 2; own frames and nouns.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

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

FIRST_START, LAST_START = "02", "98"
CORRUPTED_START = "01"
ENDINGS = tuple(f"{ending:02d}" for ending in range(100))  # two digits each, so that they sort as numbers do


@drawn_task("greater_than", metric="prob_diff")
def build(setup: Setup, *, frames: Names = None) -> Draw:
    """Draw greater-than examples.

    Args:
        setup: the model's tokenizer.
        frames: names of the frames to draw from; None: all.

    Raises:
        BadTask: the tokenizer does not write years as two tokens of two digits.
    """
    chosen = setup.names("frame", frames, FRAMES)
    endings = _endings(setup.tokenizer)
    nouns = setup.words(NOUNS, "nouns")
    centuries = list(endings)

    def draw(rng: np.random.Generator) -> TextExample:
        frame, noun, century = pick(rng, chosen), pick(rng, nouns), pick(rng, centuries)
        start = pick(rng, _starts(endings[century]))
        words = {"noun": noun, "century1": century, "century2": century}
        clean = fill(FRAMES[frame], **words, year=start)
        corrupted = fill(FRAMES[frame], **words, year=CORRUPTED_START).text
        answers = tuple(ending for ending in endings[century] if ending > start)
        wrong = tuple(ending for ending in endings[century] if ending <= start)
        return TextExample(clean.text, corrupted, answers, wrong, group=frame, roles=clean.roles)

    return draw


def _starts(endings: Sequence[str]) -> list[str]:
    """The endings that a start year may have: one of the others is above it."""
    return [ending for ending in endings if FIRST_START <= ending <= LAST_START and ending < endings[-1]]


def _endings(tokenizer: "PreTrainedTokenizerBase") -> dict[str, tuple[str, ...]]:
    """For each century that can be used the endings that are one token after it."""
    usable: dict[str, tuple[str, ...]] = {}
    for century in CENTURIES:
        after = tokens_after(f"year {century}", ENDINGS, tokenizer)
        whole = tokens_after("year", [f" {century}"], tokenizer)[0]
        if whole is None or len(whole) != 1:
            continue
        kept = tuple(ending for ending, ids in zip(ENDINGS, after, strict=True) if ids is not None and len(ids) == 1)
        if CORRUPTED_START in kept and _starts(kept):
            usable[century] = kept
    if not usable:
        ids = tokens_after("year", [" 1732"], tokenizer)[0]
        pieces = ", ".join(repr(tokenizer.decode([token])) for token in ids) if ids else "a word it does not know"
        raise BadTask(
            "task 'greater_than' needs years of two tokens, as 17 and 32 for 1732, but this model's tokenizer writes 1732 as "
            f"{pieces}: choose a model whose tokenizer joins two digits, as GPT-2's does, or another task"
        )
    total = len(CENTURIES) * len(ENDINGS)
    if (kept_in_all := sum(map(len, usable.values()))) < total:
        note(
            f"task 'greater_than': {total - kept_in_all} of {total} years are not two tokens of two digits for this model's "
            "tokenizer and are left out"
        )
    return usable
