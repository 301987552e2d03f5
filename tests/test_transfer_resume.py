"""A transfer goes on from anywhere, with the weights and examples that it was begun with alone, and nothing through links."""

import json
import shutil
from typing import Any

import pytest
from changed import change_weights, contents, copied_model, task_file

from circuitdisc.checkpoints.transfer import transfer as module
from circuitdisc.checkpoints.transfer.transfer import resume_transfer, transfer
from circuitdisc.cli import main
from circuitdisc.errors import BadRun

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
    config = json.loads((folder / "out" / "config.json").read_text())
    config["versions"]["circuitdisc"] = "0.0.1"
    (folder / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadRun, match=r"begun by circuitdisc 0\.0\.1.*cells of two versions are not mixed"):
        resume_transfer(folder / "out")


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


@pytest.mark.parametrize("part", ["cells", "circuits", "checkpoints"])
def test_no_folder_inside_is_written_through_a_link(begun, part):
    folder, _ = begun
    victim = folder / "precious"
    victim.mkdir()
    for inner in ("cells", "circuits", "checkpoints") if part == "checkpoints" else (part,):
        shutil.rmtree(folder / "out" / inner)
    (folder / "out" / part).symlink_to(victim)
    with pytest.raises(BadRun, match="is a link to another place"):
        resume_transfer(folder / "out")
    assert list(victim.iterdir()) == []
