"""One call on several ranks equals the same call on one: as threads here, and as processes of torchrun."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cross_models
import numpy as np
import pytest
import torch
from examples import random_task, some_circuit
from models import model_of

import circuitdisc as cd
from circuitdisc.ablation import Ablation
from circuitdisc.certainty.clusters import Clusters, directions
from circuitdisc.checkpoints.cmap.cmap import cmap
from circuitdisc.checkpoints.joint_edges import joint_acdc
from circuitdisc.checkpoints.joint_heads import joint_head_ablation
from circuitdisc.cli import main
from circuitdisc.discovery.base import SearchContext
from circuitdisc.discovery.registry import ALGORITHMS
from circuitdisc.engine.ranks import Share, agreed, gathered, shared, simulated, summed, turns
from circuitdisc.errors import BadRun, BadSetting
from circuitdisc.runs import Journal
from circuitdisc.scoring.kind import ScoreCall
from circuitdisc.scoring.registry import REGISTRY

HERE = Path(__file__).parent
SHORT = {
    **{name: {"steps": 5} for name in ("edge_pruning", "subnetwork_probing", "soft_topk")},
    **{name: {"threshold": 0.3} for name in ("acdc", "bisect", "refine")},
}
CASES = [(name, 3) for name in ALGORITHMS if name != "from_file"]
CASES += [(name, 8) for name in ("acdc", "eap", "edge_pruning", "path_patching", "head_ablation")]  # more than examples
# python exchanges filters of warnings for all threads at once
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def subject():
    model = model_of("layer_norm_gated")
    return model, random_task(model, 6)


def assert_near(found, expected, where="", tolerance=1e-12, ends=1e-7):
    """Plain data is the same but for rounding: of numbers, and of ends of intervals, to which no spread is one of rounding."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected.keys() - {"seconds", "cost", "versions", "started", "command"}:
            assert_near(found[key], expected[key], f"{where}.{key}", ends if key.endswith(("low", "high")) else tolerance, ends)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_near(one, other, f"{where}[{index}]", tolerance, ends)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=tolerance, abs=tolerance, nan_ok=True), where
    else:
        assert found == expected, where


# --- the room -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_items", [1, 2, 3, 5, 12])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_shares_come_back_in_order(n_items, n):
    items: Any = torch.arange(2.0 * n_items).reshape(n_items, 2)

    def work(_):
        share, mine = shared(items)
        mine: Any = mine
        assert len(mine) >= 1
        by_turns = [gathered(items[i : i + 1] if i is not None else items[:0], s) for s, i in turns(n_items)]
        return gathered(mine, share), gathered(mine.numpy().T, share, axis=1), torch.cat(by_turns)

    for whole, turned, by_turns in simulated(n, work):
        assert torch.equal(whole, items)
        np.testing.assert_array_equal(turned, items.numpy().T)
        assert torch.equal(by_turns, items)


def test_one_process_has_no_share_and_copies_nothing():
    items, values = [1, 2, 3], torch.ones(3)
    assert shared(items) == (None, items)
    assert gathered(values, None) is values
    assert summed(values, None, "values") is values
    assert agreed(items) is items
    assert list(turns(2)) == [(None, 0), (None, 1)]


