"""A score that says itself what is shown: its sentences and its table, on the page, on the terminal and in the verdict."""

from collections.abc import Sequence
from typing import Any

from circuitdisc.pages.scores.base import Part, ScoreData, ShownScore, Table, about
from circuitdisc.pages.verdict import Verdict, few_caveats
from circuitdisc.schemas import validate
from circuitdisc.scoring.kind import ScoreDescription, ScoreKind
from circuitdisc.wording import number


def described(kind: ScoreKind) -> ShownScore:
    """How a score without a file in this folder is shown."""

    def read(score: ScoreData) -> ScoreDescription:
        result: Any = validate(kind.result, score, f"judgement.json, {kind.name}")
        return result.describe()

    def part(score: ScoreData) -> Part:
        said, of = read(score), about(score)
        headers = tuple(said.rows[0]) if said.rows else ()
        rows = tuple(tuple(_cell(row[name]) for name in headers) for row in said.rows)
        caption = f"{of}. {said.note}" if said.note else of
        return Part(kind.words[0].upper() + kind.words[1:], of, tuple(said.lines), headers, rows, caption)

    def verdict(score: ScoreData) -> Verdict:
        said = read(score)
        return Verdict(tuple(said.verdict), (*said.caveats, *few_caveats(score["n"])))

    def tables(result: Any) -> Sequence[Table]:
        return [(kind.words, result.describe().rows)]

    return ShownScore(part, verdict, tables)


def _cell(value: object) -> str:
    return "–" if value is None else number(value) if isinstance(value, int | float) else str(value)
