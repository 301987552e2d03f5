"""Files in the layouts of EAP-IG and MIB, written by hand from what their loader asks for: read right, or refused."""

import json
import math

import numpy as np
import pytest
import torch
from examples import random_task
from models import model_of

import circuitdisc as cd
from circuitdisc.circuit import Circuit
from circuitdisc.cli import main
from circuitdisc.discovery.from_file import _of_nodes
from circuitdisc.discovery.selection import top_k
from circuitdisc.errors import BadFile, BadSetting, CircuitdiscError, GraphMismatch
from circuitdisc.exchange import read_edge_scores, write_graph_json
from circuitdisc.graph import ComputationGraph

GRAPH = ComputationGraph(2, 2, d_model=8)
CFG = {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 8}
SENDERS = ["input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1"]
RECEIVERS = [
    *(f"a0.h{h}<{qkv}>" for qkv in "qkv" for h in (0, 1)), "m0", *(f"a1.h{h}<{qkv}>" for qkv in "qkv" for h in (0, 1)), "m1",
    "logits",
]  # fmt: skip


def drawn(graph=GRAPH, seed=0):
    scores = np.random.default_rng(seed).normal(size=graph.edge_mask.shape)
    return np.where(graph.edge_mask, scores, np.nan)


def theirs(scores, graph=GRAPH, marked=(), cfg=None, nodes=None):
    """A graph file of EAP-IG: scores in its own sign."""
    edges = {
        graph.edge_name(*at): {"score": float(scores[tuple(at)]), "in_graph": graph.edge_name(*at) in marked}
        for at in np.argwhere(graph.edge_mask).tolist()
    }
    names = (*graph.sender_index, "logits")
    return {"cfg": CFG if cfg is None else cfg, "nodes": nodes or {name: {"in_graph": True} for name in names}, "edges": edges}


def put(folder, data, name="graph.json"):
    (folder / name).write_text(json.dumps(data))
    return folder / name


def tensors(scores, graph=GRAPH, marked=(), **more):
    """What their `to_pt` saves: rows are senders."""
    wide = np.zeros((len(SENDERS), len(RECEIVERS)))
    inside = np.zeros(wide.shape, dtype=bool)
    for at in np.argwhere(graph.edge_mask).tolist():
        sender, receiver = graph.edge_name(*at).split("->")
        wide[SENDERS.index(sender), RECEIVERS.index(receiver)] = scores[tuple(at)]
        inside[SENDERS.index(sender), RECEIVERS.index(receiver)] = graph.edge_name(*at) in marked
    return {
        "cfg": CFG, "src_nodes": SENDERS, "dst_nodes": RECEIVERS, "edges_scores": torch.tensor(wide),
        "edges_in_graph": torch.tensor(inside), "nodes_in_graph": torch.ones(len(SENDERS), dtype=torch.bool), **more,
    }  # fmt: skip


# --- signs --------------------------------------------------------------------------------------------------------------------


def test_signs(tmp_path):
    """Their graphs are read as higher helps, plain files and runs as lower helps, and each as what is asked for."""
    scores = drawn()
    plain = {GRAPH.edge_name(*at): float(scores[tuple(at)]) for at in np.argwhere(GRAPH.edge_mask).tolist()}
    for path, sign in ((put(tmp_path, theirs(scores)), "higher_helps"), (put(tmp_path, plain, "plain.json"), "lower_helps")):
        flip = -1 if sign == "higher_helps" else 1
        found = read_edge_scores(path, GRAPH)
        assert found.sign == sign
        np.testing.assert_array_equal(found.scores, flip * scores)
        assert any(sign in note and "sign=" in note for note in found.notes)
        np.testing.assert_array_equal(read_edge_scores(path, GRAPH, "higher_helps").scores, -scores)
        np.testing.assert_array_equal(read_edge_scores(path, GRAPH, "lower_helps").scores, scores)
    with pytest.raises(CircuitdiscError, match="unknown value of sign"):
        read_edge_scores(path, GRAPH, "up")  # pyright: ignore[reportArgumentType]


def test_the_sign_that_a_file_names_counts(tmp_path):
    scores = drawn()
    write_graph_json(tmp_path / "graph.json", Circuit.empty(GRAPH), scores)
    data = json.loads((tmp_path / "graph.json").read_text())
    assert data["edges"]["input->m0"]["score"] == -scores[GRAPH.parse_edge("input->m0")]
    data["circuitdisc"]["sign"] = "lower_helps"
    found = read_edge_scores(put(tmp_path, data), GRAPH)
    np.testing.assert_array_equal(found.scores, -scores)
    assert found.notes == ()
    (note,) = read_edge_scores(tmp_path / "graph.json", GRAPH, "higher_helps").notes
    assert "says lower_helps" in note
    data["circuitdisc"]["sign"] = "upwards"
    with pytest.raises(BadFile, match="neither"):
        read_edge_scores(put(tmp_path, data), GRAPH)


