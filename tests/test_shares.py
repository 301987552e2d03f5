"""Units that other processes compute are those of one process, in the memo and in the commands that hand them out."""

import json
import shutil
from pathlib import Path

import pytest
from cell_logs import counts

from circuitdisc.checkpoints.transfer.transfer import _is_worth_keeping
from circuitdisc.cli import main
from circuitdisc.errors import BadRun, BadSetting
from circuitdisc.identity import Identity
from circuitdisc.runs import Cells, Memo, computing, handing_out, recorded

IDENTITY = Identity({"weights of the model": "a"}, {}, {"seed": 0}, "1")
QUICK = ["task.n=8", "task.n_heldout=8", "scoring.n_random=2", "threads=1", "progress=false"]
JOBLIB = ["launcher=joblib", "hydra.launcher.n_jobs=2"]


class Squares:
    """A command with a prelude and independent units, as values and as files."""

    def __init__(self, folder: Path, identity: Identity = IDENTITY) -> None:
        self.folder, self.identity, self.computed = folder, identity, list[str]()
        self.error: Exception = BadSetting("two is refused")

    def __call__(self) -> dict[str, int]:
        memo = Memo(self.folder / "journal.jsonl", self.identity)
        try:
            start = memo.get("start", lambda: self.made("start", 1))
            memo.bind("part", Identity({"weights of the model": "b"}, {}, {}, "1"))
            values = {f"square {n}": (lambda n=n: self.made(f"square {n}", start + n * n)) for n in range(4)}
            memo.spread(values)
            files = {f"cubes/{n}.json": (lambda n=n: self.made(f"cubes/{n}.json", start + n**3)) for n in range(3)}
            memo.spread(files, memo.get_file)
            found = {name: memo.get(name, compute) for name, compute in values.items()}
            return {**found, **{name: memo.get_file(name, compute) for name, compute in files.items()}}
        finally:
            memo.close()

    def made(self, name: str, value: int) -> int:
        self.computed.append(name)
        if name == "square 2" and (self.folder / "bad").exists():
            raise self.error
        return value


def shared_out(work: Squares, computed: list[str]):
    """As a launcher: two jobs, each the same command in a process that has a share."""

    def hand_out(journal, names):
        for share in filter(None, (names[::2], names[1::2])):
            job = Squares(work.folder, work.identity)
            job.error = work.error
            before = journal.read_bytes()
            with handing_out(None), computing(journal, share):
                job()
                pytest.fail("a share ends the call")
            assert journal.read_bytes() == before, "the call that waits writes it alone"
            computed.extend(job.computed)

    return hand_out


def test_units_that_others_compute_are_those_of_one_process(tmp_path):
    alone, spread, computed = Squares(tmp_path / "alone"), Squares(tmp_path / "spread"), list[str]()
    for work in (alone, spread):
        work.folder.mkdir()
    whole = alone()
    with recorded("stability", ["circuitdisc", "stability"]), handing_out(shared_out(spread, computed)):
        assert spread() == whole
    assert spread.computed == ["start"]
    assert sorted(computed) == sorted(set(alone.computed) - {"start"}), "each once"
    assert set(counts(spread.folder).values()) == {(1, 1)}
    assert not list(spread.folder.glob("cells/*/unit.*")), "they were taken over"
    lines = [set((work.folder / "journal.jsonl").read_text().splitlines()[1:]) for work in (alone, spread)]
    assert lines[0] == lines[1]
    again = Squares(spread.folder)
    assert again() == whole
    assert not again.computed


def test_a_unit_that_fails_is_said_and_the_rest_is_kept(tmp_path):
    spread, computed = Squares(tmp_path), list[str]()
    (tmp_path / "bad").touch()
    with recorded("x", []), handing_out(shared_out(spread, computed)), pytest.raises(BadRun, match=r"1 of 4 .*two is refused"):
        spread()
    assert Cells(tmp_path).state("square 2").error == "two is refused"
    (tmp_path / "bad").unlink()
    computed.clear()
    with recorded("x", []), handing_out(shared_out(spread, computed)):
        spread()
    assert sorted(computed) == ["cubes/0.json", "cubes/1.json", "cubes/2.json", "square 2"]


def test_a_unit_that_fails_as_nobody_foresaw_is_said_and_ends_no_other(tmp_path):
    spread, computed = Squares(tmp_path), list[str]()
    spread.error = RuntimeError("out of\nmemory")
    (tmp_path / "bad").touch()
    sentence = r"1 of 4 .*RuntimeError: out of memory"
    with recorded("x", []), handing_out(shared_out(spread, computed)), pytest.raises(BadRun, match=sentence):
        spread()
    assert sorted(computed) == [f"square {n}" for n in range(4)], "the rest was computed"


