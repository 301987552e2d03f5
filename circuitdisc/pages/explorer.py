"""The explorer of a page: what `assets/explorer.js` draws, as JSON; and the files that pages embed.

The script is built from scripts/explorer (`npm ci && npm run build`); users need no Node.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from markupsafe import Markup

from circuitdisc.circuit import Circuit
from circuitdisc.pages.drawing import edges_to_draw
from circuitdisc.scoring.base import Scores
from circuitdisc.wording import is_number

ASSETS = Path(__file__).parent / "assets"
DRAWN_AT_MOST = 5000
"""Edges of an explorer; of a larger circuit those with the largest |score| (or every n-th)."""
MOST_CIRCUITS = 50
"""Circuits of a comparison: an edge says in the bits of one number which have it."""
_KINDS = {"q": 0, "k": 1, "v": 2, "mlp": 3, "logits": 4}
_EXACT = {"exact"}
_ESTIMATES = {"eap", "eap_ig", "eap_ig_activations", "clean_corrupted", "ceap", "eap_gp", "atp"}


def as_json(data: object) -> Markup:
    """JSON that no text in it can break out of the script element that holds it."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


@cache
def explorer_script() -> Markup:
    """The explorer's code."""
    return Markup((ASSETS / "explorer.js").read_text(encoding="ascii").replace("</", "<\\/"))


@cache
def plotly_bundle() -> Markup:
    """plotly.js with the figures that pages use, compressed; a browser unpacks it."""
    return Markup(base64.b64encode((ASSETS / "plotly.js.gz").read_bytes()).decode("ascii"))


