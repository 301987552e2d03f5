"""A transfer goes on from anywhere, with the weights and examples that it was begun with alone, and nothing through links."""

import json
import re
import shutil
from typing import Any

import pytest
from changed import change_weights, contents, copied_model, edit_json, task_file

from circuitdisc.checkpoints.transfer import transfer as module
from circuitdisc.checkpoints.transfer.transfer import resume_transfer, transfer
from circuitdisc.cli import main
from circuitdisc.errors import BadFile, BadRun

CALL: dict[str, Any] = {"ablation": "resample", "n_random": 0, "edges": 8}


@pytest.fixture
def begun(tmp_path):
    """Two checkpoints in folders, a task file, and a finished transfer between them, with relative names."""
    for name in ("a", "b"):
        copied_model(tmp_path / name)
    change_weights(tmp_path / "b")
    task_file(tmp_path / "task.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        found = transfer(["a", "b"], {"name": "file", "path": "task.jsonl"}, "eap", out="out", **CALL)
    return tmp_path, found


@pytest.mark.parametrize("what", ["the first checkpoint", "the second checkpoint", "train examples", "held-out examples"])
@pytest.mark.parametrize("finished", [True, False])
def test_what_has_changed_is_not_taken_for_what_was_finished(begun, what, finished):
    folder, _ = begun
    if not finished:
        next((folder / "out" / "cells").glob("01*01*")).unlink()
    if "checkpoint" in what:
        name = "a" if "first" in what else "b"
        change_weights(folder / name)
        says = rf"begun with other weights of the model \({name}\)"
    else:
        task_file(folder / "task.jsonl", **({"seed": 7} if what == "train examples" else {"heldout_seed": 7}))
        says = f"begun with other {what}"
    before = contents(folder / "out")
    with pytest.raises(BadRun, match=says):
        resume_transfer(folder / "out")
    assert contents(folder / "out") == before or not finished


def test_a_transfer_goes_on_from_another_folder(begun, tmp_path, monkeypatch):
    """Relative names mean what they meant where it was begun."""
    folder, found = begun
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    next((folder / "out" / "cells").glob("01*01*")).unlink()
    assert resume_transfer("../out").to_dict() == found.to_dict()
    assert main(["resume", "../out"]) == 0


def test_a_transfer_of_another_version_is_not_gone_on_with(begun):
    folder, _ = begun
    journal = folder / "out" / "journal.jsonl"
    first, *rest = journal.read_text().splitlines(keepends=True)
    data = json.loads(first)
    data["identity"]["version"] = "0.0.1"
    journal.write_text("".join([json.dumps(data) + "\n", *rest]))
    with pytest.raises(BadRun, match=r"begun with another version of circuitdisc \(0\.0\.1, now"):
        resume_transfer(folder / "out")


def test_a_transfer_of_the_layout_before_says_what_opens_it(begun, capsys):
    folder, _ = begun
    edit_json(folder / "out" / "config.json", ("version",), 1)
    edit_json(folder / "out" / "config.json", ("versions", "circuitdisc"), "0.0.1")
    before = contents(folder / "out")
    assert main(["resume", str(folder / "out")]) == 2
    said = capsys.readouterr().err
    assert re.search(
        r"begun by circuitdisc 0\.0\.1, .* in another layout .* \(1, here 2\): go on with circuitdisc 0\.0\.1", said
    )
    assert contents(folder / "out") == before


@pytest.mark.parametrize("part", ["circuits/00-a.json", "cells/01-b.00-a.json"])
def test_a_part_that_was_changed_is_refused_and_one_that_was_removed_is_made_again(begun, part):
    folder, found = begun
    path = folder / "out" / part
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"0", b"1", 1))
    with pytest.raises(BadFile, match=rf"{part} is damaged \(.*other bytes than were written\): remove it, and the same call"):
        resume_transfer(folder / "out")
    path.unlink()
    assert resume_transfer(folder / "out").to_dict() == found.to_dict()
    assert path.read_bytes() == whole


def test_ctrl_c_names_the_command_that_goes_on(begun, monkeypatch, capsys):
    folder, _ = begun
    monkeypatch.chdir(folder)
    args = ["transfer", "checkpoints=[a,b]", "task=task.jsonl", "algorithm=eap", "algorithm.edges=8", "ablation=resample"]
    own = module.Judge.score
    calls = []

    def stop(self, *more):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return own(self, *more)

    monkeypatch.setattr(module.Judge, "score", stop)
    assert main([*args, "n_random=0", "progress=false", "out=again"]) == 130
    assert "stopped; `circuitdisc transfer out=again` goes on where it was" in capsys.readouterr().err
    assert main(["transfer", "out=again", "progress=false"]) == 0
    assert len(calls) == 5, "the first cell was not run again"
    monkeypatch.setattr(module, "load", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main([*args, "out=new"]) == 130
    assert "nothing was kept" in capsys.readouterr().err
    assert not (folder / "new").exists()


@pytest.mark.parametrize("part", ["cells", "circuits"])
def test_no_folder_inside_is_written_through_a_link(begun, part):
    folder, _ = begun
    victim = folder / "precious"
    victim.mkdir()
    shutil.rmtree(folder / "out" / part)
    (folder / "out" / part).symlink_to(victim)
    with pytest.raises(BadRun, match="is a link to another place"):
        resume_transfer(folder / "out")
    assert list(victim.iterdir()) == []
