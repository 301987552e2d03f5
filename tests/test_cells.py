"""Cells: logs and locks, every combination of a command's values, one table of all, a real Slurm."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cell_logs import counts
from changed import edit_json
from packages import VERSION, install

from circuitdisc.cli import main
from circuitdisc.errors import BadFile, BadRun
from circuitdisc.jobs import multirun
from circuitdisc.jobs.collect import rows_of, table_csv, write_parquet
from circuitdisc.jobs.multirun import _stamp, run_cells
from circuitdisc.jobs.spelling import in_quotes
from circuitdisc.runs import Cells, CellState

QUICK = ["task.n=8", "task.n_heldout=8", "scoring.n_random=2", "threads=1", "progress=false"]
SEARCH = ["model=tpp/lightweight", "task=tpp", "algorithm=random", *QUICK]


def read_csv(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "summary.csv").read_text().splitlines()))


# --- logs and locks -------------------------------------------------------------------------------------------------------


def test_a_log_says_what_became_of_a_cell(tmp_path):
    cells = Cells(tmp_path)
    cells.enter("command", {"0": ["discover", "seed=0"], "a b": []})
    assert [state.status for state in cells.states()] == ["waiting", "waiting"]
    with cells.claim("0") as state:
        assert state is not None
        cells.begin("0")
        assert cells.state("0").status == "running"
    assert cells.state("0").status == "waiting", "its process has let go of it"
    with (cells.place("0") / "log.jsonl").open("a") as file:
        file.write('{"event": "do')  # as a kill leaves it
    with cells.claim("0"):
        cells.begin("0")
        cells.fail("0", BadRun("a sentence"))
        assert (cells.state("0").status, cells.state("0").error) == ("failed", "a sentence")
        cells.begin("0")
        cells.finish("0", 1.5, stamp="x")
    state = cells.state("0")
    assert (state.status, state.begun, state.finished, state.seconds, state.stamp) == ("done", 3, 1, 1.5, "x")
    assert str(os.getpid()) in state.holder
    assert len({cells.place(name) for name in ("a b", "a-b", "a/b", "0")}) == 4


def test_a_cell_that_another_process_runs_is_left_to_it(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from circuitdisc.runs import Cells; cells = Cells(Path(sys.argv[1]))\n"
        "with cells.claim('0'):\n    cells.begin('0'); print('mine', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "mine\n"
        cells = Cells(tmp_path)
        with cells.claim("0") as state:
            assert state is None
        assert cells.state("0").status == "running"
        assert f"process {other.pid}" in cells.state("0").holder
    finally:
        other.kill()
        other.communicate()
    assert cells.state("0").status == "waiting", "the process is gone"
    with cells.claim("0") as state:
        assert state is not None
        assert state.begun == 1


def test_status_says_who_writes_and_what_goes_on(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["discover", *SEARCH, f"out={run}"]) == 0

    def status():
        capsys.readouterr()
        assert main(["status", str(run)]) == 0
        return capsys.readouterr().out

    assert status() == f"{run} is finished, and nobody writes in it\n"
    code = (
        "import sys, time; from pathlib import Path; from circuitdisc.runs import writing\n"
        "with writing(Path(sys.argv[1])):\n    print('mine', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(run)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "mine\n"
        assert f"is being written by process {other.pid}" in status()
    finally:
        other.kill()
        other.communicate()
    assert status().splitlines()[0].startswith(f"{run} was being written by process {other.pid}")
    assert "goes on" not in status()
    (run / "scores.json").unlink()
    assert f"`circuitdisc resume {run}` goes on" in status()


def test_a_job_that_slurm_does_not_have_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    cells = Cells(tmp_path)
    with cells.claim("0"):
        cells.begin("0")
        assert cells.state("0", queue=frozenset({"7_3"})).status == "running"
        assert cells.state("0", queue=frozenset({"7_4"})).status == "waiting"
        assert cells.state("0").job == "7_3"


def test_a_failure_that_nobody_foresaw_is_a_row(tmp_path, monkeypatch):
    def fail(out, words, before):
        raise RuntimeError("of another\npackage")

    folder = tmp_path / "many"
    Cells(folder).enter("x", {"0": ["discover"], "1": ["discover"]})
    monkeypatch.setattr(multirun, "_call", fail)
    run_cells(folder, ["0", "1"])
    assert [state.error for state in Cells(folder).states()] == ["RuntimeError: of another package"] * 2


@pytest.mark.parametrize("name", ["../mine", "/tmp/mine", "", "00", "²"])
def test_a_name_in_a_strangers_list_is_no_path(name, tmp_path, capsys):
    mine, folder = tmp_path / "mine", tmp_path / "many"
    for place in (mine, folder / "cells"):
        place.mkdir(parents=True)
    (mine / "notes").write_text("of a person")
    cells = {"format": "circuitdisc.cells", "command": "x", "cells": {name: ["discover", "seed=0"], "a unit": []}}
    (folder / "cells" / "list.json").write_text(json.dumps(cells))
    for command in (["status"], ["collect"], ["runs"], ["discover", "-m", *SEARCH, "seed=0"]):
        assert main([*command, str(folder)] if len(command) == 1 else [*command, f"out={folder}"]) == 2
        assert f"names a cell {name!r}" in capsys.readouterr().err
    with pytest.raises(BadFile, match="names a cell"):
        run_cells(folder, [name])
    assert (mine / "notes").read_text() == "of a person"


def test_a_folder_that_no_cell_has_made_is_left(tmp_path, capsys):
    folder = tmp_path / "data"
    (folder / "0").mkdir(parents=True)
    (folder / "0" / "notes").write_text("of a person")
    assert main(["discover", "-m", *SEARCH, f"out={folder}"]) == 2
    assert "already exists" in (folder / "0.error").read_text()
    assert (folder / "0" / "notes").read_text() == "of a person"


# --- every combination ------------------------------------------------------------------------------------------------------


def test_a_second_call_runs_nothing_twice_and_more_values_run_alone(tmp_path, capsys):
    folder = tmp_path / "many"
    assert main(["discover", "-m", *SEARCH, "seed=0,1", f"out={folder}"]) == 0
    table = read_csv(folder)
    assert [(row["folder"], row["seed"], row["status"]) for row in table] == [("0", "0", "done"), ("1", "1", "done")]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "list.json"}
    assert main(["discover", "-m", *SEARCH, "seed=2,1,0", f"out={folder}", "memory=1GiB"]) == 0
    assert "2 of 3 cells" in capsys.readouterr().err
    assert counts(folder) == {"0": (1, 1), "1": (1, 1), "2": (1, 1)}
    assert all(path.read_bytes() == data for path, data in before.items() if path.name != "summary.csv")
    assert json.loads((folder / "2" / "config.json").read_text())["seed"] == 2
    assert main(["status", str(folder)]) == 0
    assert "0 running, 0 failed, 0 waiting, 3 done" in capsys.readouterr().out


def test_other_weights_under_the_same_name_are_refused(tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    from circuitdisc.shipped import shipped_models

    model, folder = tmp_path / "model", tmp_path / "many"
    shutil.copytree(shipped_models()["tpp/lightweight"], model)
    command = ["discover", "-m", f"model={model}", *SEARCH[1:], "seed=0,1", f"out={folder}"]
    assert main(command) == 0
    weights = load_file(model / "model.safetensors")
    save_file(weights, model / "model.safetensors", {"format": "pt", "note": "x"})  # another file, the same weights
    assert main(command) == 0
    assert counts(folder) == {"0": (2, 2), "1": (2, 2)}, "they were compared"
    assert len((folder / "0" / "journal.jsonl").read_text().splitlines()) > 0
    key = next(name for name in weights if name.endswith("mlp.c_proj.weight"))
    weights[key] = weights[key] * 1.5
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    capsys.readouterr()
    assert main(command) == 2
    assert "other weights of the model" in capsys.readouterr().err
    assert [row["status"] for row in rows_of(folder)] == ["failed", "failed"]


@pytest.mark.parametrize("name", ["a b.jsonl", "c,d.jsonl", "it's.jsonl", 'a "b".jsonl', "plain.jsonl", "k=[v].jsonl"])
def test_an_edited_file_is_seen_whatever_its_name(name, tmp_path):
    path = tmp_path / name
    path.write_text("one")
    before = _stamp(words := ("discover", "task=file", f"task.path={in_quotes(str(path))}", "seed=0"))
    assert _stamp(words) == before
    path.write_text("two")
    assert _stamp(words) != before


def test_another_version_of_an_outside_package_is_seen(tmp_path, monkeypatch):
    install(monkeypatch, tmp_path / "lab", "circuitdisc.algorithms", {"own": "lab:own"}, "", "lab")
    words, other = ("discover", "algorithm=own", "seed=0"), ("discover", "algorithm=eap", "seed=0")
    before = _stamp(words), _stamp(other)
    meta = tmp_path / "lab" / f"lab-{VERSION}.dist-info" / "METADATA"
    meta.write_text(meta.read_text().replace(VERSION, "1.6"))
    monkeypatch.syspath_prepend(tmp_path)  # what Python looks through is another list now
    assert _stamp(words) != before[0]
    assert _stamp(other) == before[1]


def test_a_cell_whose_folder_is_gone_is_not_done(tmp_path):
    folder = tmp_path / "many"
    command = ["discover", "-m", *SEARCH, "seed=0,1", f"out={folder}"]
    assert main(command) == 0
    shutil.rmtree(folder / "1")
    assert main(command) == 0
    assert (folder / "1" / "scores.json").is_file()
    assert counts(folder) == {"0": (1, 1), "1": (2, 2)}
    (folder / "0" / "scores.json").unlink()
    assert main(command) == 0
    assert (folder / "0" / "scores.json").is_file()


def test_a_killed_cell_goes_on_and_a_failed_one_is_a_row(tmp_path, capsys):
    folder = tmp_path / "many"
    models = "model=tpp/base,tpp/lightweight"
    assert main(["discover", "-m", models, *SEARCH[1:], f"out={folder}"]) == 2
    assert "1 of the jobs failed (0)" in capsys.readouterr().err
    failed, done = rows_of(folder)
    assert (failed["status"], done["status"]) == ("failed", "done")
    assert "does not do task" in failed["error"]
    assert failed["model"] == "tpp/base"
    log = folder / "cells" / "1" / "log.jsonl"
    log.write_text("".join(line for line in log.read_text().splitlines(keepends=True) if '"done"' not in line))
    for name in ("scores.json", "report.html"):  # as a kill after the search leaves it
        (folder / "1" / name).unlink()
    circuit = (folder / "1" / "circuit.json").read_bytes()
    run_cells(folder, ["1"])
    assert Cells(folder).state("1").status == "done"
    assert (folder / "1" / "circuit.json").read_bytes() == circuit
    assert (folder / "1" / "report.html").is_file()
    edit_json(folder / "1" / "config.json", ["task", "n"], 9)
    log.write_text("")
    run_cells(folder, ["1"])
    assert "another task.n (9, now 8)" in Cells(folder).state("1").error
    shutil.rmtree(folder / "1")
    (folder / "1").mkdir()
    (folder / "1" / ".config.json.0.part").touch()  # as a kill before the first file leaves it
    run_cells(folder, ["1"])
    assert Cells(folder).state("1").status == "done"


def test_two_calls_at_once_run_nothing_twice(tmp_path):
    folder = tmp_path / "many"
    command = [sys.executable, "-m", "circuitdisc", "discover", "-m", *SEARCH, "seed=range(4)", f"out={folder}"]
    calls = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)]
    for call in calls:
        call.wait(300)
    assert counts(folder) == {str(number): (1, 1) for number in range(4)}


def test_other_commands_have_cells(tmp_path, capsys):
    folder = tmp_path / "many"
    command = ["drift", "-m", "checkpoints=[tpp/base,tpp/lightweight]", "key=first,c1", "task.n=8", "task.n_heldout=8"]
    command += ["threads=1", "progress=false", f"out={folder}"]
    assert main(command) == 0
    assert [(row["command"], row["key"], row["status"]) for row in rows_of(folder)] == [
        ("drift", "first", "done"),
        ("drift", "c1", "done"),
    ]
    assert main(command) == 0
    assert counts(folder) == {"0": (1, 1), "1": (1, 1)}
    assert json.loads((folder / "1" / "drift.json").read_text())["settings"]["key"] == "c1"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["discover", "launcher=joblib"], "several calls with -m"),
        (["export", "x", "launcher=joblib"], "nothing: leave it out"),
        (["score", "x", "launcher=joblib"], "of `circuitdisc score` these are those of --all"),
        (["score", "--scores", "x", "launcher=joblib"], "of `circuitdisc score` these are those of --all"),
        (["plan", "-m", "seed=0,1"], "unknown option '-m'"),
        (["compare", "x", "y", "-m", "seed=0,1"], "unknown option '-m'"),
        (["discover", "-m", "launcher=slurm"], "unknown launcher 'slurm'"),
        (["discover", "-m", "cells_per_job=0"], "cells_per_job"),
        (["discover", "-m", "seed=range(3"], "cannot be read"),
        (["discover", "-m", "out=a,b"], "name one"),
        (["stability", "x", "launcher=joblib", "hydra.launcher.jobs=2"], "cannot be read"),
        (["status", "nowhere"], "no folder"),
        (["collect", "nowhere"], "no folder"),
    ],
)
def test_bad_input_gets_a_sentence(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("launcher", "go_on"), [("joblib", False), ("submitit", True)])
def test_after_ctrl_c_jobs_of_slurm_alone_go_on(launcher, go_on, tmp_path, monkeypatch, capsys):
    plugin = f"hydra_plugins.hydra_{launcher}_launcher"
    pytest.importorskip(plugin, reason=f"Hydra's launcher for {launcher} is not installed")

    def stop(overrides):
        raise KeyboardInterrupt

    monkeypatch.setattr("circuitdisc.jobs.spread._multirun", stop)
    assert main(["discover", "-m", *SEARCH, "seed=0,1", f"launcher={launcher}", f"out={tmp_path / 'many'}"]) == 130
    error = capsys.readouterr().err
    assert "the same command goes on with the rest; finished jobs are in" in error
    assert ("scancel" in error) == go_on


def test_what_sbatch_says_is_a_sentence(tmp_path, monkeypatch, capsys):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="hydra-submitit-launcher is not installed")
    programs = {"sbatch": "echo 'sbatch: error: invalid partition' >&2; exit 1"} | dict.fromkeys(("srun", "squeue"), "exit 0")
    for name, line in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert main(["discover", "-m", *SEARCH, "launcher=submitit", f"out={tmp_path / 'many'}"]) == 2
    error = capsys.readouterr().err
    assert "circuitdisc: the launcher failed: " in error
    assert "invalid partition" in error
    assert "Traceback" not in error


# --- one table --------------------------------------------------------------------------------------------------------------


def test_one_table_of_all_runs_below_a_folder(tmp_path, capsys):
    pyarrow = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    folder = tmp_path / "all"
    assert main(["discover", SEARCH[0], "algorithm=eap", *QUICK, f"out={folder / 'alone'}"]) == 0
    assert main(["discover", "-m", *SEARCH, "model.dtype=float64", "seed=0,1", f"out={folder / 'many'}"]) == 0
    capsys.readouterr()
    assert main(["collect", str(folder)]) == 0
    assert "3 runs: 3 done" in capsys.readouterr().out
    rows = rows_of(folder)
    assert [(row["folder"], row["algorithm"], row["model.dtype"]) for row in rows] == [
        ("alone", "eap", "float32"),
        ("many/0", "random", "float64"),
        ("many/1", "random", "float64"),
    ]
    scores = json.loads((folder / "alone" / "scores.json").read_text())
    held = next(each for each in scores["scores"] if (each["name"], each["split"]) == ("faithfulness", "heldout"))
    assert (rows[0]["faithfulness"], rows[0]["low"], rows[0]["high"]) == (held["value"], held["low"], held["high"])
    assert (rows[0]["edges"], rows[0]["n_random"]) == (scores["circuit_edges"], 2)
    assert rows[0]["random"] == sum(held["controls"]) / 2
    written = read_csv(folder)
    assert [float(row["faithfulness"]) for row in written] == [row["faithfulness"] for row in rows]
    read = pyarrow.read_table(folder / "summary.parquet").to_pylist()
    assert [row["faithfulness"] for row in read] == [row["faithfulness"] for row in rows]
    assert [row["folder"] for row in read] == [row["folder"] for row in rows]
    assert "many/1" in (folder / "summary.html").read_text()


def test_a_table_of_odd_values(tmp_path):
    pyarrow = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    rows = [{"a": 1, "b": "x,y", "c": [1], "d": None}, {"a": 0.5, "b": 2, "c": None, "d": None}]
    write_parquet(tmp_path / "t.parquet", rows)
    assert pyarrow.read_table(tmp_path / "t.parquet").to_pylist() == [
        {"a": 1.0, "b": "x,y", "c": "[1]", "d": None},
        {"a": 0.5, "b": "2", "c": None, "d": None},
    ]
    assert table_csv(rows).splitlines() == ["a,b,c,d", '1,"x,y",[1],', "0.5,2,,"]


# --- a real Slurm -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A Slurm of one node, for as long as the test takes."""
    script = Path(__file__).parents[1] / "scripts" / "slurm_here"
    monkeypatch.setenv("SLURM_HERE_PORT", "16817")
    started = subprocess.run([str(script), "start", str(tmp_path / "slurm")], capture_output=True, text=True, timeout=120)
    if started.returncode == 3:
        pytest.skip(started.stderr.strip())
    assert started.returncode == 0, started.stderr
    monkeypatch.setenv("SLURM_CONF", started.stdout.strip())
    yield
    subprocess.run([str(script), "stop", str(tmp_path / "slurm")], check=True, timeout=120)


