"""Every algorithm by being listed: it runs under every ablation, repeats itself, resumes, documents and checks its settings."""

import inspect
import json
from typing import Any

import numpy as np
import pytest
from examples import random_task
from models import model_of
from omegaconf import OmegaConf

import circuitdisc as cd
from circuitdisc import progress
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.registry import ALGORITHMS
from circuitdisc.errors import CircuitdiscError, UnknownName
from circuitdisc.jobs.config import conf_dir
from circuitdisc.jobs.help import job_help
from circuitdisc.jobs.registry import REGISTRY

# learned masks take hundreds of steps to be any good; a few show all that is checked here
SHORT: dict[str, dict[str, Any]] = {
    "edge_pruning": {"steps": 12},
    "subnetwork_probing": {"steps": 12},
    "soft_topk": {"steps": 12},
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    model = model_of("layer_norm_gated")
    path = tmp_path_factory.mktemp("scores") / "scores.json"
    path.write_text(json.dumps({"input->logits": 2, "m0->a1.h0<q>": -1.5, "a1.h0->logits": 1}))
    SHORT["from_file"] = {"path": str(path)}
    return model, random_task(model, 6)


def run(toy, algorithm, *, ablation="resample", seed=3, journal=None, progress=False, **settings):
    model, task = toy
    settings = {**SHORT.get(algorithm, {}), **settings}
    return cd.discover(
        model, task, algorithm, ablation=ablation, metric="logit_diff", allow_chance=True, seed=seed, journal=journal,
        progress=progress, **settings,
    )  # fmt: skip


def assert_same(found, again):
    assert found.circuit == again.circuit
    assert found.circuit.groups == again.circuit.groups
    for scores, other in ((found.edge_scores, again.edge_scores), (found.node_scores, again.node_scores)):
        assert (scores is None) == (other is None)
        if scores is not None and other is not None:
            np.testing.assert_array_equal(scores, other)


@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_it_runs_repeats_itself_and_survives_json(toy, algorithm, ablation):
    if algorithm in ("ceap", "eap_gp") and ablation != "resample":
        pytest.skip("its way leads to the corrupted prompts: it has no other ablation")
    found = run(toy, algorithm, ablation=ablation)
    assert_same(found, run(toy, algorithm, ablation=ablation))
    graph = toy[0].graph
    assert found.circuit.graph == graph
    assert found.circuit.provenance.algorithm == algorithm
    assert found.circuit.provenance.settings == {**ALGORITHMS[algorithm].settings, **SHORT.get(algorithm, {})}
    if found.edge_scores is not None:
        assert (np.isnan(found.edge_scores) == ~graph.edge_mask).all()
    if found.node_scores is not None:
        assert found.node_scores.shape == (graph.n_senders,)
    again = Circuit.from_dict(json.loads(json.dumps(found.circuit.to_dict())))
    assert again == found.circuit
    assert (again.granularity, again.groups) == (found.circuit.granularity, found.circuit.groups)
    assert json.loads(json.dumps(found.trace)) == found.trace


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_killed_search_goes_on_to_the_same_result(toy, algorithm, tmp_path, open_journal):
    whole = run(toy, algorithm, journal=open_journal(tmp_path / "journal.jsonl"))
    lines = (tmp_path / "journal.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "journal.jsonl").write_text("".join(lines[: len(lines) // 2]) + '{"hal')
    again = run(toy, algorithm, journal=open_journal(tmp_path / "journal.jsonl"))
    assert_same(whole, again)
    assert again.trace == whole.trace


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_it_shows_its_progress_when_asked(toy, algorithm, monkeypatch):
    bars = []

    class Recorded(progress.Lines):  # stderr is no terminal here
        def __init__(self, *args, **settings):
            super().__init__(*args, **{**settings, "delay": 0})
            self.was_shown = not self.disable  # closing disables
            bars.append(self)

    monkeypatch.setattr(progress, "Lines", Recorded)
    run(toy, algorithm, progress=True)
    shown = [bar for bar in bars if bar.was_shown]
    assert shown or algorithm == "random", "random draws at once"
    for bar in shown:
        assert bar.n == bar.total > 0, f"{bar.desc} ends before its end"
    bars.clear()
    run(toy, algorithm, progress=False)
    assert not any(bar.was_shown for bar in bars)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_bad_settings_get_a_sentence(toy, algorithm):
    for setting in ALGORITHMS[algorithm].settings:
        for value in ("no such value", -7.5, [1]):
            bad: dict[str, Any] = {setting: value}
            with pytest.raises(CircuitdiscError) as caught:
                run(toy, algorithm, **bad)
            assert len(str(caught.value)) > 20, (setting, value)
    with pytest.raises(UnknownName, match="no_such_setting"):
        run(toy, algorithm, no_such_setting=1)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_its_file_of_settings_matches_its_defaults(algorithm):
    written = OmegaConf.to_container(OmegaConf.load(conf_dir() / "algorithm" / f"{algorithm}.yaml"))
    assert written == {"name": algorithm, **ALGORITHMS[algorithm].settings}
    for line in (conf_dir() / "algorithm" / f"{algorithm}.yaml").read_text().splitlines():
        assert line.startswith("name:") or " # " in line
    assert algorithm in job_help(REGISTRY.own["discover"])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_it_is_documented(algorithm):
    function = ALGORITHMS[algorithm].function
    text, module = inspect.getdoc(function) or "", inspect.getdoc(inspect.getmodule(function)) or ""
    assert all(f"{setting}:" in text or f"{setting}, " in text for setting in ALGORITHMS[algorithm].settings)
    assert "1. " in module
    assert "Source:" in module or algorithm == "random"


def test_random_scores_follow_the_seed(toy):
    assert run(toy, "random", seed=1).circuit != run(toy, "random", seed=2).circuit
