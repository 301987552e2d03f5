"""Algorithms that other packages declare: found, called, listed, and refused with a sentence that names the package."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from examples import random_task
from models import model_of
from packages import install

import circuitdisc as cd
from circuitdisc.cli import main
from circuitdisc.discovery.registry import ALGORITHMS, REGISTRY, get_algorithm
from circuitdisc.errors import BadSetting, UnknownName

torch.set_num_threads(1)

SOURCE = '''
"""A package that scores the edges of one sender."""

import numpy as np

from circuitdisc.discovery.base import Discovery
from circuitdisc.discovery.selection import top_k

imported = True


def one_sender(model, task, ablation, context, *, sender=0, edges=4):
    """Edges out of one sender first."""
    scores = np.where(model.graph.edge_mask, 0.0, np.nan)
    scores[model.graph.edge_mask[:, sender], sender] = -1.0
    return Discovery(top_k(model.graph, scores, edges), scores)


def no_default(model, task, ablation, context, *, size):
    return None


def wrong_result(model, task, ablation, context):
    return 7


number = 3
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Declares entry points of a package that pip might have installed; called with {name: target}."""

    def declare(entries, name="otherlab", module="otherlab_search"):
        install(monkeypatch, tmp_path / name, "circuitdisc.algorithms", entries, SOURCE, module)
        return module

    return declare


def test_it_is_called_like_one_of_ours(package):
    module = package({"one_sender": "otherlab_search:one_sender"})
    assert REGISTRY.names == [*ALGORITHMS, "one_sender"]
    assert module not in sys.modules, "nothing is imported before it is asked for"
    model = model_of("attention_only")
    task = random_task(model, 4)
    settings = {"ablation": "resample", "metric": "logit_diff", "allow_chance": True}
    found = cd.discover(model, task, "one_sender", sender=1, **settings)
    assert found.edge_scores is not None
    assert set(np.flatnonzero(np.nan_to_num(found.edge_scores).any(0))) == {1}
    assert found.circuit.provenance.settings == {"sender": 1, "edges": 4}
    assert found.circuit.provenance.versions["otherlab"] == "1.5"
    with pytest.raises(UnknownName, match=r"unknown setting of algorithm 'one_sender' 'sendr'\. Did you mean sender"):
        cd.discover(model, task, "one_sender", sendr=1, **settings)


def test_the_command_line_knows_it_and_its_settings(package, tmp_path, capsys):
    package({"one_sender": "otherlab_search:one_sender"})
    assert main(["list", "algorithms"]) == 0
    listed = capsys.readouterr().out
    assert "Edges out of one sender first. (of package 'otherlab')" in listed
    run = ["discover", "model=tpp/lightweight", "task=tpp", "task.n=6", "task.n_heldout=6", "scoring.n_random=1"]
    out = tmp_path / "run"
    assert main([*run, "algorithm=one_sender", "algorithm.edges=40", f"out={out}", "progress=false"]) == 0
    assert cd.Circuit.load(out / "circuit.json").provenance.settings == {"sender": 0, "edges": 40}
    capsys.readouterr()
    assert main(["score", str(out), "scoring.n_random=1", "algorithm=one_sender"]) == 2
    assert "the search of" in capsys.readouterr().err
    assert main([*run, "algorithm=one_sender", "algorithm.edgs=40"]) == 2
    assert "unknown setting of algorithm 'edgs'. Did you mean edges" in capsys.readouterr().err
    assert main([*run, "algorithm=one_sendr"]) == 2
    assert "Did you mean one_sender?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("entry", "target", "sentence"),
    [
        ("acdc", "otherlab_search:one_sender", "package 'otherlab' declares an algorithm 'acdc', which is the name of one of"),
        ("gone", "otherlab_search:nothing", r"'gone' of package 'otherlab' \(otherlab_search:nothing\) cannot be imported"),
        ("absent", "no_such_module_at_all:x", "cannot be imported .ModuleNotFoundError"),
        ("number", "otherlab_search:number", "of package 'otherlab' .* is no function"),
        ("no_default", "otherlab_search:no_default", "has no default for its setting 'size'"),
    ],
)
def test_one_that_cannot_be_used_is_refused_by_name_and_leaves_the_list(package, entry, target, sentence):
    package({entry: target})
    with pytest.raises(BadSetting, match=sentence):
        get_algorithm(entry)
    listed = dict(REGISTRY.described())
    assert listed[entry].startswith("cannot be used: ")
    assert listed["eap"] == ALGORITHMS["eap"].summary


def test_two_packages_with_one_name_are_refused(package):
    package({"one_sender": "otherlab_search:one_sender"})
    package({"one_sender": "thirdlab_search:one_sender"}, "thirdlab", "thirdlab_search")
    with pytest.raises(BadSetting, match="both declare an algorithm 'one_sender'"):
        get_algorithm("one_sender")


def test_what_is_no_discovery_is_refused(package):
    package({"wrong_result": "otherlab_search:wrong_result"})
    model = model_of("attention_only")
    with pytest.raises(BadSetting, match="'wrong_result' gave a int"):
        cd.discover(model, random_task(model, 4), "wrong_result", ablation="zero", metric="logit_diff", allow_chance=True)


def test_the_command_line_stays_light():
    """`--help` imports neither torch nor Hydra, nor does it look for other packages."""
    code = (
        "import sys; from circuitdisc.cli import main; main(['--help']); print('torch' in sys.modules, 'hydra' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip().endswith("False False")
