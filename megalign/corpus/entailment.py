"""Natural-language inference in the words of the procedural corpus: pairs of sentences whose label follows from logic.

Sentences are "a | every | no, an adjective or none, a noun, a verb phrase". What follows from what are the monotonicity rules of
the quantifiers (MacCartney and Manning 2009, "An extended model of natural logic"): hypernyms (a noun's class in the lexicon),
adjectives, conjunctions and places make a phrase wider or narrower; "did not" negates. Nouns and verb phrases of a sentence are
never empty: "every" and "no" speak of things that there are.

Every hypothesis stands with three premises, one for each label, so nothing in a hypothesis tells its label; and premises that
look alike stand under all labels equally often.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice

import numpy as np

from megalign.corpus.keyed_random import generator
from megalign.corpus.lexicon import ADJECTIVES, FRAMES, MASS_NOUN_CLASSES, NOUNS, PREPOSITIONS, past

LABELS = ("entailment", "neutral", "contradiction")
# Words that the procedural corpus does not have.
NEW_WORDS = ("every", "no", "did", "not", "person", "animal", "vehicle")
_SUBJECT_CLASSES = ("person", "animal", "vehicle")


@dataclass(frozen=True, slots=True)
class Form:
    """What a sentence says, with places for words.

    Attributes:
        quantifier: a, every or no.
        noun: "own", "sister" (another noun of the class) or "class" (their hypernym).
        adjective: whether the noun has the adjective.
        predicate: "first", "second" (another verb phrase), "both" (joined by "and"), "place" (the first, somewhere) or
            "not" (the first, negated).
    """

    quantifier: str
    noun: str = "own"
    adjective: bool = False
    predicate: str = "first"

    @property
    def looks(self) -> Form:
        """The form as one sees it alone: which noun of a class it has, and which verb phrase, shows beside another only."""
        noun = "class" if self.noun == "class" else "own"
        return Form(self.quantifier, noun, self.adjective, "first" if self.predicate == "second" else self.predicate)

    @classmethod
    def parse(cls, text: str) -> Form:
        """A form such as "a A N V": A the adjective, N S C the noun, V V2 V+ V@ V- the predicate."""
        quantifier, *adjective, noun, predicate = text.split()
        nouns = {"N": "own", "S": "sister", "C": "class"}
        predicates = {"V": "first", "V2": "second", "V+": "both", "V@": "place", "V-": "not"}
        return cls(quantifier, nouns[noun], bool(adjective), predicates[predicate])


Rule = tuple[Form, tuple[tuple[Form, ...], ...]]


def _rules(text: str) -> tuple[Rule, ...]:
    lines = [line.strip() for line in text.strip().splitlines()]
    rules = []
    for at in range(0, len(lines), 1 + len(LABELS)):
        premises = (line.partition(":")[2].split(",") for line in lines[at + 1 : at + 1 + len(LABELS)])
        rules.append((Form.parse(lines[at]), tuple(tuple(Form.parse(one) for one in some) for some in premises)))
    return tuple(rules)


# Each hypothesis with the premises that entail it, that leave it open, and that contradict it.
RULES = _rules(
    """
    a N V
      entailed by: a A N V, a N V+, a N V@, a A N V+, a A N V@, every N V, every A N V, every C V, every N V+, every N V@
      open after: a S V, a A S V, a N V-, a A N V-, a S V-, every S V, every S V+, every S V@, no A N V, no S V, no A S V, a N V2, every N V2, every C V2, no C V2, no N V2
      contradicts: no N V, no C V
    a A N V
      entailed by: a A N V+, a A N V@, every N V, every A N V, every C V, every N V+, every N V@
      open after: a N V, a S V, a A S V, a N V+, a N V@, a N V-, a A N V-, a S V-, every S V, every S V+, every S V@, no S V, no A S V, a N V2, every N V2, every C V2, no C V2, no N V2
      contradicts: no N V, no A N V, no C V
    a C V
      entailed by: a N V, a A N V, a S V, a A S V, a N V+, a N V@, a A N V+, a A N V@, every N V, every A N V, every S V, every C V, every N V+, every N V@, every S V+, every S V@
      open after: a N V-, a A N V-, a S V-, no N V, no A N V, no S V, no A S V, a N V2, every N V2, every C V2, no C V2, no N V2
      contradicts: no C V
    every N V
      entailed by: every C V, every N V+, every N V@
      open after: a N V, a A N V, a S V, a A S V, a N V+, a N V@, a A N V+, a A N V@, a S V-, every A N V, every S V, every S V+, every S V@, no S V, no A S V, a N V2, every N V2, every C V2, no C V2, no N V2
      contradicts: a N V-, a A N V-, no N V, no A N V, no C V
    every A N V
      entailed by: every N V, every C V, every N V+, every N V@
      open after: a N V, a A N V, a S V, a A S V, a N V+, a N V@, a A N V+, a A N V@, a N V-, a S V-, every S V, every S V+, every S V@, no S V, no A S V, a N V2, every N V2, every C V2, no C V2, no N V2
      contradicts: a A N V-, no N V, no A N V, no C V
    no N V
      entailed by: no C V
      open after: a S V, a A S V, a N V-, a A N V-, a S V-, every S V, every S V+, every S V@, no A N V, no S V, no A S V, a N V2, every N V2, every C V2, no C V2, no N V2
      contradicts: a N V, a A N V, a N V+, a N V@, a A N V+, a A N V@, every N V, every A N V, every C V, every N V+, every N V@
    no A N V
      entailed by: no N V, no C V
      open after: a N V, a S V, a A S V, a N V+, a N V@, a N V-, a A N V-, a S V-, every S V, every S V+, every S V@, no S V, no A S V, a N V2, every N V2, every C V2, no C V2, no N V2
      contradicts: a A N V, a A N V+, a A N V@, every N V, every A N V, every C V, every N V+, every N V@
    a N V-
      entailed by: a A N V-, no N V, no A N V, no C V
      open after: a N V, a A N V, a S V, a A S V, a N V+, a N V@, a A N V+, a A N V@, a S V-, every A N V, every S V, every S V+, every S V@, no S V, no A S V, a N V2, every N V2, every C V2, no C V2, no N V2
      contradicts: every N V, every C V, every N V+, every N V@
    a C V-
      entailed by: a N V-, a A N V-, a S V-, no N V, no A N V, no C V, no S V, no A S V
      open after: a N V, a A N V, a S V, a A S V, a N V+, a N V@, a A N V+, a A N V@, every N V, every A N V, every S V, every N V+, every N V@, every S V+, every S V@, a N V2, every N V2, every C V2, no C V2, no N V2
      contradicts: every C V
    """
)


@cache
def draw_weights() -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """How often each rule is drawn, [rules], and of each rule and label each premise; all sum to 1.

    Every hypothesis has all labels equally often. Iterative proportional fitting (Deming and Stephan 1940) makes the same true of
    every premise that looks alike, so that nothing in a premise tells the label either. For that, hypotheses that deny ("no",
    "did not") must be as frequent as those that do not.
    """
    denies = np.array([form.quantifier == "no" or form.predicate == "not" for form, _ in RULES])
    of_rule = np.where(denies, 0.5 / denies.sum(), 0.5 / (~denies).sum())
    entries = [
        (rule, label, form.looks)
        for rule, (_, premises) in enumerate(RULES)
        for label, forms in enumerate(premises)
        for form in forms
    ]
    kinds = list(dict.fromkeys(looks for _, _, looks in entries))
    label = np.array([entry[1] for entry in entries])
    group = np.array([entry[0] for entry in entries]) * len(LABELS) + label
    looks = np.array([kinds.index(entry[2]) for entry in entries])
    weights = np.ones(len(entries))
    for _ in range(1000):
        weights *= (of_rule[group // len(LABELS)] / len(LABELS)) / np.bincount(group, weights)[group]
        mass = np.bincount(looks * len(LABELS) + label, weights).reshape(-1, len(LABELS))
        weights *= (mass.mean(axis=1, keepdims=True) / mass)[looks, label]
    totals = np.bincount(group, weights)
    shares = np.split(weights / totals[group], np.flatnonzero(np.diff(group)) + 1)
    return of_rule, [shares[at : at + len(LABELS)] for at in range(0, len(shares), len(LABELS))]


@dataclass(frozen=True, slots=True)
class Pair:
    """A premise, a hypothesis and one of LABELS."""

    premise: str
    hypothesis: str
    label: str


@dataclass(frozen=True, slots=True)
class _Words:
    noun: str
    sister: str
    hypernym: str
    adjective: str
    first: tuple[str, str]  # verb and object
    second: tuple[str, str]
    place: str

    def sentence(self, form: Form) -> str:
        noun = {"own": self.noun, "sister": self.sister, "class": self.hypernym}[form.noun]
        phrase = f"{self.adjective} {noun}" if form.adjective else noun
        article = _article(phrase) if form.quantifier == "a" else form.quantifier
        said = self._predicate(form.predicate)
        return f"{article[0].upper()}{article[1:]} {phrase} {said}."

    def _predicate(self, predicate: str) -> str:
        verb, patient = self.second if predicate == "second" else self.first
        if predicate == "not":
            return f"did not {verb} {patient}"
        said = f"{past(verb)} {patient}"
        if predicate == "both":
            return f"{said} and {past(self.second[0])} {self.second[1]}"
        return f"{said} {self.place}" if predicate == "place" else said


def _article(phrase: str) -> str:
    return "an" if phrase[0] in "aeio" or phrase.startswith("ug") else "a"


def _draw(rng: np.random.Generator) -> _Words:
    kind = _SUBJECT_CLASSES[rng.integers(len(_SUBJECT_CLASSES))]
    noun, sister = (NOUNS[kind][i] for i in rng.choice(len(NOUNS[kind]), size=2, replace=False))
    adjectives = [word for classes, words in ADJECTIVES.items() if kind in classes.split() for word in words]
    verbs = [(verb, frame.objects) for frame in FRAMES if kind in frame.subjects for verb in frame.verbs]
    phrases = []
    for at in rng.choice(len(verbs), size=2, replace=False):
        verb, classes = verbs[at]
        of_class = classes[rng.integers(len(classes))]
        others = [word for word in NOUNS[of_class] if word not in (noun, sister)]
        patient = others[rng.integers(len(others))]
        phrases.append((verb, f"some {patient}" if of_class in MASS_NOUN_CLASSES else f"{_article(patient)} {patient}"))
    place = f"{PREPOSITIONS[rng.integers(len(PREPOSITIONS))]} the {NOUNS['place'][rng.integers(len(NOUNS['place']))]}"
    adjective = adjectives[rng.integers(len(adjectives))]
    return _Words(noun, sister, kind, adjective, phrases[0], phrases[1], place)


def triples(seed: int, stream: str) -> Iterator[tuple[Pair, Pair, Pair]]:
    """Without end: three pairs with one hypothesis, labelled as LABELS; the same (seed, stream) gives the same."""
    rng = generator(seed, "entailment", stream)
    of_rule, weights = draw_weights()
    while True:
        words = _draw(rng)
        number = int(rng.choice(len(RULES), p=of_rule))
        hypothesis, premises = RULES[number]
        first, second, third = (
            Pair(words.sentence(forms[rng.choice(len(forms), p=shares)]), words.sentence(hypothesis), label)
            for forms, shares, label in zip(premises, weights[number], LABELS, strict=True)
        )
        yield first, second, third


def make_pairs(seed: int, num_train: int, num_test: int) -> tuple[list[Pair], list[Pair]]:
    """Training and test pairs, as many of each label; no hypothesis of one set stands in the other.

    Numbers are rounded up to a multiple of 3. The order is that of the draws, hypothesis by hypothesis.
    """
    train = [pair for one in islice(triples(seed, "train"), -(-num_train // 3)) for pair in one]
    seen = {pair.hypothesis for pair in train}
    fresh = (one for one in triples(seed, "test") if one[0].hypothesis not in seen)
    test = [pair for one in islice(fresh, -(-num_test // 3)) for pair in one]
    return train, test


def weave_sentences(documents: Iterator[str], *, share: float, seed: int, stream: str) -> Iterator[str]:
    """End a share of the documents with a sentence that could be a premise or a hypothesis.

    A model that reads them knows the words of NEW_WORDS, though nothing of which sentence follows from which.

    Args:
        documents: ordinary documents.
        share: probability that a document gets a sentence, from 0 to 1.
        seed, stream: fix documents and sentences.
    """
    rng = generator(seed, "weave-entailment", stream)
    source = triples(seed, f"sentences of {stream}")
    for document in documents:
        if rng.random() >= share:
            yield document
            continue
        pair = next(source)[rng.integers(3)]
        yield f"{document} {pair.premise if rng.random() < 0.5 else pair.hypothesis}"
