"""Factual recall: "The capital of France is the city of" is continued with Paris.

Three relations, each with frames of its own: a country's capital, the language that most people in a country speak, and the
kind of animal that an animal is. Frames are worded so that the answer has to be what comes next (not "called" or "a"); those of
animals name all five kinds first, in different orders, so that it is clear which names are wanted and none is given away. The
corrupted prompt names another subject of the same relation, of as many tokens and with another answer, which is the wrong one.
Answers that are not one token are left out with their subjects, and so are subjects for which there is no partner; notes count
both. Examples of one relation and frame form a group.

Roles: `subject` (its last token, where a factual-recall circuit gathers what it knows of it); `relation`, the word that says
what is asked for; the last token is `end`.

Source: Meng et al. 2022 (the subject's last token); Chughtai et al. 2024 (relation and subject add up); own facts and frames.
"""

from typing import NamedTuple

import numpy as np

from circuitdisc.errors import BadTask
from circuitdisc.tasks.base import TextExample
from circuitdisc.tasks.drawn import Draw, Names, Setup, drawn_task, pick
from circuitdisc.tasks.follow import tokens_after
from circuitdisc.tasks.notes import note
from circuitdisc.tasks.roles import fill


class Relation(NamedTuple):
    """A relation: the word that stands for it in its frames, the frames by name, and the answer to each subject."""

    word: str
    frames: dict[str, str]
    facts: dict[str, str]


def _facts(text: str) -> dict[str, str]:
    """Facts written `Subject: Answer`, one after the other, separated by semicolons."""
    pairs = (entry.split(":") for entry in " ".join(text.split()).split(";"))
    return {subject.strip(): answer.strip() for subject, answer in pairs}


# Countries whose capital is disputed or shared between cities, or whose people have no one language that most of them speak at
# home, are left out, so that each subject has one right answer.
CAPITAL = Relation(
    "capital",
    {
        "city_of": "The {relation} of {subject} is the city of",
        "map": "On the map of {subject}, a star marks its {relation}, the city of",
        "pupils": "As every pupil there learns, the {relation} of {subject} is called",
        "flight": "We booked a flight to {subject} and landed in the {relation}, the city of",
        "embassy": "In {subject} most embassies are found in the {relation},",
    },
    _facts(
        """
        France: Paris; Germany: Berlin; Italy: Rome; Spain: Madrid; Portugal: Lisbon; Austria: Vienna; Greece: Athens;
        Poland: Warsaw; Hungary: Budapest; Russia: Moscow; Norway: Oslo; Sweden: Stockholm;
        Denmark: Copenhagen; Finland: Helsinki; Ireland: Dublin; England: London; Belgium: Brussels; Romania: Bucharest;
        Bulgaria: Sofia; Serbia: Belgrade; Croatia: Zagreb; Turkey: Ankara; Egypt: Cairo; Lebanon: Beirut; Syria: Damascus;
        Iraq: Baghdad; Iran: Tehran; Japan: Tokyo; China: Beijing; Thailand: Bangkok; Vietnam: Hanoi; Canada: Ottawa;
        Cuba: Havana; Peru: Lima; Kenya: Nairobi; Afghanistan: Kabul; Jordan: Amman; Libya: Tripoli; Tunisia: Tunis;
        Qatar: Doha; Latvia: Riga; Venezuela: Caracas; Colombia: Bogota; Uganda: Kampala; Scotland: Edinburgh;
        Wales: Cardiff; Ghana: Accra; Bangladesh: Dhaka; Nepal: Kathmandu
        """
    ),
)

LANGUAGE = Relation(
    "language",
    {
        "main": "The main {relation} of {subject} is called",
        "speak": "Most people in {subject} speak a {relation} called",
        "schools": "In {subject} the {relation} of the schools and the newspapers is",
        "signs": "Most signs in {subject} are in the {relation} of the country, which is",
        "newspapers": "Newspapers in {subject} are printed in the country's main {relation}, which is",
    },
    _facts(
        """
        France: French; Germany: German; Austria: German; Italy: Italian; Spain: Spanish; Mexico: Spanish; Argentina: Spanish;
        Chile: Spanish; Colombia: Spanish; Cuba: Spanish; Portugal: Portuguese; Brazil: Portuguese; Japan: Japanese;
        China: Chinese; Taiwan: Chinese; Russia: Russian; Poland: Polish; Greece: Greek; Turkey: Turkish; Sweden: Swedish;
        Norway: Norwegian; Denmark: Danish; Finland: Finnish; Hungary: Hungarian; Romania: Romanian; Bulgaria: Bulgarian;
        Egypt: Arabic; Syria: Arabic; Jordan: Arabic; Iraq: Arabic; Yemen: Arabic; Iran: Persian; Thailand: Thai;
        Vietnam: Vietnamese; England: English; Australia: English; Jamaica: English; Israel: Hebrew; Ukraine: Ukrainian;
        Croatia: Croatian; Albania: Albanian; Iceland: Icelandic; Bangladesh: Bengali
        """
    ),
)