def test_graphs_that_circuitdisc_wrote_before_it_named_a_sign(tmp_path):
    """They lack the width, and are in this package's sign; EAP-IG's own without it have bare truth values as nodes."""
    scores, cfg = drawn(), {name: value for name, value in CFG.items() if name != "d_model"}
    assert read_edge_scores(put(tmp_path, theirs(scores, cfg=cfg)), GRAPH).sign == "lower_helps"
    bare = dict.fromkeys((*GRAPH.sender_index, "logits"), True)
    assert read_edge_scores(put(tmp_path, theirs(scores, cfg=cfg, nodes=bare)), GRAPH).sign == "higher_helps"


def test_a_signed_search_of_their_file_finds_what_helps(tmp_path):
    """Scores of the other sign would choose what hurts."""
    model = model_of("gpt2")
    task = random_task(model, 6)
    found = cd.discover(model, task, "exact", ablation="resample", edges=20, by="signed", allow_chance=True)
    assert found.edge_scores is not None
    path = put(tmp_path, theirs(-found.edge_scores, model.graph, cfg={**CFG, "n_layers": 3, "n_heads": 4, "d_model": 32}))
    asked = {"path": str(path), "edges": 20, "by": "signed", "ablation": "resample", "allow_chance": True}
    assert cd.discover(model, task, "from_file", **asked).circuit == found.circuit
    other = cd.discover(model, task, "from_file", sign="lower_helps", **asked).circuit
    worst = -np.sort(-found.edge_scores[model.graph.edge_mask])[:20]
    assert all(found.edge_scores[model.graph.parse_edge(name)] >= worst[-1] for name in other.edge_names())


# --- layouts ------------------------------------------------------------------------------------------------------------------


def test_tensors_are_read_as_the_same_graph(tmp_path):
    scores, marked = drawn(), ["input->a0.h1<v>", "a0.h1->logits"]
    torch.save(tensors(scores, marked=marked), tmp_path / "graph.pt")
    for path in (tmp_path / "graph.pt", put(tmp_path, theirs(scores, marked=marked))):
        found = read_edge_scores(path, GRAPH)
        np.testing.assert_array_equal(found.scores, -scores)
        assert found.circuit == Circuit.from_edges(GRAPH, marked)


class Trap:
    """What unpickling would run."""

    def __reduce__(self):
        return (open, ("trap.txt", "w"))


def test_no_code_of_a_tensor_file_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({**tensors(drawn()), "more": Trap()}, "trap.pt")
    with pytest.raises(BadFile, match="more than tensors") as error:
        read_edge_scores("trap.pt", GRAPH)
    assert len(str(error.value)) < 500
    assert not (tmp_path / "trap.txt").exists()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"edges_scores": torch.zeros(3, 3)}, BadFile, "where .* was expected"),
        ({"edges_scores": 3}, BadFile, "is int"),
        ({"src_nodes": 3}, BadFile, "lists of names"),
        ({"edges_scores": torch.full((7, 15), float("nan"))}, BadFile, "not finite"),
        ({"src_nodes": [*SENDERS[:-1], "m7"]}, GraphMismatch, "'m1' stands 0 times"),
        ({"cfg": {**CFG, "n_heads": 3}}, GraphMismatch, "n_heads=3"),
        ({"cfg": {**CFG, "d_model": 16}}, GraphMismatch, "d_model=16"),
        ({"edges_scores": torch.zeros(1).expand(7, 15)}, BadFile, "tells no edge from another"),
    ],
)
def test_bad_tensor_files_get_a_sentence(tmp_path, change, error, words):
    torch.save({**tensors(drawn()), **change}, tmp_path / "bad.pt")
    with pytest.raises(error, match=words) as found:
        read_edge_scores(tmp_path / "bad.pt", GRAPH)
    assert len(str(found.value)) < 500 + len(str(tmp_path))


