"""`transfer`: every cell is what `score` gives, a killed call goes on to the same numbers, each slip is a sentence."""

import gc
import json
import re
import shutil
import weakref
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from examples import unchecked
from made_pages import Page

import circuitdisc as cd
from circuitdisc.checkpoints.transfer import transfer as module
from circuitdisc.checkpoints.transfer.cells import Judge
from circuitdisc.checkpoints.transfer.ladder import ladder
from circuitdisc.checkpoints.transfer.transfer import resume_transfer, transfer
from circuitdisc.circuit import Circuit
from circuitdisc.cli import main
from circuitdisc.controls import random_circuits
from circuitdisc.errors import BadFile, BadModel, BadRun, BadSetting, GraphMismatch, MetricAtChance, UnknownName
from circuitdisc.graph import ComputationGraph
from circuitdisc.pages.transfer import headlines, transfer_text
from circuitdisc.pages.transfer_figures import classes_of, curves_figure, ladder_figure, matrix_figure
from circuitdisc.wording import percent

BASE, LIGHT, WELTER = LADDER = ["tpp/base", "tpp/lightweight", "tpp/welterweight"]
TASK = {"name": "tpp", "n": 10, "n_heldout": 12}
DONOR = f"donor {LIGHT} -> {WELTER}"
CALL = {"algorithm": "head_ablation", "metric": "accuracy", "threshold": 0.1, "joint": True, "donor": [f"{LIGHT}:{WELTER}"],
        "n_random": 2}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    """Intervals as narrow as they need be here: the same few resamples for `transfer` and for `score`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("circuitdisc.stats.RESAMPLES", 40)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished transfer with all kinds of rows, and its folder."""
    folder = tmp_path_factory.mktemp("transfer") / "done"
    return transfer(LADDER, TASK, out=folder, **CALL), folder


