"""The tasks: splits, what the prompts say, and the sentence for every kind of bad text or setting."""

import re
import subprocess
import sys
import warnings
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FakeModel, bare_model, bpe_model, bpe_tokenizer, word_model, word_tokenizer

from circuitdisc.errors import BadSetting, BadTask, UnknownName
from circuitdisc.jobs.config import conf_dir
from circuitdisc.tasks import TASKS, Example, TextExample, encode_examples, load_task, split_examples
from circuitdisc.tasks.encode import special_prefix
from circuitdisc.tasks.library.ioi import NAMES
from circuitdisc.tasks.library.nouns import NOUNS
from circuitdisc.tasks.library.tpp import TEMPLATES

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
MODELS = {"tpp": word_model, "induction": bare_model, "ioi": bpe_model}
names_of_tasks = pytest.mark.parametrize("name", MODELS)


def example(*clean: int) -> Example:
    return Example(clean, None, (len(clean) - 1,), ((1,),), ((),))


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


# --- every task


@names_of_tasks
@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 30), n_heldout=st.integers(1, 30), seed=st.integers(0, 2**32 - 1))
def test_splits_share_no_prompt_and_every_pair_is_a_pair(name: str, n: int, n_heldout: int, seed: int) -> None:
    model = MODELS[name]()
    task = load_task(name, model, n=n, n_heldout=n_heldout, seed=seed)
    assert (len(task.train), len(task.heldout)) == (n, n_heldout)
    prompts = [one.clean for one in (*task.train, *task.heldout)]
    assert len(set(prompts)) == n + n_heldout
    for one in (*task.train, *task.heldout):
        assert one.corrupted is not None
        assert one.corrupted != one.clean
        assert len(one.corrupted) == len(one.clean)
        assert one.positions == (len(one.clean) - 1,)
        assert not set(one.answers[0]) & set(one.wrong[0])
        assert len(one.answers[0]) == len(one.wrong[0]) == 1


@names_of_tasks
def test_the_seed_is_all_that_changes_the_draw(name: str) -> None:
    model = MODELS[name]()
    first, again = (load_task(name, model, n=5, seed=3) for _ in range(2))
    assert first == again
    assert first.train != load_task(name, model, n=5, seed=4).train
    assert len(first.heldout) == 5, "n_heldout is n unless given"


@names_of_tasks
def test_heldout_stays_the_same_when_more_are_trained_on(name: str) -> None:
    few, many = (load_task(name, MODELS[name](), n=n, n_heldout=10) for n in (5, 20))
    assert few.heldout == many.heldout
    assert few.train == many.train[:5]


@pytest.mark.parametrize("name", TASKS)
def test_the_yaml_of_a_task_names_every_setting_with_its_default(name: str) -> None:
    from omegaconf import OmegaConf

    path = conf_dir() / "task" / f"{name}.yaml"
    config = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(config, dict)
    own = {key: parameter.default for key, parameter in TASKS[name].settings.items()} | {"shots": 0, "chat_template": False}
    assert set(config) == {"name", "n", "n_heldout", *own}
    assert config["name"] == name
    for key, default in own.items():
        if key != "path":
            assert config[key] == default
    lines = path.read_text(encoding="utf-8").splitlines()
    assert all("# " in line for line in lines[1:]), "each setting has its comment"


def test_settings_say_how_a_task_was_made() -> None:
    task = load_task("induction", bare_model(), n=3, n_heldout=2, seed=7, length=5)
    expected = {"n": 3, "n_heldout": 2, "seed": 7, "length": 5, "tokens": None, "prepend_bos": None}
    assert task.settings == expected


def test_listing_tasks_imports_no_transformers() -> None:
    builders = "from circuitdisc.tasks import TASKS; [task.build for task in TASKS.values()]"
    code = f"import sys; {builders}; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- each task