def test_large_and_foreign_tensor_files_are_not_loaded(tmp_path, monkeypatch):
    torch.save({**tensors(drawn()), "more": torch.zeros(2**23)}, tmp_path / "large.pt")  # 32 MiB
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("no archive")
    monkeypatch.setattr("torch.load", lambda *_, **__: pytest.fail("it was loaded"))
    for name, words in (("large.pt", "at most"), ("text.pt", "no .pt file"), ("missing.pt", "cannot read")):
        with pytest.raises(BadFile, match=words):
            read_edge_scores(tmp_path / name, GRAPH)
    monkeypatch.undo()
    with pytest.raises(BadFile, match="no graph of EAP-IG"):
        read_edge_scores(tmp_path / "list.pt", GRAPH)


def test_models_without_mlps(tmp_path):
    """Their graphs always have MLPs: with scores of 0 they are passed over, with others the file is another model's."""
    graph = ComputationGraph(2, 2, has_mlp=False, d_model=8)
    scores = drawn(graph)
    whole = theirs(np.where(GRAPH.edge_mask, 0.0, np.nan), marked=["input->m0"])
    for at in np.argwhere(graph.edge_mask).tolist():
        whole["edges"][graph.edge_name(*at)]["score"] = float(scores[tuple(at)])
    found = read_edge_scores(put(tmp_path, whole), graph)
    np.testing.assert_array_equal(found.scores, -scores)
    assert found.circuit is None
    wide = np.where(GRAPH.edge_mask, 0.0, np.nan)
    for at in np.argwhere(graph.edge_mask).tolist():
        wide[GRAPH.parse_edge(graph.edge_name(*at))] = scores[tuple(at)]
    torch.save(tensors(wide), tmp_path / "graph.pt")
    np.testing.assert_array_equal(read_edge_scores(tmp_path / "graph.pt", graph).scores, -scores)
    whole["edges"]["m0->logits"]["score"] = 0.5
    wide[GRAPH.parse_edge("m0->logits")] = 0.5
    torch.save(tensors(wide), tmp_path / "graph.pt")
    for path in (put(tmp_path, whole), tmp_path / "graph.pt"):
        with pytest.raises(GraphMismatch, match="no MLPs"):
            read_edge_scores(path, graph)
    write_graph_json(tmp_path / "ours.json", Circuit.full(graph), scores)
    written = json.loads((tmp_path / "ours.json").read_text())
    assert set(written["edges"]) == set(theirs(wide)["edges"])
    assert written["edges"]["input->m0"] == {"score": 0.0, "in_graph": False}
    assert read_edge_scores(tmp_path / "ours.json", graph).circuit == Circuit.full(graph)


NODES = {"input": 0.9, "a0.h0": -0.7, "a0.h1": 0.1, "m0": 0.5, "a1.h0": -0.05, "a1.h1": 0.3, "m1": math.nan}


@pytest.mark.parametrize("by", ["absolute", "signed"])
@pytest.mark.parametrize("ending", ["json", "pt"])
def test_scores_of_nodes(tmp_path, by, ending):
    """Edges above a threshold are those among the nodes above it; a node without a score is always there."""
    nothing = np.where(GRAPH.edge_mask, 0.0, np.nan)
    nodes = {name: {"in_graph": True, "score": score} for name, score in NODES.items()} | {"logits": {"in_graph": True}}
    path = put(tmp_path, theirs(nothing, nodes=nodes))
    if ending == "pt":
        path = tmp_path / "graph.pt"
        torch.save(tensors(nothing, nodes_scores=torch.tensor([NODES[name] for name in SENDERS])), path)
    found = read_edge_scores(path, GRAPH, by=by)
    assert any("scores nodes" in note for note in found.notes)
    strength = {name: math.inf if math.isnan(x) else abs(x) if by == "absolute" else x for name, x in NODES.items()}
    order = sorted(strength, key=lambda name: -strength[name])
    sizes = set()
    for n in range(1, len(order) + 1):
        chosen = {*order[:n], "logits"}
        wanted = {
            GRAPH.edge_name(*at)
            for at in np.argwhere(GRAPH.edge_mask).tolist()
            if GRAPH.edge(*at).sender.name in chosen and GRAPH.edge(*at).receiver.node.name in chosen
        }
        sizes.add(len(wanted))
        assert set(top_k(GRAPH, found.scores, len(wanted), by).edge_names()) == wanted
        circuit = _from_file(path, len(wanted), by)
        assert set(circuit.edge_names()) == wanted
    for asked in range(min(sizes), GRAPH.n_edges + 1):  # a number of edges that divides a node's is rounded down to whole nodes
        assert len(_from_file(path, asked, by)) == max(size for size in sizes if size <= asked)
    with pytest.raises(BadSetting, match="smallest circuit of its best ones"):
        _from_file(path, 0, by)


