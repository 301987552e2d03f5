"""Plans of configurations alone, and the command that plans: what it leaves, and what it refuses."""

import json
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from examples import random_task
from models import hugging_face, model_of

import circuitdisc as cd
from circuitdisc.cli import main
from circuitdisc.errors import BadSetting, GraphMismatch, UnknownName
from circuitdisc.graph import ComputationGraph
from circuitdisc.jobs.planned import describe_plan
from circuitdisc.models.places import find_place
from circuitdisc.pages.description import description_text
from circuitdisc.planning import open_model, plan
from circuitdisc.planning.counts import Search
from circuitdisc.planning.models import _can_be_read, has_weights, prompts_of_length
from circuitdisc.planning.ranks import times
from circuitdisc.planning.result import RunPlan

N = 7


# --- shapes alone ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def config_only(tmp_path):
    """A folder of config.json alone."""
    hugging_face("llama").config.save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def test_a_configuration_alone_is_planned_as_the_loaded_model(config_only, tmp_path):
    loaded = model_of("llama", torch.float32)
    task = prompts_of_length(loaded, 6, 4, 7, 0)
    shapes = open_model(str(config_only))
    assert not has_weights(shapes)
    for algorithm in ("acdc", "eap_ig", "head_ablation"):
        given = {"ablation": "resample", "allow_chance": True, "measure": 0.0}
        ours, theirs = (plan(model, task, algorithm, **given) for model in (shapes, loaded))
        assert replace(ours, model="") == replace(theirs, model="")
    hugging_face("llama").save_pretrained(tmp_path / "whole")
    assert has_weights(open_model(str(tmp_path / "whole")))
    assert not has_weights(open_model(str(tmp_path / "whole"), measure=False))