def command(capsys, *args):
    """Exit status, stdout and stderr of one command."""
    capsys.readouterr()
    status = main(["transfer", *map(str, args)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def files(folder):
    """Everything that a transfer leaves, but for the order in which its parts were finished."""
    kept = (path for path in sorted(folder.rglob("*.json*")) if path != folder / "journal.jsonl")
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


# --- the matrix -----------------------------------------------------------------------------------------------------------


def test_each_cell_is_what_score_gives(finished):
    found, _ = finished
    model = cd.load_model(WELTER)
    task = cd.load_task("tpp", model, n=10, n_heldout=12)
    for one in found.circuits:
        for metric in ("accuracy", "logit_diff"):
            scores = cd.score(model, task, one.circuit, ablation="mean", metric=metric, n_random=2)
            for split in ("train", "heldout"):
                for name in ("faithfulness", "accuracy", "kl", "difference"):
                    assert found.get(
                        one.label, WELTER, name, split, metric if name in ("faithfulness", "difference") else None
                    ) == (scores.get(name, split))
                if metric == "logit_diff":
                    mean = found.get(one.label, WELTER, "logit_diff", split)
                    assert mean.value == pytest.approx(scores.means[split]["circuit"])
                    assert mean.low <= mean.value <= mean.high
                    assert len(mean.controls) == len(random_circuits(one.circuit, 2, np.random.default_rng(0)))


def test_rows_are_what_their_searches_give(finished):
    found, _ = finished
    assert found.labels == (*LADDER, "joint", DONOR)
    assert found.checkpoints == tuple(LADDER)
    model = cd.load_model(LIGHT)
    task = cd.load_task("tpp", model, n=10, n_heldout=12)
    alone = cd.discover(model, task, "head_ablation", ablation="mean", metric="accuracy", threshold=0.1)
    own = {one.label: one for one in found.circuits}
    assert own[LIGHT].circuit == alone.circuit
    assert own[LIGHT].circuit.provenance.model == LIGHT
    assert own["joint"].found_on == (LIGHT, WELTER)
    assert BASE in own["joint"].note
    assert own[LIGHT].circuit <= own[DONOR].circuit


def test_the_base_is_noted_not_refused(finished):
    found, _ = finished
    assert set(found.notes) == {BASE}
    assert "does not do the task" in found.notes[BASE]
    undefined = found.get(LIGHT, BASE, "faithfulness", metric="accuracy")
    assert undefined.value is None
    assert undefined.note
    assert found.ladder.labels == (LIGHT, WELTER)
    assert BASE not in {found.best_for(name).label for name in (LIGHT, WELTER)}
    assert any("leaves out tpp/base" in line for line in transfer_text(found).splitlines())


def test_arrays_and_tables_hold_the_cells(finished):
    found, folder = finished
    arrays = found.arrays()
    stored = dict(np.load(folder / "arrays.npz", allow_pickle=False))
    assert arrays.keys() == stored.keys()
    assert arrays["accuracy_heldout"].shape == (5, 3)
    assert arrays["faithfulness_logit_diff_train_random"].shape == (5, 3, 2)
    for row, label in enumerate(found.labels):
        for column, name in enumerate(LADDER):
            score = found.get(label, name, "kl", "train")
            assert arrays["kl_train"][row, column] == score.value
            assert arrays["kl_train_low"][row, column] == score.low
    lines = found.table("accuracy")
    assert len(lines) == 15
    assert lines[4]["value"] == found.get(LIGHT, LIGHT).value
    assert {line["n"] for line in lines} == {12}
    assert {(line["ablation"], line["metric"]) for line in lines} == {("mean (per group and position)", "accuracy")}
    best = max(
        (one for one in found.circuits if one.label != BASE), key=lambda one: found.get(one.label, LIGHT, split="train").value
    )
    assert (
        found.get(found.best_for(LIGHT).label, LIGHT, split="train").value == found.get(best.label, LIGHT, split="train").value
    )
    with pytest.raises(KeyError, match="no cell"):
        found.get("elsewhere", LIGHT)


# --- killed and resumed ---------------------------------------------------------------------------------------------------


def test_only_missing_cells_run_again_to_the_same_numbers(finished, tmp_path, monkeypatch):
    found, done = finished
    folder = tmp_path / "killed"
    shutil.copytree(done, folder)
    gone = ["cells/01-tpp-lightweight.02-tpp-welterweight.json", "cells/03-joint.02-tpp-welterweight.json"]
    for name in (*gone, "transfer.json", "arrays.npz"):
        (folder / name).unlink()
    runs, loads = [], []
    own_score, own_load = Judge.score, module.load
    monkeypatch.setattr(
        Judge, "score", lambda self, circuit, *more: runs.append(self.model.name) or own_score(self, circuit, *more)
    )
    monkeypatch.setattr(module, "load", lambda name, **settings: loads.append(name) or own_load(name, **settings))
    monkeypatch.setattr(module, "discover", None)  # no search runs again
    again = transfer(LADDER, TASK, out=folder, **CALL)
    assert runs == [WELTER, WELTER]
    assert sorted(loads) == LADDER, "each once, to see that it is what the finished parts belong to"
    assert again.to_dict() == found.to_dict()
    assert files(folder) == files(done)
    assert resume_transfer(folder).to_dict() == found.to_dict()
    assert runs == [WELTER, WELTER]


def test_a_call_killed_in_the_middle_of_a_search_goes_on(finished, tmp_path):
    found, done = finished
    folder = tmp_path / "killed"
    shutil.copytree(done, folder)
    (folder / "circuits/02-tpp-welterweight.json").unlink()
    journal = folder / "circuits/02-tpp-welterweight.journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:20]) + '{"head": "a2')
    for path in [*folder.glob("cells/02*"), *folder.glob("circuits/donor*"), *folder.glob("cells/04*.02*")]:
        path.unlink()
    assert resume_transfer(folder).to_dict() == found.to_dict()
    assert files(folder) == files(done)


def test_one_checkpoint_is_in_memory_at_a_time(monkeypatch):
    alive, most = [], []
    own_load = module.load

    def counting_load(name, **settings):
        gc.collect()
        most.append(sum(one() is not None for one in alive))
        model = own_load(name, **settings)
        alive.append(weakref.ref(model.module))
        return model

    monkeypatch.setattr(module, "load", counting_load)
    task = {"name": "tpp", "n": 4, "n_heldout": 4}
    transfer([LIGHT, WELTER], task, "eap", ablation="resample", n_random=0, edges=30, donor=())
    assert most == [0] * 4  # a search and a column for each


@pytest.mark.parametrize("finished_cells", ["all", "some"])
@pytest.mark.parametrize(
    ("part", "what", "says"),
    [
        ("weights", "weights of the model", "other weights of the model"),
        ("examples", "train examples", "other train examples"),
        ("examples", "held-out examples", "other held-out examples"),
        ("version", None, "another version of circuitdisc"),
    ],
)
def test_what_has_changed_is_not_mixed_with_finished_cells(finished, tmp_path, part, what, says, finished_cells):
    _, done = finished
    folder = tmp_path / "changed"
    shutil.copytree(done, folder)
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    (data,) = [line for line in lines if line.get("mark") == LIGHT and "identity" in line]
    if what is None:
        data["identity"][part] = "0.0.1"
    else:
        data["identity"][part][what] = "0" * 32
    (folder / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished_cells == "some":
        (folder / "cells/00-tpp-base.01-tpp-lightweight.json").unlink()
    with pytest.raises(BadRun, match=rf"begun with {says}.*tpp/lightweight"):
        resume_transfer(folder)


def test_a_folder_of_another_call_is_left_alone(finished, tmp_path):
    _, done = finished
    before = files(done)
    with pytest.raises(BadRun, match=r"was begun with another seed \(0, now 1\)"):
        transfer(LADDER, TASK, out=done, seed=1, **CALL)
    with pytest.raises(BadRun, match=r"another algorithm_settings\.threshold \(0\.1, now 0\.2\)"):
        transfer(LADDER, TASK, out=done, **unchecked({**CALL, "threshold": 0.2}))
    assert files(done) == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadRun, match="not empty"):
        transfer(LADDER, TASK, out=tmp_path, **CALL)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BadRun, match="something else than a transfer"):
        transfer(LADDER, TASK, out=tmp_path, **CALL)
    with pytest.raises(BadRun, match="not the folder of a transfer"):
        resume_transfer(tmp_path / "nowhere")


# --- given circuits -------------------------------------------------------------------------------------------------------


def test_given_circuits_are_scored_as_they_are(finished, tmp_path):
    found, _ = finished
    own = {one.label: one.circuit for one in found.circuits}
    (tmp_path / "run").mkdir()
    own[LIGHT].save(tmp_path / "run" / "circuit.json")
    own[WELTER].save(tmp_path / "heavy.json")
    again = transfer(
        [LIGHT, WELTER],
        TASK,
        circuits=[tmp_path / "run", tmp_path / "heavy.json"],
        metric="accuracy",
        n_random=2,
        out=tmp_path / "o",
    )
    assert again.labels == ("run", "heavy")
    assert {one.kind for one in again.circuits} == {"given"}
    for label, name in (("run", LIGHT), ("heavy", WELTER)):
        for column in (LIGHT, WELTER):
            assert again.cells[label, column] == found.cells[name, column]
    assert resume_transfer(tmp_path / "o").to_dict() == again.to_dict()
    zero = transfer([LIGHT, WELTER], TASK, circuits={"mine": own[LIGHT]}, ablation="zero", n_random=0)
    assert zero.circuits[0].note == "found under another ablation: mean (per group and position)"
    assert zero.get("mine", LIGHT).ablation == "zero"


def test_circuits_that_do_not_fit_are_refused_before_anything_runs(finished, tmp_path):
    found, _ = finished
    other = Circuit.full(ComputationGraph(n_layers=1, n_heads=2, has_mlp=True))
    out = tmp_path / "out"
    with pytest.raises(GraphMismatch, match="a given circuit belongs to"):
        transfer([LIGHT, WELTER], TASK, circuits={"small": other}, out=out)
    with pytest.raises(GraphMismatch, match="different architectures"):
        transfer([LIGHT, WELTER], TASK, circuits={"small": other, "own": found.circuits[0].circuit}, out=out)
    with pytest.raises(BadFile, match=r"no circuit at .*missing\.json"):
        transfer([LIGHT, WELTER], TASK, circuits=[tmp_path / "missing.json"], out=out)
    with pytest.raises(BadSetting, match="leave out circuits="):
        transfer([LIGHT, WELTER], TASK, "head_ablation", circuits={"own": found.circuits[0].circuit}, donor="all", out=out)
    assert not out.exists()


# --- slips ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"checkpoints": [LIGHT]}, BadSetting, "at least 2 checkpoints"),
        ({"checkpoints": [LIGHT, "tpp/welterwight"]}, UnknownName, "Did you mean tpp/welterweight"),
        ({"checkpoints": [LIGHT, "multitask/base"]}, BadModel, "differ"),
        ({"algorithm": "acdcc"}, UnknownName, "Did you mean acdc"),
        ({"treshold": 0.1}, UnknownName, "Did you mean threshold"),
        ({"joint": True, "algorithm": "eap"}, BadSetting, "'eap' cannot search"),
        ({"joint": [LIGHT]}, BadSetting, "at least two different"),
        ({"joint": True, "memory": "1MB"}, BadSetting, "holds all 2 checkpoints at once"),
        ({"donor": ["tpp/lightweight"]}, BadSetting, "write A:B"),
        ({"donor": [f"{LIGHT}:tpp/featherweight"]}, UnknownName, "checkpoint in donor"),
        ({"donor": [f"{LIGHT}:{LIGHT}"]}, BadSetting, "names one checkpoint twice"),
        ({"n_random": -1}, BadSetting, "n_random"),
        ({"confidence": 2}, BadSetting, "confidence"),
        ({"metric": "acuracy"}, UnknownName, "Did you mean accuracy"),
        ({"ablation": "means"}, UnknownName, "Did you mean mean"),
        ({"task": {"name": "tppp"}}, UnknownName, "Did you mean tpp"),
        ({"checkpoints": [BASE, LIGHT], "allow_chance": False}, MetricAtChance, "tpp/base does not do task"),
        ({"checkpoints": [BASE, LIGHT], "allow_chance": [LIGHT]}, MetricAtChance, "tpp/base does not do task"),
    ],
)
def test_slips_get_a_sentence_and_leave_nothing(change, error, sentence, tmp_path):
    call = {"checkpoints": [LIGHT, WELTER], "task": TASK, "algorithm": "acdc", **change}
    with pytest.raises(error, match=sentence):
        transfer(**call, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- the ladder -----------------------------------------------------------------------------------------------------------


def test_what_is_kept_gained_and_lost():
    graph = ComputationGraph(n_layers=2, n_heads=2, has_mlp=False)
    edges = (
        ["input->logits", "a0.h0->logits"],
        ["input->logits", "a0.h1->logits"],
        ["input->logits", "a0.h0->logits", "a0.h1->logits"],
    )
    circuits = {label: Circuit.from_edges(graph, names) for label, names in zip("abc", edges, strict=True)}
    found = ladder(circuits)
    assert found.kept_by_all == {"heads": (), "edges": ("input->logits",)}
    steps = {(step.before, step.after, step.kind): step for step in found.steps}
    assert steps["a", "b", "heads"].gained == ("a0.h1",)
    assert steps["a", "b", "heads"].lost == ("a0.h0",)
    assert steps["b", "c", "edges"].gained == ("a0.h0->logits",)
    assert steps["b", "c", "edges"].kept == ("input->logits", "a0.h1->logits")
    assert found.pair("c", "a").overlaps["edges"] == cd.overlap(circuits["a"], circuits["c"])["edges"]
    along = ladder(circuits, ["b", "c"])
    assert along.labels == ("b", "c")
    assert len(along.pairs) == 3
    assert along.kept_by_all["heads"] == ("a0.h1",)


def test_head_circuits_are_followed_by_their_heads_alone(finished):
    found, _ = finished
    assert {step.kind for step in found.ladder.steps} == {"heads"}
    own = {one.label: set(one.circuit.heads()) for one in found.circuits}
    (step,) = found.ladder.steps
    assert set(step.gained) == own[WELTER] - own[LIGHT]
    assert set(step.lost) == own[LIGHT] - own[WELTER]


# --- pictures and the page ------------------------------------------------------------------------------------------------


def test_the_heat_map_shows_every_cell_once_a_score(finished):
    found, _ = finished
    figure: Any = matrix_figure(found)
    maps: list[Any] = [trace for trace in figure.data if isinstance(trace, go.Heatmap)]
    assert [trace.visible for trace in maps] == [True] + [False] * (len(maps) - 1)
    np.testing.assert_array_equal(np.array(maps[0].z, float), found.values("accuracy"))
    assert "12 held-out examples" in maps[0].hovertext[1][1]
    assert "mean (per group and position)" in maps[0].hovertext[1][1]
    assert len(figure.layout.updatemenus[0].buttons) == len(maps)


def test_circuits_are_drawn_as_curves_along_the_checkpoints(finished):
    found, _ = finished
    figure: Any = curves_figure(found)
    full, *lines = figure.data
    assert (full.name, len(lines)) == ("the full model", len(found.labels))
    np.testing.assert_array_equal(np.array([line.y for line in lines], float), found.values("accuracy"))
    high = [[found.get(label, name, "accuracy").high for name in found.checkpoints] for label in found.labels]
    np.testing.assert_allclose([np.array(line.y, float) + line.error_y.array for line in lines], high)


def test_the_ladder_is_drawn_on_one_layout(finished):
    found, _ = finished
    circuits = [one.circuit for one in found.circuits if one.label in found.ladder.labels]
    for is_grid in (True, False):
        drawn = classes_of(circuits, circuits[1], circuits[0], is_grid)
        assert not (drawn["gained"] & drawn["lost"]).any()
        now = drawn["all"] | drawn["as before"] | drawn["gained"]
        assert int(now.sum()) == (len(circuits[1].heads()) if is_grid else circuits[1].n_edges)
    figure: Any = ladder_figure(found)
    places = [
        sorted((float(x), float(y)) for trace in figure.data if trace.xaxis == axis and None not in trace.x
               for x, y in zip(trace.x, trace.y, strict=True))
        for axis in ("x", "x2")
    ]  # fmt: skip
    assert places[0] == places[1]
    assert len(places[0]) == 32


def test_the_command_writes_the_page_and_goes_on(tmp_path, capsys):
    out = tmp_path / "out"
    args = [f"checkpoints=[{LIGHT},{WELTER}]", "task=tpp", "task.n=6", "task.n_heldout=8", "algorithm=eap",
            "algorithm.edges=40", "ablation=resample", "n_random=1", "progress=false", f"out={out}"]  # fmt: skip
    status, text, _ = command(capsys, *args)
    assert status == 0
    assert "accuracy on 8 held-out examples, ablation resample" in text
    page = Page((out / "transfer.html").read_text(encoding="utf-8"))
    assert "each on every checkpoint" in page.text
    value = json.loads((out / "transfer.json").read_text())["cells"][0]["scores"][0]
    assert {"name", "split", "ablation", "metric", "n", "value", "low", "high", "controls"} <= value.keys()
    (out / "transfer.html").unlink()
    assert command(capsys, *args)[1] == text
    capsys.readouterr()
    assert main(["resume", str(out)]) == 0
    assert capsys.readouterr().out == text
    status, again, _ = command(capsys, f"out={out}", "progress=false")
    assert (status, again) == (0, text)
    assert (out / "transfer.html").is_file()
    status, _, error = command(capsys, *args, "seed=3")
    assert status == 2
    assert "with another seed (0, now 3)" in error


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ([], "which checkpoints"),
        (["out=nowhere"], "not the folder of a transfer"),
        (["out=nowhere", "seed=2"], "which checkpoints"),
        ([f"model={LIGHT}"], r"name them in checkpoints=\[\.\.\.\]"),
        (["chekpoints=[a]"], "Did you mean checkpoints"),
    ],
)
def test_slips_at_the_command_line(args, sentence, capsys):
    status, _, error = command(capsys, *args)
    assert status == 2
    assert re.search(sentence, error), error
    assert "Traceback" not in error


def test_help_lists_the_settings(capsys):
    status, text, _ = command(capsys, "--help")
    assert status == 0
    assert "joint=false" in text
    assert "algorithm=NAME" in text


def test_headlines_name_the_circuit_that_the_search_examples_choose(finished):
    found, _ = finished
    lines = headlines(found)
    assert len(lines) == 2
    best = found.best_for(WELTER)
    score = found.get(best.label, WELTER)
    assert f"accuracy on 12 held-out examples {percent(score.value)}" in lines[1]
