"""The bar of an exact walk: the time left is right within a factor of 1.5 after the first tenth, on walks with known costs."""

import numpy as np
import pytest
from examples import random_task
from models import model_of

import circuitdisc as cd
from circuitdisc import progress
from circuitdisc.discovery.time_left import TimeLeft
from circuitdisc.graph import ComputationGraph


@pytest.mark.parametrize("growth", [1.0, 1.3])
@pytest.mark.parametrize("share_of_heads", [0.1, 1.0])
@pytest.mark.parametrize("parallel", [False, True])
def test_the_end_is_foreseen(growth, share_of_heads, parallel):
    """Heads outside a random share are dead, all else is kept; a candidate costs more with every layer behind it."""
    graph = ComputationGraph(24, 6, True, parallel, False, 8)
    rng, mask, clock = np.random.default_rng(0), graph.edge_mask.copy(), TimeLeft(graph)
    alive = {name for name in graph.heads if rng.random() < share_of_heads}
    spent, seen, true_total = 0.0, [], 0.0
    for attempt in (0, 1):  # the first walk only adds up what the second will take
        spent, mask = 0.0, graph.edge_mask.copy()
        for group in reversed(graph.groups):
            if attempt:
                seen.append((spent, clock.expect(mask, group[-1] + 1) or 0.0))
            n_candidates, seconds = 0, 0.0
            for receiver in reversed(group):
                node = graph.receivers[receiver].node
                if node.kind == "head" and node.name not in alive:
                    mask[receiver] = False
                    continue
                n = int(mask[receiver].sum())
                depth = 1 if node.kind == "logits" else 1 + graph.n_layers - node.layer
                n_candidates, seconds = n_candidates + n, seconds + n * depth**growth * (2 if node.kind == "mlp" else 1)
                for sender in np.flatnonzero(mask[receiver]):  # edges out of dead heads are cut
                    name = graph.senders[sender].name
                    mask[receiver, sender] = name in alive or name not in graph.heads
            spent += seconds
            if attempt:
                clock.visited(group[0], n_candidates, seconds)
        true_total = spent
    after_a_tenth = [(spent + left) / true_total for spent, left in seen if 0.1 * true_total < spent]
    assert len(after_a_tenth) > 20
    assert all(1 / 1.5 < ratio < 1.5 for ratio in after_a_tenth), after_a_tenth


def test_nothing_is_left_at_the_end_and_nothing_known_before_the_first():
    graph = ComputationGraph(2, 2, True, False, False, 8)
    clock = TimeLeft(graph)
    assert clock.expect(graph.edge_mask, graph.n_receivers) is None
    clock.visited(graph.n_receivers - 1, 7, 3.0)
    assert (clock.expect(graph.edge_mask, graph.n_receivers - 1) or 0) > 0
    assert clock.expect(graph.edge_mask, 0) == 0


def test_the_bar_of_a_walk_ends_at_its_end_though_the_last_estimate_was_too_high(monkeypatch):
    bars = []

    class Recorded(progress.Lines):
        def __init__(self, *args, **settings):
            super().__init__(*args, **{**settings, "delay": 0})
            bars.append(self)

    monkeypatch.setattr(progress, "Lines", Recorded)
    monkeypatch.setattr(TimeLeft, "expect", lambda self, mask, n_unvisited: 1000.0)
    model = model_of("no_norm")
    cd.discover(model, random_task(model, 3), "acdc", threshold=0.1, ablation="resample", allow_chance=True, progress=True)
    (bar,) = [bar for bar in bars if "acdc" in bar.desc]
    assert bar.n == bar.total > 0
