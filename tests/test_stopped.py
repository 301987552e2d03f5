"""Ctrl-C says what goes on, and loses nothing."""

import re
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from changed import contents
from test_folders import SEARCH, TOY, elsewhere

import circuitdisc.certainty.rivals
import circuitdisc.certainty.specificity
import circuitdisc.checkpoints.cmap.cmap
import circuitdisc.heads
import circuitdisc.heads.dcm.dcm
import circuitdisc.jobs.judge
import circuitdisc.jobs.pipeline as pipeline
import circuitdisc.scoring.stability
from circuitdisc.circuit import Circuit
from circuitdisc.cli import main
from circuitdisc.errors import Stopped
from circuitdisc.runs import stoppable, with_out
from circuitdisc.runs.folders import LOCK


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["discover", *SEARCH, f"out={folder}"]) == 0
    return folder


@pytest.fixture
def run(done, tmp_path):
    shutil.copytree(done, tmp_path / "run")
    return tmp_path / "run"


def test_what_is_said_after_ctrl_c():
    def stop(kept):
        with pytest.raises(Stopped) as stopped, stoppable(["circuitdisc", "dcm", "out=my runs/a"], lambda: kept):
            raise KeyboardInterrupt
        return str(stopped.value)

    assert stop(True) == "`circuitdisc dcm 'out=my runs/a'` goes on where it was"
    assert stop(False) == "nothing was kept"
    assert with_out("circuitdisc dcm task=tpp", Path("runs/a b")) == "circuitdisc dcm task=tpp 'out=runs/a b'"
    assert with_out("circuitdisc dcm task=tpp out=x", Path("x")) == "circuitdisc dcm task=tpp out=x"


def interrupted(args, until, tmp_path):
    """A command that gets Ctrl-C as soon as something is true; its status and stderr."""
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what a shell starts in the background ignores it
    process = elsewhere("from circuitdisc.cli import run; run()", *args, cwd=tmp_path, preexec_fn=heeds)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None and not until():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    return process.returncode, err


def test_ctrl_c_names_the_command_that_goes_on(tmp_path, capsys):
    out = tmp_path / "run"
    slow = [*SEARCH, "task.n=200", "algorithm.threshold=0.001", "algorithm.speculation=1"]
    status, err = interrupted(["discover", *slow, f"out={out}"], lambda: has_marks(out / "journal.jsonl"), tmp_path)
    assert status == 130
    assert f"stopped; `circuitdisc resume {out}` goes on where it was" in err, err
    assert not (out / LOCK).exists()
    assert main(["resume", str(out)]) == 0
    assert Circuit.load(out / "circuit.json").n_edges > 0


def has_marks(path):
    return path.exists() and path.read_text().count('"mark"') > 1


def test_ctrl_c_before_anything_was_found_leaves_nothing(tmp_path):
    out = tmp_path / "new" / "run"
    status, err = interrupted(["discover", *SEARCH, f"out={out}"], out.exists, tmp_path)
    assert status == 130
    assert "stopped; nothing was kept" in err, err
    assert list(tmp_path.iterdir()) == []


STOPS = {
    "score": (["score", "RUN"], pipeline, "score_circuit", "nothing was kept"),
    "score --all": (
        ["score", "RUN", "--all"],
        sys.modules["circuitdisc.scoring.hypotheses"],
        "hypothesis_tests",
        "`circuitdisc score RUN --all` goes on",
    ),
    "stability": (
        ["stability", "RUN", "n_samples=9"],
        sys.modules["circuitdisc.scoring.stability"],
        "likeness",
        "`circuitdisc stability RUN n_samples=9` goes on",
    ),
    "rivals": (
        ["rivals", "RUN", "n=1"],
        sys.modules["circuitdisc.certainty.rivals"],
        "_judged",
        "`circuitdisc rivals RUN n=1` goes on",
    ),
    "specificity": (
        ["specificity", "RUN"],
        sys.modules["circuitdisc.certainty.specificity"],
        "_worst",
        "`circuitdisc specificity RUN` goes on",
    ),
    "heads": (["heads", "effects", *TOY, "out=OUT"], circuitdisc.heads, "head_effects", "nothing was kept"),
    "dcm": (
        ["dcm", *TOY, "penalties=[0.1]"],
        sys.modules["circuitdisc.heads.dcm.dcm"],
        "_report",
        r"`circuitdisc dcm .*out=runs/dcm_.*` goes on",
    ),
    "cmap": (
        ["cmap", "base=tpp/base", "tuned=tpp/lightweight", "task=tpp"],
        sys.modules["circuitdisc.checkpoints.cmap.cmap"],
        "CrossJob",
        "nothing was kept",
    ),
}


@pytest.mark.parametrize("command", STOPS)
def test_each_command_says_what_goes_on(command, run, tmp_path, capsys, monkeypatch):
    args, room, name, says = STOPS[command]
    monkeypatch.chdir(tmp_path)

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(room, name, stop)
    before = contents(run)
    assert main([str(run) if word == "RUN" else word for word in args]) == 130
    err = capsys.readouterr().err
    assert re.search(f"stopped; {says.replace('RUN', re.escape(str(run)))}", err), err
    assert {name: contents(run)[name] for name in before} == before
    if "nothing" in says:
        assert contents(run) == before
        assert {path.name for path in tmp_path.iterdir()} == {"run"}
