"""A score that says itself what is shown: its sentences and its table, on the page, on the terminal and in the verdict."""

from collections.abc import Sequence
from typing import Any

from circuitdisc.pages.scores.base import Found, Part, ShownScore, Table, about
from circuitdisc.pages.verdict import Verdict, few_caveats
from circuitdisc.schemas import validate
from circuitdisc.scoring.kind import ScoreDescription, ScoreKind
from circuitdisc.wording import number


def described(kind: ScoreKind) -> ShownScore:
    """How a score without a file in this folder is shown."""

    def read(found: Found) -> ScoreDescription:
        result: Any = validate(kind.result, found, f"judgement.json, {kind.name}")
        return result.describe()

    def part(found: Found) -> Part:
        said, of = read(found), about(found)
        headers = tuple(said.rows[0]) if said.rows else ()
        rows = tuple(tuple(_cell(row[name]) for name in headers) for row in said.rows)
        caption = f"{of}. {said.note}" if said.note else of
        return Part(kind.words[0].upper() + kind.words[1:], of, tuple(said.lines), headers, rows, caption)

    def verdict(found: Found) -> Verdict:
        said = read(found)
        return Verdict(tuple(said.verdict), (*said.caveats, *few_caveats(found["n"])))

    def tables(result: Any) -> Sequence[Table]:
        return [(kind.words, result.describe().rows)]

    return ShownScore(part, verdict, tables)


def _cell(value: object) -> str:
    return "–" if value is None else number(value) if isinstance(value, int | float) else str(value)