def _from_file(path, edges, by):
    nodes = read_edge_scores(path, GRAPH, by=by).node_scores
    assert nodes is not None
    return _of_nodes(GRAPH, nodes, edges, by)


def test_scores_of_neurons(tmp_path):
    """One coordinate of what a node writes is no part of a circuit here; files that keep whole nodes are read."""
    nothing, scores = np.where(GRAPH.edge_mask, 0.0, np.nan), drawn()
    numbers = np.random.default_rng(0).normal(size=(7, 8))
    listed = {name: {"in_graph": True, "neurons_scores": row.tolist()} for name, row in zip(SENDERS, numbers, strict=True)}
    unscored = {name: {"in_graph": True, "neurons_scores": [math.nan] * 8, "neurons": [True] * 8} for name in SENDERS}
    partly = {**unscored, "m1": {"in_graph": True, "neurons": [True] * 7 + [False]}}
    for data in (theirs(nothing, nodes=listed), theirs(scores, nodes=partly)):
        with pytest.raises(BadFile, match="graph of neurons"):
            read_edge_scores(put(tmp_path, data), GRAPH)
    some = torch.ones(7, 8, dtype=torch.bool)
    some[3, 2] = False
    for more in ({"neurons_scores": torch.tensor(numbers)}, {"neurons_in_graph": some}):
        torch.save(tensors(nothing) | more, tmp_path / "graph.pt")
        with pytest.raises(BadFile, match="graph of neurons"):
            read_edge_scores(tmp_path / "graph.pt", GRAPH)
    np.testing.assert_array_equal(read_edge_scores(put(tmp_path, theirs(scores, nodes=unscored)), GRAPH).scores, -scores)
    found = read_edge_scores(put(tmp_path, theirs(scores, nodes=listed)), GRAPH)
    assert any("neurons in the file were not used" in note for note in found.notes)


@pytest.mark.parametrize("value", [0.0, 1.5, -2.0])
def test_files_that_rank_nothing(tmp_path, value):
    """Without marks they are refused; with marks they are the circuit that they mark, of that size alone."""
    flat, marked = np.where(GRAPH.edge_mask, value, np.nan), ["input->m0", "m0->logits"]
    with pytest.raises(BadFile, match="tells no edge from another"):
        read_edge_scores(put(tmp_path, theirs(flat)), GRAPH)
    with pytest.raises(BadFile, match="tells no edge from another"):
        read_edge_scores(put(tmp_path, {"input->m0": 0}, "plain.json"), GRAPH)
    data = theirs(flat, marked=marked)
    without = {**data, "edges": {name: {"in_graph": edge["in_graph"]} for name, edge in data["edges"].items()}}
    write_graph_json(tmp_path / "ours.json", Circuit.from_edges(GRAPH, marked))
    for path in (put(tmp_path, data), put(tmp_path, without, "bare.json"), tmp_path / "ours.json"):
        found = read_edge_scores(path, GRAPH)
        assert not found.ranked
        assert found.circuit == Circuit.from_edges(GRAPH, marked)


def test_a_marked_circuit_is_judged_as_it_is(tmp_path):
    model = model_of("gpt2")
    task = random_task(model, 4)
    circuit = cd.discover(model, task, "eap", ablation="resample", edges=12, allow_chance=True).circuit
    write_graph_json(tmp_path / "graph.json", circuit)
    asked = {"path": str(tmp_path / "graph.json"), "ablation": "resample", "allow_chance": True}
    found = cd.discover(model, task, "from_file", **asked)
    assert found.circuit == circuit
    assert found.edge_scores is None
    assert any("marks a circuit" in note for note in found.circuit.provenance.notes)
    assert cd.discover(model, task, "from_file", edges=circuit.n_edges, **asked).circuit == circuit
    with pytest.raises(BadSetting, match="marks one circuit"):
        cd.discover(model, task, "from_file", edges=5, **asked)


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        ({"cfg": CFG, "nodes": {}, "edges": {}}, BadFile, "'edges' is empty"),
        ({"cfg": [], "nodes": {}, "edges": {"input->m0": 1}}, BadFile, "'cfg' is no object"),
        ({"cfg": {**CFG, "n_layers": 3}, "edges": {"input->m0": 1}}, GraphMismatch, "n_layers=3"),
        ({"cfg": {**CFG, "parallel_attn_mlp": True}, "edges": {"input->m0": 1}}, GraphMismatch, "parallel_attn_mlp=True"),
        ({"nodes": {"m²": {}}, "edges": {"input->m0": 1}}, GraphMismatch, "is not a node"),
        ({"nodes": {"m0": {"neurons_scores": [10**400]}}, "edges": {"input->m0": 0}}, BadFile, "graph of neurons"),
        ({"nodes": {"m9": {}}, "edges": {"input->m0": 1}}, GraphMismatch, "'m9' is not a node"),
        ({"edges": {"input->m0": {"score": 1, "in_graph": "false"}}}, BadFile, "neither true nor false"),
        ({"edges": {"input->m0": 10**400}}, BadFile, "not a finite number"),
        ({"edges": {"input->m0": True}}, BadFile, "not a finite number"),
        ({"nodes": {"m0": {"score": 1}, "m1": {"score": "x"}}, "edges": {"input->m0": 0}}, BadFile, "not a finite number"),
    ],
)
def test_bad_graphs_get_a_sentence(tmp_path, data, error, words):
    with pytest.raises(error, match=words) as found:
        read_edge_scores(put(tmp_path, data), GRAPH)
    assert len(str(found.value)) < 500 + len(str(tmp_path))


