"""The scores of a judgement on the page, on the terminal and in the verdict.

A score that says itself what is shown (`describe`) needs no file here; those with figures of their own have one.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from circuitdisc.errors import BadSetting, UnknownName
from circuitdisc.pages.scores import completeness, curve, hypotheses, minimality
from circuitdisc.pages.scores.base import Part, ScoreData, ShownScore, reads
from circuitdisc.pages.scores.described import described
from circuitdisc.pages.tables import text_table
from circuitdisc.pages.verdict import Verdict
from circuitdisc.scoring.registry import OTHER_KEYS, REGISTRY, SCORES
from circuitdisc.wording import number

SHOWN = {
    "completeness": completeness.SHOWN,
    "minimality": minimality.SHOWN,
    "minimality_of_edges": minimality.OF_EDGES,
    "curve": curve.SHOWN,
    "tests": hypotheses.SHOWN,
}
ORDER = {  # what is not named comes after, as it stands in judgement.json
    "terminal": ("completeness", "minimality", "minimality_of_edges", "tests", "curve"),
    "page": ("completeness", "minimality", "minimality_of_edges", "curve", "tests"),
    "verdict": ("minimality_of_edges", "minimality", "completeness", "tests", "curve"),
}
_FILE = ("judgement.json", "a judgement", "circuitdisc score RUN --all")
_LINES = 10  # of a table in the terminal


def judgement_parts(judgement: Mapping[str, Any]) -> list[Part]:
    """A part of the page for each score; those that could not be had are told with their reason.

    Args:
        judgement: as `Judgement.to_dict` gives it.

    Raises:
        BadFile: it is not a judgement.
    """
    with reads(*_FILE):
        return list(_parts(judgement))


def judged(judgement: ScoreData) -> Verdict:
    """What the scores say; nothing of those that were not computed.

    Args:
        judgement: as `Judgement.to_dict` gives it.

    Raises:
        BadFile: it is not a judgement.
    """
    said = Verdict(())
    with reads(*_FILE):
        for name in _in_order("verdict", judgement):
            if judgement.get(name) is not None and (shown := _shown(name)) is not None:
                said += shown.verdict(judgement[name])
    return said


def judgement_tables(results: Mapping[str, Any], judgement: Mapping[str, Any]) -> list[str]:
    """The scores for the terminal: tables, and below each score's first what its part of the page says.

    Args:
        results: the scores, by name; None where there is none.
        judgement: the same as `Judgement.to_dict` gives it.
    """
    texts = []
    for name in _in_order("terminal", results):
        if results[name] is not None and (shown := _shown(name)) is not None:
            part, (first, *others) = shown.part(judgement[name]), [_table(*table) for table in shown.tables(results[name])]
            lines = "\n".join([f"{part.of}.", *part.lines]).replace("−", "-")
            texts += [f"{first}\n{lines}", *others]
    return texts


def all_figures(parts: Sequence[Part]) -> Iterator[tuple[str, go.Figure, str]]:
    """Name, figure and description of every figure."""
    for part in parts:
        for name, figure, label, _ in part.figures:
            yield name, figure, label


def _parts(judgement: Mapping[str, Any]) -> Iterator[Part]:
    missing = judgement["missing"]
    needed = [kind.name for kind in SCORES.values() if kind.always]
    for name in _in_order("page", [*needed, *judgement]):
        data = judgement[name]
        if data is None and name in needed and not {name, SCORES[name].words} & set(missing):
            yield Part(f"No {name}", lines=("It was not computed for this circuit.",))
        elif data is not None:
            shown = _shown(name)
            yield shown.part(data) if shown else Part(f"No {name}", lines=("No package that is installed here can show it.",))
    for name, why in missing.items():
        yield Part(f"No {name}", lines=(f"It could not be computed: {why}",))


def _in_order(where: str, names: Iterable[str]) -> list[str]:
    names = [name for name in dict.fromkeys(names) if name not in OTHER_KEYS]
    first = [name for name in ORDER[where] if name in names]
    return [*first, *(name for name in names if name not in first)]


def _shown(name: str) -> ShownScore | None:
    """How a score is shown; None if it is of another package that is not there, or cannot be used."""
    if name in SHOWN:
        return SHOWN[name]
    try:
        return described(SCORES.get(name) or REGISTRY.get(name))
    except (UnknownName, BadSetting):
        return None


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return f"{title}\nnothing to show"
    headers = list(rows[0])
    cells = [[_cell(row[name]) for name in headers] for row in rows[:_LINES]]
    more = f"\n... {len(rows) - _LINES} more in {_FILE[0]}" if len(rows) > _LINES else ""
    return f"{title}\n\n{text_table(headers, cells)}{more}"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value).replace("−", "-") if isinstance(value, float) else str(value)