def test_sums_do_not_depend_on_who_has_what():
    parts = torch.randn(4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for total in simulated(4, lambda index: summed(parts[index], Share(4), "parts")):
        assert torch.equal(total, parts.sum(0))


def test_rank_0_says_what_all_agree_on():
    assert simulated(3, lambda index: agreed({"rank": index})) == [{"rank": 0}] * 3


@pytest.mark.parametrize("other", ["question", "shape", "turn"])
def test_ranks_that_come_apart_are_an_error_and_no_number(other):
    def work(index):
        if index == 1 and other == "turn":
            gathered(torch.ones(1), Share(2), "rows")
        what, width = ("sums", 2) if index == 1 and other == "question" else ("rows", 2 + (index == 1 and other == "shape"))
        return gathered(torch.ones(1, width), Share(2), what)

    with pytest.raises(BadRun, match="come apart"):
        simulated(2, work)


def test_an_error_of_one_rank_ends_all():
    def work(index):
        if index == 1:
            raise BadSetting("no")
        return agreed(index)

    with pytest.raises(BadSetting):
        simulated(2, work)


# --- algorithms and scores, as threads -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("algorithm", "n"), CASES)
def test_every_algorithm_finds_what_one_rank_finds(subject, algorithm, n):
    model, task = subject

    def work(_=0):
        ablation = "resample" if algorithm in ("ceap", "eap_gp") else "mean"
        settings = {"metric": "logit_diff", "ablation": ablation, "allow_chance": True, **SHORT.get(algorithm, {})}
        return cd.discover(model, task, algorithm, **settings)

    alone = work()
    for found in simulated(n, work):
        assert found.circuit == alone.circuit
        for scores, expected in ((found.edge_scores, alone.edge_scores), (found.node_scores, alone.node_scores)):
            if expected is not None and scores is not None:
                np.testing.assert_allclose(scores, expected, rtol=1e-12, atol=1e-12)
        assert_near(found.trace, alone.trace)


@pytest.mark.parametrize("algorithm", ["eap", "eap_ig", "eap_ig_activations", "clean_corrupted", "atp", "hisp"])
def test_attributions_are_the_same_to_the_last_bit(subject, algorithm, monkeypatch):
    monkeypatch.setattr("circuitdisc.engine.gradients.memory.CPU_TOKEN_ROWS", 40)  # several chunks
    model, task = subject

    def work(_=0):
        found = cd.discover(model, task, algorithm, metric="logit_diff", ablation="resample", allow_chance=True)
        return found.edge_scores if found.node_scores is None else found.node_scores

    alone = work()
    for scores in simulated(3, work):
        np.testing.assert_array_equal(scores, alone)


@pytest.mark.parametrize("backend", [("gpt2", {"components": "hooks"}), ("rms_rotary_grouped", {})], ids=["hooks", "grouped"])
def test_acdc_on_models_of_other_backends(backend):
    family, settings = backend
    models = [model_of(family, **settings) for _ in range(2)]  # hooks are of one run at a time
    task = random_task(models[0], 5)

    def work(index=0):
        settings = {"threshold": 1.0, "metric": "logit_diff", "ablation": "resample", "allow_chance": True}
        return cd.discover(models[index], task, "acdc", **settings)

    alone = work()
    for found in simulated(2, work):
        assert found.circuit == alone.circuit
        assert_near(found.trace, alone.trace)


@pytest.mark.parametrize("by_heads", [False, True], ids=["edges", "heads"])
def test_every_score_is_what_one_rank_measures(subject, by_heads):
    model, task = subject
    circuit = some_circuit(model.graph)
    circuit = cd.Circuit.from_heads(model.graph, circuit.heads()[:5]) if by_heads else circuit

    def work(_=0):
        options = {"ablation": "mean", "metric": "logit_diff", "seed": 0, "memory": "4GiB", "progress": False}
        call = ScoreCall(model, task, circuit, options)
        kinds = [REGISTRY.get(name) for name in REGISTRY.names]
        results = {kind.name: kind.compute(call).to_dict() for kind in kinds if kind.lacking(call) is None}
        own = cd.score(model, task, circuit, n_random=2, **options).to_dict()
        paths = cd.path_patch(model, task, "heads", ["logits"], metric="logit_diff").patched.tolist()
        return json.loads(json.dumps({"score": own, "paths": paths, **results}))

    alone = work()
    for found in simulated(2, work):
        assert_near(found, alone)


def test_searches_of_several_checkpoints_and_stability(subject):
    model, task = subject
    context = SearchContext("logit_diff", "4GiB", 0, Journal(), False)

    def work(_=0):
        joint = [search([model, model], task, Ablation("mean"), replace(context, journal=Journal()), threshold=0.3)
                 for search in (joint_acdc, joint_head_ablation)]  # fmt: skip
        found = cd.stability(model, task, "eap", n_bootstrap=3, metric="logit_diff", allow_chance=True)
        return [circuit.edge_names() for circuit in (*(one.circuit for one in joint), *found.circuits, found.whole)]

    alone = work()
    assert simulated(2, work) == [alone] * 2


CIRCUIT: dict[str, Any] = {"ablation": "mean", "metric": "logit_diff"}


def _certified(model, task, circuit):
    return cd.certify(model, task, "eap", n=50, edges=20, allow_chance=True, **CIRCUIT)


def _backups(model, task, circuit):
    return cd.backups(model, task, circuit, n_judged=2, n_random=1, **CIRCUIT)


def _rivals(model, task, circuit):
    return cd.rivals(model, task, circuit, "eap", n=1, n_random=1, settings={"edges": 20}, **CIRCUIT)


def _specificity(model, task, circuit):
    other, runs = random_task(model, 5, seed=3), {"other": (~circuit, random_task(model, 4, seed=4))}
    return cd.specificity(
        model, task, circuit, others={"another": replace(other, name="another")}, runs=runs, n_random=2, **CIRCUIT
    )


def _mixtures(by):
    def measure(model, task, circuit):
        return cd.mixtures(model, task, circuit, "eap", by=by, n_splits=1, settings={"edges": 20}, **CIRCUIT)

    return measure


@pytest.mark.parametrize("measure", [_certified, _backups, _rivals, _specificity, _mixtures("edge"), _mixtures("sender")])
def test_how_far_a_circuit_can_be_believed(subject, measure, monkeypatch):
    """With clusters by hand: of random examples there is one."""

    def halves(scores, *_):
        labels, unit = (np.arange(len(scores)) % 2), directions(scores)
        return Clusters(labels, np.stack([unit[labels == half].mean(0) for half in (0, 1)]), ())

    monkeypatch.setattr("circuitdisc.certainty.mixtures.clusters_of", halves)
    model, _ = subject
    task = random_task(model, 11)
    circuit = cd.discover(model, task, "eap", edges=30, allow_chance=True, **CIRCUIT).circuit

    def work(_=0):
        return json.loads(json.dumps(measure(model, task, circuit).to_dict()))

    alone = work()
    for found in simulated(2, work):
        assert_near(found, {**alone, "forwards": found.get("forwards")})  # estimates, from the first rank's share


@pytest.mark.parametrize(("memory", "n_chunks"), [("4GiB", 2), ("250KB", 4)])
def test_cross_model_patching(memory, n_chunks):
    """The examples of a split in a chunk, which one rank has, and in two."""
    base, tuned = (cross_models.model("llama", which) for which in ("base", "tuned"))

    def work(_=0):
        found = cmap(base, tuned, cross_models.task_of("llama"), n_random=1, top=2, steps=[0, 2], memory=memory)
        return json.loads(json.dumps(found.to_dict()))

    alone = work()
    assert alone["plan"]["chunks"] == n_chunks
    for found in simulated(2, work):
        assert_near(found, alone)


def test_a_search_goes_on_with_another_number_of_ranks(subject, tmp_path):
    model, task = subject
    whole = tmp_path / "journal.jsonl"

    def work(_=0, path=None):
        journal = Journal(path)
        try:
            settings = {"metric": "logit_diff", "ablation": "mean", "allow_chance": True, "threshold": 0.3}
            return cd.discover(model, task, "bisect", journal=journal, **settings)
        finally:
            journal.close()

    alone = work(path=whole)
    lines = whole.read_text().splitlines(keepends=True)
    for n, n_lines in ((2, len(lines) // 3), (3, 2 * len(lines) // 3)):
        copies = [tmp_path / f"{n}.{index}.jsonl" for index in range(n)]
        for copy in copies:
            copy.write_text("".join(lines[:n_lines]))
        for found in simulated(n, lambda index, copies=copies: work(path=copies[index])):
            assert found.circuit == alone.circuit
            assert_near(found.trace, alone.trace)


# --- commands, as processes of torchrun -------------------------------------------------------------------------------------

TPP = ["model=tpp/lightweight", "model.dtype=float64", "task=tpp", "task.n=6", "task.n_heldout=4", "metric=logit_diff"]
QUICK = [*TPP, "allow_chance=true", "scoring.n_random=1", "progress=false"]
COMMANDS = {
    "acdc": ["discover", *QUICK, "algorithm=acdc", "algorithm.threshold=0.5"],
    "eap_ig": ["discover", *QUICK, "algorithm=eap_ig"],
    "edge_pruning": ["discover", *QUICK, "algorithm=edge_pruning", "algorithm.steps=4", "algorithm.fraction=0.5"],
}


def torchrun(n, *words, cwd, **options):
    """A torchrun of n processes; output is text."""
    environment = os.environ | {"PYTHONPATH": f"{HERE.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n), *map(str, words)]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        **options,
    )  # fmt: skip


def assert_same_run(folder, expected):
    """A run's folder holds what another one does: its circuit byte for byte, its numbers but for rounding."""
    names = {path.name for path in expected.iterdir()}
    assert {path.name for path in folder.iterdir()} == names
    assert (folder / "circuit.json").read_bytes() == (expected / "circuit.json").read_bytes()
    for name in names & {"scores.json", "judgement.json", "stability.json"}:
        assert_near(json.loads((folder / name).read_text()), json.loads((expected / name).read_text()), name)
    if "edge_scores.npz" in names:
        found, other = (np.load(path / "edge_scores.npz")["edge_scores"] for path in (folder, expected))
        np.testing.assert_allclose(found, other, rtol=1e-12, atol=1e-12)


ON_A_RUN = {
    "certify": ["n=134"],
    "rivals": ["n=1", "n_random=1"],
    "specificity": ["n_random=1"],
    "backups": ["n_judged=2", "n_random=1"],
    "mixtures": ["n_splits=1", "n_null=19"],
}


@pytest.mark.slow
def test_two_processes_say_what_one_says_of_a_run(tmp_path, monkeypatch):
    (tmp_path / "two").mkdir()
    lines = [["discover", *QUICK, "task.n=12", "seed=1", "algorithm=eap_ig", "algorithm.edges=40", "out=run"]]
    lines += [[name, "run", *words, "progress=false"] for name, words in ON_A_RUN.items()]
    (tmp_path / "commands").write_text("\n".join(map(json.dumps, lines)))
    done = torchrun(2, HERE / "ranks_worker.py", "../commands", cwd=tmp_path / "two")
    monkeypatch.chdir(tmp_path)
    for line in lines:
        assert main(line) == 0
    _, err = done.communicate(timeout=300)
    assert done.returncode == 0, err
    assert_same_run(tmp_path / "two" / "run", tmp_path / "run")
    for name in ON_A_RUN:
        found, other = (json.loads((at / "run" / f"{name}.json").read_text()) for at in (tmp_path / "two", tmp_path))
        assert_near(found, {**other, "forwards": found.get("forwards")}, name)


def test_two_processes_leave_what_one_leaves(tmp_path, monkeypatch, capfd):
    (tmp_path / "two").mkdir()
    lines = [[*words, f"out={name}"] for name, words in COMMANDS.items()]
    lines.append(["list", "metrics"])  # which the first process does alone
    (tmp_path / "commands").write_text("\n".join(map(json.dumps, lines)))
    done = torchrun(2, HERE / "ranks_worker.py", "../commands", cwd=tmp_path / "two")
    monkeypatch.chdir(tmp_path)
    for line in lines[:-1]:
        assert main(line) == 0
    out, err = done.communicate(timeout=300)
    assert done.returncode == 0, err
    lines_of = out.splitlines()
    assert lines_of.count("verdict") == len(COMMANDS)  # each said once
    assert sum(line.startswith("logit_diff ") for line in lines_of) == 1
    for name in COMMANDS:
        assert_same_run(tmp_path / "two" / name, tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["acdc", "eap_ig"])
def test_four_processes_run_two_copies_of_a_split_model(tmp_path, name):
    """Two processes share a copy of the model, and the examples are spread over the two copies."""
    assert main([*COMMANDS[name], f"out={tmp_path / 'whole'}"]) == 0
    done = torchrun(4, "-m", "circuitdisc", *COMMANDS[name], "parallel.tensor=2", "out=split", cwd=tmp_path)
    _, err = done.communicate(timeout=300)
    assert done.returncode == 0, err
    assert_same_run(tmp_path / "split", tmp_path / "whole")


@pytest.mark.slow
def test_bad_input_of_two_processes_is_one_sentence(tmp_path):
    done = torchrun(2, "-m", "circuitdisc", "discover", *QUICK, "algorithm.threshhold=1", cwd=tmp_path)
    out, err = done.communicate(timeout=300)
    assert done.returncode
    assert err.count("circuitdisc: ") == 1
    assert "Did you mean threshold" in err
    assert len(re.findall(r"exitcode *: 2 ", err)) == 2
    assert not out
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_call_and_any_number_goes_on(tmp_path, victim):
    search = ["discover", *TPP, "task.n=24", "allow_chance=true", "scoring.n_random=1", "algorithm=acdc", "progress=false"]
    search += ["algorithm.threshold=0.3"]
    assert main([*search, f"out={tmp_path / 'whole'}"]) == 0
    wait = np.random.default_rng().random()
    for n, folder in ((1, tmp_path / "one"), (3, tmp_path / "three")):
        running = torchrun(2, "-m", "circuitdisc", *search, f"out={folder}", cwd=tmp_path)
        while not (folder / "journal.jsonl").exists() or len(Journal.read(folder / "journal.jsonl").marks) < 2:
            assert running.poll() is None
            time.sleep(0.02)
        time.sleep(wait)
        os.kill(processes(running.pid)[victim], signal.SIGKILL)
        began = time.monotonic()
        _, err = running.communicate(timeout=120)
        assert time.monotonic() - began < 60
        assert running.returncode
        assert err.count("circuitdisc: stopped; one of the 2 processes of this call has ended") == 1, err
        assert f"`circuitdisc resume {folder}` goes on where it was" in err
        done = torchrun(n, "-m", "circuitdisc", "resume", folder, cwd=tmp_path)
        _, err = done.communicate(timeout=300)
        assert done.returncode == 0, err
        assert (folder / "circuit.json").read_bytes() == (tmp_path / "whole" / "circuit.json").read_bytes(), f"after {wait} s"


def processes(launcher):
    """The processes of a torchrun, by rank."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    by_rank = {}
    for child in children:
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        by_rank |= {int(text[5:]): int(child) for text in variables if text.startswith(b"RANK=")}
    return by_rank