def test_the_command_plans_a_configuration_and_leaves_nothing(config_only, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["plan", f"model={config_only}", "length=7", "task=ioi", "task.n=6", "ablation=resample", "progress=false"]
    assert main([*words, "algorithm=eap_ig", "speed=100", "device_memory=80GiB", "ranks=2"]) == 0
    out = capsys.readouterr().out
    assert "This is an estimate (by 100 GFLOP/s)" in out
    assert "A memory of 80 GiB has room for it" in out
    assert {path.name for path in tmp_path.iterdir()} == {"llama"}


@pytest.mark.parametrize("sharded", [False, True])
def test_what_is_in_the_hubs_cache_is_here(sharded, tmp_path, monkeypatch):
    snapshot = tmp_path / "models--lab--tiny" / "snapshots" / "abc"
    hugging_face("llama").save_pretrained(snapshot, max_shard_size="20KB" if sharded else "1GB")
    assert (snapshot / "model.safetensors.index.json").is_file() == sharded
    (tmp_path / "models--lab--tiny" / "refs").mkdir()
    (tmp_path / "models--lab--tiny" / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert _can_be_read(find_place("lab/tiny"), "float32")
    monkeypatch.setattr("circuitdisc.planning.models.machine_memory", lambda device: 1000)
    assert not _can_be_read(find_place("lab/tiny"), "float32"), "it does not fit"
    monkeypatch.undo()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    next(snapshot.glob("*.safetensors")).unlink()
    assert not _can_be_read(find_place("lab/tiny"), "float32")


# --- the command ------------------------------------------------------------------------------------------------------------

QUICK = ["task.n=10", "task.n_heldout=10", "progress=false"]
TPP = ["model=tpp/lightweight", "task=tpp", *QUICK]


def test_a_plan_is_written_where_it_is_asked_for_and_read_back(tmp_path, capsys):
    out = tmp_path / "plan"
    assert main(["plan", "discover", *TPP, "algorithm=head_ablation", "measure=0", f"out={out}"]) == 0
    assert {path.name for path in out.iterdir()} == {"plan.json", "report.html"}
    data = json.loads((out / "plan.json").read_text())
    read = RunPlan.from_dict(data)
    assert read.part("head_ablation").exact
    assert read.job == "discover"
    assert main(["plan", *TPP, "measure=0", f"out={out}"]) == 2
    assert "already exists" in capsys.readouterr().err


def test_mistakes_are_said_before_anything_is_measured(tmp_path, capsys, monkeypatch):
    planning = import_module("circuitdisc.planning.plan")
    monkeypatch.setattr(planning, "time_forward", lambda *_: pytest.fail("it was measured"))
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").touch()
    for word, says in (
        ("device_memory=80Q", "is not a size"),
        (f"out={tmp_path / 'full'}", "already exists"),
        (f"out={tmp_path / 'file' / 'plan'}", "cannot make"),
    ):
        assert main(["plan", *TPP, "algorithm=eap", word]) == 2
        assert says in capsys.readouterr().err
    out = tmp_path / "plan"
    assert main(["plan", *TPP, "algorithm=eap", "algorithm.edges=0", f"out={out}"]) == 2
    assert not out.exists()


def test_any_number_is_written_as_null_and_read_back(tmp_path, monkeypatch):
    model = model_of("gpt2")
    monkeypatch.setattr(Search, "fit", (0.0, float("inf")))  # as of an ablation of another package
    for algorithm in ("eap", "edge_pruning", "head_ablation"):
        whole = plan(model, random_task(model, N), algorithm, ablation="zero", allow_chance=True, speed=1.0, ranks=2)
        part = whole.part(algorithm)
        assert part.model_runs == (part.model_runs[0], None) if part.model_runs else False
        assert RunPlan.from_dict(json.loads(json.dumps(whole.to_dict(), allow_nan=False))) == whole
        times(whole, 2, 4)
        assert "to any number" in description_text(describe_plan(whole))


def test_transfers_and_scores_are_planned(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["discover", *TPP, "algorithm=random", "allow_chance=true", "scoring.n_random=1", f"out={run}"]) == 0
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert main(["plan", "score", str(run), "measure=0"]) == 0
    assert main(["plan", "score", str(run), "measure=0", "scoring.n_random=7"]) == 0
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    names = "checkpoints=[tpp/featherweight,tpp/lightweight]"
    capsys.readouterr()
    asked = ["plan", "transfer", names, "task=tpp", *QUICK, "algorithm=head_ablation", "measure=0"]
    assert main(asked) == 0
    out = capsys.readouterr().out
    assert "head_ablation x 2" in out
    assert "score x 4" in out
    assert main([*asked, "joint=true", "donor=[tpp/featherweight:tpp/lightweight]"]) == 0
    out = capsys.readouterr().out
    assert "head_ablation x 5" in out  # two of their own, a joint one on both, one that completes
    assert "score x 8" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["rank=4"], "Did you mean ranks"),
        (["scores", "RUN"], "Did you mean score"),
        (["ranks=0"], "ranks=0 must be a whole number from 1"),
        (["speed=-1"], "speed=-1 must be a number above 0"),
        (["measure=-2"], "measure=-2 must be"),
        (["measure=0", "device_memory=80Q"], "device_memory='80Q' is not a size"),
        (["measure=0", "length=9999"], "more than the 64 tokens"),
        (["measure=0", "length=many"], "length='many' must be a whole number"),
        (["measure=0", "algorithm.treshold=1"], "Did you mean threshold"),
        (["transfer", "model=tpp/base"], "no model="),
        (["transfer", "checkpoints=[tpp/base]"], "at least 2 checkpoints"),
        (["score"], "which run?"),
        (["model=no/such"], "unknown model"),
        (["model=tpp/lightweight", "model.components=hooks", "measure=0"], ""),
    ],
)
def test_bad_input_gets_a_sentence(words, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status = main(["plan", *words, *([] if words[0] in ("score", "scores") else ["task.n=4", "task.n_heldout=4"])])
    err = capsys.readouterr().err
    if says:
        assert status == 2
        assert says in err
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()


def test_python_refuses_what_cannot_be_planned():
    model = model_of("gpt2")
    task = random_task(model, 4)
    with pytest.raises(UnknownName, match="Did you mean threshold"):
        cd.plan(model, task, "acdc", treshold=1)
    with pytest.raises(UnknownName, match="acdc"):
        cd.plan(model, task, "acd")
    with pytest.raises(BadSetting, match="nothing to plan"):
        cd.plan(model, task, None)
    with pytest.raises(BadSetting, match="fast components"):
        cd.plan(model_of("gpt2", components="hooks"), task, "acdc", measure=0)
    with pytest.raises(GraphMismatch, match="belongs to"):
        cd.plan(model, task, None, circuit=cd.Circuit.full(ComputationGraph(1, 1)), measure=0)
    with pytest.raises(BadSetting, match="threshold=-1"):
        cd.plan(model, task, "acdc", threshold=-1, measure=0)


def test_a_search_that_would_be_refused_is_said_to_be():
    model = model_of("gpt2")
    task = random_task(model, N)
    asked = {"ablation": "resample", "memory": "500kB", "allow_chance": True}
    with pytest.raises(BadSetting, match="over the budget"):
        cd.discover(model, task, "acdc", threshold=0.1, **asked)
    whole = plan(model, task, "acdc", threshold=0.1, measure=0, **asked)
    assert any("would be refused" in note for note in whole.notes)
    fitting = int(next(note for note in whole.notes if "fit" in note).split("; ")[1].split()[0])
    cd.discover(model, replace(task, train=task.train[:fitting]), "acdc", threshold=0.1, **asked)
