"""What each task's prompts say: answers, wrong answers and roles are found again from the text alone."""

import re
import warnings

import pytest
from task_texts import N, at, corrupted, differing, load, said, words
from tiny import bare_model
from whole_words import byte_level, model_with, sentence_piece

from circuitdisc.errors import BadSetting, BadTask, UnknownName
from circuitdisc.tasks import load_task
from circuitdisc.tasks.library.factual_recall import RELATIONS
from circuitdisc.tasks.library.gendered_pronoun import MEN, WOMEN
from circuitdisc.tasks.library.hypernymy import KINDS
from circuitdisc.tasks.library.ioi import NAMES, OBJECTS, PLACES
from circuitdisc.tasks.library.nouns import NOUNS, PLURALS
from circuitdisc.tasks.library.rephrase import PAIRS
from circuitdisc.tasks.library.subject_verb_agreement import NOUNS as BOTH_NUMBERS
from circuitdisc.tasks.roles import position_of, role_names

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


# --- gendered_pronoun


def test_gendered_pronoun_follows_the_name() -> None:
    assert not set(MEN) & set(WOMEN)
    seen = set()
    for one in load("gendered_pronoun").train:
        (name,) = (word for word in words(one.text) if word in {*MEN, *WOMEN})
        (other,) = (word for word in words(corrupted(one)) if word in {*MEN, *WOMEN})
        assert (said(one.answers[0]), said(one.wrong[0])) == ((["he"], ["she"]) if name in MEN else (["she"], ["he"]))
        assert (name in MEN) == (other in WOMEN)
        assert at(one, "name") == name
        assert differing(one) == [one.roles["name"]]
        seen.add(name in MEN)
    assert seen == {True, False}


# --- hypernymy


def test_hypernymy_names_the_kind_of_both_things() -> None:
    everything = [member for members in KINDS.values() for member in members]
    assert len(set(everything)) == len(everything)
    seen = set()
    for one in load("hypernymy").train:
        (kind,), (other,) = said(one.answers[0]), said(one.wrong[0])
        pair, partner = ([word for word in words(text) if word in everything] for text in (one.text, corrupted(one)))
        assert len(set(pair)) == len(set(partner)) == 2
        assert set(pair) <= set(KINDS[kind])
        assert set(partner) <= set(KINDS[other])
        assert [at(one, role) for role in ("first", "second")] == pair
        assert differing(one) == [one.roles["first"], one.roles["second"]]
        seen.add(kind)
    assert len(seen) > 2
    with pytest.raises(BadTask, match="needs 2 kinds of things"):
        load("hypernymy", kinds="birds")


# --- docstring


def arguments(text: str) -> tuple[list[str], list[str]]:
    """The arguments that the function has, and those that its docstring has described so far."""
    head = re.search(r"def \w+\(self, (.*)\):\n", text)
    assert head is not None
    return head[1].split(", "), re.findall(r":param (\w+):", text)


@pytest.mark.parametrize("corruption", ["random_def_doc", "random_def", "random_doc"])
def test_docstring_asks_for_the_fifth_of_six_arguments(corruption: str) -> None:
    for one in load("docstring", corruption=corruption).train:
        has, described = arguments(one.text)
        assert len(set(has)) == len(has) == 6
        assert described == has[2:4]
        assert said(one.answers[0]) == [has[4]]
        assert set(said(one.wrong[0])) == set(has) - {has[4]}
        now_has, now_described = arguments(corrupted(one))
        assert [x == y for x, y in zip(has, now_has, strict=True)] == [
            True, True, *[corruption == "random_doc"] * 3, True,
        ]  # fmt: skip
        assert (now_described == described) == (corruption == "random_def")
        assert not set(now_described) & set(now_has), "what is described says nothing of what comes next"
        roles = ("rand1_def", "rand2_def", "a_def", "b_def", "c_def", "rand3_def", "a_doc", "b_doc")
        assert [at(one, role) for role in roles] == [*has, *described]
        assert [one.roles[role] for role in roles] == sorted(one.roles.values())
        assert one.text.endswith("    :param")


# --- factual_recall


def test_the_facts_are_enough_and_each_is_told_once() -> None:
    assert [len(relation.facts) >= least for relation, least in zip(RELATIONS.values(), (40, 25, 25), strict=True)] == [
        True
    ] * 3
    for relation in RELATIONS.values():
        assert all(re.fullmatch(r"[A-Za-z ]+", text) for fact in relation.facts.items() for text in fact)
        for frame in relation.frames.values():
            assert set(re.findall(r"\{(\w+)\}", frame)) == {"relation", "subject"}
    capitals = RELATIONS["capital"].facts
    assert len(set(capitals.values())) == len(capitals), "no two countries have one capital"


