"""Stability on the page and in the verdict: would other examples of the task have given the same circuit?"""

from collections.abc import Iterator, Mapping
from html import escape

import plotly.graph_objects as go

from circuitdisc.ablation import get_ablation
from circuitdisc.circuit import Circuit
from circuitdisc.pages.drawing import frame
from circuitdisc.pages.scores.base import CIRCUIT, RANDOM, Part, ScoreData, brackets, reads
from circuitdisc.pages.scores.minimality import BARS_AT_MOST
from circuitdisc.pages.verdict import Verdict
from circuitdisc.scoring.chance import RANDOM_CIRCUITS
from circuitdisc.scoring.stability import STABLE
from circuitdisc.wording import is_number, number, percent, share, span

_FEW_SAMPLES = 10


@reads("stability.json", "a stability", "circuitdisc stability RUN")
def stability_part(score: ScoreData, circuit: Circuit) -> Part:
    """How alike the circuits of bootstrap samples are, and which parts are found each time.

    Args:
        score: as `Stability.to_dict` gives it.

    Raises:
        BadFile: it is not a stability.
    """
    settings, by_chance = score["settings"], score.get("random", {})
    rows = tuple(_likeness_row(row, by_chance.get(row["of"])) for row in score["table"])
    kind = "heads" if circuit.granularity == "head" else "edges"
    kept = frozenset(circuit.heads() if kind == "heads" else (edge.name for edge in circuit.edges()))
    figure = stability_figure(score["shares"][kind], kept, kind, score["n"])
    label = f"The share of {score['n']} bootstrap samples in which each of the {kind} was found."
    caption = (
        f"{score['n']} bootstrap samples of {_drawn(score)}; {settings['algorithm']}, metric "
        f"{settings['metric']}, ablation {get_ablation(settings['ablation']).label}. Those never found are left out."
    )
    headers = ("Of", "Mean Jaccard index", "Interval", "n", "Random circuits", "With the whole split's", "Ever found", "Always")
    note = "Of all pairs of samples; above .8 is called stable. Random circuits have the size and kind of this one"
    figures = () if figure is None else (("stability", figure, label, caption),)
    return Part("Stability", "", _along(score), headers, rows, note, figures)


def _drawn(score: ScoreData) -> str:
    """`24 search examples`, `24 search examples in 11 groups, drawn whole`."""
    settings, words = score["settings"], f"{score['n_examples']:,} search examples"
    in_groups = settings.get("drawn") == "groups"
    return f"{words} in {settings['n_drawn']:,} groups, drawn whole" if in_groups else words


def _along(score: ScoreData) -> tuple[str, ...]:
    """How circuits that took no search of their own came about."""
    if score["settings"].get("reruns", True):
        return ()
    words = "Chosen from the search's own scores of each example: no further run."
    if score["settings"]["frozen"]:
        words += " What the ablation carries stayed that of all search examples, so that this is a little too steady."
    return (words,)


def _likeness_row(row: ScoreData, by_chance: float | None) -> tuple[str, ...]:
    counts = f"{row['n']:,}", "–" if by_chance is None else number(by_chance)
    cells = number(row["with whole"]), f"{row['ever found']:,}", f"{row['always found']:,}"
    return row["of"], number(row["Jaccard"]), span("jaccard", row["low"], row["high"]) or "–", *counts, *cells


def stability_figure(shares: Mapping[str, float], kept: frozenset[str], kind: str, n: int) -> go.Figure | None:
    """The share of samples in which each part was found, the most frequent first; this run's own parts apart.

    Args:
        shares: part -> share.
        kept: the parts of this run's circuit.
        kind: `edges` or `heads`.
        n: samples.
    """
    if not shares:
        return None
    order = sorted(shares, key=lambda name: -shares[name])
    figure = go.Figure()
    groups = ((True, CIRCUIT, f"{kind} of this circuit"), (False, RANDOM, f"{kind} that it lacks"))
    for own, colour, words in groups:
        at = [index for index, name in enumerate(order) if (name in kept) is own]
        if at:
            figure.add_bar(
                x=[index + 1 for index in at],
                y=[shares[order[index]] for index in at],
                marker={"color": colour, "line": {"width": 0}},
                hovertext=[f"{escape(order[index])}: {percent(shares[order[index]])} of {n} samples" for index in at],
                hoverinfo="text",
                name=f"{words}: {len(at):,}",
            )
    frame(figure, 340, top=62)
    figure.update_layout(barmode="overlay", bargap=0.1)
    if len(order) <= BARS_AT_MOST:
        words = [escape(name) for name in order]
        figure.update_xaxes(tickvals=list(range(1, len(order) + 1)), ticktext=words, tickangle=-60)
    else:
        figure.update_xaxes(title_text=f"{kind}, the most frequent first")
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(title_text=f"share of {n} samples", tickformat=".0%", range=[0, 1.02])
    return figure


@reads("stability.json", "a stability", "circuitdisc stability RUN")
def stability_verdict(score: ScoreData, circuit: Circuit) -> Verdict:
    """Whether other examples of the same task would have given the same circuit.

    Args:
        score: as `Stability.to_dict` gives it.

    Raises:
        BadFile: it is not a stability.
    """
    lines, caveats = [], []
    by_chance, n, sizes = score.get("random", {}), score["n"], score["sizes"]
    for row in score["table"]:
        lines.append(_likeness(row, n, by_chance.get(row["of"])))
        caveats += _likeness_caveats(row, by_chance.get(row["of"]))
    heads = circuit.granularity == "head"
    kind = "heads" if heads else "edges"
    kept = circuit.heads() if heads else circuit.edge_names()
    always = sum(score["shares"][kind].get(name, 0.0) == 1.0 for name in kept)
    lines.append(f"{always:,} of this circuit's {len(kept):,} {kind} ({share(always, len(kept))}) are found on every sample.")
    graph = circuit.graph
    if empty := sum(size == 0 for size in sizes):
        caveats.append(f"{empty:,} of {n:,} samples gave an empty circuit, and two empty circuits count as alike.")
    if whole := sum(size == graph.n_edges for size in sizes):
        caveats.append(f"{whole:,} of {n:,} samples gave the whole graph, and to keep everything is to be alike.")
    if n < _FEW_SAMPLES:
        caveats.append(f"Only {n:,} samples stand behind it: a hundred are usual.")
    return Verdict(tuple(lines), tuple(dict.fromkeys(caveats)))


def _likeness(row: ScoreData, n: int, by_chance: float | None) -> str:
    mean, low, high = float(row["Jaccard"]), row["low"], row["high"]
    beside = "" if by_chance is None else f"; {RANDOM_CIRCUITS} have {number(by_chance)}"
    word = "stable" if mean > STABLE else "not stable"
    if is_number(low) and low <= STABLE < high:
        word = "not clearly stable" if mean > STABLE else "not clearly unstable"
    return (
        f"{row['of'].capitalize()}: the circuits of {n:,} bootstrap samples have a mean Jaccard index of {number(mean)}"
        f"{brackets(span('jaccard', low, high))}{beside}: {word} (stable is above {number(STABLE)})."
    )


def _likeness_caveats(row: ScoreData, by_chance: float | None) -> Iterator[str]:
    if not is_number(row["low"]):
        yield "No interval: it takes three samples at least."
    if by_chance is None:
        return
    if by_chance >= row["Jaccard"]:
        yield f"By {row['of']}, random circuits of this size are as alike as those of the samples."
    elif is_number(row["low"]) and by_chance >= row["low"]:
        yield f"By {row['of']}, the circuits of the samples are not clearly more alike than random ones of this size."
