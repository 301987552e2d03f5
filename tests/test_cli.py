"""The command line: every wrong input gets a sentence and status 2, a killed run resumes to the same circuit."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from circuitdisc.circuit import Circuit
from circuitdisc.cli import main
from circuitdisc.errors import CircuitdiscWarning
from circuitdisc.shipped import shipped_models

QUICK = ["task.n=20", "task.n_heldout=20", "scoring.n_random=2", "progress=false"]
TPP = ["model=tpp/lightweight", "task=tpp", "algorithm.threshold=0.5", *QUICK]


def run(capsys, *args):
    """Exit status, stdout and stderr of one command."""
    status = main(list(args))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert main(["discover", *TPP, f"out={folder}"]) == 0
    return folder


def test_a_run_leaves_everything_where_one_looks_for_it(finished, capsys):
    names = {path.name for path in finished.iterdir()}
    assert names == {"config.json", "journal.jsonl", "circuit.json", "scores.json", "cost.json", "report.html", "explorer.json"}
    circuit = Circuit.load(finished / "circuit.json")
    assert circuit.provenance.model == "tpp/lightweight"
    assert circuit.provenance.settings["threshold"] == 0.5
    assert circuit.provenance.versions["torch"]
    config = json.loads((finished / "config.json").read_text())
    assert config["task"]["n"] == 20


def test_report_and_score_of_a_finished_run(finished, capsys):
    (finished / "report.html").unlink()
    status, out, _ = run(capsys, "report", str(finished))
    assert status == 0
    assert Path(out.strip()).is_file()
    before = (finished / "scores.json").read_text()
    status, out, _ = run(capsys, "score", str(finished))
    assert status == 0
    assert (finished / "scores.json").read_text() == before
    status, out, _ = run(capsys, "score", str(finished), "ablation=zero", "scoring.n_random=1")
    assert status == 0
    assert "zero" in out
    assert (finished / "scores.json").read_text() == before


def test_bars_and_threads_change_no_score(finished, capsys):
    """They leave the scores the run's own, which are written again, and its page with them."""
    for more in ("progress=false", "--quiet", "threads=1"):
        (finished / "report.html").unlink()
        status, out, _ = run(capsys, "score", str(finished), more)
        assert status == 0
        assert out.strip().endswith(f"report  {finished / 'report.html'}")
        assert (finished / "report.html").is_file()
    for wrong, says in (
        ("out=elsewhere", "leave out= out"),
        ("algorithm=eap", "leave algorithm= out"),
        ("sed=1", "Did you mean seed?"),
    ):
        status, _, err = run(capsys, "score", str(finished), wrong)
        assert (status, says in err) == (2, True), err


def test_settings_of_the_runs_own_task_can_be_changed(tmp_path, capsys):
    folder, own = tmp_path / "run", ["model=toys/induction", "task=induction", "task.length=8", "ablation=resample"]
    assert main(["discover", *own, "algorithm.threshold=0.1", *QUICK, f"out={folder}"]) == 0
    before = (folder / "scores.json").read_text()
    status, out, err = run(capsys, "score", str(folder), "task.length=6", "task.n_heldout=11", "scoring.n_random=1")
    assert (status, "11" in out) == (0, True), err
    assert (folder / "scores.json").read_text() == before
    assert "Did you mean length" in run(capsys, "score", str(folder), "task.lenght=6")[2]


