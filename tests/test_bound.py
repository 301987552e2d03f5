"""Weights, examples or settings change behind a run's back: whatever resumes, reuses or compares it refuses, and says what."""

import json
import re
import shutil
import warnings

import pytest
from changed import change_weights, changed, contents, copied_model, cut_back, edit_json, task_file
from examples import random_task
from models import model_of

import circuitdisc as cd
from circuitdisc.circuit import Circuit
from circuitdisc.cli import main
from circuitdisc.errors import BadRun, CircuitdiscWarning
from circuitdisc.jobs.compare_runs import compare_runs
from circuitdisc.jobs.pipeline import resume
from circuitdisc.runs import Journal

SEARCHES = {
    "acdc": ["algorithm.threshold=0.05"],
    "head_ablation": ["algorithm.threshold=0.05"],
    "bisect": ["algorithm.threshold=0.05"],
    "exact": ["algorithm.edges=8"],
    "path_patching": ["algorithm.threshold=0.01"],
    "soft_topk": ["algorithm.edges=8", "algorithm.steps=150"],
}
QUICK = ["ablation=resample", "scoring.n_random=2", "allow_chance=true", "progress=false"]


@pytest.fixture
def said(capsys):
    """Status and stderr of a command."""

    def run(*args):
        capsys.readouterr()
        status = main([str(arg) for arg in args])
        return status, capsys.readouterr().err

    return run


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model, a task file and a finished run of each search; copied for every test that changes something."""
    folder = tmp_path_factory.mktemp("home")
    model, task = copied_model(folder / "model"), task_file(folder / "task.jsonl")
    for name, settings in SEARCHES.items():
        call = [f"model={model}", f"task={task}", f"algorithm={name}", *settings, *QUICK, f"out={folder / name}"]
        assert main(["discover", *call]) == 0
    return folder


@pytest.fixture
def world(home, tmp_path):
    """The same in a folder of its own: runs are told where their model and task are now."""
    folder = tmp_path / "world"
    shutil.copytree(home, folder)
    for name in SEARCHES:
        edit_json(folder / name / "config.json", ("model", "name"), str(folder / "model"))
        edit_json(folder / name / "config.json", ("task", "path"), str(folder / "task.jsonl"))
    return folder


def change(world, run, what):
    """Change one thing; returns what must be said of it."""
    config = world / run / "config.json"
    if what == "weights":
        change_weights(world / "model")
        return "other weights of the model"
    if what == "train examples":
        task_file(world / "task.jsonl", seed=5)
        return "other train examples"
    if what == "held-out examples":
        task_file(world / "task.jsonl", heldout_seed=5)
        return "other held-out examples"
    if what == "ablation":
        edit_json(config, ("ablation", "kind"), "zero")
        return 'another ablation.kind ("resample", now "zero")'
    if what == "seed":
        edit_json(config, ("seed",), 3)
        return "another seed (0, now 3)"
    name = "threshold" if "threshold" in json.loads(config.read_text())["algorithm"] else "edges"
    old = json.loads(config.read_text())["algorithm"][name]
    edit_json(config, ("algorithm", name), 0.5 if name == "threshold" else 9)
    return f"another algorithm.{name} ({old}, now {0.5 if name == 'threshold' else 9})"


# --- a search that was killed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["weights", "train examples", "ablation", "seed", "a setting"])
@pytest.mark.parametrize("algorithm", SEARCHES)
def test_a_killed_search_goes_on_with_what_it_was_begun_with_alone(algorithm, what, world, said):
    run = world / algorithm
    whole, journal = (run / "circuit.json").read_bytes(), (run / "journal.jsonl").read_text()
    cut_back(run, share=1 if algorithm == "soft_topk" else 0.5)  # of a mask's training the last state alone is kept
    kept = {path.name: path.read_bytes() for path in (world / "model").iterdir()}
    task, config = (world / "task.jsonl").read_bytes(), (run / "config.json").read_bytes()
    says = change(world, algorithm, what)
    status, err = said("resume", run)
    assert status == 2
    assert f"was begun with {says}" in err, err
    assert len(err) < 500
    assert not (run / "circuit.json").exists()
    for name, data in kept.items():  # given back
        (world / "model" / name).write_bytes(data)
    (world / "task.jsonl").write_bytes(task)
    (run / "config.json").write_bytes(config)
    status, words = said("resume", run)
    assert status == 0, words
    assert (run / "journal.jsonl").read_text() == journal
    assert edges(run / "circuit.json") == json.loads(whole)["edges"]


def edges(path):
    return json.loads(path.read_text())["edges"]


def test_a_journal_of_another_version_is_refused(world, said):
    run = world / "acdc"
    cut_back(run)
    lines = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    first = json.loads(lines[0])
    first["identity"]["version"] = "0.0.1"
    (run / "journal.jsonl").write_text("".join([json.dumps(first) + "\n", *lines[1:]]))
    status, err = said("resume", run)
    assert status == 2
    assert f"another version of circuitdisc (0.0.1, now {cd.__version__}): go on with circuitdisc 0.0.1, or begin again" in err


def test_a_journal_that_does_not_say_what_it_belongs_to_is_refused(world, said):
    run = world / "acdc"
    cut_back(run)
    lines = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    (run / "journal.jsonl").write_text("".join(lines[1:]))
    status, err = said("resume", run)
    assert status == 2
    assert "does not say which weights, examples and settings" in err


def test_a_journal_killed_before_its_first_mark_begins_again(world, said):
    """Nothing of it is taken over, so that it need not be the same."""
    run = world / "acdc"
    cut_back(run)
    (run / "journal.jsonl").write_text((run / "journal.jsonl").read_text().splitlines(keepends=True)[0])
    change_weights(world / "model")
    status, words = said("resume", run)
    assert status == 0, words


def test_journals_in_a_notebook_are_bound_too(tmp_path, open_journal):
    model = model_of("gpt2")
    task, other = random_task(model), random_task(model, seed=1)
    call = {"ablation": "resample", "allow_chance": True, "threshold": 0.01}
    whole = cd.discover(model, task, "acdc", journal=open_journal(tmp_path / "journal"), **call)
    assert whole.circuit.provenance.identity["weights"]
    again = cd.discover(model, task, "acdc", journal=open_journal(tmp_path / "journal"), **call)
    assert again.circuit == whole.circuit
    for wrong in ((changed(model), task), (model, other)):
        with pytest.raises(BadRun, match=r"was begun with other (weights|train examples)"):
            cd.discover(*wrong, "acdc", journal=open_journal(tmp_path / "journal"), **call)


def test_a_masks_state_of_another_search_is_refused(world, said):
    run = world / "soft_topk"
    cut_back(run)
    (state,) = run.glob("mask_state_*.safetensors")
    step = max(line["step"] for line in Journal.read(run / "journal.jsonl").decisions)
    state.rename(run / f"mask_state_{step}.safetensors")
    status, err = said("resume", run)
    assert status == 2
    assert f"is not the state of step {step} of this search (mask_state_{step}.safetensors has other bytes" in err


# --- a finished run -------------------------------------------------------------------------------------------------------

REUSE = {
    "resume": ["resume", "{run}"],
    "score": ["score", "{run}"],
    "score --all": ["score", "{run}", "--all"],
    "stability": ["stability", "{run}", "n_samples=2", "progress=false"],
    "certify": ["certify", "{run}", "n=2", "progress=false"],
    "compare": ["compare", "{run}", "{other}", "n_random=1", "progress=false", "out={out}"],
    "compare, the other way round": ["compare", "{other}", "{run}", "n_random=1", "progress=false", "out={out}"],
    "score with other settings": ["score", "{run}", "scoring.n_random=1"],
}


@pytest.mark.parametrize("what", ["weights", "train examples", "held-out examples", "ablation"])
@pytest.mark.parametrize("command", REUSE)
def test_whatever_reuses_a_run_refuses_what_has_changed(command, what, world, said, tmp_path):
    run, others = world / "exact", tmp_path / "others"
    shutil.copytree(world, others)
    says = change(world, "exact", what)
    before = contents(run)
    names = {"run": run, "other": others / "bisect", "out": tmp_path / "out"}
    if what == "held-out examples" and command in ("score --all", "stability", "certify", "score with other settings"):
        return  # nothing of the earlier held-out examples is reused or lost
    edit_json(others / "bisect" / "config.json", ("model", "name"), str(others / "model"))
    edit_json(others / "bisect" / "config.json", ("task", "path"), str(others / "task.jsonl"))
    status, err = said(*(word.format(**names) for word in REUSE[command]))
    if what == "ablation" and command.startswith("compare"):
        assert "different ablations" in err
    else:
        assert says in err, err
    assert status == 2
    assert len(err) < 500
    assert contents(run) == before
    assert not (tmp_path / "out").exists()


def test_other_weights_that_are_asked_for_are_scored_and_not_saved(world, said):
    run = world / "exact"
    change_weights(world / "model")
    before = contents(run)
    assert said("score", run, f"model={world / 'model'}", "scoring.n_random=1")[0] == 0
    assert said("score", run, "task.n_heldout=4", f"model={world / 'model'}")[0] == 0
    assert contents(run) == before


def test_the_same_weights_in_another_folder_are_the_same_model(world, said):
    run = world / "exact"
    (world / "model").rename(world / "moved")
    edit_json(run / "config.json", ("model", "name"), str(world / "moved"))
    assert said("score", run)[0] == 0


def test_scores_of_another_circuit_do_not_go_onto_the_page(world, said):
    run = world / "exact"
    shutil.copy(world / "bisect" / "scores.json", run / "scores.json")
    before = contents(run)
    for command in (["report", run], ["resume", run]):
        status, err = said(*command)
        assert status == 2
        assert "another circuit" in err, err
        assert contents(run) == before
    assert said("score", run)[0] == 0  # scored again, they are its own
    assert said("report", run)[0] == 0


def test_edge_scores_of_another_search_are_not_exported(world, said, tmp_path):
    change_weights(world / "model")
    call = [f"model={world / 'model'}", f"task={world / 'task.jsonl'}", "algorithm=exact", "algorithm.edges=8", *QUICK]
    assert said("discover", *call, f"out={world / 'again'}")[0] == 0
    shutil.copy(world / "again" / "edge_scores.npz", world / "exact" / "edge_scores.npz")
    for command in (["export", world / "exact", tmp_path / "graph.json"], ["report", world / "exact"]):
        status, err = said(*command)
        assert status == 2
        assert "belongs to another search" in err
    assert not (tmp_path / "graph.json").exists()
    assert said("export", world / "again", tmp_path / "graph.json")[0] == 0


def test_a_run_of_an_older_version_opens_with_notes(world, tmp_path):
    """Without identities, and begun by another version: harmless commands work, and say what is not known."""
    run = world / "exact"
    edit_json(run / "config.json", ("versions", "circuitdisc"), "0.0.1")
    edit_json(run / "circuit.json", ("provenance",), {**provenance(run), "identity": {}})
    for commands, says in (
        ([["report", run], ["export", run, tmp_path / "graph.json"]], "is a run of circuitdisc 0.0.1"),
        ([["score", run], ["resume", run]], "does not say which weights and examples it was found with"),
    ):
        for command in commands:
            with pytest.warns(CircuitdiscWarning, match=says):
                assert main([str(word) for word in command]) == 0


def test_a_finished_run_of_the_version_before_is_used_and_a_killed_one_is_not_gone_on_with(world, said, tmp_path):
    """The files are the same but for the version that they name: they are read and scored again; decisions are not mixed."""
    run = world / "exact"
    scores = (run / "scores.json").read_text()
    for path in (path for path in run.iterdir() if path.suffix in (".json", ".jsonl")):
        path.write_text(path.read_text().replace(f'"{cd.__version__}"', '"0.1.0"'))
    (run / "edge_scores.npz").unlink()  # bound to the identity, which names the version, too
    with pytest.warns(CircuitdiscWarning, match=f"is a run of circuitdisc 0.1.0, and this is {cd.__version__}"):
        assert {main(words) for words in (["score", str(run), "--all"], ["score", str(run)])} == {0}
    assert (run / "scores.json").read_text() == scores
    cut_back(run)
    before = contents(run)
    with pytest.warns(CircuitdiscWarning, match=f"is a run of circuitdisc 0.1.0, and this is {cd.__version__}"):
        status, err = said("resume", run)
    assert status == 2
    assert f"another version of circuitdisc (0.1.0, now {cd.__version__}): go on with circuitdisc 0.1.0, or begin again" in err
    assert contents(run) == {**before, "journal.jsonl": contents(run)["journal.jsonl"]}


def provenance(run):
    return json.loads((run / "circuit.json").read_text())["provenance"]


def test_a_run_of_this_version_opens_without_a_note(world):
    with warnings.catch_warnings():
        warnings.simplefilter("error", CircuitdiscWarning)
        assert resume(world / "exact", progress=False).circuit == Circuit.load(world / "exact" / "circuit.json")
        compare_runs(world / "exact", world / "bisect", out=world / "c", interventions="none", progress=False)


# --- names ----------------------------------------------------------------------------------------------------------------


def test_a_run_is_scored_from_any_folder(tmp_path, said, monkeypatch):
    (tmp_path / "here" / "models").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    copied_model(tmp_path / "here" / "models" / "toy")
    task_file(tmp_path / "here" / "task.jsonl")
    call = ["model=models/toy", "task=task.jsonl", "algorithm=eap", "algorithm.edges=8", *QUICK, "out=run"]
    assert said("discover", *call)[0] == 0
    scores = json.dumps([float(n) for n in range(3)])
    (tmp_path / "here" / "scores.json").write_text(scores)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert said("score", "../here/run") == (0, "")
    assert said("stability", "../here/run", "n_samples=2", "progress=false")[0] == 0
    config = json.loads((tmp_path / "here" / "run" / "config.json").read_text())
    assert config["model"]["name"] == str(tmp_path / "here" / "models" / "toy")
    assert config["task"]["path"] == str(tmp_path / "here" / "task.jsonl")
    assert re.search("model=models/toy", config["command"])