def explorer_data(
    circuit: Circuit,
    *,
    label: str,
    scores: Scores | None = None,
    edge_scores: Float[np.ndarray, "R S"] | None = None,
    judgement: Mapping[str, Any] | None = None,
    explored: Mapping[str, Any] | None = None,
    groups: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What the explorer draws of one circuit.

    Args:
        label: what it shows, for those who do not see it.
        explored: as explorer.json has it.
        groups: as groups.json has it; its names are taken where the circuit has them.
    """
    explored = _fitting(explored)
    algorithm = circuit.provenance.algorithm or "the search"
    shown, words = edge_scores, f"Score of {algorithm}"
    if edge_scores is None and explored and explored["edges"]["estimated"]:
        shown, words = np.zeros(circuit.mask.shape), "Estimate by the gradient"
        for name, value in explored["edges"]["estimated"].items():
            shown[circuit.graph.parse_edge(name)] = value
    elif algorithm in _EXACT | _ESTIMATES:
        words += " (exact)" if algorithm in _EXACT else " (an estimate)"
    nodes, edges = _drawn(circuit, edges_to_draw(circuit, shown, DRAWN_AT_MOST), shown)
    named = groups or {}
    return {
        **_frame(circuit, label, nodes),
        "edges": edges,
        "left_out": circuit.n_edges - len(edges),
        "score_words": words,
        "metric": (explored or {}).get("metric") or circuit.provenance.metric,
        "faithfulness": _faithfulness(circuit, scores, judgement or {}),
        "needs": _needs(judgement or {}),
        "explored": explored,
        "groups": {**circuit.groups, **named.get("groups", {})},
        "pinned": list(named.get("pinned", ())),
    }


def comparison_data(circuits: Mapping[str, Circuit], *, label: str) -> dict[str, Any]:
    """What the explorer draws of several circuits of one graph: each edge says which of them have it."""
    circuits = dict(list(circuits.items())[:MOST_CIRCUITS])
    first = next(iter(circuits.values()))
    union = Circuit(first.graph, np.logical_or.reduce([circuit.mask for circuit in circuits.values()]))
    places = edges_to_draw(union, most=DRAWN_AT_MOST)
    nodes, edges = _drawn(union, places, None)
    members = [sum(2**at for at, each in enumerate(circuits.values()) if each.mask[r, s]) for r, s in places.tolist()]
    return {
        **_frame(union, label, nodes),
        "edges": [[*edge, of] for edge, of in zip(edges, members, strict=True)],
        "left_out": union.n_edges - len(edges),
        "circuits": list(circuits),
        "score_words": "",
        "metric": first.provenance.metric,
    }


def _frame(circuit: Circuit, label: str, nodes: Sequence[str]) -> dict[str, Any]:
    graph = circuit.graph
    parsed = [graph.parse_node(name) for name in nodes]
    return {
        "label": label,
        "n_layers": graph.n_layers,
        "n_heads": graph.n_heads,
        "has_mlp": graph.has_mlp,
        "nodes": [[node.name, node.kind, node.layer, node.head] for node in parsed],
    }


def _drawn(
    circuit: Circuit, places: Int[np.ndarray, "E 2"], scores: Float[np.ndarray, "R S"] | None
) -> tuple[list[str], list[list[Any]]]:
    """Names of the nodes; for each edge its two nodes, its kind and its score."""
    graph, names = circuit.graph, circuit.nodes()
    index = {name: at for at, name in enumerate(names)}
    edges = []
    for receiver, sender in places.tolist():
        into, value = graph.receivers[receiver], None if scores is None else float(scores[receiver, sender])
        score = float(f"{value:.4g}") if is_number(value) and value is not None else None
        edges.append([index[graph.senders[sender].name], index[into.node.name], _KINDS[into.kind], score])
    return names, edges


def _faithfulness(circuit: Circuit, scores: Scores | None, judgement: Mapping[str, Any]) -> list[list[Any]]:
    """Edges, faithfulness and its interval at the sizes that were measured: of the circuit, and of its curve, if any.

    The curve's circuits are those of the slider where the search took the largest |scores|, too.
    """
    settings = circuit.provenance.settings
    nested = settings.get("grow", "top_k") == "top_k" and settings.get("by", "absolute") == "absolute"
    points = [
        [point["edges"], point["faithfulness"], point["low"], point["high"]]
        for point in (judgement.get("curve") or {}).get("points", ())
        if nested and point["faithfulness"] is not None and point["edges"] < circuit.n_edges
    ]
    for score in scores.scores if scores else ():
        if (score.name, score.split) == ("faithfulness", "heldout") and is_number(score.value):
            return [*points, [circuit.n_edges, score.value, score.low, score.high]]
    return points


def _needs(judgement: Mapping[str, Any]) -> dict[str, list[Any]]:
    """By part: how far taking it out moves the metric, with its interval, and what is absent then."""
    parts = [judgement.get(name) or {} for name in ("minimality", "minimality_of_edges")]
    return {
        need["part"]: [need["change"], need["low"], need["high"], need["kind"]]
        for part in parts
        for need in part.get("needs", ())
    }


def _fitting(explored: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Without patterns of examples that are not there."""
    if explored is None:
        return None
    n = len(explored["examples"])
    patterned = [at for at in explored.get("patterned", ()) if 0 <= at < n]
    patterns = {name: own for name, own in explored.get("patterns", {}).items() if len(own) == len(patterned)}
    return {**explored, "patterned": patterned, "patterns": patterns, "edges": {"estimated": {}, **explored.get("edges", {})}}


def example_rows(explored: Mapping[str, Any] | None) -> dict[str, Any]:
    """The page's tables of examples: three to begin with, and those that the circuit serves best and worst.

    Args:
        explored: as explorer.json has it.
    """
    if explored is None or not explored["examples"]:
        return {"first": [], "best": [], "worst": [], "metric": "", "n": 0}
    ordered = sorted(explored["examples"], key=lambda example: example["rank"])
    n = explored["n"]
    best = [example for example in ordered if example["rank"] < min(10, (n + 1) // 2)]
    worst = [example for example in reversed(ordered) if example["rank"] >= max(n - 10, (n + 1) // 2)]
    return {"first": explored["examples"][:3], "best": best, "worst": worst, "metric": explored["metric"], "n": n}
