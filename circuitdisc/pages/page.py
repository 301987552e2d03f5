"""The report: one HTML file that opens without a network, with a circuit's picture, its scores and its origin.

The text is made here and in `verdict.py`; `page.html.j2` only lays it out. Everything that a user wrote (names of
models and tasks, notes, commands) is escaped, and the page's own content policy forbids it to load or send anything.
"""

from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from circuitdisc.circuit import Circuit, kept_heads
from circuitdisc.files import write_text
from circuitdisc.pages.certainty import SHOWN
from circuitdisc.pages.certify import certificate_part, certificate_verdict
from circuitdisc.pages.explorer import as_json, example_rows, explorer_data, explorer_script, plotly_bundle
from circuitdisc.pages.figures import controls_figure, search_figure
from circuitdisc.pages.rounds import round_figures, round_rows
from circuitdisc.pages.scores import all_figures, judged, judgement_parts
from circuitdisc.pages.stability import stability_part, stability_verdict
from circuitdisc.pages.tables import controls_words, how_lines, score_notes
from circuitdisc.pages.verdict import verdict
from circuitdisc.scoring.base import Score, Scores
from circuitdisc.wording import ACCURACIES, SPLIT_WORDS, duration, is_number, number, score_value, span, task_words, undefined

LISTED_AT_MOST = 2000
"""Edges in the page's table; `circuit.json` has them all."""

_MEANINGS = {
    "faithfulness": "(circuit − empty) / (full − empty), of the means: 100 % is the full model, 0 % the empty circuit",
    "ratio": "circuit / full, of the means",
    "difference": "|full − circuit|, of the means: 0 is equal",
    "accuracy": f"when the circuit runs, the share of examples where {ACCURACIES['accuracy']}",
    "full_accuracy": "the same share when the full model runs",
    "pair_accuracy": f"when the circuit runs, the share of examples where {ACCURACIES['pair_accuracy']}",
    "full_pair_accuracy": "the same share when the full model runs",
    "accuracy_ratio": "accuracy of the circuit / accuracy of the full model",
    "kl": "divergence of the circuit's answer from the full model's, in nats: 0 is equal",
    "completeness": "how far cutting parts of the circuit differs from cutting them in the full model: lower is better",
    "minimality": "how much the metric changes when one part of the circuit is cut",
}

_CAPTIONS = {
    "edge": "Layers are rows, heads are columns, MLPs stand at the right; dots are outside the circuit.",
    "head": "Layers are rows, heads are columns, MLPs stand at the right. A head with a name is kept, with all edges among "
    "what is kept; a dot is an ablated head.",
}


class Picture(NamedTuple):
    """A figure and its description in words, for those who do not see it."""

    name: str
    spec: Markup
    label: str
    width: int
    height: int


