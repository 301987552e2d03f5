"""Facts and prompts of the factual-recall task, in our own wording.

Each relation has one right answer for each subject. Countries whose capital is disputed or shared between cities, or whose
people have no one language that most of them speak at home, are left out.
"""

from typing import NamedTuple


class Relation(NamedTuple):
    """A relation: the word that stands for it in its frames, the frames by name, and the answer to each subject."""

    word: str
    frames: dict[str, str]
    facts: dict[str, str]


def _facts(text: str) -> dict[str, str]:
    """Facts written `Subject: Answer`, one after the other, separated by semicolons."""
    pairs = (entry.split(":") for entry in " ".join(text.split()).split(";"))
    return {subject.strip(): answer.strip() for subject, answer in pairs}


CAPITAL = Relation(
    "capital",
    {
        "city_of": "The {relation} of {subject} is the city of",
        "map": "On the map of {subject}, a star marks its {relation}, the city of",
        "pupils": "As every pupil there learns, the {relation} of {subject} is called",
        "flight": "We booked a flight to the {relation} of {subject}, that is, to",
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
        "main": "The main {relation} of {subject} is",
        "speak": "Most people in {subject} speak a {relation} called",
        "home": "In {subject} the {relation} that children learn at home is usually",
        "signs": "A traveller in {subject} finds nearly all signs in one {relation},",
        "course": "Before she moved to {subject} she took a course in its {relation},",
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
        "is_a": "The {subject} is a {relation} of",
        "zoology": "In zoology the {subject} counts as a {relation} of",
        "pupils": "At school we learned that the {subject} is a {relation} of",
        "sign": "A sign at the zoo says that the {subject} is a {relation} of",
        "child": "Ask any child: the {subject} is a {relation} of",
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
