"""Generated pairs of inference: labels against all small worlds, balance, and what one side alone tells."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest

from megalign.corpus.entailment import (
    LABELS,
    NEW_WORDS,
    RULES,
    Form,
    Pair,
    draw_weights,
    make_pairs,
    triples,
    weave_sentences,
)
from megalign.corpus.procedural import ProceduralEnglish, word_types

# What one thing does: (the first predicate, the second, the first at the place), the last only with the first.
DEEDS = np.array([d for d in itertools.product((0, 1), repeat=3) if d[2] <= d[0]], dtype=bool)
# A kind of thing (own noun or sister, with the adjective or not) has one or two members, which may do different things.
MEMBERS = [c for size in (1, 2) for c in itertools.combinations(range(len(DEEDS)), size)]
KINDS = list(itertools.product(("own", "sister"), (False, True)))


def truth(form: Form) -> np.ndarray:
    """Whether a sentence is true in each world: bool, an axis for each kind of thing."""
    satisfied = {
        "first": DEEDS[:, 0],
        "second": DEEDS[:, 1],
        "both": DEEDS[:, 0] & DEEDS[:, 1],
        "place": DEEDS[:, 2],
        "not": ~DEEDS[:, 0],
    }[form.predicate]
    quantified = all if form.quantifier == "every" else any
    by_members = np.array([quantified(satisfied[one] for one in members) for members in MEMBERS])
    combine = np.logical_and if form.quantifier == "every" else np.logical_or
    result = np.array(form.quantifier == "every")
    for axis, (noun, adjective) in enumerate(KINDS):
        if form.noun in (noun, "class") and (adjective or not form.adjective):
            shape = [1] * len(KINDS)
            shape[axis] = len(MEMBERS)
            result = combine(result, by_members.reshape(shape))
    result = np.broadcast_to(result, [len(MEMBERS)] * len(KINDS))
    return ~result if form.quantifier == "no" else result


def label_of(premise: Form, hypothesis: Form) -> str:
    said, claimed = truth(premise), truth(hypothesis)
    if not (said & ~claimed).any():
        return "entailment"
    return "neutral" if (said & claimed).any() else "contradiction"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule[0]))
def test_labels_hold_in_all_worlds(rule: tuple[Form, tuple[tuple[Form, ...], ...]]) -> None:
    hypothesis, premises = rule
    for label, forms in zip(LABELS, premises, strict=True):
        assert forms
        for form in forms:
            assert label_of(form, hypothesis) == label, (form, hypothesis)


def test_every_hypothesis_has_all_labels() -> None:
    for one in islice(triples(1, "a"), 50):
        assert [pair.label for pair in one] == list(LABELS)
        assert len({pair.hypothesis for pair in one}) == 1
        assert len({pair.premise for pair in one}) == 3
    assert list(islice(triples(1, "a"), 20)) == list(islice(triples(1, "a"), 20))
    assert list(islice(triples(1, "a"), 20)) != list(islice(triples(2, "a"), 20))


def test_premises_that_look_alike_have_all_labels_equally_often() -> None:
    of_rule, weights = draw_weights()
    assert of_rule.sum() == pytest.approx(1)
    mass: dict[Form, np.ndarray] = {}
    for (_, premises), share, own in zip(RULES, of_rule, weights, strict=True):
        for label, (forms, shares) in enumerate(zip(premises, own, strict=True)):
            assert shares.sum() == pytest.approx(1)
            for form, weight in zip(forms, shares, strict=True):
                mass.setdefault(form.looks, np.zeros(3))[label] += share * weight
    for form, masses in mass.items():
        assert np.ptp(masses) < 1e-9, form


def accuracy(train: list[Pair], test: list[Pair], features: Callable[[Pair], list[str]]) -> float:
    """Naive Bayes over words, trained on one set and tested on the other."""
    counts = {label: Counter(f for pair in train if pair.label == label for f in features(pair)) for label in LABELS}
    known = set().union(*counts.values())
    totals = {label: count.total() + len(known) for label, count in counts.items()}

    def best(pair: Pair) -> str:
        return max(
            LABELS, key=lambda label: sum(math.log((counts[label][f] + 1) / totals[label]) for f in features(pair))
        )

    return sum(best(pair) == pair.label for pair in test) / len(test)


def test_neither_side_alone_tells_the_label() -> None:
    train, test = make_pairs(0, 6000, 1500)
    assert not {pair.hypothesis for pair in train} & {pair.hypothesis for pair in test}
    assert Counter(pair.label for pair in test) == dict.fromkeys(LABELS, 500)
    # Four standard errors of 1500 pairs are 4.9 points.
    assert accuracy(train, test, lambda pair: pair.hypothesis.lower().split()) == pytest.approx(1 / 3, abs=1e-9)
    assert abs(accuracy(train, test, lambda pair: pair.premise.lower().split()) - 1 / 3) < 0.05
    # The first two words of a premise as one feature: quantifier with noun or adjective.
    assert abs(accuracy(train, test, lambda pair: [" ".join(pair.premise.split()[:2])]) - 1 / 3) < 0.05


def test_sentences_are_of_the_corpus_and_a_few_words_more() -> None:
    known = {*word_types(), *NEW_WORDS}
    for one in islice(triples(5, "b"), 300):
        for pair in one:
            for text in (pair.premise, pair.hypothesis):
                assert text[0].isupper()
                assert text.endswith(".")
                assert set(text[:-1].lower().split()) <= known, text
    assert not set(NEW_WORDS) & word_types()


def test_sentences_end_a_share_of_the_documents() -> None:
    documents = list(islice(ProceduralEnglish(0).documents("x"), 600))
    woven = list(weave_sentences(iter(documents), share=0.2, seed=0, stream="x"))
    ended = [new for old, new in zip(documents, woven, strict=True) if new != old]
    assert all(new.startswith(old) for old, new in zip(documents, woven, strict=True))
    assert 80 < len(ended) < 160
    assert set(NEW_WORDS) <= {word for text in ended for word in text.lower().replace(".", "").split()}
