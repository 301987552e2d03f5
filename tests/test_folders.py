"""A folder has one writer, no link in it is followed, Ctrl-C says what goes on, and what cannot be written is seen first."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from changed import contents, cut_back

import circuitdisc.checkpoints.cmap.cmap
import circuitdisc.checkpoints.finetune.finetune as finetune
import circuitdisc.checkpoints.listing as listing
import circuitdisc.engine.selfcheck as selfcheck
import circuitdisc.files as files
import circuitdisc.heads
import circuitdisc.heads.dcm.dcm
import circuitdisc.jobs.judge
import circuitdisc.jobs.pipeline as pipeline
import circuitdisc.scoring.stability
from circuitdisc.circuit import Circuit
from circuitdisc.cli import main
from circuitdisc.errors import BadRun, Stopped
from circuitdisc.runs import Journal, Run, check_free, stoppable, with_out, workspace, writing
from circuitdisc.runs.folders import LOCK, WRITER

TOY = ["model=toys/induction", "task=induction", "task.length=8", "task.n=12", "task.n_heldout=10", "progress=false"]
SEARCH = [*TOY, "algorithm=acdc", "algorithm.threshold=0.1", "ablation=resample", "scoring.n_random=2"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["discover", *SEARCH, f"out={folder}"]) == 0
    return folder


@pytest.fixture
def run(done, tmp_path):
    shutil.copytree(done, tmp_path / "run")
    return tmp_path / "run"


def elsewhere(code: str, *args: object, **options) -> subprocess.Popen:
    """Python in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options)


