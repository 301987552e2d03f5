"""A run's folder: what was written survives a kill at any byte, and what cannot be written is a sentence."""

import errno
import json
import os
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitdisc.errors import BadFile, BadRun
from circuitdisc.files import read_json, read_text, write_json, write_text
from circuitdisc.runs import Journal, Run, versions

decisions = st.dictionaries(
    st.text().filter(lambda key: key not in ("mark", "self")),
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    max_size=3,
)
entries = st.lists(st.tuples(st.just("mark"), st.text()) | st.tuples(st.just("decision"), decisions), max_size=12)


def fill(journal, what):
    """Write entries, and return the lines that they should make."""
    for kind, value in what:
        if kind == "mark":
            journal.mark(value)
        else:
            journal.write(**value)
    return [{"mark": value} if kind == "mark" else value for kind, value in what]


def up_to_last_mark(lines):
    marks = [index for index, line in enumerate(lines) if "mark" in line]
    return lines[: marks[-1] + 1] if marks else []


# --- journal -------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(entries, entries)
def test_a_journal_goes_on_from_its_last_mark(tmp_path_factory, first, second):
    path = tmp_path_factory.mktemp("run") / "journal.jsonl"
    journal = Journal(path)
    lines = fill(journal, first)
    assert journal.lines == lines
    assert journal.decisions == [line for line in lines if "mark" not in line]
    assert journal.marks == [line["mark"] for line in lines if "mark" in line]
    journal.close()
    again = Journal(path)
    assert again.lines == up_to_last_mark(lines)
    assert [json.loads(line) for line in path.read_text().splitlines()] == up_to_last_mark(lines)
    more = up_to_last_mark(lines) + fill(again, second)
    again.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == more
    with closing(Journal(path)) as third:
        assert third.lines == up_to_last_mark(more)


def test_a_journal_cut_at_any_byte_keeps_all_that_was_marked(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    lines = fill(journal, [("decision", {"edge": "a0.h0->logits", "kept": True, "note": "größer → 1"}), ("mark", "1"),
                           ("decision", {"metric": 0.1}), ("decision", {"metric": 1e300}), ("mark", "2"),
                           ("decision", {"lost": 1})])  # fmt: skip
    journal.close()
    whole = path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        complete = sum(end - 1 <= length for end in ends)  # a line that lacks only its line break is whole
        found = Journal(path)
        found.close()
        assert found.lines == up_to_last_mark(lines[:complete])


@pytest.mark.parametrize("tail", [b'{"edge": "a0', b"\x00\x00\x00\x00", b"\xff\xfe", b"{", b"\n\n", b'"mark"', b"3", b"[]"])
def test_a_half_written_last_line_is_dropped(tmp_path, tail):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    fill(journal, [("decision", {"edge": "x"}), ("mark", "layer 0")])
    journal.close()
    path.write_bytes(path.read_bytes() + tail)
    found = Journal(path)
    assert found.lines == [{"edge": "x"}, {"mark": "layer 0"}]
    found.write(edge="y")
    found.close()
    assert path.read_text() == '{"edge": "x"}\n{"mark": "layer 0"}\n{"edge": "y"}\n'


def test_a_decision_is_on_the_disk_as_soon_as_it_is_made(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    for index in range(3):
        journal.write(index=index)
        assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == index + 1
    journal.close()
    journal.close()  # twice does no harm


def test_a_journal_in_memory():
    journal = Journal()
    lines = fill(journal, [("decision", {"edge": "x"}), ("mark", "m")])
    assert journal.lines == lines
    journal.close()


def test_a_journal_that_cannot_be_opened_is_a_sentence(tmp_path):
    with pytest.raises(BadRun, match=r"cannot write .*journal\.jsonl"):
        Journal(tmp_path / "no such folder" / "journal.jsonl")
    with pytest.raises(BadRun, match="it is a folder"):
        Journal(tmp_path)


def test_a_full_disk_is_a_sentence_and_keeps_what_was_written(tmp_path):
    class FullDisk:
        def write(self, text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self):
            pass

    journal = Journal(tmp_path / "journal.jsonl")
    fill(journal, [("decision", {"edge": "x"}), ("mark", "m")])
    journal.close()
    journal._file = FullDisk()  # type: ignore[assignment]  # a disk that is full
    with pytest.raises(BadRun, match=r"journal\.jsonl: No space left on device.*circuitdisc resume"):
        journal.write(edge="y")
    with closing(Journal(tmp_path / "journal.jsonl")) as again:
        assert again.lines == [{"edge": "x"}, {"mark": "m"}]


# --- the folder ----------------------------------------------------------------------------------------------------------


def test_a_run_is_made_and_opened_again(tmp_path):
    run = Run.create(tmp_path / "runs" / "one", {"model": "gpt2", "seed": 3})
    again = Run.open(str(tmp_path / "runs" / "one"))
    assert again.config == run.config == {"model": "gpt2", "seed": 3, "versions": versions()}
    assert {"python", "torch", "circuitdisc"} <= set(versions())
    journal = run.journal()
    journal.write(edge="x")
    journal.mark("m")
    journal.close()
    with closing(again.journal()) as journal:
        assert journal.decisions == [{"edge": "x"}]
    run.write("scores.json", {"a": [1.5, None]})
    assert read_json(again.path("scores.json")) == {"a": [1.5, None]}


def test_an_empty_folder_will_do(tmp_path):
    assert Run.create(tmp_path, {}).folder == tmp_path


def test_a_run_is_never_written_over(tmp_path):
    Run.create(tmp_path / "one", {"seed": 1})
    with pytest.raises(BadRun, match=r"one already exists.*circuitdisc resume.*choose another"):
        Run.create(tmp_path / "one", {"seed": 2})
    assert Run.open(tmp_path / "one").config["seed"] == 1


def test_other_peoples_files_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadRun, match="it is not empty"):
        Run.create(tmp_path, {})
    with pytest.raises(BadRun, match="already exists"):
        Run.create(tmp_path / "notes.txt", {})
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadRun, match=r"cannot make the run folder .*Not a directory"):
        Run.create(tmp_path / "file" / "run", {})


