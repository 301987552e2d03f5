"""Edge scores and circuits in the files of other tools."""

import json

import numpy as np
import pytest
from models import model_of

import circuitdisc as cd
from circuitdisc.circuit import Circuit
from circuitdisc.cli import main
from circuitdisc.errors import BadFile, CircuitdiscError, GraphMismatch
from circuitdisc.exchange import read_edge_scores, write_graph_json
from circuitdisc.files import write_arrays


@pytest.fixture(scope="module")
def graph():
    return model_of("gpt2").graph


def random_scores(graph, seed=0):
    scores = np.random.default_rng(seed).normal(size=graph.edge_mask.shape)
    return np.where(graph.edge_mask, scores, np.nan)


def test_a_written_graph_is_read_again(graph, tmp_path):
    scores = random_scores(graph)
    circuit = Circuit(graph, graph.edge_mask & (scores > 1))
    write_graph_json(tmp_path / "graph.json", circuit, scores)
    found = read_edge_scores(tmp_path / "graph.json", graph)
    np.testing.assert_array_equal(found.scores, scores)
    assert found.circuit == circuit
    assert found.n_named == graph.n_edges
    assert found.sign == "higher_helps"
    assert found.notes == ()


def test_the_layout_is_that_of_eap_ig(graph, tmp_path):
    circuit = Circuit.from_edges(graph, ["input->a0.h1<q>", "a0.h1->logits"])
    write_graph_json(tmp_path / "graph.json", circuit)
    data = json.loads((tmp_path / "graph.json").read_text())
    assert data["cfg"] == {"n_layers": 3, "n_heads": 4, "parallel_attn_mlp": False, "d_model": 32}
    assert data["circuitdisc"]["sign"] == "higher_helps"
    assert data["edges"]["input->a0.h1<q>"] == {"score": 1.0, "in_graph": True}
    assert data["edges"]["input->a0.h1<k>"] == {"score": 0.0, "in_graph": False}
    assert len(data["edges"]) == graph.n_edges
    assert data["nodes"]["a0.h1"] == {"in_graph": True}
    assert data["nodes"]["m2"] == {"in_graph": False}
    assert set(data["nodes"]) == {node.name for node in graph.senders} | {"logits"}


def test_plain_scores_and_runs_own_files(graph, tmp_path):
    (tmp_path / "some.json").write_text(json.dumps({"m0->m1": 2.5, "a0.h0->logits": -1}))
    found = read_edge_scores(tmp_path / "some.json", graph)
    assert found.n_named == 2
    assert found.circuit is None
    assert found.scores[graph.parse_edge("m0->m1")] == 2.5
    assert np.nansum(np.abs(found.scores)) == 3.5
    assert (np.isnan(found.scores) == ~graph.edge_mask).all()
    scores = random_scores(graph)
    write_arrays(tmp_path / "edge_scores.npz", {"edge_scores": scores})
    np.testing.assert_array_equal(read_edge_scores(tmp_path / "edge_scores.npz", graph).scores, scores)


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        ("[1, 2]", BadFile, "no scores"),
        ("{}", BadFile, "no scores"),
        ('{"m9->logits": 1}', GraphMismatch, "m9->logits"),
        ('{"m0->m1": "high"}', BadFile, "'high'"),
        ('{"m0->m1": NaN}', BadFile, "finite"),
        ("{", BadFile, "bad.json"),
    ],
)
def test_bad_files_get_a_sentence(graph, tmp_path, content, error, words):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(error, match=words):
        read_edge_scores(tmp_path / "bad.json", graph)


def test_bad_arrays_get_a_sentence(graph, tmp_path):
    write_arrays(tmp_path / "other.npz", {"node_scores": np.zeros(3)})
    with pytest.raises(BadFile, match="edge_scores"):
        read_edge_scores(tmp_path / "other.npz", graph)
    write_arrays(tmp_path / "small.npz", {"edge_scores": np.zeros((2, 2))})
    with pytest.raises(GraphMismatch, match=r"\(2, 2\)"):
        read_edge_scores(tmp_path / "small.npz", graph)
    with pytest.raises(CircuitdiscError, match="missing"):
        read_edge_scores(tmp_path / "missing.json", graph)


def test_a_run_is_exported_and_scored_again_from_the_file(tmp_path, capsys):
    """What `eap` scored here comes back through the other tool's layout as the same circuit."""
    common = ["model=toys/induction", "task=induction", "task.n=20", "task.n_heldout=20", "ablation=resample", "progress=false"]
    common += ["scoring.n_random=2", "algorithm.edges=8"]
    assert main(["discover", *common, "algorithm=eap", f"out={tmp_path / 'first'}"]) == 0
    assert main(["export", str(tmp_path / "first"), str(tmp_path / "graph.json")]) == 0
    path = f"algorithm.path={tmp_path / 'graph.json'}"
    assert main(["discover", *common, "algorithm=from_file", path, f"out={tmp_path / 'second'}"]) == 0
    first, second = (Circuit.load(tmp_path / name / "circuit.json") for name in ("first", "second"))
    assert first == second
    scores = [json.loads((tmp_path / name / "scores.json").read_text())["means"] for name in ("first", "second")]
    assert scores[0] == scores[1]
    capsys.readouterr()
    assert main(["export", str(tmp_path / "first")]) == 2
    assert main(["export", str(tmp_path / "nothing"), str(tmp_path / "x.json")]) == 2
    assert not (tmp_path / "x.json").exists()


def test_names_of_the_package(graph):
    assert cd.read_edge_scores is read_edge_scores
    assert cd.write_graph_json is write_graph_json
