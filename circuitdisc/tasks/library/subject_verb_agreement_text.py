"""Prompts of the subject-verb agreement task: beginnings, prepositions, nouns in both numbers, and verbs."""

BEGINNINGS: dict[str, str] = {
    "plain": "The {subject}",
    "noticed": "We noticed that the {subject}",
    "report": "According to the report, the {subject}",
    "today": "Today the {subject}",
    "told": "Somebody told us that the {subject}",
    "although": "Although it is late, the {subject}",
}

ATTRACTED = "{_preposition} the {attractor}"  # follows the subject where the prompt has an attractor

PREPOSITIONS: tuple[str, ...] = ("near", "behind", "beside", "above", "under", "opposite", "with", "by")

NOUNS: tuple[tuple[str, str], ...] = tuple(
    (singular, plural)
    for singular, plural in (
        pair.split("/")
        for pair in """
        key/keys book/books letter/letters picture/pictures table/tables chair/chairs window/windows door/doors car/cars
        truck/trucks house/houses tower/towers bridge/bridges garden/gardens tree/trees flower/flowers stone/stones
        boat/boats ship/ships plane/planes train/trains bag/bags box/boxes bottle/bottles cup/cups plate/plates
        teacher/teachers student/students doctor/doctors lawyer/lawyers farmer/farmers soldier/soldiers actor/actors
        artist/artists writer/writers author/authors singer/singers driver/drivers pilot/pilots guard/guards
        friend/friends neighbor/neighbors boy/boys girl/girls dog/dogs cat/cats horse/horses bird/birds cow/cows
        computer/computers phone/phones camera/cameras machine/machines engine/engines painting/paintings lamp/lamps
        """.split()  # noqa: SIM905 - a list literal would be many quoted lines
    )
)

VERBS: tuple[tuple[str, str], ...] = (("is", "are"), ("was", "were"), ("has", "have"))  # singular, plural
