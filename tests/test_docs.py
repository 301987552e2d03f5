"""What README and docs/*.md show, works: their Python runs, their commands have only settings that exist, and run.

The cheap ones run here, with few examples; `pytest -m slow tests/test_docs.py` runs the others, as they are written. `NOT_RUN`
names the commands that run nowhere in the tests, with the reason; their settings are composed all the same.
"""

import re
import shlex
from pathlib import Path

import pytest
from doc_pages import PAGES, blocks, commands, mentioned, smaller, words
from made_pages import random_circuit
from tiny import FakeModel
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

import circuitdisc as cd
from circuitdisc.cli import SETTINGS, main
from circuitdisc.jobs.config import own_keys
from circuitdisc.jobs.job import Call
from circuitdisc.jobs.registry import REGISTRY
from circuitdisc.jobs.scores_file import FILE_JOB
from circuitdisc.sections import check_sections

MOST = {"n": 12, "n_heldout": 12, "n_random": 2, "n_bootstrap": 2, "n_train": 12, "n_choose": 12, "n_report": 12}
"""Of a block that runs among the quick tests: so many examples and draws."""

NOT_RUN = (
    (r"model=(gpt2|MODEL)\b|model=OTHER", "a model of the hub, or a reader's own"),
    (r"=/models/|=FOLDER|=out/|checkpoints=\[?(EleutherAI|FOLDER)", "a real model in a folder of the reader's"),
    (r"torchrun|launcher=submitit|\.device=", "several processes, a cluster or a GPU"),
    (r"prompts\.jsonl|pairs\.jsonl|mine\.jsonl|scores\.json", "a file of the reader's"),
    (r"--install-completion", "changes the reader's shell"),
)
"""What a command has that cannot run here, and why."""

REAL = ("docs/real-circuits.md", "docs/studies-real.md")
"""Pages about real models: their commands are composed, not run."""

SLOW_BLOCKS = {
    "docs/finetune.md": "trains",
    "docs/transfer.md": "three searches, each circuit on each checkpoint",
}
"""Pages whose Python takes more than seconds with the fewest examples."""

QUICK = {
    "circuitdisc list models",
    "circuitdisc heads roles model=toys/induction task=induction task.length=8",
    "circuitdisc heads weights model=toys/linear_regression",
    "circuitdisc lens model=tpp/lightweight task=tpp",
}
"""Commands that run among the quick tests."""


# --- Python ---------------------------------------------------------------------------------------------------------------


def before(page: str) -> dict[str, object]:
    """What a page's reader has by then: names that its blocks take for granted."""
    if page == "docs/own-task.md":
        return {"model": model_for("\n".join(block.code for block in blocks(page)) + PAGES[page].read_text("utf-8"))}
    if page == "docs/compare.md":
        graph = cd.load_model("toys/induction").graph
        return {"a": random_circuit(graph, 9), "b": random_circuit(graph, 9, seed=1)}
    if page in ("docs/dcm.md", "docs/localised.md", "docs/tasks.md"):
        model = cd.load_model("multitask/base")
        return {"cd": cd, "model": model, "task": cd.load_task("entity_tracking", model, n=60, n_heldout=60)}
    return {}


def model_for(text: str) -> FakeModel:
    """A model without weights whose tokenizer knows the words of a text."""
    split = pre_tokenizers.Whitespace()
    known = dict.fromkeys(["[PAD]", "[UNK]", *(word for word, _ in split.pre_tokenize_str(text))])
    backend = Tokenizer(WordLevel({word: at for at, word in enumerate(known)}, unk_token="[UNK]"))
    backend.pre_tokenizer = split  # pyright: ignore[reportAttributeAccessIssue] - untyped setter
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")
    return FakeModel("words", tokenizer, len(known), len(known))


def run_blocks(page: str, most: dict[str, int]) -> None:
    names: dict[str, object] = before(page)
    for block in blocks(page):
        code = compile(smaller(block.code, most), f"{page}, line {block.line}", "exec")
        exec(code, names)


@pytest.fixture
def home(tmp_path, monkeypatch, capsys) -> Path:
    """A folder with the files that the pages speak of."""
    monkeypatch.chdir(tmp_path)
    for page, kind, name in (("docs/own-task.md", "json", "pairs.jsonl"), ("docs/dcm.md", "yaml", "plan.yaml")):
        example = re.search(rf"```{kind}\n(.*?)```", PAGES[page].read_text("utf-8"), re.S)
        assert example, page
        (tmp_path / name).write_text(example[1], encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page) and page not in SLOW_BLOCKS])
def test_python_runs(page, home):
    run_blocks(page, MOST)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_python_runs_as_it_is_written(page, home):
    run_blocks(page, {})


