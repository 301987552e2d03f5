"""The explorer in notebooks: `cd.explore`, and how circuits show themselves."""

from html.parser import HTMLParser

import numpy as np
import pytest
from examples import random_task
from made_pages import HOSTILE, SMALL, Page, random_circuit
from models import model_of

import circuitdisc as cd
from circuitdisc.circuit import Circuit
from circuitdisc.errors import BadSetting, GraphMismatch
from circuitdisc.graph import ComputationGraph


class Frame(HTMLParser):
    """The frame of a notebook's cell, with the page inside it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.frames: list[dict[str, str | None]] = []
        self.feed(html)
        assert len(self.frames) == 1
        self.page = Page(self.frames[0]["srcdoc"] or "")

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "iframe":
            self.frames.append(dict(attrs))


def test_a_circuit_shows_its_explorer():
    circuit = random_circuit(SMALL, 20)
    frame = Frame(circuit._repr_html_())
    assert frame.page.explorers["explorer-circuit"]["edges"]
    assert len(frame.page.explorers["explorer-circuit"]["edges"]) == 20
    assert frame.frames[0]["sandbox"] == "allow-scripts allow-downloads"  # no way to the notebook
    assert "script" not in frame.tags  # all of it is inside the frame
    assert "<iframe" not in Circuit(SMALL, np.zeros_like(circuit.mask))._repr_html_()


def test_what_was_found_shows_its_scores_and_what_measuring_tells(tmp_path):
    model = model_of("llama")
    task = random_task(model)
    found = cd.discover(model, task, "eap", edges=30, ablation="resample", metric="log_prob", allow_chance=True)
    assert found.edge_scores is not None
    data = Frame(found._repr_html_()).page.explorers["explorer-circuit"]
    names = [node[0] for node in data["nodes"]]
    for sender, receiver, kind, score in data["edges"]:
        suffix = f"<{'qkv'[kind]}>" if kind < 3 else ""
        place = found.circuit.graph.parse_edge(f"{names[sender]}->{names[receiver]}{suffix}")
        assert score == pytest.approx(found.edge_scores[place], rel=1e-3)
    assert data["explored"] is None
    view = cd.explore(found, model, task)
    measured = Page(view.page).explorers["explorer-circuit"]["explored"]
    assert (measured["n"], measured["metric"], measured["ablation"]) == (len(task.heldout), "log_prob", "resample")
    assert set(measured["nodes"]) >= set(names) - {"logits"}
    assert view.save(tmp_path / "page.html").read_text(encoding="utf-8") == view.page
    assert "30" in repr(view) or str(found.circuit.n_edges) in repr(view)


def test_circuits_are_compared_under_their_names():
    circuits = {HOSTILE: random_circuit(SMALL, 20), "other": random_circuit(SMALL, 20, seed=1)}
    frame = Frame(cd.explore(circuits)._repr_html_())
    assert frame.page.explorers["explorer-circuit"]["circuits"] == list(circuits)
    assert "alert" not in "".join(frame.tags)


def test_what_cannot_be_shown_is_refused():
    circuit, model = random_circuit(SMALL, 5), model_of("llama")
    with pytest.raises(BadSetting, match="give both of them, or none"):
        cd.explore(circuit, model)
    with pytest.raises(BadSetting, match="1 circuits cannot be compared"):
        cd.explore({"a": circuit})
    with pytest.raises(GraphMismatch, match="b is of another one"):
        cd.explore({"a": circuit, "b": random_circuit(ComputationGraph(2, 4), 5)})
    with pytest.raises(BadSetting, match="does not say which ablation"):
        cd.explore(circuit, model, random_task(model))