ANIMAL = Relation(
    "kind",
    {
        "question": "Is it a bird, a fish, an insect, a mammal or a reptile? The {subject} is a {relation} of",
        "fall_into": "Animals fall into mammals, birds, fish, reptiles and insects. The {subject} is a {relation} of",
        "listed": "Birds, fish, insects, mammals and reptiles are animals. The {subject} is a {relation} of",
        "school": "Insect, reptile, fish, bird or mammal? At school we learned that the {subject} is a {relation} of",
        "zoo": "There were mammals, reptiles, birds, insects and fish at the zoo. The {subject} is a {relation} of",
    },
    _facts(
        """
        eagle: bird; falcon: bird; owl: bird; robin: bird; sparrow: bird; pigeon: bird; parrot: bird; duck: bird; goose: bird;
        hawk: bird; raven: bird; penguin: bird; ostrich: bird; salmon: fish; trout: fish; tuna: fish; cod: fish; carp: fish;
        shark: fish; eel: fish; horse: mammal; cow: mammal; dog: mammal; cat: mammal; tiger: mammal; lion: mammal;
        whale: mammal; dolphin: mammal; bat: mammal; rabbit: mammal; monkey: mammal; elephant: mammal; bear: mammal;
        goat: mammal; sheep: mammal; wolf: mammal; deer: mammal; bee: insect; ant: insect; wasp: insect; beetle: insect;
        butterfly: insect; mosquito: insect; moth: insect; fly: insect; cricket: insect; snake: reptile; lizard: reptile;
        crocodile: reptile; turtle: reptile; tortoise: reptile; gecko: reptile
        """
    ),
)

RELATIONS: dict[str, Relation] = {"capital": CAPITAL, "language": LANGUAGE, "animal": ANIMAL}


@drawn_task("factual_recall")
def build(setup: Setup, *, relations: Names = None, first_token: bool = False) -> Draw:
    """Draw factual-recall examples.

    Args:
        setup: the model's tokenizer.
        relations: names of the relations to draw from; None: all.
        first_token: use answers of any number of tokens and score the first; else only answers of one token.
    """
    chosen = setup.names("relation", relations, RELATIONS)
    partners = {relation: _partners(relation, setup, first_token) for relation in chosen}
    chosen = [relation for relation in chosen if partners[relation]]
    if not chosen:
        raise BadTask(
            "task 'factual_recall' needs two subjects of as many tokens with different answers of one token, but this "
            "model's tokenizer has none: set first_token=True, or choose a model with a larger English vocabulary"
        )

    def draw(rng: np.random.Generator) -> TextExample:
        relation = pick(rng, chosen)
        word, frames, facts = RELATIONS[relation]
        frame = pick(rng, list(frames))
        subject = pick(rng, list(partners[relation]))
        other = pick(rng, partners[relation][subject])
        clean = fill(frames[frame], relation=word, subject=subject)
        corrupted = fill(frames[frame], relation=word, subject=other).text
        answers, wrong = ((f" {facts[named]}",) for named in (subject, other))
        return TextExample(clean.text, corrupted, answers, wrong, group=f"{relation}_{frame}", roles=clean.roles)

    return draw


def _partners(relation: str, setup: Setup, first_token: bool) -> dict[str, list[str]]:
    """For each subject that can be used the others of as many tokens that have another answer."""
    facts = RELATIONS[relation].facts
    if not first_token:
        answers = tuple(dict.fromkeys(facts.values()))
        known = setup.words(answers, f"answers to '{relation}'", need=0)
        facts = {subject: answer for subject, answer in facts.items() if answer in known}
    after = tokens_after("of", [f" {subject}" for subject in facts], setup.tokenizer)
    lengths = {subject: len(ids) for subject, ids in zip(facts, after, strict=True) if ids is not None}
    partners = {
        subject: [other for other in lengths if lengths[other] == length and facts[other] != facts[subject]]
        for subject, length in lengths.items()
    }
    kept = {subject: others for subject, others in partners.items() if others}
    if len(kept) < len(facts):
        note(
            f"task 'factual_recall': {len(facts) - len(kept)} of {len(facts)} subjects of '{relation}' have no partner of as "
            "many tokens with another answer, for this model's tokenizer, and are left out"
        )
    return kept
