"""Every algorithm by being listed: it runs, gives a circuit of its graph, repeats itself, has its settings documented."""

import inspect

import numpy as np
import pytest
from examples import random_task
from models import model_of
from omegaconf import OmegaConf

import circuitdisc as cd
from circuitdisc.config import conf_dir, discover_help
from circuitdisc.discovery.registry import ALGORITHMS


@pytest.fixture(scope="module")
def toy():
    model = model_of("layer_norm_gated")
    return model, random_task(model, 6)


def run(toy, algorithm, seed=3):
    model, task = toy
    return cd.discover(model, task, algorithm, ablation="resample", metric="logit_diff", allow_chance=True, seed=seed)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_it_runs_and_repeats_itself(toy, algorithm):
    found, again = run(toy, algorithm), run(toy, algorithm)
    graph = toy[0].graph
    assert found.circuit.graph == graph
    assert found.circuit == again.circuit
    assert found.circuit.provenance.algorithm == algorithm
    assert found.circuit.provenance.settings == ALGORITHMS[algorithm].settings
    for scores, other in ((found.edge_scores, again.edge_scores), (found.node_scores, again.node_scores)):
        assert (scores is None) == (other is None)
        if scores is not None and other is not None:
            np.testing.assert_array_equal(scores, other)
    if found.edge_scores is not None:
        assert (np.isnan(found.edge_scores) == ~graph.edge_mask).all()
    if found.node_scores is not None:
        assert found.node_scores.shape == (graph.n_senders,)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_its_file_of_settings_matches_its_defaults(algorithm):
    written = OmegaConf.to_container(OmegaConf.load(conf_dir() / "algorithm" / f"{algorithm}.yaml"))
    assert written == {"name": algorithm, **ALGORITHMS[algorithm].settings}
    for line in (conf_dir() / "algorithm" / f"{algorithm}.yaml").read_text().splitlines():
        assert line.startswith("name:") or " # " in line
    assert algorithm in discover_help()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_it_is_documented(algorithm):
    function = ALGORITHMS[algorithm].function
    text, module = inspect.getdoc(function) or "", inspect.getdoc(inspect.getmodule(function)) or ""
    assert all(f"{setting}:" in text for setting in ALGORITHMS[algorithm].settings)
    assert "1. " in module
    assert "Source:" in module or algorithm == "random"


def test_random_scores_follow_the_seed(toy):
    assert run(toy, "random", seed=1).circuit != run(toy, "random", seed=2).circuit