# --- commands -------------------------------------------------------------------------------------------------------------


def reason(page: str, command: str) -> str:
    """Why a command cannot run here; nothing if it can."""
    if page in REAL:
        return "a real model"
    return next((why for pattern, why in NOT_RUN if re.search(pattern, command)), "")


def job_of(typed: list[str]) -> tuple[str, list[str]]:
    """A command's name, and what stands behind it."""
    for n in (2, 1):
        if " ".join(typed[:n]) in REGISTRY.names:
            return " ".join(typed[:n]), typed[n:]
    raise AssertionError(f"there is no command {' '.join(typed[:2])}")


def check_settings(command: str) -> None:
    """Every option and every setting of a command exists, and its value is of its kind."""
    typed = words(command)
    if typed[0].startswith("-"):
        return
    name, rest = job_of(typed)
    job = FILE_JOB if name == "score" and "--scores" in rest else REGISTRY.get(name)
    known = {option.partition(" ")[0] for option in REGISTRY.get(name).options} | {"-m", "--help", "--quiet", "-q", "--json"}
    for word in rest:
        assert not word.startswith("-") or word.partition("=")[0] in known, f"{command}: {word}"
    if name == "plan":  # it takes the words of what it plans, and a few of its own
        planned = rest.pop(0) if rest[0] in ("discover", "transfer", "score") else "discover"
        theirs = [word for word in rest if word.partition("=")[0] not in own_keys("plan")]
        return check_settings(shlex.join(["circuitdisc", planned, *theirs]))
    settings = [word for word in rest if "=" in word and not word.startswith("-")]
    if job.config is None or {"-m", "--multirun"} & set(rest):
        return
    try:
        check_sections(Call(job, tuple(settings)).settings)
    except cd.CircuitdiscError as error:
        raise AssertionError(f"{command}: {error}") from error


@pytest.mark.parametrize("page", PAGES)
def test_settings_of_commands_exist(page):
    for command in commands(page):
        check_settings(command)


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_the_prose_names_exist(page):
    for command in mentioned(page):
        typed = [word for word in words(command) if word not in ("COMMAND", "TOOL")]
        if typed and not typed[0].startswith("-"):
            group = typed[0] in {name.partition(" ")[0] for name in REGISTRY.names}
            assert group, f"{page}: {command}"
        if re.search(r"\b\w+=", command) and not re.search(r"\.\.\.|=[A-Z]{2,}|=NAME", command):
            check_settings(command)


def test_quick_commands_are_on_a_page():
    assert {command for page in PAGES for command in commands(page)} >= QUICK
    assert SETTINGS["ignore_unknown_options"], "an option that does not exist is seen here"


@pytest.mark.parametrize("command", sorted(QUICK))
def test_quick_commands_run(command, home):
    small = ["task.n=12", "task.n_heldout=12"] if " task=" in command else []
    assert main([*words(command), *small, *(["progress=false"] if "=" in command else [])]) == 0


SMALL_RUN = (
    "discover model=multitask/base task=ioi algorithm=eap_ig algorithm.edges=30 ablation=resample task.n=40 task.n_heldout=40 "
    "scoring.n_random=2 out=runs/mine"
)
RUNS = {
    **{page: [SMALL_RUN] for page in ("docs/backups.md", "docs/mixtures.md", "docs/positions.md", "docs/scale-plan.md")},
    "README.md": ["discover model=tpp/lightweight task=tpp algorithm=eap_ig ablation=resample out=runs/mine"],
    "docs/cmap.md": [
        "discover model=tpp/lightweight task=tpp algorithm=acdc algorithm.threshold=0.3 ablation=mean out=runs/mine"
    ],
    "docs/dcm.md": [
        "discover model=multitask/base task=entity_tracking algorithm=path_patching ablation=resample task.n=30 "
        "task.n_heldout=30 scoring.n_random=2 out=runs/boxes"
    ],
    "docs/exchange.md": ["discover model=tpp/lightweight task=tpp algorithm=eap_ig ablation=resample out=runs/mine"],
    "docs/localised.md": [
        "discover model=multitask/base task=entity_tracking algorithm=path_patching ablation=resample out=runs/groups"
    ],
}
"""Runs that a page speaks of and does not make."""


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(not reason(page, command) for command in commands(page))])
def test_commands_run_in_the_order_of_their_page(page, home):
    for command in [*(f"circuitdisc {made}" for made in RUNS.get(page, ())), *commands(page)]:
        if not reason(page, command) and not re.search(r"\b(RUN|RUN_A|RUN_B)\b|runs/other", command):
            assert main([word.replace("\\", "") for word in words(command)]) == 0, command