def test_tpp_asks_for_the_end_of_a_chain_that_the_corrupted_prompt_breaks() -> None:
    tokenizer, nouns = word_tokenizer(), set(NOUNS)
    for one in load_task("tpp", word_model(), n=100, n_heldout=1).train:
        clean = [word for word in words(one.text) if word in nouns]
        a, b, link, c, subject = clean
        assert (subject, link) == (a, b)
        assert len({a, b, c}) == 3
        assert one.answers == ((tokenizer.convert_tokens_to_ids(c),),)
        assert one.wrong == ((tokenizer.convert_tokens_to_ids(b),),)
        assert one.corrupted is not None
        broken = [word for word in words(str(tokenizer.decode(list(one.corrupted)))) if word in nouns]
        assert [x == y for x, y in zip(clean, broken, strict=True)] == [True, True, False, True, True]
        assert broken[2] not in (a, b, c)
        assert one.group in {template.name for template in TEMPLATES}


def test_tpp_keeps_to_the_templates_asked_for() -> None:
    for templates in (["all_are_are", "implies_implies"], ["all_are_are"], "all_are_are"):
        task = load_task("tpp", word_model(), n=30, templates=templates)
        assert {one.group for one in task.train} == set([templates] if isinstance(templates, str) else templates)
    with pytest.raises(UnknownName, match=r"template of task 'tpp' 'all_are_arr'. Did you mean all_are_are"):
        load_task("tpp", word_model(), templates=["all_are_arr"])
    with pytest.raises(BadSetting, match="not a list of names"):
        load_task("tpp", word_model(), templates=[])


def test_tpp_with_first_token_takes_nouns_of_several_tokens() -> None:
    """The BPE tokenizer spells nouns, so that only the pairs of prompts of one length remain."""
    model = bpe_model(n_ctx=500)
    with pytest.raises(BadTask, match=r"task 'tpp' needs 4 nouns that are one token each"):
        load_task("tpp", replace(model, tokenizer=_letters()), n=5)
    task = load_task("tpp", model, n=5, first_token=True)
    for one in task.train:
        nouns = [word for word in words(one.text) if word in NOUNS]
        assert bpe_tokenizer()(" " + nouns[3])["input_ids"][0] == one.answers[0][0]