def test_few_edges_are_said(tmp_path):
    found = read_edge_scores(put(tmp_path, {"input->m0": 1, "m0->m1": -2}, "plain.json"), GRAPH)
    assert any(f"names 2 of the graph's {GRAPH.n_edges}" in note for note in found.notes)


# --- writing ------------------------------------------------------------------------------------------------------------------


def test_pruned_and_unpruned(tmp_path):
    """`in_graph` is the circuit as it is or what is left once dead and unreached parts are gone; scores stay the same."""
    names = ["input->a0.h0<q>", "a0.h0->logits", "a0.h1->logits", "input->m1", "m0->a1.h0<k>"]
    circuit, left = Circuit.from_edges(GRAPH, names), names[:2]
    for prune, wanted in ((False, names), (True, left)):
        write_graph_json(tmp_path / "graph.json", circuit, drawn(), prune=prune)
        data = json.loads((tmp_path / "graph.json").read_text())
        assert {name for name, edge in data["edges"].items() if edge["in_graph"]} == set(wanted)
        touched = {"logits", *(part.partition("<")[0] for name in wanted for part in name.split("->"))}
        assert {name for name, node in data["nodes"].items() if node["in_graph"]} == touched
        assert data["circuitdisc"]["edges"] == len(wanted)
        assert data["circuitdisc"]["edges_after_prune"] == 2
        np.testing.assert_array_equal(read_edge_scores(tmp_path / "graph.json", GRAPH).scores, drawn())


def test_what_cannot_be_written(tmp_path):
    bare = ComputationGraph(2, 2)
    with pytest.raises(BadSetting, match="give d_model="):
        write_graph_json(tmp_path / "graph.json", Circuit.full(bare))
    with pytest.raises(BadSetting, match="finite"):
        write_graph_json(tmp_path / "graph.json", Circuit.full(GRAPH), np.full(GRAPH.edge_mask.shape, np.inf))
    assert not list(tmp_path.iterdir())
    write_graph_json(tmp_path / "graph.json", Circuit.full(bare), d_model=8)
    assert json.loads((tmp_path / "graph.json").read_text())["cfg"] == CFG


def test_the_command_prunes_and_knows_the_width_of_older_runs(tmp_path, capsys):
    run = tmp_path / "run"
    asked = ["model=toys/induction", "task=induction", "task.n=8", "task.n_heldout=8", "ablation=resample", "progress=false"]
    assert main(["discover", *asked, "scoring.n_random=0", "algorithm=eap", "algorithm.edges=5", f"out={run}"]) == 0
    older = json.loads((run / "circuit.json").read_text())
    width = older["graph"].pop("d_model")
    (run / "circuit.json").write_text(json.dumps(older))
    for more in ([], ["prune=true"]):
        assert main(["export", str(run), str(tmp_path / "graph.json"), *more]) == 0
        assert json.loads((tmp_path / "graph.json").read_text())["cfg"]["d_model"] == width
    capsys.readouterr()
    assert main(["export", str(run), str(tmp_path / "x.json"), "prune=maybe"]) == 2
    assert "prune=true" in capsys.readouterr().err
    file = str(tmp_path / "graph.json")
    assert main(["score", "--scores", file, *asked, "scoring.n_random=0", "edges=5", "sign=lower_helps", "by=signed"]) == 0
    assert "The file says higher_helps" in capsys.readouterr().out
