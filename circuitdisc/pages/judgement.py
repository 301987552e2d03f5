"""The judgement on the page: what `judgement.json` and `stability.json` of a run hold, as sentences, tables and figures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from circuitdisc.ablation import get_ablation
from circuitdisc.circuit import Circuit
from circuitdisc.pages.judged import reads
from circuitdisc.pages.judgement_figures import (
    BARS_AT_MOST,
    completeness_figure,
    minimality_figure,
    named,
    size_figure,
    stability_figure,
)
from circuitdisc.wording import SPLIT_WORDS, number, percent, span

_NAMES_AT_MOST = 30  # parts that fail, in a sentence


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


def judgement_parts(judgement: Mapping[str, Any]) -> list[Part]:
    """Completeness, minimality, curve and hypothesis tests; those that could not be had are told with their reason.

    Args:
        judgement: as `Judgement.to_dict` gives it.

    Raises:
        BadFile: it is not a judgement.
    """
    with reads("judgement.json", "a judgement", "circuitdisc score RUN --all"):
        return list(_parts(judgement))


_MISSING = {"tests": "hypothesis tests"}  # what `missing` calls them


def _parts(judgement: Mapping[str, Any]) -> Iterator[Part]:
    for name, make in (("completeness", _completeness), ("minimality", _minimality), ("curve", _sizes), ("tests", _tests)):
        found = judgement[name]
        if found is not None:
            yield make(found)
            if name == "minimality" and judgement.get("minimality_of_edges") is not None:
                yield _minimality(judgement["minimality_of_edges"], "Minimality of edges", "minimality_edges")
        elif not {name, _MISSING.get(name)} & set(judgement["missing"]):
            yield Part(f"No {name}", lines=("It was not computed for this circuit.",))
    for name, why in judgement["missing"].items():
        yield Part(f"No {name}", lines=(f"It could not be computed: {why}",))


def of_words(n: int, split: str, metric: str, ablation: str, confidence: float | None = None, method: str = "") -> str:
    """`On 300 held-out examples; metric logit_diff; cut edges carry resample; 95 % intervals, Wilson's over ...`."""
    words = f"On {n:,} {SPLIT_WORDS.get(split, split)}; metric {metric}; cut edges carry {ablation}"
    return words + ("" if confidence is None else f"; {percent(confidence)} intervals{method and f', {method}'}")


def _of(found: Mapping[str, Any]) -> str:
    method = str(found.get("method") or found.get("cmd", {}).get("method") or "")
    return of_words(found["n"], found["split"], found["metric"], found["ablation"], found["confidence"], method)


def _valued(name: str, value: float | None, low: float | None, high: float | None) -> str:
    """`0.40 (0.13 to 0.79)`."""
    between = span(name, low, high)
    return (percent(value) if name == "faithfulness" else number(value)) + (f" ({between})" if between else "")


def _completeness(found: Mapping[str, Any]) -> Part:
    worst, left, controls = found["worst"], found["complement"], found["controls"]
    gap = _valued("gap", worst["value"], worst["low"], worst["high"])
    lines = [f"The largest gap is {gap}: K = {named(worst['removed'], 12)} ({worst['name']})."]
    if found["mean"] is not None:
        mean = _valued("gap", found["mean"], found["mean_low"], found["mean_high"])
        beside = f"; of random circuits {', '.join(number(one['mean']) for one in controls)}" if controls else ""
        lines.append(f"The mean gap of random K is {mean}{beside}.")
    without = _valued("faithfulness", left["value"], left["low"], left["high"])
    lines.append(f"Faithfulness of the model without the circuit: {without}{'; ' + left['note'] if left['note'] else ''}.")
    figure = completeness_figure(found)
    label = f"The metric of circuit and model without each of {len(found['gaps'])} sets K; on the dotted line there is no gap."
    beside = found.get("matched") or f"random circuits: {len(controls)}"
    caption = (
        f"{_of(found)}. Each mark is one set K of {found['by']}s, taken out of both; the farther from the dotted line, the "
        f"less complete. Right: the same for {beside}."
    )
    return Part("Completeness", _of(found), tuple(lines), figures=(("completeness", figure, label, caption),))


def _minimality(found: Mapping[str, Any], title: str = "Minimality", name: str = "minimality") -> Part:
    needs, by, threshold = found["needs"], found["by"], percent(found["threshold"])
    idle = [need["part"] for need in sorted(needs, key=lambda need: need["share"]) if not need["passes"]]
    lines = [f"{found['n_passed']:,} of {len(needs):,} {by}s change the metric by {threshold} of the full model's or more."]
    if idle:
        lines.append(f"Those that do not: {named(idle, _NAMES_AT_MOST)}.")
    shown = f" The {BARS_AT_MOST} least needed of {len(needs):,}." if len(needs) > BARS_AT_MOST else ""
    label = f"Change of the metric without each {by}, the least needed first, and the threshold of {threshold}."
    caption = (
        f"{_of(found)}. The change when one {by} is taken out, too, in the absence of the set K in which it matters most (K "
        f"was chosen on the search examples).{shown} What random members do is the null of the test of minimality below."
    )
    return Part(title, _of(found), tuple(lines), figures=((name, minimality_figure(found), label, caption),))


def _sizes(found: Mapping[str, Any]) -> Part:
    rows = tuple(_area_row(found[name], words) for name, words in _AREAS.items())
    figure = size_figure(found)
    n_random = len(found["points"][0]["controls"])
    caption = (
        f"{_of(found)}. Circuits of growing size from this run's edge scores, and {n_random} curves from random scores "
        "chosen in the same way."
    )
    figures = () if figure is None else (("sizes", figure, "Faithfulness over size; the table has the areas.", caption),)
    headers = ("Area", "Value", "Interval", "n", "Random curves")
    note = f"{_of(found)}. CMD is the one to trust where f passes 100 %"
    return Part("Faithfulness at every size", _of(found), (), headers, rows, note, figures)


_AREAS = {
    "cpr": "CPR: area under f, higher keeps more",
    "cmd": "CMD: area between f and 1, 0 is best",
    "overshoot": "overshoot: how far f passes 1",
}


def _area_row(score: Mapping[str, Any], words: str) -> tuple[str, ...]:
    controls = ", ".join(number(value) for value in score["controls"] if value is not None)
    value = number(score["value"]) if score["value"] is not None else f"undefined: {score['note']}"
    return words, value, span("area", score["low"], score["high"]) or "–", f"{score['n']:,}", controls or "–"


def _tests(found: Mapping[str, Any]) -> Part:
    settings = found["settings"]
    rows = tuple(
        (test["name"], test["null"], f"{number(test['statistic'])}: {test['measure']}", number(float(test["p_value"])),
         f"{test['n']:,}", reading(test))
        for test in found["tests"]
    )  # fmt: skip
    headers = ("Test", "Null hypothesis", "Statistic", "p", "n", "Reads")
    of = of_words(found["n"], settings["split"], settings["metric"], settings["ablation"])
    of += f"; {len(found['random'])} random circuits"
    caption = (
        f"{of}. n is what each test counts: examples, or random draws. A hypothesis that is not rejected has not been proved"
    )
    notes = tuple(f"{test['name'].capitalize()}: {test['note']}." for test in found["tests"] if test["note"])
    return Part("Hypothesis tests", of, notes, headers, rows, caption)


def reading(test: Mapping[str, Any]) -> str:
    """`rejected: speaks for the circuit`."""
    return f"{'' if test['reject'] else 'not '}rejected: speaks {'for' if test['for_circuit'] else 'against'} the circuit"


# --- stability --------------------------------------------------------------------------------------------------------


def stability_part(found: Mapping[str, Any], circuit: Circuit) -> Part:
    """How alike the circuits of bootstrap samples are, and which parts are found each time.

    Args:
        found: as `Stability.to_dict` gives it.

    Raises:
        BadFile: it is not a stability.
    """
    with reads("stability.json", "a stability", "circuitdisc stability RUN"):
        return _stability(found, circuit)


def _stability(found: Mapping[str, Any], circuit: Circuit) -> Part:
    settings, by_chance = found["settings"], found.get("random", {})
    rows = tuple(_likeness_row(row, by_chance.get(row["of"])) for row in found["table"])
    kind = "heads" if circuit.granularity == "head" else "edges"
    kept = frozenset(circuit.heads() if kind == "heads" else (edge.name for edge in circuit.edges()))
    figure = stability_figure(found["shares"][kind], kept, kind, found["n"])
    label = f"The share of {found['n']} bootstrap samples in which each of the {kind} was found."
    caption = (
        f"{found['n']} bootstrap samples of {found['n_examples']:,} search examples; {settings['algorithm']}, metric "
        f"{settings['metric']}, ablation {get_ablation(settings['ablation']).label}. Those never found are left out."
    )
    headers = ("Of", "Mean Jaccard index", "Interval", "n", "Random circuits", "With the whole split's", "Ever found", "Always")
    note = "Of all pairs of samples; above .8 is called stable. Random circuits have the size and kind of this one"
    figures = () if figure is None else (("stability", figure, label, caption),)
    return Part("Stability", "", (), headers, rows, note, figures)


def _likeness_row(row: Mapping[str, Any], by_chance: float | None) -> tuple[str, ...]:
    counts = f"{row['n']:,}", "–" if by_chance is None else number(by_chance)
    found = number(row["with whole"]), f"{row['ever found']:,}", f"{row['always found']:,}"
    return row["of"], number(row["Jaccard"]), span("jaccard", row["low"], row["high"]) or "–", *counts, *found


def all_figures(parts: Sequence[Part]) -> Iterator[tuple[str, go.Figure, str]]:
    """Name, figure and description of every figure."""
    for part in parts:
        for name, figure, label, _ in part.figures:
            yield name, figure, label