def test_the_circuit_of_one_checkpoint_is_scored_on_another(finished, capsys):
    status, out, _ = run(capsys, "score", str(finished), "model=tpp/featherweight", "scoring.n_random=1")
    assert status == 0
    assert "faithfulness" in out


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def bad_cases(tmp_path):
    """Command -> what its sentence must say."""
    example = '{"clean": "rabbit implies", "corrupted": "carrot implies", "answers": "lamp", "wrong": "desk"}\n'
    return {
        "unknown model": (["model=tpp/lightwight"], r"unknown model 'tpp/lightwight'\. Did you mean tpp/lightweight"),
        "unknown task": (["task=tppp"], r"unknown task 'tppp'\. Did you mean tpp"),
        "unknown algorithm": (["algorithm=acdd"], r"unknown algorithm 'acdd'\. Did you mean acdc"),
        "unknown metric": (["metric=logit_dif"], r"unknown metric 'logit_dif'\. Did you mean logit_diff"),
        "unknown ablation": (["ablation=men"], r"unknown ablation 'men'\. Did you mean mean"),
        "unknown setting": (["algorithm.thresold=0.1"], r"unknown setting of algorithm 'thresold'\. Did you mean threshold"),
        "not a setting": (["tpp"], r"'tpp' is not a setting: write key=value"),
        "threshold not a number": (["algorithm.threshold=high"], r"threshold='high' is not a number"),
        "missing file": (["task=nowhere.jsonl"], r"nowhere\.jsonl"),
        "malformed line": ([f"task={write(tmp_path / 'bad.jsonl', example + '{not json')}"], r"bad\.jsonl:2"),
        "unequal lengths": (
            [f"task={write(tmp_path / 'len.jsonl', example.replace('carrot implies', 'carrot'))}"],
            r"len\.jsonl:1.*\b2\b.*\b1\b",
        ),
        "answer of several tokens": (
            [f"task={write(tmp_path / 'two.jsonl', example.replace('lamp', 'lamp desk'))}"],
            r"two\.jsonl:1.*first_token",
        ),
        "metric at chance": (["model=tpp/base"], r"tpp/base does not do task 'tpp'.*allow_chance=true"),
        "memory": (["memory=lots"], r"memory='lots' is not a size"),
        "dtype": (["model.dtype=float31"], r"unknown dtype 'float31'\. Did you mean float32"),
        "pattern of edges": (["ablation.target=pattern"], r"acdc cuts edges"),
    }


CASES = list(bad_cases(Path("/tmp")).keys())


@pytest.mark.parametrize("case", CASES)
def test_bad_input_gets_a_sentence(case, tmp_path, capsys):
    args, sentence = bad_cases(tmp_path)[case]
    out = tmp_path / "run"
    status, _, err = run(capsys, "discover", *TPP, *args, f"out={out}")
    assert status == 2
    assert re.search(sentence, err), err
    assert "Traceback" not in err
    assert not out.exists()


def test_a_circuit_of_another_architecture(finished, capsys):
    status, _, err = run(capsys, "score", str(finished), "model=toys/induction", "task=induction")
    assert status == 2
    assert "the circuit belongs to a model of 4 layers x 8 heads; toys/induction has 2 layers x 2 heads" in err


def test_truncated_weights(tmp_path, capsys):
    for name, source in (("hf", "tpp/lightweight"), ("toy", "toys/induction")):
        folder = tmp_path / name
        shutil.copytree(shipped_models()[source], folder)
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        status, _, err = run(capsys, "discover", *TPP, f"model={folder}", f"out={tmp_path / 'run'}")
        assert status == 2
        assert str(folder) in err
        assert not (tmp_path / "run").exists()


def test_an_existing_run_is_left_alone(finished, capsys):
    before = (finished / "circuit.json").read_bytes()
    status, _, err = run(capsys, "discover", *TPP, f"out={finished}")
    assert status == 2
    assert "already exists" in err
    assert "resume" in err
    assert (finished / "circuit.json").read_bytes() == before


def test_an_unwritable_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    status, _, err = run(capsys, "discover", *TPP, f"out={tmp_path / 'file' / 'run'}")
    assert status == 2
    assert "cannot make the run folder" in err


@pytest.mark.parametrize("command", ["score", "report", "resume"])
def test_a_folder_that_is_no_run(command, tmp_path, capsys):
    status, _, err = run(capsys, command, str(tmp_path))
    assert status == 2
    assert "is not a run" in err
    status, _, err = run(capsys, command)
    assert status == 2


def test_list_and_unknown_command(capsys):
    for kind, name in (("models", "tpp/lightweight"), ("tasks", "ioi"), ("algorithms", "acdc"), ("metrics", "kl")):
        status, out, _ = run(capsys, "list", kind)
        assert status == 0
        assert name in out
    assert run(capsys, "lst")[0] == 2
    assert run(capsys, "discover", "--help")[0] == 0