def test_logs_of_units_alone_are_not_worth_a_folder(tmp_path):
    cells = Cells(tmp_path)
    cells.enter("transfer", {"cells/0.json": []})
    with cells.claim("cells/0.json"):
        cells.begin("cells/0.json")
    assert not _is_worth_keeping(tmp_path)
    (tmp_path / "cells" / "00-a.00-a.json").write_text("{}")
    assert _is_worth_keeping(tmp_path)


def test_a_late_job_of_a_call_that_is_over_computes_nothing(tmp_path):
    work = Squares(tmp_path)
    with computing(tmp_path / "journal.jsonl", ["square 1"]):
        work()
    assert not work.computed
    work()
    again, before = Squares(tmp_path), (tmp_path / "journal.jsonl").read_bytes()
    with computing(tmp_path / "journal.jsonl", ["a name of another version"]):
        again()
        pytest.fail("a share ends the call")
    assert not again.computed
    assert (tmp_path / "journal.jsonl").read_bytes() == before


def test_a_unit_of_something_else_is_not_taken_over(tmp_path):
    other, computed = Squares(tmp_path, Identity({"weights of the model": "z"}, {}, {}, "1")), list[str]()

    def only_compute(folder, names):
        shared_out(other, computed)(folder, names)
        raise KeyboardInterrupt  # the call dies before it takes anything over

    with recorded("x", []), handing_out(only_compute), pytest.raises(KeyboardInterrupt):
        other()
    (tmp_path / "journal.jsonl").unlink()
    mine = Squares(tmp_path)
    with recorded("x", []), handing_out(shared_out(mine, computed := [])):
        mine()
    assert sorted(computed) == sorted([*(f"square {n}" for n in range(4)), *(f"cubes/{n}.json" for n in range(3))])


@pytest.fixture(scope="module")
def a_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cells") / "run"
    assert main(["discover", "model=tpp/lightweight", "algorithm=eap", *QUICK, f"out={folder}"]) == 0
    return folder


def without_seconds(data):
    if isinstance(data, dict):
        return {key: without_seconds(value) for key, value in data.items() if key != "seconds"}
    return [without_seconds(value) for value in data] if isinstance(data, list) else data


def test_commands_hand_their_units_to_a_launcher(a_run, tmp_path):
    """Stability in processes of joblib; transfer, in the slow tier's company below, uses the same line."""
    alone, spread = tmp_path / "alone", tmp_path / "spread"
    for folder in (alone, spread):
        shutil.copytree(a_run, folder)
    command = ["stability", "n_samples=3", "threads=1", "progress=false"]
    assert main([command[0], str(alone), *command[1:]]) == 0
    assert main([command[0], str(spread), *command[1:], *JOBLIB, "cells_per_job=2"]) == 0
    assert (alone / "stability.json").read_bytes() == (spread / "stability.json").read_bytes()
    assert set(counts(spread).values()) == {(1, 1)}
    assert len(counts(spread)) == 3


def test_a_transfer_hands_out_searches_and_cells(tmp_path):
    command = ["transfer", "checkpoints=[tpp/featherweight,tpp/lightweight]", "algorithm=eap", "task.n=8", "task.n_heldout=8"]
    command += ["n_random=2", "threads=1", "progress=false"]
    assert main([*command, f"out={tmp_path / 'alone'}"]) == 0
    assert main([*command, f"out={tmp_path / 'spread'}", *JOBLIB, "cells_per_job=2"]) == 0
    whole, spread = (json.loads((tmp_path / name / "transfer.json").read_text()) for name in ("alone", "spread"))
    assert without_seconds(whole) == without_seconds(spread)
    assert sorted(counts(tmp_path / "spread").values()) == [(1, 1)] * 6, "two searches, four cells"


def test_a_judgement_hands_out_its_scores(a_run, tmp_path, monkeypatch):
    """The same command in this process, as a launcher would run it, since every score takes seconds."""
    alone, spread = tmp_path / "alone", tmp_path / "spread"
    for folder in (alone, spread):
        shutil.copytree(a_run, folder)

    def launch(work, folder, names, words, more):
        from circuitdisc.jobs.spread import compute_units

        with handing_out(None):
            for name in names:
                compute_units(folder, [name], more)

    monkeypatch.setattr("circuitdisc.jobs.spread.launch", launch)
    command = ["--all", "threads=1", "progress=false"]
    assert main(["score", str(alone), *command]) == 0
    assert main(["score", str(spread), *command, *JOBLIB]) == 0
    whole, judged = (json.loads((folder / "judgement.json").read_text()) for folder in (alone, spread))
    assert without_seconds(whole) == without_seconds(judged)
    assert counts(spread)
    assert set(counts(spread).values()) <= {(1, 1), (1, 0)}, "a score that cannot be had here has failed"