HOLD = """
import sys, time
from pathlib import Path
from circuitdisc.runs import writing
with writing(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def held(run):
    """A run in which another process writes."""
    process = elsewhere(HOLD, run)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    yield run, process
    process.kill()
    process.communicate()


# --- one writer -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["resume"], ["score"], ["score", "--all"], ["report"], ["stability"], ["rivals"],
                                     ["specificity"]])  # fmt: skip
def test_a_second_process_is_told_who_writes(command, held, capsys):
    run, process = held
    before = contents(run)
    assert main([command[0], str(run), *command[1:]]) == 2
    err = capsys.readouterr().err
    assert re.search(rf"is being written by process {process.pid} on {re.escape(socket.gethostname())} since \d{{4}}-", err), (
        err
    )
    assert len(err) < 500
    assert contents(run) == before


def test_who_only_reads_is_not_kept_out(held, tmp_path, capsys):
    run, _ = held
    assert main(["export", str(run), str(tmp_path / "graph.json")]) == 0
    assert main(["score", str(run), "scoring.n_random=1"]) == 0


def test_a_process_that_has_died_keeps_nobody_out(held, capsys):
    run, process = held
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (run / LOCK).exists()
    assert main(["report", str(run)]) == 0
    assert not (run / LOCK).exists()
    assert not (run / WRITER).exists()


def test_two_searches_in_one_folder(tmp_path):
    """Both begin at once: one does the work, the other one is told, and the journal is that of one search."""
    command = "from circuitdisc.cli import run; run()"
    args = ["discover", *SEARCH, f"out={tmp_path / 'run'}"]
    both = [elsewhere(command, *args) for _ in range(2)]
    errors = [process.communicate(timeout=200)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], errors
    (told,) = (err for process, err in zip(both, errors, strict=True) if process.returncode)
    assert re.search("is being written by|already exists|no run folder|cannot", told)
    assert "Traceback" not in told
    assert (tmp_path / "run" / "report.html").is_file()
    decisions = Journal.read(tmp_path / "run" / "journal.jsonl").decisions
    assert len({line.get("edge") or line["dead"] for line in decisions}) == len(decisions)


def test_a_folder_may_be_asked_for_twice_by_its_writer(tmp_path):
    with writing(tmp_path):
        with writing(tmp_path / ".." / tmp_path.name):
            assert json.loads((tmp_path / WRITER).read_text())["pid"] == os.getpid()
        assert (tmp_path / LOCK).exists()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_a_kill_left_with_a_lock_alone_is_free(tmp_path):
    process = elsewhere(HOLD, tmp_path)
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.communicate()
    assert {path.name for path in tmp_path.iterdir()} == {LOCK, WRITER}
    check_free(tmp_path)
    with workspace(tmp_path):
        Run.create(tmp_path, {})


@pytest.mark.parametrize(
    "command", [["dcm", "penalties=[0.1]"], ["localise", "heads=[a1.h0]", "epochs=1"], ["heads", "effects"]]
)
def test_other_commands_have_one_writer_too(command, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    process = elsewhere(HOLD, out)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        assert main([*command, *TOY, f"out={out}"]) == 2
        assert f"is being written by process {process.pid}" in capsys.readouterr().err
    finally:
        process.kill()
        process.communicate()


# --- what cannot be written is seen before the model is loaded, and nothing empty stays -----------------------------------


@pytest.fixture
def no_model(monkeypatch):
    """No model may be loaded."""

    def refuse(*_, **__):
        raise AssertionError("a model was loaded")

    for room in (selfcheck, pipeline, listing):
        monkeypatch.setattr(room, "load_model", refuse)
    monkeypatch.setattr(finetune, "read_model", refuse)


COMMANDS = {
    "discover": ["discover", *SEARCH],
    "dcm": ["dcm", *TOY],
    "localise": ["localise", *TOY, "heads=[a1.h0]"],
    "heads": ["heads", "effects", *TOY],
    "baselines": ["baselines", "checkpoints=[tpp/base]", "task=tpp"],
    "drift": ["drift", "checkpoints=[tpp/base,tpp/lightweight]", "task=tpp"],
    "cmap": ["cmap", "base=tpp/base", "tuned=tpp/lightweight", "task=tpp"],
    "transfer": ["transfer", "checkpoints=[tpp/base,tpp/lightweight]", "task=tpp"],
    "finetune": ["finetune", "model=tpp/base", "task=tpp"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_cannot_be_made_is_seen_before_the_model_is_loaded(command, no_model, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main([*COMMANDS[command], f"out={tmp_path / 'file' / 'out'}"]) == 2
    err = capsys.readouterr().err
    assert "cannot make the" in err, err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_cannot_be_written_is_seen_before_the_model_is_loaded(command, no_model, tmp_path, capsys, monkeypatch):
    def refuse(path, error="Read-only file system"):
        raise OSError(30, error, str(path))

    monkeypatch.setattr("circuitdisc.files._fresh_file", refuse)
    assert main([*COMMANDS[command], f"out={tmp_path / 'new' / 'out'}"]) == 2
    assert "Read-only file system" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [], "nothing empty stays"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_model_that_cannot_be_loaded_leaves_no_folder(command, tmp_path, capsys):
    args = [word for word in COMMANDS[command] if not word.startswith(("model=", "checkpoints=", "base="))]
    missing = {"model": f"model={tmp_path / 'no'}", "checkpoints": f"checkpoints=[{tmp_path / 'no'},tpp/base]"}
    key = "checkpoints" if command in ("baselines", "drift", "transfer") else "base" if command == "cmap" else "model"
    more = missing.get(key, f"base={tmp_path / 'no'}")
    assert main([*args, more, f"out={tmp_path / 'new' / 'out'}"]) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_that_cannot_be_written_leaves_no_folder(tmp_path, monkeypatch, capsys):
    own = files._fresh_file
    monkeypatch.setattr(files, "_fresh_file", lambda path: own(path) if path.name == WRITER else full(path))
    assert main(["discover", *SEARCH, f"out={tmp_path / 'a' / 'b'}"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def full(path):
    raise OSError(28, "No space left on device", str(path))


def fails(folder, keep):
    def work():
        with workspace(folder, keep):
            files.write_text(folder / "half", "")
            raise KeyError

    with pytest.raises(KeyError):
        work()


def test_what_a_job_found_outlives_its_error(tmp_path):
    """The folder goes only if nothing in it is worth keeping; folders that were there before stay."""
    (tmp_path / "there").mkdir()
    for folder in (tmp_path / "there", tmp_path / "new" / "deep"):
        fails(folder, None)
        assert (folder / "half").exists()
        (folder / "half").unlink()
        fails(folder, lambda: False)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["new", "new/deep", "there"]


# --- links ----------------------------------------------------------------------------------------------------------------

NAMES = ("config.json", "journal.jsonl", "circuit.json", "scores.json", "cost.json", "report.html", "judgement.json",
         "stability.json", "rivals.json", "specificity.json", "edge_scores.npz", LOCK, WRITER)  # fmt: skip


@pytest.mark.parametrize("command", [["resume"], ["score"], ["report"], ["score", "--all"], ["stability", "n_samples=2"],
                                     ["rivals", "n=1"], ["specificity"]])  # fmt: skip
@pytest.mark.parametrize("of", ["the file itself", "its .part"])
def test_no_command_writes_through_a_link_in_a_run(of, command, run, tmp_path, capsys):
    """Links at every name that a run's files have, or had while they were written; the user's file stays as it is."""
    victim = tmp_path / "precious"
    victim.write_text("mine")
    if command == ["resume"]:
        cut_back(run)
    written = [
        name for name in NAMES if of == "its .part" or not (run / name).exists() or name in ("report.html", "scores.json")
    ]
    for name in written:
        path = run / (name if of == "the file itself" else f"{name}.part")
        path.unlink(missing_ok=True)
        path.symlink_to(victim)
    for name in ("scores.json",) if of == "the file itself" and command != ["score"] else ():
        (run / name).unlink()
    main([command[0], str(run), *command[1:]])
    capsys.readouterr()
    assert victim.read_text() == "mine"
    assert victim.is_file()
    if of == "its .part":
        assert (run / "report.html").is_file()


@pytest.mark.parametrize("kind", ["link", "link to nowhere"])
def test_a_journal_that_is_a_link_is_refused(kind, run, tmp_path, capsys):
    victim = tmp_path / "precious"
    if kind == "link":
        victim.write_text('{"mark": "mine"}\n')
    cut_back(run)
    (run / "journal.jsonl").unlink()
    (run / "journal.jsonl").symlink_to(victim)
    assert main(["resume", str(run)]) == 2
    assert "journal.jsonl is a link to another place" in capsys.readouterr().err
    assert victim.exists() == (kind == "link")
    assert kind != "link" or victim.read_text() == '{"mark": "mine"}\n'


def test_a_guessed_name_is_not_written_through(tmp_path, monkeypatch):
    """Even where the random name were known: O_EXCL refuses what is there."""
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "known")
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ".a.json.known.part").symlink_to(tmp_path / "precious")
    with pytest.raises(BadRun, match="File exists"):
        files.write_json(tmp_path / "a.json", {})
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_link_at_the_name_itself_is_replaced(tmp_path):
    (tmp_path / "precious").write_text("mine")
    for name, write in (
        ("a.json", lambda path: files.write_json(path, {})),
        ("b", lambda path: files.begin_file(path, "").close()),
    ):
        (tmp_path / name).symlink_to(tmp_path / "precious")
        write(tmp_path / name)
        assert not (tmp_path / name).is_symlink()
    assert (tmp_path / "precious").read_text() == "mine"
    with pytest.raises(OSError, match="x"), files.fresh_folder(tmp_path / "folder"):
        raise OSError("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "folder").symlink_to(tmp_path / "other")
    with files.fresh_folder(tmp_path / "folder") as beside:
        (beside / "weights").write_text("1")
    assert list((tmp_path / "other").iterdir()) == []
    assert (tmp_path / "folder" / "weights").read_text() == "1"


def test_folders_that_are_links_are_refused(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(BadRun, match="is a link to another place"):
        files.make_inner_folder(tmp_path / "link")
    with pytest.raises(BadRun, match=r"link is a link"):
        files.refuse_links(tmp_path)
    files.refuse_links(tmp_path / "real")


def test_the_package_writes_in_one_place_alone():
    """Whoever writes a file does it by `files.py`, whose writers follow no link."""
    package = Path(files.__file__).parent
    own = r"\.write_(text|bytes)\(|open\([^)\n]*[\"'][wax]b?[\"']|\bsavez|(np|torch)\.save\(|to_html\(|json\.dump\(|save_file\("
    # in temporary folders of their own making alone (copies for ranks, layers on disk), into memory, or to nowhere
    allowed = {"files.py", "engine/cross/cache.py", "models/model.py", "models/spread.py", "jobs/ranked.py"}
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(own, path.read_text(encoding="utf-8")) is not None
    }
    assert found <= allowed


# --- Ctrl-C ---------------------------------------------------------------------------------------------------------------


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
    process = elsewhere("from circuitdisc.cli import run; run()", *args, cwd=tmp_path)
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
