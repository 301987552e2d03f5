"""Solved examples before the prompts of every task, and the turns of a chat around them; the texts are put together by hand."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from tiny import FakeModel, bare_model
from transformers import PreTrainedTokenizerFast
from whole_words import byte_level, model_with, sentence_piece

from circuitdisc.errors import BadSetting, BadTask
from circuitdisc.tasks import TASKS, Example, Task, load_task
from circuitdisc.tasks.examine import examine
from circuitdisc.tasks.framing import OTHER_SEED, chat_frame
from circuitdisc.tasks.show import marks_turns

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
DRAWN = [name for name in TASKS if name != "file"]
SMALL: dict[str, Any] = {"n": 6, "n_heldout": 5}
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + ' ' }}{% endif %}{% endfor %}"
)


def chatting(template: str = CHAT, unspaced: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level, with a chat template and, as SmolLM2's, a BOS token that begins every turn."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(unspaced=unspaced).backend_tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
    )
    tokenizer.chat_template = template
    return tokenizer


def loaded(name: str, tokenizer: PreTrainedTokenizerFast, **settings: Any) -> Task:
    return load_task(name, FakeModel("framed", tokenizer, len(tokenizer), len(tokenizer), 4000), **{**SMALL, **settings})


def every(task: Task) -> tuple[Example, ...]:
    return (*task.train, *task.heldout)


def told(tokenizer: PreTrainedTokenizerFast, ids: tuple[int, ...]) -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def unframed(name: str, tokenizer: PreTrainedTokenizerFast, **settings: Any) -> dict[str, Example]:
    """Every prompt that the task may draw here, by its text."""
    return {one.text: one for one in every(loaded(name, tokenizer, **{"n": 200, "n_heldout": 5, **settings}))}


def offers(name: str, tokenizer: PreTrainedTokenizerFast) -> dict[str, Example]:
    """The prompts of which solved examples are chosen, by their text."""
    return unframed(name, tokenizer, n=16, n_heldout=1, seed=OTHER_SEED)


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("tokenizer", [byte_level(), sentence_piece()], ids=["byte-level", "space marks"])
def test_the_same_solved_examples_stand_before_every_prompt(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    task, known = loaded(name, tokenizer, shots=2), unframed(name, tokenizer)
    assert (len(task.train), len(task.heldout)) == (6, 5)
    assert task.settings["shots"] == 2
    first = every(task)[0]
    ours: list[Example] = []
    for one in every(task):
        assert one.corrupted is not None
        assert len(one.corrupted) == len(one.clean)
        assert one.positions == (len(one) - 1,)
        if name == "induction":
            bare = {old.clean[old.clean[0] == 1 :]: old for old in known.values()}  # without BOS
            old = next(old for ids, old in bare.items() if one.clean[-len(ids) :] == ids)
        else:
            parts = one.text.split("\n\n")
            old = known[next(text for text in ("\n\n".join(parts[at:]) for at in range(len(parts))) if text in known)]
        ours.append(old)
        assert (one.answers, one.wrong, one.group) == (old.answers, old.wrong, old.group)
        at_roles = [{role: each.clean[at] for role, at in each.roles.items()} for each in (one, old)]
        assert at_roles[0] == at_roles[1]
        differing = [i for i, pair in enumerate(zip(one.clean, one.corrupted, strict=True)) if pair[0] != pair[1]]
        assert min(differing) >= len(one) - len(old), "the same solved examples stand before clean and corrupted prompt"
        assert told(tokenizer, one.corrupted).endswith(told(tokenizer, old.corrupted or ()).replace("<s>", "").lstrip()[-20:])
    assert len({old.clean for old in ours}) == 11
    if name not in ("induction", "docstring"):
        offered = offers(name, tokenizer)
        solved = first.text.removesuffix(ours[0].text).rstrip("\n").split("\n\n")
        assert len(solved) == 2
        for shot in solved:
            old = next(old for text, old in offered.items() if shot.startswith(text) and shot != text)
            answers = {told(tokenizer, (*old.clean[-1:], token)) for token in old.answers[0]}
            assert any(shot.endswith(answer.strip()) for answer in answers), "it is solved"
            assert old.clean not in {other.clean for other in ours}
            assert old.clean not in {other.corrupted for other in ours}


@pytest.mark.parametrize("name", [name for name in DRAWN if name != "induction"])
def test_a_chat_is_what_the_template_makes_of_the_turns(name: str) -> None:
    tokenizer = chatting()
    task, known = loaded(name, tokenizer, chat_template=True), unframed(name, tokenizer)
    for one in every(task):
        (prompt,) = re.findall(r"<\|im_start\|>user\n(.*)<\|im_end\|>\n<\|im_start\|>assistant\n$", one.text, re.DOTALL)
        old = known[next(text for text in known if text.strip() == prompt)]
        talk = [{"role": "user", "content": old.text}]
        assert one.text == tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        assert list(one.clean) == tokenizer(one.text, add_special_tokens=False)["input_ids"]
        first = {told(tokenizer, (token,)) for token in one.answers[0]}
        words = [told(tokenizer, (token,)).strip() for token in old.answers[0]]
        assert all(any(word.startswith(piece) for word in words) for piece in first), "without a space before it"
        for role, at in one.roles.items():
            assert told(tokenizer, (one.clean[at],)).strip() == told(tokenizer, (old.clean[old.roles[role]],)).strip() or at


def test_solved_examples_are_earlier_turns_of_a_chat() -> None:
    tokenizer = chatting()
    task, known = loaded("ioi", tokenizer, chat_template=True, shots=2), offers("ioi", tokenizer)
    for one in every(task):
        turns = re.findall(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>\n", one.text, re.DOTALL)
        assert [role for role, _ in turns] == ["user", "assistant", "user", "assistant", "user"]
        for (_, prompt), (_, answer) in zip(turns[:4:2], turns[1::2], strict=True):
            assert told(tokenizer, known[prompt].answers[0]).strip() == answer
        whole = [{"role": role, "content": content} for role, content in turns]
        assert one.text == tokenizer.apply_chat_template(whole, tokenize=False, add_generation_prompt=True)
    assert any("the first scores them" in note for note in task.notes) == any(one.whole for one in every(task))
    spelled = loaded("ioi", chatting(unspaced=False), chat_template=True)
    assert any("answers are several tokens as the assistant's first word" in note for note in spelled.notes)
    assert all(len(told(tokenizer, one.answers[0])) == 1 < len(one.whole) for one in every(spelled))


def test_an_answer_keeps_the_space_that_the_template_gives_it() -> None:
    """Llama 2's template has no words before the assistant's turn, but a space."""
    tokenizer = chatting(LLAMA)
    assert chat_frame(model_with(tokenizer), 0).before_answer == " "
    for one in every(loaded("ioi", tokenizer, chat_template=True)):
        assert one.text.endswith("[/INST]")
        assert told(tokenizer, one.answers[0]).startswith(" ")
    assert not marks_turns(tokenizer), "it begins a text, not every turn"


def test_induction_is_framed_as_ids() -> None:
    tokenizer = chatting()
    (one, *_) = every(loaded("induction", tokenizer, chat_template=True, length=5))
    around = chat_frame(model_with(tokenizer), 0)
    before, after = (tuple(tokenizer(text)["input_ids"]) for text in (around.before, around.after))
    assert one.clean[: len(before)] == before
    assert one.clean[len(one) - len(after) :] == after
    half = one.clean[len(before) : len(one) - len(after)]
    assert len(half) == 10
    assert one.answers[0][0] == half[half.index(half[-1]) + 1]
    assert one.positions == (len(one) - 1,)
    assert one.clean[one.roles["a2"]] == half[-1]
    (bare, *_) = every(load_task("induction", bare_model(n_ctx=100), length=5, shots=1, **SMALL))
    assert len(bare) == 11 + 10, "without a tokenizer nothing stands between"
    shot = bare.clean[:11]
    assert shot[10] == shot[shot.index(shot[9]) + 1]


def test_another_seed_draws_other_solved_examples_and_other_sizes_do_not() -> None:
    few, many = (loaded("ioi", byte_level(), shots=2, n=n) for n in (5, 30))
    assert few.heldout == many.heldout
    assert few.train == many.train[:5]
    texts = [loaded("ioi", byte_level(), shots=1, seed=seed).train[0].text.split("\n\n")[0] for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        few = loaded("arithmetic", byte_level(), digits=1, operators="divide", n=40, n_heldout=20, shots=2)
    assert len({one.clean for one in every(few)}) == len(few.train) + len(few.heldout) < 60
    assert len(few.heldout) < len(few.train), "in the proportion asked for"
    assert sum("are asked for" in str(one.message) for one in caught) == 1


def pairs(path: Path, n: int = 12, **fields: Any) -> Path:
    lines = [
        {"clean": f"The key {i}", "corrupted": f"The cup {i}", "answers": " book", "wrong": " keys", **fields} for i in range(n)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_a_file_is_framed_as_a_drawn_task_is(tmp_path: Path) -> None:
    path, model = (
        pairs(tmp_path / "mine.jsonl", roles={"thing": "key", "number": -1, "first": 0}),
        model_with(chatting(unspaced=False)),
    )
    plain, shot = load_task(path, model), load_task(path, model, shots=2)
    assert shot.heldout != plain.heldout
    assert [len(split) for split in (plain.train, plain.heldout, shot.train, shot.heldout)] == [6, 6, 4, 6]
    assert any("2 examples of task" in note and "2 examples, which hold" in note for note in shot.notes)
    solved = shot.train[0].text.split("\n\n")[:2]
    for one in every(shot):
        *before, prompt = one.text.split("\n\n")
        assert before == solved
        assert not any(shown.startswith(f"{prompt} ") for shown in solved)
        words = [told(chatting(), (one.clean[one.roles[role]],)) for role in ("first", "thing", "number")]
        assert words[0] == "T", "token 0 of the prompt itself"
        assert words[1] == " key"
        assert one.roles["number"] == len(one) - 1
    chat = load_task(path, model, chat_template=True)
    assert all(one.text == f"<|im_start|>user\n{old.text}<|im_end|>\n<|im_start|>assistant\n" for one, old in zip(
        every(chat), every(plain), strict=True))  # fmt: skip
    assert {told(chatting(), one.answers[0]) for one in every(chat)} == {"b"}, "the first letter, which is a token here"


def test_what_cannot_be_framed_gets_a_sentence(tmp_path: Path) -> None:
    middle, number = pairs(tmp_path / "middle.jsonl", positions=1, answers=" key"), tmp_path / "number.jsonl"
    number.write_text("\n".join(json.dumps({"clean": [i, 3], "target": 0.5}) for i in range(9)))
    broken, silent = chatting("{{ raise_exception('no such turn') }}"), chatting("nothing at all")
    short = FakeModel("short", byte_level(), len(byte_level()), len(byte_level()), 60)
    cases: list[tuple[str | Path, Any, dict[str, Any], type[Exception], str]] = [
        (
            "ioi",
            model_with(byte_level()),
            {"chat_template": True},
            BadSetting,
            "'whole words' has no chat template: leave it out",
        ),
        ("induction", bare_model(), {"chat_template": True, "length": 5}, BadSetting, "'bare' has no chat template"),
        ("ioi", model_with(broken), {"chat_template": True}, BadSetting, r"cannot be filled in: no such turn"),
        ("ioi", model_with(silent), {"chat_template": True}, BadSetting, "does not show every turn once"),
        ("ioi", model_with(byte_level()), {"chat_template": "yes"}, BadSetting, "chat_template='yes' cannot be used"),
        ("ioi", model_with(byte_level()), {"shots": -1}, BadSetting, "shots=-1 must be a whole number from 0"),
        ("ioi", short, {"shots": 9}, BadTask, r"with shots=9 the longest prompt .* reads at most 60: ask for fewer shots"),
        (middle, model_with(byte_level()), {"shots": 1}, BadTask, r"shots=1 needs prompts that end where the answer begins"),
        (pairs(tmp_path / "one.jsonl", 2), model_with(byte_level()), {"shots": 2}, BadTask, "shots=2, but there are 1 prompts"),
        (number, FakeModel("number", None, 50, 1), {"shots": 1}, BadTask, "has a number as its answer"),
        (
            pairs(tmp_path / "few.jsonl", 4),
            model_with(byte_level()),
            {"shots": 2},
            BadTask,
            "no train examples beside 2 solved",
        ),
    ]
    for name, model, settings, error, sentence in cases:
        with pytest.raises(error, match=sentence):
            load_task(name, model, **({} if isinstance(name, Path) else SMALL) | settings)


def test_a_bos_that_begins_every_turn_is_named_where_it_is_added() -> None:
    model = model_with(chatting())
    cases: list[tuple[str, dict[str, Any]]] = [("ioi", {}), ("induction", {"length": 5}), ("ioi", {"shots": 1})]
    for name, settings in cases:
        task = load_task(name, model, prepend_bos=True, **SMALL, **settings)
        (note,) = [note for note in task.notes if "begins every turn with it" in note]
        assert note.startswith("'<|im_start|>' [")
        assert "is put before 11 prompts as the BOS token" in note
        for other in ({}, {"chat_template": True}):
            assert not any("every turn" in note for note in load_task(name, model, **SMALL, **{**settings, **other}).notes)
    plain = PreTrainedTokenizerFast(tokenizer_object=byte_level().backend_tokenizer, bos_token="<|endoftext|>")
    task = load_task("ioi", model_with(plain), prepend_bos=True, **SMALL)
    assert not any("turn" in sentence for sentence in examine(every(task), plain))