def _letters():
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(BPE({char: i for i, char in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue] - untyped setter
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.mark.parametrize("length", [5, 6, 16])
def test_induction_continues_the_first_pair_and_corruption_breaks_it(length: int) -> None:
    for one in load_task("induction", bare_model(), n=200, length=length).train:
        clean, corrupted = one.clean, one.corrupted
        assert corrupted is not None
        assert len(clean) == 2 * length
        assert sorted(clean[:length]) == sorted(clean[length:]) == sorted(set(clean)), "every token occurs twice"
        a = clean[-1]
        first = clean.index(a)
        assert first < length
        assert clean[first + 1] == one.answers[0][0]
        assert corrupted[first + 1] == one.answers[0][0], "B stays where it is"
        assert corrupted[corrupted.index(a) + 1] == one.wrong[0][0]
        assert corrupted[length:] == clean[length:]
        assert sorted(corrupted) == sorted(clean), "corruption moves tokens, it brings in none"
        assert sum(x != y for x, y in zip(clean, corrupted, strict=True)) == 2
        follows = [corrupted[i + 1] for i, token in enumerate(corrupted[:-1]) if token == a]
        assert one.answers[0][0] not in follows


def test_induction_draws_no_special_tokens_and_keeps_the_tokenizers_bos() -> None:
    special = set(word_tokenizer().all_special_ids)
    task = load_task("induction", word_model(), n=50)
    assert not {token for one in task.train for token in one.clean} & special
    bos = load_task("induction", word_model(add_bos=True), n=5)
    assert all(one.clean[0] == 2 and one.corrupted is not None and one.corrupted[0] == 2 for one in bos.train)
    assert all(len(one) == 33 and one.positions == (32,) for one in bos.train)


def test_induction_says_what_does_not_fit() -> None:
    cases: list[tuple[FakeModel, dict[str, Any], type[Exception], str]] = [
        (bare_model(n_ctx=20), {}, BadTask, r"prompts of 32 tokens, but model 'bare' reads at most 20: give length=10 or less"),
        (bare_model(d_vocab=10), {}, BadTask, r"needs 16 different tokens, but model 'bare' offers 10"),
        (bare_model(), {"length": 3}, BadSetting, r"length=3 must be a whole number from 5"),
        (
            bare_model(),
            {"length": "long"},
            BadSetting,
            r"length='long' cannot be used in task 'induction': give a value of type int",
        ),
        (bare_model(), {"tokens": [1, 99]}, BadSetting, r"tokens holds 99: give token ids from 0 to 49"),
        (bare_model(), {"tokens": 3}, BadSetting, r"tokens=3 is not a list"),
        (bare_model(), {"prepend_bos": True}, BadSetting, r"there is no BOS token"),
        (word_model(), {"prepend_bos": "yes"}, BadSetting, r"prepend_bos='yes' cannot be used"),
    ]
    for model, setting, error, sentence in cases:
        with pytest.raises(error, match=sentence):
            load_task("induction", model, **setting)


@pytest.mark.parametrize("order", ["both", "abba", "baba"])
@pytest.mark.parametrize("corruption", ["abc", "flip"])
def test_ioi_asks_for_the_name_that_does_not_act(order: str, corruption: str) -> None:
    tokenizer, people = bpe_tokenizer(), set(NAMES)
    task = load_task("ioi", bpe_model(), n=100, n_heldout=1, order=order, corruption=corruption)
    ways = set()
    for one in task.train:
        first, second, subject = (word for word in words(one.text) if word in people)
        indirect = second if subject == first else first
        ways.add("abba" if first == indirect else "baba")
        assert subject in (first, second)
        assert tokenizer.decode(list(one.answers[0])) == f" {indirect}"
        assert tokenizer.decode(list(one.wrong[0])) == f" {subject}"
        assert one.group.endswith(f"_{'abba' if first == indirect else 'baba'}")
        assert one.corrupted is not None
        named = [word for word in words(str(tokenizer.decode(list(one.corrupted)))) if word in people]
        if corruption == "abc":
            assert len({*named, indirect, subject}) == 5
        else:
            assert named == [first, second, indirect]
        assert one.text.endswith(" to")
    assert ways == ({"abba", "baba"} if order == "both" else {order})


def test_ioi_counts_the_names_it_drops_and_refuses_a_tokenizer_without_names() -> None:
    with pytest.warns(UserWarning, match=rf"task 'ioi': 1 of {len(NAMES)} names are not one token"):
        task = load_task("ioi", bpe_model(), n=50)
    assert not any(NAMES[-1] in words(one.text) for one in task.train)
    with pytest.raises(BadTask, match=rf"task 'ioi' needs 5 names that are one token each, .* has 0 of {len(NAMES)}"):
        load_task("ioi", word_model())
    with pytest.raises(BadTask, match=r"task 'ioi' is written in text, but model 'bare' has no tokenizer"):
        load_task("ioi", bare_model())
    with pytest.raises(UnknownName, match=r"corruption of task 'ioi' 'abd'. Did you mean abc"):
        load_task("ioi", bpe_model(), corruption="abd")


# --- load_task


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"unknown task 'inductoin'. Did you mean induction"):
        load_task("inductoin", bare_model())
    with pytest.raises(UnknownName, match=r"setting of task 'induction' 'lenght'. Did you mean length"):
        load_task("induction", bare_model(), lenght=5)
    with pytest.raises(BadSetting, match=r"task 'file' needs a value for 'path'"):
        load_task("file", bare_model())
    with pytest.raises(BadSetting, match=r"task 'file' needs a value for 'path'"):
        load_task("file", bare_model(), path="???")
    wrong: list[dict[str, Any]] = [{"n": 0}, {"n": 2.5}, {"n_heldout": -1}, {"seed": -1}, {"n": True}]
    for bad in wrong:
        with pytest.raises(BadSetting, match=r"must be a whole number"):
            load_task("induction", bare_model(), **bad)


# --- text to ids


def encode_one(tokenizer, clean: str, answers: str | tuple[str, ...], **others) -> Example:
    options = {key: others.pop(key) for key in ("first_token", "prepend_bos", "positions") if key in others}
    answers = (answers,) if isinstance(answers, str) else answers
    return encode_examples([TextExample(clean, others.pop("corrupted", None), answers, **others)], tokenizer, **options)[0]


def test_answers_are_read_as_they_follow_the_prompt() -> None:
    words_, bpe = word_tokenizer(), bpe_tokenizer()
    goat = words_.convert_tokens_to_ids("goat")
    for answer in ("goat", " goat"):
        assert encode_one(words_, "all otter are", answer).answers == ((goat,),), "a word-level tokenizer drops spaces"
    mary = bpe(" Mary")["input_ids"]
    assert len(mary) == 1
    assert encode_one(bpe, "lent the book to", " Mary").answers == (tuple(mary),)
    with pytest.raises(BadTask, match=r"the answer 'Mary' is \d tokens"):
        encode_one(bpe, "lent the book to", "Mary")


def test_an_answer_without_its_space_is_pointed_out() -> None:
    with pytest.warns(
        UserWarning, match=r"1 answers follow their prompt without a space, the first one as 'lent the book tox'"
    ):
        encode_one(bpe_tokenizer(), "lent the book to", "x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_one(bpe_tokenizer(), "lent the book to", " Mary")
        encode_one(word_tokenizer(), "all otter are", "goat")


def test_first_token_scores_the_beginning_of_a_long_answer() -> None:
    bpe = bpe_tokenizer()
    pieces = bpe(" Zyqvo")["input_ids"]
    assert len(pieces) > 1
    sentence = r"example 0 \('lent the book to'\): the answer ' Zyqvo' is \d tokens .*first_token=True .*task.first_token=true"
    with pytest.raises(BadTask, match=sentence):
        encode_one(bpe, "lent the book to", " Zyqvo")
    assert encode_one(bpe, "lent the book to", " Zyqvo", first_token=True).answers == ((pieces[0],),)
    with pytest.raises(
        BadTask, match=r"the answer ' Zyqvo' and the wrong answer ' Zyqve' are scored by the same token, ' .*' \["
    ):
        encode_one(bpe, "lent the book to", " Zyqvo", wrong=(" Zyqve",), first_token=True)


@pytest.mark.parametrize(
    ("clean", "answer", "others", "sentence"),
    [
        ("all unicorns are", "goat", {}, r"the tokenizer does not know 'unicorns' in the clean prompt"),
        ("all otter are", "goat", {"corrupted": "all elf are"}, r"does not know 'elf' in the corrupted prompt"),
        ("all otter are", "elf", {}, r"does not know 'elf' in the answer 'elf'"),
        ("all otter are", "goat", {"wrong": ("elf",)}, r"does not know 'elf' in the answer 'elf'"),
        ("all otter are", "goat cat", {}, r"does not know 'cat'"),
        ("all otter are", "goat sheep", {}, r"the answer 'goat sheep' is 2 tokens \('goat' \[\d+\], 'sheep' \[\d+\]\)"),
        ("all otter are", " ", {}, r"the answer ' ' has no tokens"),
        ("all otter are", (), {}, r"there is no answer: give one"),
        ("all otter are", "goat", {"wrong": ("sheep", "goat")}, r"the answer 'goat' and the wrong answer 'goat' are scored by"),
        ("all otter are", "goat", {"corrupted": "all otter also are"}, r"one 4 \(from token 2 on 'are' .*: reword"),
        ("all otter are", "goat", {"corrupted": "all  otter are"}, r"the corrupted prompt is the same as the clean one"),
        ("", "goat", {}, r"the clean prompt has no tokens"),
        ("all otter are", "goat", {"positions": [3]}, r"position 3 is outside the prompt, which has 3 tokens: use 0 to 2"),
    ],
)  # fmt: skip
def test_text_that_cannot_be_used_gets_a_sentence(clean: str, answer, others: dict, sentence: str) -> None:
    with pytest.raises(BadTask, match=f"^example 0 .*: .*{sentence}"):
        encode_one(word_tokenizer(), clean, answer, **others)


def test_an_answer_that_merges_with_the_prompt_is_refused() -> None:
    bpe = bpe_tokenizer()
    assert bpe("to Mary")["input_ids"][: len(bpe("to ")["input_ids"])] != bpe("to ")["input_ids"]
    with pytest.raises(
        BadTask, match=r"the answer 'Mary' merges with the end of the prompt 'to ' \(.*\): end the prompt without a space"
    ):
        encode_one(bpe, "to ", "Mary")


def test_no_tokenizer_and_many_bad_examples() -> None:
    with pytest.raises(BadTask, match=r"this model has no tokenizer: give token ids"):
        encode_examples([TextExample("a", None, ("b",))], None)
    bad = [TextExample(f"all word{i} are", None, ("goat",)) for i in range(5)]
    with pytest.raises(BadTask, match=r"(?s)example 0 .*word0.*example 1 .*word1.*example 2 .*word2.*\.\.\. and 2 more$"):
        encode_examples(bad, word_tokenizer())


def test_bos_is_the_tokenizers_own_affair_unless_said() -> None:
    for add_bos in (False, True):
        tokenizer = word_tokenizer(add_bos)
        own = encode_one(tokenizer, "all otter are", "goat").clean
        assert own == tuple(tokenizer("all otter are")["input_ids"])
        assert encode_one(tokenizer, "all otter are", "goat", prepend_bos=True).clean[0] == tokenizer.bos_token_id
        assert len(encode_one(tokenizer, "all otter are", "goat", prepend_bos=False).clean) == 3
    assert special_prefix(bpe_tokenizer()) == ()
    assert encode_one(bpe_tokenizer(), "gave the", " book", prepend_bos=True).clean[0] == 0


def test_a_position_inside_the_prompt_reads_the_answer_there() -> None:
    text = "all otter are goat"
    for tokenizer, answer, bos in ((word_tokenizer(), "sheep", 0), (word_tokenizer(True), "sheep", 1)):
        for position in (1 + bos, -3):
            got = encode_one(tokenizer, text, answer, positions=[position])
            assert got.positions == (1 + bos,)
            assert got.answers == ((tokenizer.convert_tokens_to_ids("sheep"),),)
    bpe = bpe_tokenizer()
    got = encode_one(bpe, "gave the book to", " ring", positions=[-2])
    assert got.answers == (tuple(bpe(" ring")["input_ids"]),)


# --- splitting


@settings(max_examples=50, deadline=None)
@given(
    prompts=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30),
    n_train=st.none() | st.integers(1, 20),
    n_heldout=st.none() | st.integers(1, 20),
    seed=st.none() | st.integers(0, 99),
)
def test_split_is_disjoint_or_says_why_not(prompts, n_train, n_heldout, seed) -> None:
    distinct = set(prompts)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            split = split_examples([example(*one) for one in prompts], n_train, seed, n_heldout=n_heldout)
    except BadTask:
        wanted = (n_train or 1) + (n_heldout or 1)
        assert wanted > len(distinct)
        return
    train, heldout = {one.clean for one in split.train}, {one.clean for one in split.heldout}
    assert not train & heldout
    assert train | heldout <= distinct
    assert len(train) == len(split.train) == (n_train or len(distinct) - len(heldout))
    assert len(heldout) == len(split.heldout) == (n_heldout or len(distinct) - len(train))
    assert split.n_duplicates == len(prompts) - len(distinct)


def test_split_counts_duplicates_and_refuses_too_few() -> None:
    with pytest.warns(UserWarning, match="1 of 3 examples repeat a clean prompt and are dropped"):
        split = split_examples([example(1), example(2), example(1)], 1, 0)
    assert split.n_duplicates == 1
    with pytest.raises(BadTask, match=r"2 distinct examples cannot be split into 2 for training \(n\) and 1 held out"):
        split_examples([example(1), example(2)], 2, 0)
