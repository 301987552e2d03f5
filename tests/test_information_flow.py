"""Information flow against the literal way: routes at one threshold, message by message, token by token."""

from typing import Any

import numpy as np
import pytest
import torch
from examples import random_examples, random_task
from models import model_of
from reference import norm

import circuitdisc as cd
from circuitdisc.engine.backends import full_run
from circuitdisc.engine.information_flow import Flow, edge_widths
from circuitdisc.errors import BadSetting
from circuitdisc.tasks.base import collate

FAMILIES = ["gpt2", "llama", "gpt_neox", "gemma2", "gemma3_text", "cohere", "attention_only", "bidirectional"]


def flow_of(model, batch):
    return Flow(model, model.components, batch)


class Literal:
    """All messages of one unpadded example, as vectors."""

    def __init__(self, model, example):
        self.model, self.graph, self.cut = model, model.graph, model.components
        self.batch = collate([example])
        self.run = full_run(model, self.batch.clean, self.batch.is_token, self.batch.position_ids, keep_patterns=True)
        self.length = self.batch.clean.shape[1]

    def constant(self, receiver):
        kind, layer = receiver.kind, receiver.node.layer
        last = self.graph.n_layers if kind == "logits" else layer + (kind == "mlp" and not self.graph.parallel)
        biases = [block.b_O for block in self.cut.weights.layers[:last] if block.b_O is not None]
        return sum(biases, torch.zeros(self.cut.spec.d_model, dtype=torch.float64))

    def message(self, layer, head, i, j):
        """What head `head` moves from token j to token i."""
        spec, block = self.cut.spec, self.cut.weights.layers[layer]
        first = self.graph.receivers[self.graph.receiver_index[f"a{layer}.h0<v>"]]
        n_before = int(self.graph.n_upstream[self.graph.receiver_index[f"a{layer}.h0<v>"]])
        x = norm(spec, self.run.senders[:n_before, 0, j].sum(0) + self.constant(first), block.norm_attention)
        group = head // (spec.n_heads // spec.n_kv_heads)
        v = x @ block.W_V[group]
        if block.b_V is not None:
            v = v + block.b_V[group]
        out = self.run.patterns[layer][head, 0, i, j] * v @ block.W_O[head]
        if block.norm_after_attention is not None:
            assert self.run.frame is not None
            out = out * self.run.frame.head_scale[layer][0, i] * block.norm_after_attention.scale
        return out

    def importances(self, receiver_index, i):
        """(sender, key token or None) -> share of what the receiver reads at token i."""
        receiver = self.graph.receivers[receiver_index]
        parts: dict[Any, torch.Tensor] = {"constant": self.constant(receiver)}
        for sender in range(int(self.graph.n_upstream[receiver_index])):
            node = self.graph.senders[sender]
            if node.kind == "head":
                for j in range(self.length):
                    parts[sender, j] = self.message(node.layer, node.head, i, j)
            else:
                parts[sender, None] = self.run.senders[sender, 0, i]
        y = torch.stack(list(parts.values())).sum(0)
        near = {key: max(0.0, float(y.abs().sum() - (part - y).abs().sum())) for key, part in parts.items()}
        total = sum(near.values())
        return {key: value / total for key, value in near.items() if key != "constant"}

    def routes(self, threshold, attention):
        """The edges on routes whose every message has at least this importance."""
        graph, shares, edges, seen = self.graph, {}, set(), set()
        queue = [(graph.n_receivers - 1, int(i)) for i in self.batch.read_position]
        while queue:
            receiver, i = queue.pop()
            if (receiver, i) in seen:
                continue
            seen.add((receiver, i))
            place = (int(graph.n_upstream[receiver]), self.constant(graph.receivers[receiver]).sum().item(), i)
            if place not in shares:
                shares[place] = self.importances(receiver, i)
            for (sender, j), share in shares[place].items():
                if share < threshold or share == 0:
                    continue
                edges.add((receiver, sender))
                name = graph.senders[sender].name
                if j is None:
                    queue += [(reader, i) for reader in graph.node_receivers[name]]
                else:
                    queue.append((graph.receiver_index[f"{name}<v>"], j))
                    if attention:
                        queue += [(graph.receiver_index[f"{name}<k>"], j), (graph.receiver_index[f"{name}<q>"], i)]
        return edges


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_widths_are_the_largest_thresholds_of_literal_routes(family, attention):
    model = model_of(family)
    example = random_examples(model, 1)[0]
    literal = Literal(model, example)
    widths = edge_widths(flow_of(model, collate([example])), attention)[..., 0].numpy()
    levels = np.unique(widths[widths > 0])
    assert len(levels) > 5
    for level in levels[:: len(levels) // 5]:
        edges = literal.routes(level * (1 - 1e-9), attention)
        assert edges == {tuple(edge) for edge in np.argwhere(widths >= level * (1 - 1e-12)).tolist()}


def test_shares_add_up_with_the_constants():
    model = model_of("gpt2")
    literal = Literal(model, random_examples(model, 1)[0])
    flow = flow_of(model, literal.batch)
    receiver = model.graph.n_receivers - 1
    wanted = torch.zeros_like(literal.batch.is_token)
    wanted[0, -1] = True
    constant = literal.constant(model.graph.receivers[receiver])
    found = flow.importances(int(model.graph.n_upstream[receiver]), constant, wanted)
    direct = literal.importances(receiver, literal.length - 1)
    plain = [value for (_, j), value in direct.items() if j is None]
    np.testing.assert_allclose(found.plain[:, 0, -1], plain, atol=1e-12)
    assert float(found.heads.sum()) == pytest.approx(sum(value for (_, j), value in direct.items() if j is not None))
    assert 0 < float(found.plain.sum() + found.heads.sum()) <= 1


def test_the_mean_over_examples_of_unequal_length_is_that_of_each_alone():
    model = model_of("llama")
    examples = random_examples(model, 5)
    whole = edge_widths(flow_of(model, collate(examples)), True)
    for index, example in enumerate(examples):
        alone = edge_widths(flow_of(model, collate([example])), True)
        np.testing.assert_allclose(whole[..., index], alone[..., 0], atol=1e-12)


def find(model, task, **settings):
    return cd.discover(model, task, "information_flow", ablation="zero", allow_chance=True, **settings)


def test_a_threshold_keeps_what_reaches_it_and_the_ablation_changes_no_score():
    model = model_of("gpt2")
    task = random_task(model)
    found = find(model, task, threshold=0.05, attention=True)
    assert found.edge_scores is not None
    assert found.circuit.n_edges > 0
    assert all(found.edge_scores[model.graph.parse_edge(name)] >= 0.05 for name in found.circuit.edge_names())
    other = cd.discover(model, task, "information_flow", ablation="resample", allow_chance=True, attention=True)
    np.testing.assert_array_equal(found.edge_scores, other.edge_scores)
    queries = [index for index, receiver in enumerate(model.graph.receivers) if receiver.kind in ("q", "k")]
    assert np.nansum(found.edge_scores[queries]) > 0
    scores = find(model, task).edge_scores
    assert scores is not None
    assert np.nansum(scores[queries]) == 0


def test_bad_settings_get_a_sentence():
    model = model_of("gpt2")
    task = random_task(model)
    with pytest.raises(BadSetting, match="threshold=2 must be a number from 0 to 1"):
        find(model, task, threshold=2)
    with pytest.raises(BadSetting, match=r"attention='yes'.* must be true or false"):
        find(model, task, attention="yes")
    with pytest.raises(BadSetting, match="runs through hooks"):
        find(model_of("gpt2", components="hooks"), task)
