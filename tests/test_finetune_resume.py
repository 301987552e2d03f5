"""A ladder goes on after a kill, a full disk and damage; with other weights, examples or through a link it does not."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from changed import change_weights, contents, edit_json
from models import hugging_face
from safetensors.torch import load_file

from circuitdisc.checkpoints.finetune import data, loop
from circuitdisc.checkpoints.finetune.finetune import finetune
from circuitdisc.checkpoints.listing import read_checkpoints
from circuitdisc.cli import main
from circuitdisc.errors import BadFile, BadRun, CircuitdiscWarning
from circuitdisc.files import fresh_folder

CALL: dict[str, Any] = {"fractions": 1, "epochs": 3, "batch_size": 8, "lr": 1e-2, "figures": False}
N = 24


@pytest.fixture(scope="module", autouse=True)
def few_protected() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "PROTECTED", 10)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    hugging_face("gpt2").save_pretrained(folder)
    return folder


def lines(path: Path, shift: int = 0) -> dict[str, Any]:
    """A task file of N train lines."""
    rows = [{"clean": [(i + shift) % 40, (i + 1) % 40, i % 7], "answers": (i + 2) % 40, "split": "train"} for i in range(N)]
    rows += [{"clean": [i, i, i], "answers": i + 1, "split": "heldout"} for i in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"name": "file", "path": str(path)}


class Killed(BaseException):
    """As a kill is: nothing catches it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    original = loop._Watch.on_step_end

    def kill(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
        original(self, args, state, control, **rest)
        if state.global_step == step:
            raise Killed

    monkeypatch.setattr(loop._Watch, "on_step_end", kill)


@pytest.fixture
def killed(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ladder that was killed at its seventh of nine steps; `base`, `task.jsonl` and `out` lie in the folder."""
    shutil.copytree(base, tmp_path / "base")
    task = lines(tmp_path / "task.jsonl")
    with monkeypatch.context() as patch:
        kill_at(patch, 7)
        with pytest.raises(Killed):
            finetune(tmp_path / "base", task, tmp_path / "out", **CALL)
    return tmp_path


def go_on(folder: Path, out: str = "out", **changes: Any) -> dict[str, torch.Tensor]:
    finetune(folder / "base", {"name": "file", "path": str(folder / "task.jsonl")}, folder / out, **{**CALL, **changes})
    return load_file(folder / out / "100pct" / "model.safetensors")


def trainer(folder: Path) -> Path:
    return folder / "out" / "100pct.part" / "trainer"


# --- what it belongs to ---------------------------------------------------------------------------------------------------


def test_other_weights_or_examples_are_refused(killed: Path) -> None:
    weights = (killed / "base" / "model.safetensors").read_bytes()
    before = contents(killed / "out")
    change_weights(killed / "base")
    with pytest.raises(BadRun, match="begun with other weights of the model"):
        go_on(killed)
    (killed / "base" / "model.safetensors").write_bytes(weights)
    lines(killed / "task.jsonl", shift=1)
    with pytest.raises(BadRun, match="begun with other pool of examples"):
        go_on(killed)
    assert contents(killed / "out") == before
    lines(killed / "task.jsonl")
    whole = go_on(killed, "straight")
    assert all(torch.equal(value, whole[name]) for name, value in go_on(killed).items())
    change_weights(killed / "base")
    with pytest.raises(BadRun, match="begun with other weights of the model"):  # nor is a finished one taken for it
        go_on(killed)


def test_a_ladder_without_a_journal_says_what_opens_it_and_is_still_read(killed: Path) -> None:
    edit_json(killed / "out" / "ladder.json", ("versions", "circuitdisc"), "0.0.1")
    (killed / "out" / "journal.jsonl").unlink()
    before = contents(killed / "out")
    with pytest.raises(
        BadRun, match=r"ladder of circuitdisc 0\.0\.1, which kept no journal: .*circuitdisc 0\.0\.1 alone goes on"
    ):
        go_on(killed)
    assert contents(killed / "out") == before
    go_on(killed, "other")
    (killed / "other" / "journal.jsonl").unlink()
    assert read_checkpoints([killed / "other"], least=1, what="a test")[1:] == [str(killed / "other" / "100pct")]


# --- damage ---------------------------------------------------------------------------------------------------------------


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeros(path: Path) -> None:
    path.write_bytes(b"\0" * path.stat().st_size)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("optimizer.pt", cut_short),
        ("model.safetensors", zeros),
        ("trainer_state.json", Path.unlink),
        ("scheduler.pt", zeros),
        ("", None),
    ],
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(killed: Path, name: str, damage: Any) -> None:
    whole = go_on(killed, "straight")
    steps = sorted(int(path.name.partition("-")[2]) for path in trainer(killed).glob("checkpoint-*"))
    if damage is None:  # as a kill leaves it before it is registered: no damage
        journal = killed / "out" / "journal.jsonl"
        lines = journal.read_text().splitlines(keepends=True)
        assert f"checkpoint-{steps[-1]}" in lines[-1]
        journal.write_text("".join(lines[:-1]))
        found = go_on(killed)
    else:
        damage(trainer(killed) / f"checkpoint-{steps[-1]}" / name)
        with pytest.warns(
            CircuitdiscWarning, match=rf"100pct goes on from checkpoint-{steps[-2]}: checkpoint-{steps[-1]} is dam"
        ):
            found = go_on(killed)
    assert all(torch.equal(value, whole[key]) for key, value in found.items())


def test_without_a_whole_checkpoint_training_begins_again(killed: Path) -> None:
    whole = go_on(killed, "straight")
    for path in trainer(killed).glob("checkpoint-*/optimizer.pt"):
        cut_short(path)
    with pytest.warns(CircuitdiscWarning, match=r"training 100pct begins again: .*optimizer\.pt has other bytes"):
        found = go_on(killed)
    assert all(torch.equal(value, whole[key]) for key, value in found.items())


def test_a_damaged_finished_checkpoint_says_what_to_do(killed: Path) -> None:
    go_on(killed)
    (killed / "out" / "100pct" / "training.json").write_text('{"steps"')
    with pytest.raises(BadFile, match=r"training\.json.*Remove .*100pct, and the same command makes"):
        go_on(killed)
    shutil.rmtree(killed / "out" / "100pct")
    go_on(killed)


def test_a_checkpoint_half_way_to_its_place_is_made_again_if_it_is_damaged(killed: Path) -> None:
    whole = go_on(killed, "straight")
    final = killed / "out" / "100pct.part" / "final"
    final.mkdir()
    (final / "training.json").write_text("")
    assert all(torch.equal(value, whole[key]) for key, value in go_on(killed).items())


def test_a_folder_that_fails_to_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "old").write_text("old")
    (tmp_path / ".final.0123.part").mkdir()  # what a kill has left

    def fail() -> None:
        with fresh_folder(tmp_path / "final") as beside:
            (beside / "new").write_text("half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert contents(tmp_path) == {"final/old": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_ctrl_c_names_the_command_that_goes_on(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder is one that the command has chosen itself, so it is named."""
    monkeypatch.chdir(tmp_path)
    lines(tmp_path / "task.jsonl")
    args = ["finetune", f"model={base}", "task=task.jsonl", "fractions=1", "epochs=1", "batch_size=8", "figures=false"]

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop._Watch, "on_step_end", stop)
        assert main([*args, "progress=false"]) == 130
    said = capsys.readouterr().err
    (folder,) = (tmp_path / "runs").iterdir()
    command = " ".join([*args, "progress=false", f"out=runs/{folder.name}"])
    assert f"stopped; `circuitdisc {command}` goes on where it was" in said, said
    assert main(shlex.split(command)) == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [folder.name]


# --- a full disk ----------------------------------------------------------------------------------------------------------

LIMITED = """
import resource, sys
from circuitdisc.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("limit", [60_000, 250_000])
def test_a_full_disk_is_a_sentence_and_the_same_command_goes_on(base: Path, tmp_path: Path, limit: int) -> None:
    """No file may grow beyond the limit: first the weights cannot be written, then the optimizer's state."""
    sizes = (base / "model.safetensors").stat().st_size
    assert 60_000 < sizes < 250_000 < 2 * sizes
    shutil.copytree(base, tmp_path / "base")
    lines(tmp_path / "task.jsonl")
    args = ["finetune", f"model={tmp_path / 'base'}", f"task={tmp_path / 'task.jsonl'}", "fractions=1", "epochs=3", "lr=1e-2"]
    args += ["batch_size=8", "figures=false", "progress=false", f"out={tmp_path / 'out'}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LIMITED, str(limit), *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "cannot write" in done.stderr
    assert "then give the same command again" in done.stderr
    assert len(done.stderr.strip().splitlines()[-1]) < 500
    assert main(args) == 0
    found = load_file(tmp_path / "out" / "100pct" / "model.safetensors")
    assert main([*args, f"out={tmp_path / 'straight'}"]) == 0
    whole = load_file(tmp_path / "straight" / "100pct" / "model.safetensors")
    assert all(torch.equal(value, whole[key]) for key, value in found.items())


# --- links ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", ["100pct.part", "100pct.part/trainer", "100pct.part/trainer/checkpoint-9", "100pct.part/final"]
)
def test_nothing_is_written_through_a_link(killed: Path, place: str) -> None:
    victim = killed / "precious"
    victim.mkdir()
    path = killed / "out" / place
    if path.exists():
        shutil.rmtree(path)
    path.symlink_to(victim)
    with pytest.raises(BadRun, match="is a link to another place"):
        go_on(killed)
    assert list(victim.iterdir()) == []
