"""Commands that other packages declare: called, helped, completed, listed; a bad one leaves a sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from packages import VERSION, install

from circuitdisc.cli import main
from circuitdisc.errors import BadSetting
from circuitdisc.jobs.registry import OWN, REGISTRY

SOURCE = '''
"""Commands that count examples, and some that cannot be used."""

import sys
from pathlib import Path

import torch

from circuitdisc.jobs.job import Job

HERE = Path(__file__).parent


def work(call):
    own = call.own
    return f"{call.task_name} {call.settings['task']['n']} {own['times'] * own['start']} {sorted(call.options)}"


COUNT = Job(name="count", summary="counts examples", options={"--fast": "no waiting"}, config=HERE / "count.yaml", work=work)
JOBS = [Job(name=f"lab {tool}", summary=f"{tool}s", work=lambda call: str(call.args)) for tool in ("add", "take")]
BROKEN = Job(name="broken", summary="its file is no YAML", config=HERE / "broken.yaml", work=work)
LACKING = Job(name="lacking", summary="", config=HERE / "nowhere.yaml", work=work)
HEADS = Job(name="heads", summary="", work=work)
MORE = Job(name="discover more", summary="", work=work)
number = 3
'''
SETTINGS = """defaults:
  - common
  - model: default
  - task: tpp
  - _self_

times: 2 # how often each is counted
start: 5 # where counting begins
"""
GOOD = {"count": "COUNT", "lab add": "JOBS", "lab take": "JOBS", "broken": "BROKEN"}
BAD = {"lacking": "LACKING", "heads": "HEADS", "discover more": "MORE", "misnamed": "COUNT", "number": "number", "gone": "no"}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Declares commands; called with {entry: name in the module}. Gives the package's folder."""

    def declare(entries):
        folder = tmp_path / "otherlab"
        targets = {entry: f"otherlab_jobs:{name}" for entry, name in entries.items()}
        install(monkeypatch, folder, "circuitdisc.commands", targets, SOURCE, "otherlab_jobs")
        (folder / "count.yaml").write_text(SETTINGS)
        (folder / "broken.yaml").write_text("times: [1\n")
        return folder

    return declare


def run(capsys, *args):
    """Exit status, stdout and stderr of one command."""
    status = main(list(args))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_it_is_called_with_settings_of_its_own(package, capsys):
    package(GOOD)
    assert run(capsys, "count", "task=ioi", "task.n=7", "times=3", "--fast")[:2] == (0, "ioi 7 15 ['--fast']\n")
    assert run(capsys, "lab", "take", "a", "b")[:2] == (0, "('a', 'b')\n")
    for wrong, says in (
        (["count", "tims=1"], "unknown setting of count 'tims'. Did you mean times"),
        (["count", "task.m=1"], "unknown setting of task 'm'"),
        (["count", "--fats"], "Did you mean --fast"),
        (["cuont"], "Did you mean count"),
        (["broken", "times=1"], "these settings cannot be read"),
    ):
        status, _, err = run(capsys, *wrong)
        assert (status, says in err, "Traceback" in err) == (2, True, False), err


def test_its_help_and_its_place_in_every_list(package, capsys):
    package(GOOD | BAD)
    shown = run(capsys, "--help")[1]
    assert "  circuitdisc count                          of package 'otherlab'\n" in shown
    assert "otherlab_jobs" not in sys.modules, "nothing is imported for the help of all"
    helped = run(capsys, "count", "--help")[1]
    assert helped.startswith("circuitdisc count [key=value ...]\n\nCounts examples.\n")
    for words in ("--fast           no waiting", "times=2", "how often each is counted", "task=NAME", "seed=0"):
        assert words in helped
    assert "  take       of package 'otherlab'" in run(capsys, "lab", "--help")[1]
    listed = run(capsys, "list", "commands")[1]
    for words in (
        "counts examples (of package 'otherlab')",
        OWN["drift"].summary,
        "cannot be used: command 'number' of package",
    ):
        assert words in listed


