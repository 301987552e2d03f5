"""Fine-tuning against a loop written out by hand, one parameter at a time, and against what must not change."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examples import unchecked
from models import hugging_face
from safetensors.torch import load_file
from tiny import bare_model, bpe_model

import circuitdisc as cd
from circuitdisc.checkpoints.finetune import data, loop
from circuitdisc.checkpoints.finetune.data import UNLEARNED, Reader, draw_pool, pad_rows, training_rows
from circuitdisc.checkpoints.finetune.finetune import TrainedLadder, finetune
from circuitdisc.checkpoints.finetune.heads_only import head_parameters, other_heads, shared_heads
from circuitdisc.checkpoints.listing import read_checkpoints
from circuitdisc.cli import main
from circuitdisc.errors import BadModel, BadRun, BadSetting, BadTask, CircuitdiscError, GraphMismatch, UnknownName
from circuitdisc.models import cut_hugging_face, read_model
from circuitdisc.tasks import Example

TASK: dict[str, Any] = {"name": "induction", "length": 5, "n": 4, "n_heldout": 6}
SHORT: dict[str, Any] = {"fractions": 1, "epochs": 1, "n_pool": 24, "batch_size": 8, "lr": 1e-2, "figures": False}


@pytest.fixture(scope="module", autouse=True)
def few_protected() -> Any:
    """As few held-out prompts of the default seed as the tiny vocabulary bears."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "PROTECTED", 10)
        yield


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_base(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_base("gpt2", tmp_path_factory)


def saved_base(family: str, factory: pytest.TempPathFactory) -> str:
    """A tiny checkpoint without dropout, so that training by hand can be compared."""
    module = hugging_face(family)
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if hasattr(module.config, name):
            setattr(module.config, name, 0.0)
    folder = factory.mktemp(family)
    module.save_pretrained(folder)
    return str(folder)


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


# --- what is trained on ---------------------------------------------------------------------------------------------------


def test_no_held_out_prompt_is_ever_in_the_pool() -> None:
    model = bare_model(d_vocab=6)  # few prompts of five tokens: pool and held-out prompts are bound to meet
    task = {"name": "induction", "length": 5, "n": 2, "n_heldout": 12, "seed": 5}
    pool = draw_pool(model, task, 1500)
    mine = cd.load_task("induction", model, length=5, n=2, n_heldout=12, seed=5)
    default = cd.load_task("induction", model, length=5, n=1, n_heldout=10, seed=0)
    held_out = {one.clean for one in (*mine.train, *mine.heldout, *default.heldout)}
    assert len(pool.examples) == len({one.clean for one in pool.examples}) == 1500
    assert not held_out & {one.clean for one in pool.examples}
    assert pool.n_left_out > 0  # some were drawn and left out
    with pytest.raises(BadTask, match=r"too few prompts|about \d+ different prompts"):
        draw_pool(model, task, 2150)


def test_a_given_task_trains_on_its_own_train_split() -> None:
    task = cd.load_task("induction", bare_model(), length=5, n=5, n_heldout=4)
    assert draw_pool(bare_model(), task, None).examples == task.train
    with pytest.raises(BadTask, match="5 examples that are not held out"):
        draw_pool(bare_model(), task, 6)


def test_lines_of_a_file_that_are_held_out_are_never_trained_on(tmp_path: Path) -> None:
    lines = [{"clean": [i, i + 1], "answers": i + 2} for i in range(20)]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    pool = draw_pool(bare_model(), {"name": "file", "path": str(path), "seed": 1}, None)
    held_out = [cd.load_task(path, bare_model(), seed=seed).heldout for seed in (0, 1)]
    assert 0 < len(pool.examples) < 10
    assert not {one.clean for each in held_out for one in each} & {one.clean for one in pool.examples}


def test_all_tokens_of_an_answer_are_learned() -> None:
    model = bpe_model(n_ctx=400)
    task = cd.load_task("tpp", model, n=6, n_heldout=2, first_token=True)
    for one, row in zip(task.train, training_rows(task.train, 400, 0), strict=True):
        said = [token for token in row["labels"] if token != UNLEARNED]
        assert tuple(said) == (one.whole or one.answers[0])
        assert row["input_ids"] == [*one.clean, *one.whole[:-1]]
        assert row["labels"][: len(one.clean) - 1] == [UNLEARNED] * (len(one.clean) - 1)
        assert one.answers == ((said[0],),)
    one = next(one for one in task.train if len(one.whole) > 1)
    assert model.tokenizer is not None
    joined = one.text + str(model.tokenizer.decode(list(one.whole)))
    assert model.tokenizer(joined)["input_ids"] == [*one.clean, *one.whole]
    with pytest.raises(BadTask, match="reads at most 20"):
        training_rows(task.train, 20, 0)


def test_several_right_answers_and_several_positions() -> None:
    several = Example((1, 2), None, (1,), ((7, 8, 9),), ((),))
    drawn = {training_rows([several], 10, seed)[0]["labels"][1] for seed in range(20)}
    assert drawn == {7, 8, 9}
    placed = Example((1, 2, 3), None, (0, 2), ((5,), (6,)), ((), ()))
    assert training_rows([placed], 10, 0)[0]["labels"] == [5, UNLEARNED, 6]


def test_loss_is_the_mean_over_answer_tokens() -> None:
    rows = [{"input_ids": [1, 2, 3], "labels": [UNLEARNED, 4, 5]}, {"input_ids": [6], "labels": [7]}]
    batch, logits = pad_rows(rows), torch.randn(2, 3, 11, dtype=torch.float64)
    by_hand = [-logits[row, at].log_softmax(-1)[label].item() for row, at, label in ((0, 1, 4), (0, 2, 5), (1, 0, 7))]
    assert loop.answer_loss(logits, batch["labels"]).item() == pytest.approx(np.mean(by_hand), rel=1e-6)
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


# --- training -------------------------------------------------------------------------------------------------------------


def by_hand(base: str, rows: list[dict[str, list[int]]], steps: int, lr: float, decay: float) -> dict[str, torch.Tensor]:
    """AdamW on all rows at once, each prompt run alone; norms and biases have no weight decay."""
    module: Any = read_model(base).module.requires_grad_(True)
    named = dict(module.named_parameters())
    plain = {name for name in named if "bias" in name or "ln_" in name or "norm" in name}
    state = {name: (torch.zeros_like(value), torch.zeros_like(value)) for name, value in named.items()}
    for step in range(1, steps + 1):
        module.zero_grad()
        losses = []
        for row in rows:
            logits = module(input_ids=torch.tensor([row["input_ids"]])).logits[0]
            losses += [-logits[at].log_softmax(-1)[label] for at, label in enumerate(row["labels"]) if label != UNLEARNED]
        torch.stack(losses).mean().backward()
        norm = sum(float(value.grad.pow(2).sum()) for value in named.values()) ** 0.5
        with torch.no_grad():
            for name, value in named.items():
                gradient = value.grad / max(norm, 1.0)
                first, second = state[name]
                first.mul_(0.9).add_(0.1 * gradient)
                second.mul_(0.999).add_(0.001 * gradient**2)
                value.mul_(1 - lr * (0.0 if name in plain else decay))
                value.sub_(lr * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8))
    return {name: value.detach() for name, value in named.items()}