@pytest.mark.slow
def test_cells_on_a_real_slurm(slurm, tmp_path, capsys):
    """Cells of jobs that are cancelled, and of processes that are killed, are done by a second call, and no cell twice."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="hydra-submitit-launcher is not installed")
    folder = tmp_path / "many"
    command = ["discover", "-m", *SEARCH, "seed=range(6)", f"out={folder}", "launcher=submitit", "cells_per_job=2"]
    first = subprocess.Popen([sys.executable, "-m", "circuitdisc", *command], stderr=subprocess.PIPE, text=True)
    cells, killed = Cells(folder), dict[str, str]()

    def running() -> CellState:
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline:
            states = cells.states() if cells else []
            if others := [each for each in states if each.status == "running" and each.job not in killed.values()]:
                return others[0]
            time.sleep(0.05)
        pytest.fail("no cell runs")

    try:
        state = running()
        killed[state.name] = state.job
        os.kill(int(state.holder.split()[1]), signal.SIGKILL)
        state = running()
        killed[state.name] = state.job
        subprocess.run(["scancel", state.job], check=True)
        _, error = first.communicate(timeout=600)
    finally:
        first.kill()
        first.communicate()
    assert first.returncode == 2
    assert "cells are not finished" in error
    states = {state.name: state for state in cells.states()}
    lost = {name for name, state in states.items() if state.status == "waiting" and state.begun}
    assert next(iter(killed)) in lost  # what is cancelled may be done before Slurm kills it
    assert {state.status for state in states.values()} == {"waiting", "done"}
    assert main(["status", str(folder)]) == 0
    said = capsys.readouterr().out
    assert all(states[name].job in said for name in lost)
    assert main(command) == 0
    assert counts(folder) == {name: (2 if name in lost else 1, 1) for name in states}