@pytest.mark.long
def test_the_shell_completes_it(package):
    folder = package(GOOD | BAD)

    def completed(line):
        words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1), "_CIRCUITDISC_COMPLETE": "complete_bash"}
        command = [sys.executable, "-c", "from circuitdisc.cli import main; main()"]
        paths = os.pathsep.join([str(folder), str(Path(__file__).parents[1])])
        environment = {**os.environ, **words, "PYTHONPATH": paths}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert not done.stderr
        return done.stdout.split()

    assert completed("circuitdisc cou") == ["count"]
    assert completed("circuitdisc count tim") == ["times="]
    assert "task=ioi" in completed("circuitdisc count task=i")
    assert completed("circuitdisc lacking tim") == []


def test_help_imports_no_package(package):
    folder = package(GOOD | BAD)
    code = "import sys; from circuitdisc.cli import main; main(['--help']); print({'torch', 'otherlab_jobs'} & {*sys.modules})"
    paths = os.pathsep.join([str(folder), str(Path(__file__).parents[1])])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
    assert "circuitdisc count " in done.stdout
    assert done.stdout.strip().endswith("set()")


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("lacking", r"has its settings in .*nowhere\.yaml, which is not there: it must be a Job"),
        ("misnamed", "is a command named 'count'"),
        ("number", r"command 'number' of package 'otherlab' \(otherlab_jobs:number\) is no command"),
        ("gone", "cannot be imported"),
        ("heads", "would hide a command of circuitdisc"),
        ("discover more", "would hide a command of circuitdisc"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name_and_ours_go_on(package, entry, sentence, capsys):
    package(GOOD | BAD)
    with pytest.raises(BadSetting, match=sentence):
        REGISTRY.get(entry)
    assert dict(REGISTRY.described())[entry].startswith("cannot be used: ")
    assert run(capsys, "list", "metrics")[0] == 0
    assert run(capsys, "heads", "roles", "--help")[1].startswith("circuitdisc heads roles")
    assert run(capsys, "discover", "--help")[1].startswith("circuitdisc discover")
    if " " not in entry and entry != "heads":
        status, _, err = run(capsys, entry, "times=1")
        assert (status, f"command '{entry}' of package 'otherlab'" in err, "Traceback" in err) == (2, True, False)


def test_a_name_of_ours_is_refused(package, capsys):
    package({"drift": "COUNT"})
    status, _, err = run(capsys, "drift", "task=tpp")
    assert status == 2
    assert "package 'otherlab' declares a command 'drift', which is the name of one of circuitdisc's own" in err
    assert run(capsys, "list", "tasks")[0] == 0


FOLDER = '''
"""A command that leaves a folder."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from circuitdisc.jobs.job import Answer, Job, Leaves
from circuitdisc.pages.description import Description, Section
from circuitdisc.pages.verdict import Verdict
from circuitdisc.results import ValuesOverExamples


@dataclass(frozen=True, repr=False)
class Look(ValuesOverExamples):
    KEYS = ("mean", "n")
    values: Float[np.ndarray, "X B"]


def describe(found):
    return Description(Verdict((f"Seen {found.n} times.",), ()), (Section("Seen", [{"mean": float(found.mean[0])}]),))


def find(call, folder, journal):
    return Answer(Look(np.array([[1.0, 2.0]])), "nothing at all")


LOOK = Job(
    name="look", summary="looks", config="drift", find=find,
    leaves=Leaves(heading="Looks", words=lambda call: ("look",), described_by=describe),
)
'''


def test_one_file_has_its_result_and_its_page_and_the_record_names_the_package(tmp_path, monkeypatch, capsys):
    install(monkeypatch, tmp_path / "thirdlab", "circuitdisc.commands", {"look": "thirdlab_look:LOOK"}, FOLDER, "thirdlab_look")
    status, printed, _ = run(capsys, "look", f"out={tmp_path / 'out'}", "progress=false")
    assert (status, "Seen 2 times." in printed) == (0, True)
    assert "Seen 2 times." in (tmp_path / "out" / "report.html").read_text("utf-8")
    assert np.load(tmp_path / "out" / "arrays.npz")["values"].tolist() == [[1.0, 2.0]]
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (record["mean"], record["n"], record["versions"]["thirdlab"]) == ([1.5], 2, VERSION)
