"""The words of the procedural English corpus: 240 nouns, 100 verbs and 60 adjectives, all regular.

Classes carry the selectional frames: which nouns a verb takes as subject and object, which nouns an adjective modifies.
"""

from __future__ import annotations

from dataclasses import dataclass

NOUNS: dict[str, tuple[str, ...]] = {
    name: tuple(words.split())
    for name, words in {
        "person": "farmer teacher doctor sailor baker painter singer soldier driver hunter "
        "writer builder judge nurse miner dancer student king queen lawyer",
        "animal": "dog cat horse cow bird rabbit lion bear goat duck "
        "eagle frog snake turtle monkey camel donkey spider whale tiger",
        "food": "apple cake soup egg onion carrot pie lemon orange grape "
        "cookie pear melon plum bean pepper sausage pancake salad biscuit",
        "substance": "water milk bread rice sugar salt butter oil honey flour "
        "sand gold silver iron wool cotton paper smoke rain snow",
        "tool": "hammer rope needle bucket shovel ladder wheel broom hook nail "
        "chain drill lamp pump spoon fork plate bowl pot candle",
        "place": "garden river road bridge market forest mountain village harbor field "
        "lake island tower castle school kitchen station farm valley cave",
        "furniture": "table chair door window wall roof floor bed mirror cabinet "
        "curtain pillow blanket carpet clock stove drawer bench desk gate",
        "vehicle": "boat wagon train truck ship cart plane car bicycle tractor "
        "carriage van raft sled balloon rocket taxi canoe barge engine",
        "clothing": "coat hat shirt boot sock ring belt button ribbon jacket "
        "sweater glove cap robe necklace apron collar sleeve pocket crown",
        "document": "book letter map song story picture poem newspaper card ticket "
        "stamp note page poster calendar report novel sign recipe contract",
        "plant": "tree flower rose seed root branch vine weed bush stem "
        "herb oak pine tulip mushroom fern acorn petal thorn cedar",
        "idea": "question reply plan idea problem promise lesson dream game race "
        "secret rule law debt prize reason signal mistake project method",
    }.items()
}
MASS_NOUN_CLASSES = frozenset({"substance"})


@dataclass(frozen=True, slots=True)
class Frame:
    """Verbs with the noun classes they take."""

    subjects: tuple[str, ...]
    objects: tuple[str, ...]
    verbs: tuple[str, ...]


def _frame(subjects: str, objects: str, verbs: str) -> Frame:
    return Frame(tuple(subjects.split()), tuple(objects.split()), tuple(verbs.split()))


FRAMES: tuple[Frame, ...] = (
    _frame("person", "food", "cook taste slice boil serve peel share fry"),
    _frame("person", "substance", "pour measure mix waste collect filter heat"),
    _frame("person", "tool furniture", "repair borrow sharpen lift polish handle carry"),
    _frame("person animal", "place", "visit enter explore reach admire"),
    _frame("person vehicle", "place", "cross approach circle"),
    _frame("person", "furniture vehicle", "clean paint open close move lock"),
    _frame("person", "vehicle", "park load start steer board launch"),
    _frame("person", "clothing", "fold wash mend stitch dye design need pack"),
    _frame("person", "document", "copy publish print translate finish mail study describe"),
    _frame("person animal", "plant", "harvest pick prune climb"),
    _frame("person", "idea", "discuss solve explain remember accept reject prepare imagine ignore suggest"),
    _frame("person", "person", "help thank follow call invite trust greet blame obey marry"),
    _frame("person", "animal", "hunt tame rescue raise watch"),
    _frame("animal", "animal person", "chase attack scare fear avoid"),
    _frame("animal", "food substance", "smell lick sniff swallow"),
    _frame("vehicle", "substance tool", "deliver transport damage crush"),
)

ADJECTIVES: dict[str, tuple[str, ...]] = {
    classes: tuple(words.split())
    for classes, words in {
        "person": "kind angry clever brave lazy polite honest proud",
        "animal": "wild hungry gentle fierce quick loyal",
        "food": "sweet sour fresh salty ripe juicy spicy",
        "substance": "pure cheap warm thick rare",
        "tool furniture": "wooden heavy rusty useful broken sharp",
        "place": "quiet distant narrow busy empty famous",
        "vehicle": "fast slow modern noisy",
        "clothing": "dirty soft woolen fancy loose",
        "document": "long short funny boring ancient",
        "plant": "green tall dry yellow",
        "idea": "simple hard strange useless",
    }.items()
}


VERBS: tuple[str, ...] = tuple(verb for frame in FRAMES for verb in frame.verbs)
ADVERBS = ("today", "yesterday", "sometimes", "later", "often", "again")
PREPOSITIONS = ("in", "near", "behind", "beside", "under", "across")
ARTICLES = ("a", "an", "the", "some")
CONJUNCTIONS = ("and", "because", "when", "that")
COPULAS = ("is", "are", "was", "were")
MODALS = ("can", "must", "will")
PRONOUNS = ("he", "she", "it", "they")
FUNCTION_WORDS = (*ARTICLES, *CONJUNCTIONS, *COPULAS, *MODALS, *PRONOUNS, *ADVERBS, *PREPOSITIONS)


def plural(noun: str) -> str:
    """The regular plural of an English noun."""
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def third_person(verb: str) -> str:
    """The -s form of a regular English verb."""
    return plural(verb)


def past(verb: str) -> str:
    """The -ed form of a regular English verb whose last consonant is not doubled."""
    if verb.endswith("e"):
        return verb + "d"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ied"
    return verb + "ed"
