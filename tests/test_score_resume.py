"""A score that was killed goes on where it was, to the same bits; a journal of something else is refused."""

import json
from typing import Any

import pytest
from examples import random_task
from models import shared
from test_judgement_resume import Killed, killed_after

import circuitdisc as cd
from circuitdisc.engine.patching import Patching
from circuitdisc.errors import BadRun


@pytest.mark.parametrize("n_done", [1, 4, 9])
def test_goes_on_where_it_was(tmp_path, monkeypatch, n_done):
    model = shared("attention_only")
    task = random_task(model, 6, seed=1)
    circuit = cd.discover(model, task, "eap", ablation="resample", edges=12, allow_chance=True).circuit
    options: Any = {"n_random": 4, "memory": 30_000, "seed": 3}
    straight = cd.score(model, task, circuit, **options)
    journal = tmp_path / "score.jsonl"
    with monkeypatch.context() as patch:
        all_runs = killed_after(patch, Patching, "circuit_logits", 10**6)
        assert cd.score(model, task, circuit, **options).to_dict() == straight.to_dict()
    n_all = len(all_runs)
    with monkeypatch.context() as patch:
        killed_after(patch, Patching, "circuit_logits", n_done)
        with pytest.raises(Killed):
            cd.score(model, task, circuit, journal=journal, **options)
    with monkeypatch.context() as patch:
        runs = killed_after(patch, Patching, "circuit_logits", 10**6)
        again = cd.score(model, task, circuit, journal=journal, **options)
    assert json.dumps(again.to_dict()) == json.dumps(straight.to_dict())
    assert len(runs) == n_all - n_done
    with pytest.raises(BadRun, match="another seed"):
        cd.score(model, task, circuit, journal=journal, **(options | {"seed": 4}))
