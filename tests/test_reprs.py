"""What a notebook shows of a result: one line that says what it is, whatever its size."""

import re

import pytest
from examples import random_task
from models import model_of

import circuitdisc as cd
from circuitdisc.graph import ComputationGraph
from circuitdisc.tasks.base import collate


@pytest.fixture(scope="module")
def found():
    model = model_of("gpt2")
    task = random_task(model, 6)
    return model, task, cd.discover(model, task, "eap", ablation="resample", metric="logit_diff", edges=20, allow_chance=True)


def test_each_is_one_short_line(found):
    model, task, discovery = found
    scores = cd.score(model, task, discovery.circuit, n_random=2)
    for thing in (task, collate(task.train), model, discovery, discovery.circuit, scores):
        assert "\n" not in repr(thing)
        assert len(repr(thing)) < 200


def test_they_say_what_they_are(found):
    model, task, discovery = found
    circuit = discovery.circuit
    assert repr(task) == "Task('random', 6 train and 6 held-out examples, metric logit_diff)"
    heads = f"{len(circuit.heads())} of 12 heads"
    edges = f"{circuit.n_edges} of {model.graph.n_edges} edges"
    assert repr(circuit) == f"Circuit({edges}, {heads}, eap on gpt2, task random)"
    assert repr(discovery).startswith(f"Discovery({circuit!r}, a score for every edge, ")
    scores = cd.score(model, task, circuit, n_random=0)
    faithfulness = scores.get("faithfulness", "heldout")
    words = repr(scores)
    assert f"faithfulness {faithfulness.value:.3g}" in words
    assert re.search(r"on 6 heldout examples; \d+ scores\)$", words)


def test_a_circuit_made_by_hand_and_no_scores():
    graph = ComputationGraph(2, 4)
    assert repr(cd.Circuit.empty(graph)) == f"Circuit(0 of {graph.n_edges} edges, 0 of 8 heads)"
    assert repr(cd.Scores(0, 10, 0, 8)) == "Scores(0 of 10 edges; 0 scores)"
