"""`circuitdisc score --scores FILE`: the figures are those of a run, and bad input gets a sentence."""

import json
import re

import numpy as np
import pytest
import torch

import circuitdisc as cd
from circuitdisc.cli import main
from circuitdisc.files import write_arrays

torch.set_num_threads(1)
QUICK = ["task.n=8", "task.n_heldout=10", "scoring.n_random=1", "progress=false", "ablation=resample"]
TPP = ["model=tpp/lightweight", "task=tpp", *QUICK]


@pytest.fixture(scope="module")
def found():
    model = cd.load_model("tpp/lightweight")
    task = cd.load_task("tpp", model, n=8, n_heldout=10)
    return model, task, cd.discover(model, task, "eap", ablation="resample", edges=60)


@pytest.fixture(scope="module")
def files(found, tmp_path_factory):
    """The same scores in every layout."""
    model, _, discovery = found
    folder, scores = tmp_path_factory.mktemp("scores"), discovery.edge_scores
    graph = model.graph
    plain = {graph.edge_name(r, s): float(scores[r, s]) for r, s in np.argwhere(graph.edge_mask).tolist()}
    (folder / "plain.json").write_text(json.dumps(plain))
    cd.write_graph_json(folder / "graph.json", discovery.circuit, scores)
    write_arrays(folder / "run.npz", {"edge_scores": scores})
    return folder


def run(capsys, *args):
    status = main(["score", *args])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize("name", ["plain.json", "graph.json", "run.npz"])
def test_figures_are_those_of_the_discovery(found, files, capsys, name):
    model, task, discovery = found
    status, out, _ = run(capsys, "--scores", str(files / name), *TPP, "edges=60", "ablation=resample")
    assert status == 0
    assert f"{discovery.circuit.n_edges:,} of {model.graph.n_edges:,} edges" in out
    curve = cd.curve(model, task, discovery, n_random=0)
    (cmd,) = re.findall(r"^cmd +(\S+)", out, re.MULTILINE)
    (cpr,) = re.findall(r"^cpr +(\S+)", out, re.MULTILINE)
    assert curve.cmd.value == pytest.approx(float(cmd), rel=6e-3)
    assert curve.cpr.value == pytest.approx(float(cpr), rel=6e-3)
    sizes = [line.split()[:2] for line in out.splitlines() if re.match(r" *(0\.\d+|1\.0) ", line)]
    assert sizes == [[str(point.share), str(point.edges)] for point in curve.points]


def test_greedy_growth_and_the_curve_alone(found, files, capsys):
    model, task, discovery = found
    status, out, _ = run(capsys, f"--scores={files / 'plain.json'}", *TPP, "edges=sizes", "grow=greedy")
    assert status == 0
    assert "accuracy" not in out
    (cmd,) = re.findall(r"^cmd +(\S+)", out, re.MULTILINE)
    greedy = cd.curve(model, task, discovery, grow="greedy", n_random=0)
    assert greedy.cmd.value == pytest.approx(float(cmd), rel=6e-3)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--scores"], "which file"),
        (["--scores", "edges=4"], "which file"),
        (["--scores", "no_such.json", *TPP], "cannot read no_such.json: there is no such file"),
        (["--scores", "PLAIN", "model=tpp/lightweight"], "no task is named"),
        (["--scores", "PLAIN", "task=tpp"], "no model is named"),
        (["--scores", "PLAIN", *TPP, "edgs=4"], "unknown setting of score --scores 'edgs'. Did you mean edges"),
        (["--scores", "PLAIN", *TPP, "edges=lots"], "edges='lots' must be a whole number"),
        (["--scores", "PLAIN", *TPP, "--all"], "unknown option '--all'"),
        (["some_run", "--scores", "PLAIN", *TPP], "'some_run' is not a setting"),
        (["--scores", "PLAIN", "model=multitask/base", "task=ioi", *QUICK[:2], "grow=best"], "unknown value of grow 'best'"),
        (["--scores", "WRONG", *TPP], "'m77->logits'"),
    ],
)
def test_bad_input_gets_a_sentence(files, capsys, tmp_path, args, sentence):
    (tmp_path / "wrong.json").write_text('{"m77->logits": 1.0}')
    places = {"PLAIN": str(files / "plain.json"), "WRONG": str(tmp_path / "wrong.json")}
    status, out, err = run(capsys, *(places.get(arg, arg) for arg in args))
    assert (status, out) == (2, "")
    assert sentence in err
    assert "Traceback" not in err


def test_help_names_every_setting(capsys):
    status, out, _ = run(capsys, "--scores", "--help")
    assert status == 0
    for word in ("edges=", "fraction=", "grow=", "by=", "task=", "allow_chance="):
        assert word in out