def test_factual_recall_asks_for_the_fact_of_the_subject_it_names() -> None:
    seen = set()
    for one in load("factual_recall").train:
        relation, frame = one.group.split("_", 1)
        facts = RELATIONS[relation].facts
        pattern = re.escape(RELATIONS[relation].frames[frame]).replace(r"\{relation\}", r"\w+").replace(r"\{subject\}", "(.*)")
        subject, other = (re.fullmatch(pattern, text)[1] for text in (one.text, corrupted(one)))  # pyright: ignore[reportOptionalSubscript] - a match, or the test fails
        assert said(one.answers[0]) == [facts[subject]]
        assert said(one.wrong[0]) == [facts[other]]
        assert at(one, "subject") == subject
        assert at(one, "relation") == RELATIONS[relation].word
        seen.add(relation)
    assert seen == set(RELATIONS)
    only = load("factual_recall", relations="animal", n=50)
    assert {one.group.split("_")[0] for one in only.train} == {"animal"}
    with pytest.raises(UnknownName, match=r"relation of task 'factual_recall' 'capitals'. Did you mean capital"):
        load("factual_recall", relations=["capitals"])


def test_factual_recall_leaves_out_answers_and_subjects_that_do_not_fit() -> None:
    """Without Paris there is no France; an eagle of six tokens has no partner; first_token takes both back where it can."""
    tokenizer = byte_level(without=frozenset({"Paris", "ostrich"}))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        task = load_task("factual_recall", model_with(tokenizer), n=400, n_heldout=50)
    told = [str(one.message) for one in caught]
    assert any(re.search(r"1 of \d+ answers to 'capital' are not one token", one) for one in told)
    assert any(re.search(r"1 of \d+ subjects of 'animal' have no partner of as many tokens", one) for one in told)
    texts = [one.text for one in (*task.train, *task.heldout)]
    assert not any("ostrich" in text for text in texts)
    assert not any("capital" in text and "France" in text for text in texts)
    taken = load("factual_recall", tokenizer, relations="capital", first_token=True, n=180)
    paris = [one for one in taken.train if "France" in words(one.text)]
    assert paris
    assert all(one.answers[0] == tuple(tokenizer(" Paris")["input_ids"][:1]) for one in paris)


# --- subject_verb_agreement


@pytest.mark.parametrize("attractor", ["opposite", "same", "both", "none"])
def test_the_verb_agrees_with_the_subject(attractor: str) -> None:
    """Every plural of the list ends in s, and no singular does."""
    assert all(plural.endswith("s") and not singular.endswith("s") for singular, plural in BOTH_NUMBERS)
    nouns = {word for pair in BOTH_NUMBERS for word in pair}
    seen = set()
    task = load("subject_verb_agreement", attractor=attractor)
    assert role_names(task.train) == (("subject",) if attractor == "none" else ("subject", "attractor"))
    for one in task.train:
        subject, *near = (word for word in words(one.text) if word in nouns)
        plural = subject.endswith("s")
        verbs = {True: {"are", "were", "have"}, False: {"is", "was", "has"}}
        assert set(said(one.answers[0])) == verbs[plural]
        assert set(said(one.wrong[0])) == verbs[not plural]
        assert at(one, "subject") == subject
        assert differing(one) == [one.roles["subject"]]
        changed, *_ = (word for word in words(corrupted(one)) if word in nouns)
        assert {subject, changed} in [set(pair) for pair in BOTH_NUMBERS]
        assert len(near) == (attractor != "none")
        if near:
            assert at(one, "attractor") == at(one, "end") == near[0]
        kind = "none" if not near else "same" if near[0].endswith("s") == plural else "opposite"
        assert one.group.endswith(f"_{'plural' if plural else 'singular'}_{kind}")
        seen.add(kind)
    assert seen == ({"opposite", "same"} if attractor == "both" else {attractor})


def test_agreement_needs_nouns_in_both_numbers() -> None:
    plurals = frozenset(plural for _, plural in BOTH_NUMBERS[1:]) | {"friendship"}  # which begins with one
    with pytest.raises(BadTask, match=r"needs two nouns of one token each in both numbers, .* has 1: choose"):
        load("subject_verb_agreement", byte_level(without=plurals))


# --- rephrase


def test_there_are_enough_pairs_and_no_word_is_in_two_of_a_class() -> None:
    assert sum(map(len, PAIRS.values())) >= 25
    for pairs in PAIRS.values():
        listed = [word for pair in pairs for word in pair]
        assert len(set(listed)) == len(listed)