def test_a_folder_that_may_not_be_written_is_a_sentence(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("circuitdisc.files.os.open", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)  # a read-only disk refuses this even where there is nothing to remove
    with pytest.raises(BadRun, match=r"cannot write .*config\.json: Read-only file system"):
        Run.create(tmp_path / "run", {})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", [None, "", "{", "not json", "[]", "3"])
def test_a_folder_that_is_no_run_is_not_opened(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(BadRun, match=r"is not a run: .*config\.json"):
        Run.open(tmp_path)


def test_a_missing_run_is_not_opened(tmp_path):
    for name in ("nothing", "file"):
        (tmp_path / "file").write_text("")
        with pytest.raises(BadRun, match=f"there is no run folder .*{name}"):
            Run.open(tmp_path / name)


# --- files ---------------------------------------------------------------------------------------------------------------


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class HalfWritten:
    """A disk that fills up in the middle of the file."""

    def __init__(self, handle, mode):
        self.file = original_fdopen(handle, mode)

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        full_disk()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


original_fdopen = os.fdopen


@pytest.mark.parametrize(
    ("function", "failure"), [("fdopen", HalfWritten), ("open", full_disk), ("fsync", full_disk), ("replace", full_disk)]
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, function, failure):
    path = tmp_path / "circuit.json"
    write_json(path, {"old": True})
    monkeypatch.setattr(f"circuitdisc.files.os.{function}", failure)
    with pytest.raises(BadRun, match=r"cannot write .*circuit\.json: No space left on device\. Free some space"):
        write_json(path, {"new": list(range(1000))})
    monkeypatch.undo()
    assert read_json(path) == {"old": True}
    assert [file.name for file in tmp_path.iterdir()] == ["circuit.json"]


def test_a_path_through_a_file_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadRun, match=r"cannot write .*Not a directory"):
        write_text(tmp_path / "file" / "circuit.json", "{}")


@settings(deadline=None)
@given(st.text())
def test_text_comes_back_as_it_was(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("text") / "text"
    write_text(path, text)
    assert path.read_bytes() == text.encode()
    assert read_text(path) == path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "says"),
    [(b'{"a": 1,\n "b', r"is not JSON \(line 2: .*was it cut short"), (b"\xff", "is not UTF-8"), (None, "No such file")],
)
def test_files_that_cannot_be_read_say_why(tmp_path, content, says):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(BadFile, match=rf"a\.json.*{says}"):
        read_json(tmp_path / "a.json")
