"""Files exchanged with EAP-IG's own loader: theirs read here, ours read there.

Set EAP_IG_CHECKOUT to a checkout of github.com/hannamw/EAP-IG (MIB uses the same loader). Its graphs need nothing of
TransformerLens but two names, so that they run beside any version of it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from models import model_of

from circuitdisc.circuit import Circuit
from circuitdisc.discovery.selection import top_k
from circuitdisc.errors import BadFile
from circuitdisc.exchange import read_edge_scores, write_graph_json

CHECKOUT = os.environ.get("EAP_IG_CHECKOUT")
pytestmark = pytest.mark.skipif(not CHECKOUT, reason="set EAP_IG_CHECKOUT to a checkout of EAP-IG to exchange files with it")
FAMILIES = ("gpt2", "llama", "gpt_neox", "attention_only")  # sequential, grouped queries, parallel, without MLPs

DRIVER = """
import json, sys, types
drawing = {name: () for name in ("matplotlib", "matplotlib.cm", "pygraphviz", "cmapy")}
for name, parts in {"transformer_lens": ("HookedTransformer", "HookedTransformerConfig"), **drawing}.items():
    stand_in = types.ModuleType(name)
    for part in parts:
        setattr(stand_in, part, type(part, (), {}))
    stand_in.AGraph = None
    sys.modules[name] = stand_in
for root in (sys.argv[1] + "/src", sys.argv[1]):
    sys.path.insert(0, root)
import torch
from eap.graph import Graph
steps, answers, g = json.loads(sys.stdin.read()), [], None
for step in steps:
    do, args = step[0], step[1:]
    if do == "load":
        g = Graph.from_json(args[0]) if args[0].endswith(".json") else Graph.from_pt(args[0])
    elif do == "make":
        g = Graph.from_model(args[0], neuron_level=args[1], node_scores=args[2])
    elif do == "edges":
        for name, score in args[0].items():
            g.edges[name].score = score
    elif do == "nodes":
        g.nodes_scores[:] = torch.tensor(args[0])
    elif do == "neurons":
        g.neurons_scores[:] = torch.randn(g.neurons_scores.shape, generator=torch.Generator().manual_seed(0))
    elif do == "top":
        g.apply_topn(args[0], absolute=args[1], level=args[2], prune=args[3])
    elif do == "prune":  # twice: at the commit that MIB pins, a single call may stop early; evaluating a circuit prunes again
        g.prune()
        g.prune()
    elif do == "save":
        (g.to_json if args[0].endswith(".json") else g.to_pt)(args[0])
    elif do == "tell":
        answers.append({
            "edges": [name for name, edge in g.edges.items() if edge.in_graph],
            "nodes": [name for name, node in g.nodes.items() if node.in_graph],
            "scores": {name: float(edge.score) for name, edge in g.edges.items()},
        })
