"""The logit lens against hooks on the Hugging Face module, a literal norm and unembedding; the command and its page."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from examples import random_examples, random_task
from models import TOYS, model_of, shared

from circuitdisc.cli import main
from circuitdisc.engine.measuring import mean_intervals
from circuitdisc.errors import BadSetting, UnknownName
from circuitdisc.jobs.logit_lens import describe_lens, logit_lens
from circuitdisc.metrics import METRICS, log_probabilities
from circuitdisc.pages.description import Description, Section, description_text
from circuitdisc.pages.verdict import Verdict
from circuitdisc.stats import share_interval
from circuitdisc.tasks.base import Task, collate

# transformers computes root-mean-square norms and rotary angles in float32, whatever the model's precision
PRECISION = {"gpt2": 1e-9, "gpt_neox": 1e-6}


def blocks_and_norm(family, module):
    if family == "gpt2":
        return module.transformer.h, module.transformer.ln_f
    return (module.gpt_neox.layers, module.gpt_neox.final_layer_norm) if family == "gpt_neox" else (
        module.model.layers, module.model.norm)  # fmt: skip


@torch.no_grad()
def truth(model, family, example, tokens, metric):
    """The metric after the embedding and after each layer: what goes into each block and the norm, normed and unembedded."""
    blocks, norm = blocks_and_norm(family, model.module)
    streams, logits = [], []
    catch = [block.register_forward_pre_hook(lambda _, args: streams.append(args[0][0])) for block in blocks]
    catch.append(norm.register_forward_pre_hook(lambda _, args: streams.append(args[0][0])))
    catch.append(model.module.get_output_embeddings().register_forward_hook(lambda _, args, out: logits.append(out[0])))
    model.module(input_ids=torch.tensor([tokens]), attention_mask=torch.ones(1, len(tokens), dtype=torch.long))
    for handle in catch:
        handle.remove()
    W_U, cap = model.module.get_output_embeddings().weight, getattr(model.module.config, "final_logit_softcapping", None)
    batch, found = collate([example]), []
    full = None
    for stream in streams:
        read = norm(stream) @ W_U.T
        read = cap * torch.tanh(read / cap) if cap else read
        found.append(read[list(example.positions)])
    if metric.columns == "all":
        clean = model.own_logits(batch.clean, batch.is_token.long(), batch.position_ids)[batch.reads]
        full = log_probabilities(clean)
    labels = replace(batch.labels, full_logprobs=full)
    return [float(metric(read, labels).mean()) for read in found]


@pytest.mark.parametrize("metric", ["logit_diff", "kl", "accuracy"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "gpt_neox", "gemma2"])
def test_each_place_is_the_modules_own_residual_normed_and_unembedded(family, metric):
    model = shared(family)
    task = random_task(model, 5)
    lens = logit_lens(model, task, metric=metric)
    assert lens.prompts == ("clean", "corrupted")
    for index, example in enumerate(task.heldout):
        for p, tokens in enumerate((example.clean, example.corrupted)):
            expected = truth(model, family, example, tokens, METRICS[metric])
            assert lens.values[p, :, index] == pytest.approx(expected, abs=PRECISION.get(family, 2e-6)), (p, index)


@pytest.mark.parametrize("name", list(TOYS))
def test_after_the_last_layer_it_is_the_models_own_metric(name):
    model = model_of(name)
    task = random_task(model, 6)
    lens = logit_lens(model, task, metric="log_prob")
    batch = collate(task.heldout)
    assert batch.corrupted is not None
    for p, tokens in enumerate((batch.clean, batch.corrupted)):
        logits = model.own_logits(tokens, batch.is_token.long(), batch.position_ids)[batch.reads]
        own = batch.per_example(METRICS["log_prob"](logits, batch.labels))
        assert lens.values[p, -1] == pytest.approx(own.numpy(), abs=1e-12)
    assert logit_lens(model, task, metric="kl").values[0, -1] == pytest.approx(0, abs=1e-12)


def test_small_chunks_change_nothing_and_the_table_has_intervals_of_paired_differences():
    model = shared("llama")
    task = replace(random_task(model, 9), metric="logit_diff")
    lens, pieces = (logit_lens(model, task, memory=memory) for memory in ("1GiB", "40KB"))
    assert pieces.values == pytest.approx(lens.values, abs=1e-12)
    row = lens.table()[2]
    assert (row["after"], row["n"], lens.places[0]) == ("layer 1", 9, "embedding")
    assert row["difference"] == pytest.approx(np.mean(lens.values[0, 2] - lens.values[1, 2]))
    low, high = mean_intervals((lens.values[0] - lens.values[1])[2], lens.over)
    assert (row["difference low"], row["difference high"]) == pytest.approx((float(low), float(high)))
    low, high = mean_intervals(lens.values[1, 2], lens.over)
    assert (row["corrupted low"], row["corrupted high"]) == pytest.approx((float(low), float(high)))
    steps = {step["layer"]: step["step"] for step in lens.steps()}
    assert steps[1] == pytest.approx(np.mean(lens.values[0, 2] - lens.values[0, 1]))
    assert abs(lens.steps()[0]["step"]) == max(map(abs, steps.values()))


def test_a_share_has_the_interval_of_a_share():
    model = shared("gpt2")
    task = random_task(model, 9)
    lens = logit_lens(model, task, metric="accuracy", confidence=0.9)
    for p, place in np.ndindex(lens.low.shape):
        expected = share_interval(lens.values[p, place], groups=lens.over, confidence=0.9).ends
        assert (lens.low[p, place], lens.high[p, place]) == pytest.approx(expected)
    assert lens.high.min() > 0, "none of nine right is no proof of never"


def test_without_corrupted_prompts_and_without_difference_it_says_so():
    model = shared("gpt2")
    examples = random_examples(model, 8)
    alone = Task("alone", (), tuple(replace(example, corrupted=None) for example in examples))
    lens = logit_lens(model, alone)
    assert (lens.prompts, lens.values.shape) == (("clean",), (1, model.graph.n_layers + 1, 8))
    assert "no corrupted prompts to compare with" in description_text(describe_lens(lens))
    same = Task("same", (), tuple(replace(example, corrupted=example.clean) for example in examples))
    assert "not clearly apart" in description_text(describe_lens(logit_lens(model, same)))


def test_bad_input_gets_a_sentence():
    model = shared("gpt2")
    task = random_task(model, 2)
    with pytest.raises(UnknownName, match="Did you mean logit_diff"):
        logit_lens(model, task, metric="logit_dif")
    with pytest.raises(UnknownName, match="Did you mean heldout"):
        logit_lens(model, task, split="held_out")
    with pytest.raises(BadSetting, match="fast components"):
        logit_lens(model_of("gpt2", components="hooks"), task)


def test_the_command_prints_a_table_and_leaves_a_page(tmp_path, capsys):
    out = tmp_path / "out"
    toy = ["model=toys/induction", "task=induction", "task.length=8", "task.n=20", "task.n_heldout=40"]
    assert main(["lens", *toy, "progress=false", f"out={out}"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^after +clean +clean, interval +corrupted", printed, re.MULTILINE)
    assert "From layer 1 on clean and corrupted prompts are clearly apart" in printed
    assert {path.name for path in out.iterdir()} == {"result.json", "arrays.npz", "report.html"}
    record = json.loads((out / "result.json").read_text())
    assert record["format"] == "circuitdisc.lens"
    result, values = record["result"], np.load(out / "arrays.npz")["values"]
    assert (result["places"], result["n"], result["metric"]) == (["embedding", "layer 0", "layer 1"], 40, "logit_diff")
    assert result["mean"] == pytest.approx(values.mean(-1))
    page = (out / "report.html").read_text("utf-8")
    assert "Logit lens" in page
    assert re.search(r'data-plot="[^"]*lens"', page)
    assert main(["lens", *toy, "sed=1"]) == 2
    assert "unknown setting of lens 'sed'. Did you mean seed" in capsys.readouterr().err


def test_the_help_of_all_has_its_line_and_imports_nothing():
    code = "import sys; from circuitdisc.cli import main; main(['--help']); print({'torch', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "circuitdisc lens  " in done.stdout
    assert done.stdout.strip().endswith("set()")


@pytest.mark.parametrize(("ends_last", "first", "words"), [(True, 5, "5 earlier lines"), (False, 0, "5 more lines")])
def test_of_a_long_table_by_layer_the_last_lines_are_printed(ends_last, first, words):
    section = Section("Layers", [{"layer": layer} for layer in range(25)], ends_last=ends_last)
    lines = description_text(Description(Verdict(("That is all.",)), (section,))).splitlines()
    assert [int(line) for line in lines if line.strip().isdigit()] == list(range(first, first + 20))
    assert f"... {words} on the page" in lines