def start(out, *args, **options):
    """`circuitdisc discover` in a process of its own."""
    command = [sys.executable, "-m", "circuitdisc.cli", "discover", *args, f"out={out}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, **options)


@pytest.mark.parametrize("algorithm", ["acdc", "head_ablation"])
def test_killed_and_resumed(algorithm, tmp_path, capsys):
    """kill -9 in the middle of the search; resume gives the circuit of an uninterrupted run, decision by decision."""
    import torch

    settings = ["model=tpp/lightweight", f"algorithm={algorithm}", "algorithm.threshold=0.02", *QUICK, "task.n=60"]
    torch.set_num_threads(1)
    assert main(["discover", *settings, f"out={tmp_path / 'whole'}"]) == 0
    whole = (tmp_path / "whole" / "journal.jsonl").read_text().splitlines()
    killed = tmp_path / "killed"
    process = start(killed, *settings)
    journal = killed / "journal.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if journal.exists() and len(journal.read_text().splitlines()) > len(whole) // 4:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (killed / "circuit.json").exists(), "the search was over before it was killed"
    assert main(["resume", str(killed)]) == 0
    assert (killed / "journal.jsonl").read_text().splitlines() == whole
    assert "counted" not in json.loads((tmp_path / "whole" / "cost.json").read_text())
    assert json.loads((killed / "cost.json").read_text())["counted"] == "since the run was resumed"
    assert Circuit.load(killed / "circuit.json") == Circuit.load(tmp_path / "whole" / "circuit.json")


def test_a_full_disk_stops_the_run_and_loses_nothing(tmp_path, capsys):
    """No file may grow beyond 20 kB: the journal cannot be written on; with space again the run resumes."""
    out = tmp_path / "run"

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))

    process = start(out, *TPP, "algorithm.threshold=0.02", preexec_fn=limit)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "cannot write" in err
    assert "resume" in err
    assert "Traceback" not in err
    assert main(["resume", str(out)]) == 0
    assert (out / "report.html").is_file()


def test_multirun_goes_on_after_a_bad_job(tmp_path, monkeypatch):
    command = [
        sys.executable, "-m", "circuitdisc.cli", "discover", "-m", "model=tpp/base,tpp/lightweight", "algorithm=acdc",
        "algorithm.threshold=0.5", *QUICK, f"out={tmp_path / 'sweep'}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 2
    assert "job 0: tpp/base does not do task" in done.stderr
    assert "does not do task" in (tmp_path / "sweep" / "0.error").read_text()
    assert (tmp_path / "sweep" / "1" / "report.html").is_file()
    config = json.loads((tmp_path / "sweep" / "1" / "config.json").read_text())
    assert config["command"].startswith("circuitdisc discover model.name=tpp/lightweight")
    assert {path.name for path in tmp_path.iterdir()} == {"sweep"}


def test_warnings_are_lines_for_people(capsys, monkeypatch):
    def warned(_):
        for line in (1, 2):
            sys.stderr.write(warnings.formatwarning(CircuitdiscWarning("a\nnote"), CircuitdiscWarning, "file.py", line))
        sys.stderr.write(warnings.formatwarning("of another package", UserWarning, "file.py", 3, ""))
        return "page"

    usual = warnings.formatwarning
    monkeypatch.setattr("circuitdisc.jobs.pipeline.write_page", warned)
    status, _, said = run(capsys, "report", "x")
    assert status == 0
    assert said == "circuitdisc: note: a note\nfile.py:3: UserWarning: of another package\n"
    assert warnings.formatwarning is usual


def test_help_needs_no_torch():
    calls = "main(['--help']); [main([*name.split(), '--help']) for name in REGISTRY.names]"
    code = "import sys; from circuitdisc.cli import main; from circuitdisc.jobs.registry import REGISTRY\n"
    code += f"{calls}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip().endswith("False")
