"""A memo's units go on from anywhere, as values and as files; a folder says what lies in it and which command goes on."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from changed import edit_json

from circuitdisc.cli import main
from circuitdisc.errors import BadFile, BadRun
from circuitdisc.identity import Identity
from circuitdisc.runs import Journal, Memo, Run, Work, recorded, works_in

IDENTITY = Identity({"weights of the model": "a"}, {}, {"seed": 0}, "1")


@pytest.fixture(autouse=True)
def _closed(monkeypatch):
    """Journals that a test leaves open, as a kill does, are closed after it."""
    opened, begin = [], Journal.__init__

    def opening(self, *args, **settings):
        begin(self, *args, **settings)
        opened.append(self)

    monkeypatch.setattr(Journal, "__init__", opening)
    yield
    for journal in opened:
        journal.close()


def made(calls: list[str], name: str, value: object) -> object:
    calls.append(name)
    return value


# --- units ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_unit_is_computed_once_whatever_it_is_kept_in(tmp_path, in_memory):
    path, calls = None if in_memory else tmp_path / "journal.jsonl", []
    memo = Memo(path, IDENTITY)
    for _ in range(2):
        for get in (memo.get, memo.get_file):
            name = f"parts/{get.__name__}.json"
            assert get(name, lambda name=name: made(calls, name, {"x": 0.1 + 0.2})) == {"x": 0.1 + 0.2}
            assert memo.has(name)
        if not in_memory:
            memo.close()
            memo = Memo(path, IDENTITY)  # as after a kill
    assert calls == ["parts/get.json", "parts/get_file.json"]
    assert (tmp_path / "parts").exists() == (not in_memory)


def test_a_file_that_a_kill_left_unregistered_is_written_again(tmp_path):
    calls: list[str] = []
    memo = Memo(tmp_path / "journal.jsonl", IDENTITY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Memo, "register", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            memo.get_file("a.json", lambda: made(calls, "a", 1))
    assert (tmp_path / "a.json").exists()
    assert Memo(tmp_path / "journal.jsonl", IDENTITY).get_file("a.json", lambda: made(calls, "a", 2)) == 2
    assert calls == ["a", "a"]


def test_a_damaged_file_is_refused_and_a_removed_one_made_again(tmp_path):
    def get(value: int) -> int:
        memo = Memo(tmp_path / "journal.jsonl", IDENTITY)
        try:
            return memo.get_file("a.json", lambda: value)
        finally:
            memo.close()

    assert (get(1), get(2)) == (1, 1)
    (tmp_path / "a.json").write_text("3")
    with pytest.raises(
        BadFile, match=r"a\.json is damaged \(a\.json has other bytes than were written\): remove it, and the same"
    ):
        get(4)
    (tmp_path / "a.json").unlink()
    assert (get(5), get(6)) == (5, 5)


def test_a_folder_is_whole_with_every_file_as_it_was(tmp_path):
    memo = Memo(tmp_path / "journal.jsonl", IDENTITY)
    (tmp_path / "new" / "inner").mkdir(parents=True)
    for name in ("a", "inner/b"):
        (tmp_path / "new" / name).write_text(name)
    memo.register("rung", tmp_path / "new")
    assert memo.knows("rung")
    assert not memo.has("rung")
    (tmp_path / "new").rename(tmp_path / "rung")
    assert memo.has("rung")
    (tmp_path / "rung" / "more").write_text("a file that somebody added")
    assert memo.damage("rung") is None
    (tmp_path / "rung" / "a").write_text("b")
    assert memo.damage("rung") == "a has other bytes than were written"
    (tmp_path / "rung" / "a").unlink()
    assert memo.damage("rung") == "a is missing"


def test_whole_and_parts_are_bound(tmp_path):
    path = tmp_path / "journal.jsonl"
    memo = Memo(path, IDENTITY)
    part = Identity({"weights of the model": "b"}, {}, {}, "1")
    memo.bind("base", part)
    memo.close()
    Memo(path, IDENTITY).bind("base", part)
    with pytest.raises(BadRun, match=r"was begun with other weights of the model \(base\): give back"):
        Memo(path, IDENTITY).bind("base", Identity({"weights of the model": "c"}, {}, {}, "1"))
    with pytest.raises(BadRun, match=r"another seed \(0, now 1\)"):
        Memo(path, Identity(IDENTITY.weights, {}, {"seed": 1}, "1"))


# --- what lies in a folder ------------------------------------------------------------------------------------------------


def begun(folder: Path, job: str, *words: str, name: str = "journal.jsonl") -> None:
    folder.mkdir(exist_ok=True)
    with recorded(job, ["circuitdisc", *words]):
        memo = Memo(folder / name, IDENTITY)
    memo.get("a", lambda: 1)
    memo.close()


@pytest.mark.parametrize("typed", ["out=runs/a", "out={}/runs/a", ""])
@pytest.mark.parametrize("moved", [False, True])
def test_a_command_goes_on_where_its_folder_lies_now(tmp_path, monkeypatch, typed, moved):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "a"
    folder.parent.mkdir()
    typed = typed.format(tmp_path)
    begun(folder, "dcm", "dcm", "model=m", *([typed] if typed else []), "task=t.jsonl")
    if moved:
        folder = folder.rename(tmp_path / "elsewhere")
    monkeypatch.chdir("/")
    (work,) = works_in(folder)
    assert (work.job, work.begun_in) == ("dcm", tmp_path)
    assert sorted(work.words) == sorted(("circuitdisc", "dcm", "model=m", f"out={folder}", "task=t.jsonl"))
    assert Journal.read(folder / "journal.jsonl").decisions == [{"unit": "a", "value": 1}]


def test_a_run_says_its_search_then_what_was_killed_in_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    Run.create(run, {"model": {}})
    begun(run, "score", "score", "run", "--all", name="judgement.01.partial.jsonl")
    begun(run, "score", "score", "run", "--all", name="judgement.01.tests.partial.jsonl")
    begun(run, "stability", "stability", "run", "n_samples=3", name="stability.partial.jsonl")
    assert works_in(run) == [
        Work("discover", ("circuitdisc", "resume", str(run)), tmp_path),
        Work("score", ("circuitdisc", "score", str(run), "--all"), tmp_path),
        Work("stability", ("circuitdisc", "stability", str(run), "n_samples=3"), tmp_path),
    ]


def test_a_folder_that_says_nothing_is_a_sentence(tmp_path):
    with pytest.raises(BadRun, match="there is no run folder"):
        works_in(tmp_path / "nowhere")
    with pytest.raises(BadRun, match="is not a run, nor other work"):
        works_in(tmp_path)
    Memo(tmp_path / "journal.jsonl", IDENTITY).get("a", lambda: 1)
    with pytest.raises(BadRun, match="does not say which command began it"):
        works_in(tmp_path)
    place = {"begun_in": "/", "folder": str(tmp_path)}
    for call, says in (
        (3, "it is 3"),
        ({"job": 1}, "'job' is 1"),
        ({"job": "dcm", "words": "dcm", **place}, "'words' is 'dcm'"),
        ({"job": "dcm", "words": ["circuitdisc", "dcm", "a\0b"], **place}, "is no `circuitdisc dcm`"),
        ({"job": "dcm", "words": ["rm", "dcm"], **place}, "is no `circuitdisc dcm`"),
        ({"job": "dcm", "words": ["circuitdisc", "resume", str(tmp_path)], **place}, "is no `circuitdisc dcm`"),
        ({"job": "resume", "words": ["circuitdisc", "resume", str(tmp_path)], **place}, "'job' is 'resume'"),
    ):
        first, *rest = (tmp_path / "journal.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "journal.jsonl").write_text("".join([json.dumps({**json.loads(first), "command": call}) + "\n", *rest]))
        with pytest.raises(BadRun, match=f"command that began it.*{says}"):
            works_in(tmp_path)


def test_resume_goes_on_with_what_a_command_has_begun(tmp_path, monkeypatch, capsys):
    """A localised intervention, killed after its first edit, and moved: the same result as one that was never stopped."""
    from circuitdisc.heads.localised import localised

    monkeypatch.chdir(tmp_path)
    words = "localise model=toys/induction task=induction task.n=8 task.n_heldout=8 heads=[a1.h0] kind=first_token"
    words += " factors=[0.5,2.0] n_random=1 progress=false"
    whole = [*shlex.split(words), "out=whole"]
    assert main(whole) == 0, capsys.readouterr().err
    own, calls = Memo.get, []

    def stop(self: Memo, *unit: Any) -> Any:
        calls.append(unit[0])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return own(self, *unit)

    with monkeypatch.context() as patch:
        patch.setattr(localised.Memo, "get", stop)
        assert main([*shlex.split(words), "out=killed"]) == 130
    shutil.move(tmp_path / "killed", tmp_path / "moved")
    monkeypatch.chdir("/")
    assert main(["resume", str(tmp_path / "moved")]) == 0, capsys.readouterr().err
    results = [json.loads((tmp_path / name / "result.json").read_text())["result"] for name in ("whole", "moved")]
    for result in results:
        result.pop("seconds", None)
    assert results[0] == results[1]
    edit_json(tmp_path / "moved" / "result.json", ("format",), "other")
    assert main(["resume", str(tmp_path / "moved")]) == 2, "it is finished"