def test_the_loop_is_adamw_on_the_answers_tokens(base: str, tmp_path: Path) -> None:
    ladder = finetune(base, TASK, tmp_path / "out", **unchecked({**SHORT, "epochs": 3, "batch_size": 24, "weight_decay": 0.1}))
    assert ladder.rungs[0].trained is not None
    assert ladder.rungs[0].trained.steps == 3
    model = read_model(base)
    rows = training_rows(draw_pool(Reader.of(model), {**TASK, "seed": 0}, 24).examples, model.n_ctx, 0)
    expected, found = by_hand(base, rows, 3, lr=1e-2, decay=0.1), weights(ladder.checkpoints[1])
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=2e-4, rtol=0)
        assert not torch.equal(value, weights(base)[name])


def test_a_ladder_is_left_with_its_figures(gpt2: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = {**SHORT, "fractions": [0.5, 1], "epochs": [1, 2], "save_steps": 2, "figures": True, "others": []}
    ladder = finetune(gpt2, TASK, out, **settings)
    assert [rung.name for rung in ladder.rungs] == ["50pct", "100pct"]
    assert read_checkpoints(out) == ladder.checkpoints == [str(Path(gpt2).resolve()), str(out / "50pct"), str(out / "100pct")]
    trained = [rung.trained for rung in ladder.rungs if rung.trained]
    assert [(one.examples, one.steps, one.saved_steps) for one in trained] == [(12, 2, ()), (24, 6, (2, 4))]
    assert (out / "100pct" / "step-4" / "model.safetensors").is_file()
    assert not list(out.glob("*.part"))
    kept = json.loads((out / "ladder.json").read_text())
    assert kept["figures"]["checkpoints"] == ladder.checkpoints
    assert kept["settings"]["n_pool"] == 24
    half, quarter = weights(out / "100pct" / "step-4"), weights(out / "100pct" / "step-2")
    assert not torch.equal(half["transformer.wte.weight"], quarter["transformer.wte.weight"])
    loaded = cd.load_model(str(out / "100pct"))
    assert ladder.figures is not None
    again = cd.baselines(str(out / "100pct"), {**TASK, "seed": 0}, others=[])
    assert again.get(loaded.name, "log_prob").value == ladder.figures.get(loaded.name, "log_prob").value


class Killed(BaseException):
    """As a kill is: nothing catches it."""


@pytest.mark.parametrize("method", ["full", "heads", "lora"])
def test_a_killed_run_resumes_to_the_same_weights(
    gpt2: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    settings = {**SHORT, "fractions": 1, "epochs": 3, "method": method, "save_steps": 4}
    settings |= {"fractions": [0.5, 1], "epochs": [1, 3]} if method == "full" else {}
    settings |= {"heads": ["a1.h2"]} if method == "heads" else {}
    whole = finetune(gpt2, TASK, tmp_path / "whole", **settings)
    original = loop._Watch.on_step_end

    def kill(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
        original(self, args, state, control, **rest)
        if self.label == "100pct" and state.global_step == 6:
            raise Killed

    monkeypatch.setattr(loop._Watch, "on_step_end", kill)
    with pytest.raises(Killed):
        finetune(gpt2, TASK, tmp_path / "killed", **settings)
    monkeypatch.setattr(loop._Watch, "on_step_end", original)
    trainer = tmp_path / "killed" / "100pct.part" / "trainer"
    shutil.copytree(trainer / "checkpoint-5", trainer / "checkpoint-99")  # not registered, as a kill while writing leaves it
    finished = list((tmp_path / "killed").glob("50pct/model.safetensors"))
    before = [path.stat().st_mtime_ns for path in finished]
    assert len(finished) == (method == "full")
    resumed = finetune(gpt2, TASK, tmp_path / "killed", **settings)
    assert [path.stat().st_mtime_ns for path in finished] == before
    for one, two in zip(whole.checkpoints[1:], resumed.checkpoints[1:], strict=True):
        for name, value in weights(one).items():
            assert torch.equal(value, weights(two)[name]), name
    step = "100pct/step-4/model.safetensors"
    assert (tmp_path / "whole" / step).read_bytes() == (tmp_path / "killed" / step).read_bytes()
    with pytest.raises(BadRun, match=r"begun with another lr \(0\.01, now 0\.02\)"):
        finetune(gpt2, TASK, tmp_path / "killed", **unchecked({**settings, "lr": 0.02}))


def test_a_loss_that_is_no_number_is_said(gpt2: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "answer_loss", lambda logits, labels: logits.sum() * float("nan"))
    with pytest.raises(BadSetting, match=r"no longer a number: lower lr=0\.001"):
        finetune(gpt2, TASK, tmp_path / "out", **unchecked({**SHORT, "lr": 1e-3, "epochs": 2}))
    assert not (tmp_path / "out" / "100pct").exists()


def test_a_folder_that_holds_something_else_is_left_alone(gpt2: str, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(BadRun, match="not empty"):
        finetune(gpt2, TASK, tmp_path, **SHORT)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


# --- chosen heads alone ---------------------------------------------------------------------------------------------------


def slices(family: str, layer: int, head: int) -> dict[str, np.ndarray]:
    """Written out by hand: which weights belong to a head. Four heads of width 8; in Llama two share keys and values."""
    masks = {}
    if family == "gpt2":
        prefix = f"transformer.h.{layer}.attn."
        columns = [part * 32 + head * 8 + k for part in range(3) for k in range(8)]
        masks[prefix + "c_attn.weight"] = np.zeros((32, 96), bool)
        masks[prefix + "c_attn.weight"][:, columns] = True
        masks[prefix + "c_attn.bias"] = np.isin(np.arange(96), columns)
        masks[prefix + "c_proj.weight"] = np.zeros((32, 32), bool)
        masks[prefix + "c_proj.weight"][head * 8 : head * 8 + 8] = True
        return masks
    prefix = f"model.layers.{layer}.self_attn."
    for name, rows, place in (("q_proj", 32, head), ("k_proj", 16, head // 2), ("v_proj", 16, head // 2)):
        masks[f"{prefix}{name}.weight"] = np.zeros((rows, 32), bool)
        masks[f"{prefix}{name}.weight"][place * 8 : place * 8 + 8] = True
    masks[prefix + "o_proj.weight"] = np.zeros((32, 32), bool)
    masks[prefix + "o_proj.weight"][:, head * 8 : head * 8 + 8] = True
    return masks


def test_only_the_chosen_heads_change_not_one_bit_besides(base: str, tmp_path: Path) -> None:
    family = read_model(base).architecture
    ladder = finetune(
        base,
        TASK,
        tmp_path / "out",
        **unchecked({**SHORT, "method": "heads", "heads": ["a1.h2"], "control": 1, "weight_decay": 0.5}),
    )
    before = weights(base)
    for rung, folder in zip(ladder.rungs, ladder.checkpoints[1:], strict=True):
        layer, head = (int(part[1:]) for part in rung.heads[0].split("."))
        expected, after, n_trained = slices(family, layer, head), weights(folder), 0
        for name, value in after.items():
            same = (value == before[name]).numpy()
            mask = expected.get(name, np.zeros(same.shape, bool))
            assert same[~mask].all(), name
            n_trained += int(mask.sum())
            if mask.any() and mask.ndim == 2:
                assert (~same[mask]).mean() > 0.5, name
        assert rung.trained is not None
        assert rung.trained.parameters == n_trained
    first, control = ladder.rungs
    assert (first.random, control.random) == (False, True)
    assert control.name == "100pct-random1"
    assert set(control.heads).isdisjoint(first.heads)
    assert len(control.heads) == 1
    assert first.shared == (("a1.h3",) if family == "llama" else ())


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "qwen2", "gemma2"])
def test_head_masks_are_those_that_the_components_read(family: str) -> None:
    module = hugging_face(family)
    model = cut_hugging_face(module, name=family)
    heads = np.zeros((model.graph.n_layers, 4), bool)
    heads[1, [0, 3]] = True
    masks = head_parameters(module, heads)
    block = model.components.weights.layers[1]
    kv = [0, 3] if block.W_K.shape[0] == 4 else [0, 1]
    named = (("W_Q", [0, 3]), ("W_O", [0, 3]), ("b_Q", [0, 3]), ("W_K", kv), ("W_V", kv), ("b_K", kv), ("b_V", kv))
    expected = sum(getattr(block, name)[rows].numel() for name, rows in named if getattr(block, name) is not None)
    assert sum(int(mask.sum()) for mask in masks.values()) == expected
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, mask in masks.items():
            parameters[name][mask] = 123.0
    for name, rows in named:
        values = getattr(block, name)
        if values is not None:
            assert (values[rows] == 123.0).all(), name
            others = [row for row in range(values.shape[0]) if row not in rows]
            assert not (values[others] == 123.0).any(), name
    assert (block.W_in != 123.0).all()


def test_heads_that_share_keys_are_named_and_controls_are_drawn_outside() -> None:
    model = cut_hugging_face(hugging_face("llama"), name="llama")
    assert shared_heads(model, np.array([[True, False, False, False], [False, False, True, True]])) == ["a0.h1"]
    names = [f"a0.h{head}" for head in range(8)]
    drawn = other_heads(names, ["a0.h1", "a0.h4"], seed=0, n_draws=30)
    assert all(len(set(draw)) == 2 and set(draw).isdisjoint({"a0.h1", "a0.h4"}) for draw in drawn)
    assert {name for draw in drawn for name in draw} == set(names) - {"a0.h1", "a0.h4"}
    assert drawn == other_heads(names, ["a0.h1", "a0.h4"], seed=0, n_draws=30)
    with pytest.raises(BadSetting, match="needs 5 heads outside"):
        other_heads(names, names[:5], seed=0, n_draws=1)


def test_heads_may_be_those_of_a_circuit(gpt2: str, tmp_path: Path) -> None:
    graph = read_model(gpt2).graph
    cd.Circuit.from_heads(graph, ["a0.h1", "a2.h3"]).save(tmp_path / "circuit.json")
    ladder = finetune(
        gpt2, TASK, tmp_path / "out", **unchecked({**SHORT, "method": "heads", "heads": tmp_path / "circuit.json"})
    )
    assert ladder.rungs[0].heads == ("a0.h1", "a2.h3")
    cd.Circuit.from_heads(read_model("tpp/base").graph, ["a0.h1"]).save(tmp_path / "circuit.json")
    with pytest.raises(GraphMismatch, match="belongs to a model of 4 layers"):
        finetune(gpt2, TASK, tmp_path / "other", **unchecked({**SHORT, "method": "heads", "heads": tmp_path / "circuit.json"}))
    assert not (tmp_path / "other").exists()


# --- low-rank changes -----------------------------------------------------------------------------------------------------


def test_a_low_rank_change_is_merged_into_the_layout_of_the_base(gpt2: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    settings = {**SHORT, "method": "lora", "rank": 2, "lora_targets": ["c_attn"], "save_steps": 2}
    ladder = finetune(gpt2, TASK, tmp_path / "out", **settings)
    before, after = weights(gpt2), weights(ladder.checkpoints[1])
    assert before.keys() == after.keys()
    for name, value in after.items():
        change = (value - before[name]).double()
        if name.endswith("c_attn.weight"):
            assert 0 < torch.linalg.matrix_rank(change, rtol=1e-4) <= 2
        else:
            assert torch.equal(value, before[name]), name
    assert ladder.rungs[0].trained is not None
    assert ladder.rungs[0].trained.parameters == 3 * 2 * (32 + 96)
    step = weights(Path(ladder.checkpoints[1]) / "step-2")
    name = "transformer.h.0.attn.c_attn.weight"
    assert not torch.equal(step[name], before[name])
    assert not torch.equal(step[name], after[name])


def test_without_peft_the_sentence_says_what_to_install(gpt2: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(BadSetting, match=r"pip install 'circuitdisc\[lora\]'"):
        finetune(gpt2, TASK, tmp_path / "out", **unchecked({**SHORT, "method": "lora"}))
    assert not (tmp_path / "out").exists()


def test_targets_that_do_not_exist_are_refused(gpt2: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    with pytest.raises(BadModel, match="lora_targets"):
        finetune(gpt2, TASK, tmp_path / "out", **unchecked({**SHORT, "method": "lora", "lora_targets": ["nowhere"]}))


# --- bad input, and the command -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"method": "ful"}, UnknownName, "full"),
        ({"schedule": "step"}, UnknownName, "constant"),
        ({"dtype": "int8"}, UnknownName, "float16"),
        ({"fractions": [0.5, 1], "epochs": [1, 2, 3]}, BadSetting, "2 fractions and 3 epochs"),
        ({"fractions": [1.5]}, BadSetting, "above 0 and at most 1"),
        ({"fractions": "all"}, BadSetting, "is not a number"),
        ({"fractions": [1, 1]}, BadSetting, "two rungs"),
        ({"epochs": 0}, BadSetting, "above 0"),
        ({"lr": 0}, BadSetting, "above 0"),
        ({"batch_size": 0}, BadSetting, "whole number from 1"),
        ({"method": "heads"}, BadSetting, "name them with heads"),
        ({"control": "two", "method": "heads", "heads": "a0.h0"}, BadSetting, "control='two'"),
        ({"n_pool": 0}, BadSetting, "n_pool=0"),
        ({"memory": "much"}, BadSetting, "memory"),
        ({"others": ["io"]}, UnknownName, "Did you mean ioi"),
        ({"heads": ["a0.h0"]}, BadSetting, "belong to method=heads"),
        ({"method": "heads", "heads": ["a9.h0"]}, GraphMismatch, "a9.h0"),
        ({"method": "heads", "heads": [f"a0.h{h}" for h in range(4)], "control": 1, "save_steps": 0}, BadSetting, "save_steps"),
    ],
)
def test_settings_that_cannot_be_used(
    gpt2: str, tmp_path: Path, changes: dict[str, Any], error: type[CircuitdiscError], words: str
) -> None:
    with pytest.raises(error, match=words):
        finetune(gpt2, TASK, tmp_path / "out", **{**SHORT, **changes})
    assert not (tmp_path / "out").exists()


def test_a_toy_cannot_be_fine_tuned(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="only Hugging Face models"):
        finetune("toys/induction", TASK, tmp_path / "out", **SHORT)


def test_the_command_trains_prints_and_goes_on(gpt2: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "ladder"
    args = [f"model={gpt2}", "task=induction", "task.length=5", "task.n_heldout=6", "n_pool=16", "batch_size=8", "epochs=1"]
    args += ["fractions=0.5", "lr=1e-3", "method=heads", "heads=[a0.h1]", "control=1", "others=[]", "progress=false"]
    assert main(["finetune", *args, f"out={out}"]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("50pct-random1", "1 random heads", "log-probability", "correct"))
    assert (out / "report.html").is_file()
    written = (out / "50pct" / "model.safetensors").stat().st_mtime_ns
    assert main(["finetune", *args, f"out={out}"]) == 0
    assert (out / "50pct" / "model.safetensors").stat().st_mtime_ns == written
    capsys.readouterr()
    for bad, words in (
        (["task=induction"], "which model?"),
        ([f"model={gpt2}", "model.dtype=float64"], "model.dtype"),
        ([f"model={gpt2}", "fractions=some"], "give a number"),
        ([f"model={gpt2}", "speed=1"], "unknown setting of finetune 'speed'"),
    ):
        assert main(["finetune", *bad]) == 2
        assert words in capsys.readouterr().err


def test_the_python_face() -> None:
    assert cd.finetune is finetune
    assert TrainedLadder.__name__ == "TrainedLadder"