def test_rephrase_asks_for_the_synonym_of_the_adjective_it_names() -> None:
    synonyms = [pair for pairs in PAIRS.values() for pair in pairs]
    adjectives = {word for pair in synonyms for word in pair}
    for one in load("rephrase").train:
        (used,) = (word for word in words(one.text) if word in adjectives)
        (other,) = (word for word in words(corrupted(one)) if word in adjectives)
        (synonym,) = said(one.answers[0])
        assert (used, synonym) in synonyms
        assert said(one.wrong[0]) == [used]
        assert other not in (used, synonym)
        assert (at(one, "adjective"), differing(one)) == (used, [one.roles["adjective"]])
        assert words(one.text).count(at(one, "noun")) == 2, "the noun is said again"
        assert position_of(one, "noun") == [word == at(one, "noun") for word in said(one.clean)].index(True)


def test_rephrase_needs_two_pairs() -> None:
    gone = frozenset(word for pairs in PAIRS.values() for pair in pairs[1:] for word in pair)
    with pytest.raises(BadTask, match=r"task 'rephrase' needs two pairs of adjectives"):
        load("rephrase", byte_level(without=gone))


# --- the roles of the first tasks


@pytest.mark.parametrize("order", ["abba", "baba"])
@pytest.mark.parametrize("corruption", ["abc", "flip"])
def test_ioi_names_the_people_the_place_and_the_object(order: str, corruption: str) -> None:
    for one in load("ioi", order=order, corruption=corruption).train:
        first, second, subject = (word for word in words(one.text) if word in NAMES)
        (indirect,) = {first, second} - {subject}
        assert [at(one, role) for role in ("io", "s1", "s2")] == [indirect, subject, subject]
        assert (one.roles["io"] < one.roles["s1"] < one.roles["s2"]) == (order == "abba")
        assert one.roles["s1"] != one.roles["s2"]
        assert at(one, "place") in PLACES
        assert at(one, "object") in OBJECTS
        assert at(one, "s1+1") == words(one.text)[words(one.text).index(subject) + 1]
        assert at(one, "end") == "to"
        changed = {"abc": ["io", "s1", "s2"], "flip": ["s2"]}[corruption]
        assert differing(one) == sorted(one.roles[role] for role in changed)


def test_tpp_speaks_english_where_the_tokenizer_knows_plurals_and_only_there() -> None:
    """Bare nouns, whose prompts the shipped models were trained on, for a tokenizer without plurals; or as the setting says."""
    plurals, nouns = set(PLURALS), set(NOUNS)
    assert not plurals & nouns
    assert {"mice", "cherries", "benches", "otters", "shelves", "geese"} <= plurals
    assert not {"bread", "breads", "sheeps", "irons"} & plurals
    without = byte_level(without=frozenset(PLURALS[40:]))
    told = {
        "known": load("tpp"),
        "unknown": load("tpp", without),
        "unwanted": load("tpp", plural=False),
        "wanted": load("tpp", without, plural=True),
    }
    for how, task in told.items():
        for one in task.train:
            said_nouns = [word for word in words(one.text) if word in plurals | nouns]
            assert len(said_nouns) == 5
            assert set(said_nouns) <= (plurals if how in ("known", "wanted") else nouns)
    with pytest.raises(BadSetting, match="plural='yes' cannot be used in task 'tpp'"):
        load("tpp", plural="yes")


def test_tpp_names_each_noun_of_the_chain() -> None:
    for one in load("tpp").train:
        a, b, link, c, subject = (word for word in words(one.text) if word in PLURALS)
        ends = [one.text.index(a), one.text.index(b), one.text.index(f" {link}", one.text.index(b) + 1), one.text.index(c)]
        assert ends == sorted(ends)
        roles = ("a1", "b1", "b2", "c1", "a2")
        assert [one.roles[role] for role in roles] == sorted(one.roles.values())
        assert [at(one, role) for role in roles[1:]] == [b, link, c, subject]
        assert a.endswith(at(one, "a1")), "a noun at the beginning of the text may be several tokens"
        assert differing(one) == [one.roles["b2"]]


def test_induction_names_the_pair_and_what_the_wrong_answer_follows() -> None:
    for model in (bare_model(), model_with(sentence_piece())):
        for one in load_task("induction", model, n=N).train:
            assert one.corrupted is not None
            a = one.clean[-1]
            assert position_of(one, "a2") == position_of(one, "end") == len(one) - 1
            assert one.roles["a1"] == one.clean.index(a)
            assert (one.clean[one.roles["b1"]],) == one.answers[0]
            assert position_of(one, "a1+1") == one.roles["b1"]
            assert (one.clean[one.roles["c1"]],) == one.wrong[0]
            assert position_of(one, "c1-1") == one.corrupted.index(a)
