"""Made-up circuits, scores and pages, and a page as a browser sees it."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from circuitdisc.circuit import Circuit, Provenance
from circuitdisc.graph import ComputationGraph
from circuitdisc.pages import write_report
from circuitdisc.scoring.base import Score, Scores

SMALL = ComputationGraph(4, 8)
HOSTILE = "<script>alert('x')</script>\"'&"


def random_circuit(graph: ComputationGraph, n: int, seed: int = 0) -> Circuit:
    edges = np.argwhere(graph.edge_mask)
    chosen = edges[np.random.default_rng(seed).choice(len(edges), n, replace=False)]
    mask = np.zeros_like(graph.edge_mask)
    mask[tuple(chosen.T)] = True
    return Circuit(graph, mask, Provenance(model="tiny", task="ioi", algorithm="acdc", metric="logit_diff"))


def made_up_score(name: str, split: str, value: float | None, half: float = 0.02, **fields: Any) -> Score:
    low, high = (None, None) if value is None else (value - half, value + half)
    settings: dict[str, Any] = {"ablation": "resample", "metric": "logit_diff", "n": 1000, "low": low, "high": high}
    return Score(name, split, value=value, **(settings | fields))


def made_up_scores(*rows: Score) -> Scores:
    means = {"heldout": {"full": 3.4121, "circuit": 3.3312, "empty": -0.0123}}
    return Scores(61, 479, 9, 32, means, rows)


RANDOM = (0.01, -0.02, 0.03) + 17 * (0.0,)
USUAL = made_up_scores(
    made_up_score("faithfulness", "train", 0.985, n=100),
    made_up_score("faithfulness", "heldout", 0.97, 0.025, controls=RANDOM),
    made_up_score("kl", "train", 0.01134, 0.001),
    made_up_score("kl", "heldout", 0.01278, 0.001, controls=(1.2, None), note="of the answer's logits"),
    made_up_score("completeness", "heldout", None, note="the full model is at chance"),
)


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, visible text, figures' specifications, and explorers' data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.figures: dict[str, dict[str, Any]] = {}
        self.explorers: dict[str, dict[str, Any]] = {}
        self._inside: tuple[str, dict[str, str | None]] = ("", {})
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = (tag, dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ("", {})

    def handle_data(self, data: str) -> None:
        tag, attributes = self._inside
        if tag == "script":
            if name := attributes.get("data-plot"):
                self.figures[name] = json.loads(data)
            elif (name := attributes.get("id") or "").startswith("explorer-"):
                self.explorers[name] = json.loads(data)
        elif tag != "style":
            self.text += data + " "

    @property
    def words(self) -> str:
        return " ".join(self.text.replace("\u00a0", " ").split())


def written(path: Path, circuit: Circuit, scores: Scores | None = USUAL, **options: Any) -> Page:
    options = {"run": {}} | options
    return Page(write_report(path / "report.html", circuit=circuit, scores=scores, **options).read_text("utf-8"))