def write_report(
    path: str | PathLike[str],
    *,
    circuit: Circuit,
    scores: Scores | None,
    run: Mapping[str, Any],
    trace: Sequence[Mapping[str, Any]] | None = None,
    edge_scores: Float[np.ndarray, "R S"] | None = None,
    judgement: Mapping[str, Any] | None = None,
    stability: Mapping[str, Any] | None = None,
    unsteady: str = "",
    certificate: Mapping[str, Any] | None = None,
    explored: Mapping[str, Any] | None = None,
    groups: Mapping[str, Any] | None = None,
    certainty: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Write a circuit's page.

    Args:
        path: the file, in a folder that exists.
        circuit: the circuit.
        scores: its scores; None if it was not scored.
        run: what is known of the run: `command`, `started`, `seconds`, `cost` (counters), `model`, `task`, others.
        trace: the search's decisions in order, with any of the keys `edge` or `head`, `kept`, `metric`, `layer`.
        edge_scores: the score of every edge of the graph.
        judgement: every other score, as `judgement.json` has it; None if there is none.
        stability: as `stability.json` has it; None if there is none.
        unsteady: why it was not computed along with the search.
        certificate: as `certify.json` has it; None if there is none.
        explored: what the explorer shows beside the graph, as `explorer.json` has it; None if there is none.
        groups: named groups and pinned nodes, as `groups.json` has them; None if there are none.
        certainty: what `rivals.json`, `specificity.json`, `backups.json`, `mixtures.json` and `positions.json` have, by those
            names.

    Returns:
        The path of the page.

    Raises:
        BadRun: the file cannot be written.
        BadFile: judgement, stability or certificate are not what these files hold.
    """
    path = Path(path)
    came_from = circuit.provenance
    model, task = (_name(run.get(key)) or getattr(came_from, key) for key in ("model", "task"))
    scores_of_edges = None if edge_scores is None else np.asarray(edge_scores, dtype=float)
    rounds = round_rows(circuit.graph, trace or ())
    said, parts, stable, certified = verdict(scores, circuit), [], None, None
    if judgement is not None:
        said, parts = said + judged(judgement), judgement_parts(judgement)
    if stability is not None:
        said, stable = said + stability_verdict(stability, circuit), stability_part(stability, circuit)
    believed = []
    for name, record in (certainty or {}).items():
        shown, sentences = SHOWN[name].of(name, record)
        said, believed = said + sentences, [*believed, *shown]
    if certificate is not None:
        said, certified = said + certificate_verdict(certificate, circuit), certificate_part(certificate, circuit)
    later = (*round_figures(rounds), *all_figures([*parts, *([stable] if stable else [])]))
    pictures = [*_pictures(circuit, scores, trace), *(picture(*drawn) for drawn in later)]
    page = render(
        "page.html.j2",
        heading=f"Circuit for {task or 'an unnamed task'} in {model or 'an unnamed model'}",
        algorithm=came_from.algorithm,
        verdict=said,
        judgement=parts,
        stability=stable,
        certainty=believed,
        unsteady=unsteady,
        certificate=certified,
        folder=str(run.get("folder") or ""),
        judged_by=_judged_by(scores),
        how=" ".join(how_lines(scores)) if scores else "",
        pictures={drawn.name: drawn for drawn in pictures},
        rounds=rounds,
        circuit_caption=_CAPTIONS[circuit.granularity],
        examples=example_rows(explored),
        explored=as_json(
            explorer_data(
                circuit,
                label=_label(circuit),
                scores=scores,
                edge_scores=scores_of_edges,
                judgement=judgement,
                explored=explored,
                groups=groups,
            )
        ),
        splits=_splits(scores),
        controlled={score.split for score in (scores.scores if scores else ()) if score.controls},
        split_words={split: SPLIT_WORDS.get(split, split) for split in _splits(scores)},
        score_rows=_score_rows(scores),
        score_notes=score_notes(scores) if scores is not None else [],
        means=_means(scores),
        meanings=_meanings(scores),
        settings=list(_settings(circuit, run, model, task)),
        heads=_heads_by_layer(circuit),
        edges=_edges(circuit, scores_of_edges),
        n_edges=circuit.n_edges,
        edges_scored=scores_of_edges is not None,
    )
    write_text(path, page)
    return path


def render(template: str, **values: Any) -> str:
    """A page from one of this folder's templates, with the scripts that it needs packed in; every value is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "prompt": _prompt}
    page = environment.get_template(template).render(**values)
    scripts = environment.get_template("scripts.html.j2").render(
        explorer=explorer_script() if 'data-explorer="' in page else "", plotly=plotly_bundle() if 'data-plot="' in page else ""
    )
    return page.replace("<!--scripts-->", scripts)


def _prompt(tokens: Sequence[str]) -> str:
    """Tokens as a line; of tokenizers that split at spaces alone, with spaces between them."""
    spaced = any(token.startswith(" ") for token in tokens)
    return ("" if spaced else " ").join(tokens)


# --- figures --------------------------------------------------------------------------------------------------------


def _pictures(circuit: Circuit, scores: Scores | None, trace: Sequence[Mapping[str, Any]] | None) -> Iterator[Picture]:
    if scores is not None and (figure := controls_figure(scores)) is not None:
        yield picture("controls", figure, "Scores of the circuit beside those of random circuits; the table has the numbers.")
    if trace and (figure := search_figure(trace, circuit.provenance.metric)) is not None:
        yield picture("search", figure, f"Metric, and parts kept, over {len(trace):,} decisions of the search.")


def _label(circuit: Circuit) -> str:
    """The explorer in words."""
    n_edges = f"{circuit.n_edges:,} of {circuit.graph.n_edges:,} edges"
    return f"Diagram of the circuit's nodes and edges: {n_edges}. The tables below list the same."


def picture(name: str, figure: go.Figure, label: str) -> Picture:
    """A figure as a page holds it; its width and height must be set.

    Args:
        name: of its element, unlike any other's on the page.
        label: the description in words.
    """
    spec = figure.to_json() or ""
    for character in "<>&\u2028\u2029":  # so that no text in a figure can end the script element that holds it
        spec = spec.replace(character, f"\\u{ord(character):04x}")
    return Picture(name, Markup(spec), label, int(figure.layout.width), int(figure.layout.height))


# --- scores ---------------------------------------------------------------------------------------------------------


def _splits(scores: Scores | None) -> list[str]:
    """The splits that were scored: `train`, `heldout`, then any other."""
    splits = dict.fromkeys(score.split for score in (scores.scores if scores else ()))
    known = [split for split in SPLIT_WORDS if split in splits]
    return known + [split for split in splits if split not in known]


def _main_metric(scores: Scores | None) -> str:
    """The metric that the scores are about: the first that is not itself the score (as `kl` and `accuracy` are)."""
    return next((score.metric for score in (scores.scores if scores else ()) if score.metric != score.name), "")


def _ablations(scores: Scores | None) -> set[str]:
    return {score.ablation for score in (scores.scores if scores else ())}


def _judged_by(scores: Scores | None) -> str:
    """The metric, and the ablation if all scores share it."""
    metric, ablations = _main_metric(scores), _ablations(scores)
    words = [f"Metric: {metric}."] if metric else []
    words += [f"Cut edges carry: {ablation}." for ablation in ablations if ablation and len(ablations) == 1]
    return " ".join(words)


def _score_rows(scores: Scores | None) -> list[dict[str, Any]]:
    """One row for each score, metric and ablation, with a cell for each split."""
    rows: dict[tuple[str, str, str], dict[str, Score]] = {}
    for score in scores.scores if scores else ():
        rows.setdefault((score.name, score.metric, score.ablation), {})[score.split] = score
    table = []
    for (name, metric, ablation), by_split in rows.items():
        apart = [metric] if metric not in (name, _main_metric(scores)) else []
        apart += [ablation] if len(_ablations(scores)) > 1 else []
        cells = {split: _score_cell(score) for split, score in by_split.items()}
        table.append({"name": name, "apart": ", ".join(apart), "cells": cells})
    return table


def _score_cell(score: Score) -> dict[str, str]:
    defined = is_number(score.value)
    return {
        "value": score_value(score.name, score.value) if defined else undefined(score.note),
        "exact": repr(float(score.value or 0.0)) if defined else "",
        "interval": span(score.name, score.low, score.high) if defined else "",
        "confidence": f"{score.confidence:.0%}",
        "n": f"{score.n:,}",
        "controls": controls_words(score),
    }


def _means(scores: Scores | None) -> list[tuple[str, str, str, str]]:
    rows = []
    for split, means in (scores.means if scores else {}).items():
        full, kept, empty = (number(means.get(key)) for key in ("full", "circuit", "empty"))
        rows.append((SPLIT_WORDS.get(split, split), full, kept, empty))
    return rows


def _meanings(scores: Scores | None) -> list[tuple[str, str]]:
    names = dict.fromkeys(score.name for score in (scores.scores if scores else ()))
    return [(name, _MEANINGS[name]) for name in names if name in _MEANINGS]


# --- settings and contents ------------------------------------------------------------------------------------------


def _settings(circuit: Circuit, run: Mapping[str, Any], model: str, task: str) -> Iterator[tuple[str, str]]:
    """Everything that is known of where the circuit came from; what is unknown has no row."""
    came_from = circuit.provenance
    cost = dict(run.get("cost") or {})
    known: dict[str, Any] = {
        "model": model,
        "task": task,
        "graph": circuit.graph.describe(),
        "algorithm": came_from.algorithm,
        "algorithm settings": came_from.settings,
        "ablation": came_from.ablation,
        "metric": came_from.metric,
        "seed": came_from.seed,
        "command": run.get("command"),
        "started": run.get("started"),
        "duration": duration(float(run["seconds"])) if run.get("seconds") is not None else None,
        "cost": {name: number(value) if isinstance(value, float) else value for name, value in cost.items()},
        "versions": came_from.versions,
    }
    shown = {"command", "started", "seconds", "cost"}
    shown |= {key for key in ("model", "task") if not isinstance(run.get(key), Mapping)}
    for key, value in run.items():
        if key not in shown:
            known[f"{key} settings" if key in known else str(key).replace("_", " ")] = value
    for name, value in known.items():
        text = _words(value)
        if text:
            yield name, text


def _name(value: Any) -> str:
    """The name of a model or task that is given by name or as its settings."""
    return task_words(value)


def _words(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return "\n".join(f"{str(key).replace('_', ' ')}: {_words(item)}" for key, item in value.items())
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int | np.integer):
        return f"{int(value):,}" if abs(int(value)) >= 100_000 else str(int(value))
    if isinstance(value, float | np.floating):
        return repr(float(value))  # in full: settings must be typed again as they were
    if isinstance(value, Sequence):
        return " ".join(_words(item) for item in value)
    return str(value)


def _heads_by_layer(circuit: Circuit) -> list[tuple[int, str, str]]:
    """For each layer, last first: its number, how many of its heads are kept, and which."""
    kept = kept_heads(circuit.graph, circuit.mask)
    return [
        (layer, f"{row.sum()} of {len(row)}", ", ".join(f"a{layer}.h{head}" for head in np.flatnonzero(row)))
        for layer, row in reversed(list(enumerate(kept)))
    ]


def _edges(circuit: Circuit, edge_scores: Float[np.ndarray, "R S"] | None) -> list[tuple[str, str, str]]:
    """Name, kind and score of the edges that the table lists: the largest |score| first, else in the graph's order."""
    edges = np.argwhere(circuit.mask)
    if edge_scores is not None:
        sizes = np.nan_to_num(np.abs(edge_scores[circuit.mask]))
        edges = edges[np.argsort(-sizes, kind="stable")]
    return [
        (
            circuit.graph.edge_name(receiver, sender),
            circuit.graph.receivers[receiver].kind,
            "" if edge_scores is None else number(float(edge_scores[receiver, sender])),
        )
        for receiver, sender in edges[:LISTED_AT_MOST]
    ]