print(json.dumps(answers))
"""


def theirs(*steps):
    """What their code answers to these steps."""
    command = [sys.executable, "-c", DRIVER, str(Path(CHECKOUT or "").resolve())]
    done = subprocess.run(command, input=json.dumps(steps), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def cfg_of(graph):
    return {"n_layers": graph.n_layers, "n_heads": graph.n_heads, "parallel_attn_mlp": graph.parallel, "d_model": graph.d_model}


def drawn(graph, seed=0):
    scores = np.random.default_rng(seed).normal(size=graph.edge_mask.shape).astype(np.float32).astype(float)
    return np.where(graph.edge_mask, scores, np.nan)


def named(graph, scores):
    return {graph.edge_name(*at): float(scores[tuple(at)]) for at in np.argwhere(graph.edge_mask).tolist()}


@pytest.mark.parametrize("family", FAMILIES)
def test_ours_read_there(tmp_path, family):
    """Scores, circuit, circuit after their pruning, and the circuit that they choose by their default, are those of here."""
    graph = model_of(family).graph
    scores = drawn(graph)
    circuit = Circuit(graph, np.random.default_rng(1).random(graph.edge_mask.shape) < 0.1 * graph.edge_mask)
    assert circuit.prune(unreached=True) != circuit
    path, n = str(tmp_path / "graph.json"), graph.n_edges // 5
    write_graph_json(path, circuit, scores)
    loaded, pruned, best = theirs(
        ["load", path], ["tell"], ["prune"], ["tell"], ["top", n, False, "edge", True], ["prune"], ["tell"]
    )
    assert {name: loaded["scores"][name] for name in named(graph, scores)} == named(graph, -scores)
    assert all(score == 0 for name, score in loaded["scores"].items() if name not in named(graph, scores))
    assert set(loaded["edges"]) == set(circuit.edge_names())
    assert set(pruned["edges"]) == set(circuit.prune(unreached=True).edge_names())
    assert set(best["edges"]) == set(top_k(graph, scores, n, "signed").prune(unreached=True).edge_names())
    write_graph_json(path, circuit, scores, prune=True)
    loaded, pruned = theirs(["load", path], ["tell"], ["prune"], ["tell"])
    assert set(loaded["edges"]) == set(pruned["edges"]) == set(circuit.prune(unreached=True).edge_names())
    assert set(loaded["nodes"]) == set(pruned["nodes"])


@pytest.mark.parametrize("ending", ["json", "pt"])
@pytest.mark.parametrize("family", FAMILIES)
def test_theirs_read_here(tmp_path, family, ending):
    graph = model_of(family).graph
    scores, path = drawn(graph), str(tmp_path / f"graph.{ending}")
    n = int((scores > 0).sum())  # edges of MLPs that the model lacks have 0 in their graph
    (told,) = theirs(
        ["make", cfg_of(graph), False, False], ["edges", named(graph, scores)], ["top", n, False, "edge", True], ["prune"],
        ["save", path], ["tell"],
    )  # fmt: skip
    file = read_edge_scores(path, graph)
    assert file.sign == "higher_helps"
    np.testing.assert_array_equal(file.scores, -scores)
    assert file.circuit is not None
    assert set(file.circuit.edge_names()) == set(told["edges"])
    assert top_k(graph, file.scores, n, "signed").prune(unreached=True) == file.circuit


@pytest.mark.parametrize("absolute", [True, False])
def test_nodes_of_theirs_give_their_circuits(tmp_path, absolute):
    """Every circuit of whole nodes that they choose is one that is chosen here."""
    graph, by = model_of("gpt2").graph, "absolute" if absolute else "signed"
    nodes = np.random.default_rng(0).normal(size=graph.n_senders).tolist()
    path = str(tmp_path / "graph.pt")
    steps = [["make", cfg_of(graph), False, True], ["nodes", nodes], ["save", path]]
    for n in range(1, graph.n_senders + 1):
        steps += [["top", n, absolute, "node", True], ["tell"]]
    file = read_edge_scores(path, graph, by=by) if theirs(*steps[:3]) == [] else None
    assert file is not None
    assert file.node_scores is not None
    seen = 0
    for told in theirs(*steps):
        edges = {name for name in told["edges"] if name in named(graph, drawn(graph))}
        seen += bool(edges)
        chosen = top_k(graph, file.scores, len(edges), by) if edges else Circuit.empty(graph)
        kept = [graph.parse_edge(name) for name in edges]
        worst = max((-abs(file.scores[at]) if absolute else file.scores[at]) for at in kept) if kept else -np.inf
        strength = -np.abs(file.scores) if absolute else file.scores
        among = Circuit(graph, graph.edge_mask & (strength <= worst))
        assert set(among.edge_names()) == edges
        assert len(chosen) <= len(edges)
    assert seen > 5


def test_neurons_of_theirs_are_refused(tmp_path):
    graph = model_of("gpt2").graph
    path = str(tmp_path / "graph.pt")
    theirs(["make", cfg_of(graph), True, False], ["neurons"], ["save", path])
    with pytest.raises(BadFile, match="graph of neurons"):
        read_edge_scores(path, graph)
