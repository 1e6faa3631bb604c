"""Finding the table's words in running text by their token ids, and their translations in the same form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from megalign.corpus.keyed_random import generator
from megalign.errors import ConfigError
from megalign.prealign.encoded import EncodedTable, Int64, has_spaces, ranges
from megalign.prealign.table import case_variants

UInt64 = npt.NDArray[np.uint64]

_NUM_CASE_VARIANTS = len(case_variants(""))


class FormLookup:
    """From a word's token ids in one language to its translations' token ids in others.

    A word is known in every form it takes in text: with or without the space before it, and in each of `case_variants`.
    Its translations take the same form: " Bank" after "(" or at a line start has no space, so its translation has none. A
    form that the table itself writes is that word's, and only forms the table does not write are derived from others.
    Languages without spaces have no form with a space; text of other languages put into theirs gets one. Two words are
    translations of each other if they are in one entry, so a target language's words lead to another's as well.

    Forms with more tokens than `encoded.max_word_tokens`, and translations that read exactly like the word, are left out.

    Args:
        encoded: the table in token ids.
        language: language of the text.
        targets: languages of the translations.

    Raises:
        ConfigError: a language is not in the table, or the text's language is its own target.
    """

    def __init__(self, encoded: EncodedTable, language: str, targets: Sequence[str]) -> None:
        for name in (language, *targets):
            if name not in encoded.languages:
                raise ConfigError(
                    f"The alignment table has no {name!r} words.",
                    fix=f"It has {', '.join(encoded.languages)}: change the codeswitching targets or the table.",
                )
        if language in targets:
            raise ConfigError(f"The language {language!r} cannot be codeswitched to itself.")
        self.encoded, self.language, self.targets = encoded, language, tuple(targets)
        forms = self._collect()
        self.max_form_tokens = max((len(key) // 8 for key in forms), default=0)
        self._hash = SegmentHash(encoded.vocabulary.size)
        self._store(forms)

    @property
    def num_forms(self) -> int:
        """Number of forms that can be found."""
        return len(self._hashes)

    def find(self, ids: Int64, starts: Int64, ends: Int64) -> Int64:
        """The form that each segment is, int64 [segments]; -1 where it is none.

        Equality is that of 64-bit hashes and of lengths; `confirm` compares the ids themselves.

        Args:
            ids: token ids of a window, int64 [tokens].
            starts: first token of each segment, int64 [segments].
            ends: token after the last of each segment, int64 [segments].
        """
        hashes = self._hash.segments(ids, starts, ends)
        bucket = (hashes >> self._bucket_shift).astype(np.int64)
        place, last = self._bucket_offsets[bucket], self._bucket_offsets[bucket + 1]
        form, lengths = np.full(len(starts), -1, dtype=np.int64), ends - starts
        rest = np.flatnonzero(place < last)
        while len(rest):
            found = (self._hashes[place[rest]] == hashes[rest]) & (self._form_lengths[place[rest]] == lengths[rest])
            form[rest[found]] = place[rest[found]]
            rest = rest[~found]
            place[rest] += 1
            rest = rest[place[rest] < last[rest]]
        return form

    def confirm(self, ids: Int64, starts: Int64, forms: Int64) -> npt.NDArray[np.bool_]:
        """Whether the segments found to be `forms` have exactly their ids, bool [segments]."""
        lengths = self._form_lengths[forms]
        if not len(forms):
            return np.zeros(0, dtype=np.bool_)
        equal = ids[ranges(starts, lengths)] == self._form_ids[ranges(self._form_offsets[forms], lengths)]
        confirmed: npt.NDArray[np.bool_] = np.logical_and.reduceat(equal, np.cumsum(lengths) - lengths)
        return confirmed

    def choose(
        self, forms: Int64, draw_language: npt.NDArray[np.float64], draw_translation: npt.NDArray[np.float64]
    ) -> Int64:
        """A translation of each form: first one of the languages that have any, then one of its translations.

        Args:
            forms: int64 [words], none -1.
            draw_language, draw_translation: uniform in [0, 1), float64 [words].

        Returns:
            Indices for `translations`, int64 [words].
        """
        groups = self._pick(self._group_offsets, forms, draw_language)
        return self._pick(self._candidate_offsets, groups, draw_translation)

    def translations(self, chosen: Int64) -> tuple[Int64, Int64]:
        """Token ids of the chosen translations one after the other, int64 [tokens], and their lengths, int64 [words]."""
        start, end = self._translation_offsets[chosen], self._translation_offsets[chosen + 1]
        return self._translation_ids[ranges(start, end - start)], end - start

    @staticmethod
    def _pick(offsets: Int64, index: Int64, draw: npt.NDArray[np.float64]) -> Int64:
        return offsets[index] + (draw * (offsets[index + 1] - offsets[index])).astype(np.int64)

    def _collect(self) -> dict[bytes, dict[str, list[bytes]]]:
        """Form (ids as bytes) -> target language -> translations (ids as bytes), each once, in the table's order."""
        spaces = ("", " ") if has_spaces(self.encoded.vocabulary, self.language) else ("",)
        forms: dict[bytes, dict[str, list[bytes]]] = {}
        for variant in range(_NUM_CASE_VARIANTS):
            derived: dict[bytes, dict[str, list[bytes]]] = {}
            for sources, targets in self._pairs():
                for word in sources:
                    if variant and case_variants(word)[variant] in case_variants(word)[:variant]:
                        continue
                    for space in spaces:
                        key = self._form(space + case_variants(word)[variant], self.language)
                        if key is not None and key not in forms:
                            self._add_translations(derived.setdefault(key, {}), key, targets, variant, space)
            forms |= {key: translations for key, translations in derived.items() if translations}
        return forms

    def _pairs(self) -> Iterator[tuple[list[str], dict[str, list[str]]]]:
        """Per entry its words in the text's language and its words in each target language."""
        for entry in self.encoded.table.entries:
            words: dict[str, list[str]] = {self.encoded.source_language: [entry.word]}
            for translation in entry.translations:
                words.setdefault(translation.language, []).append(translation.text)
            targets = {name: words[name] for name in self.targets if name in words}
            if self.language in words and targets:
                yield words[self.language], targets

    def _add_translations(
        self, known: dict[str, list[bytes]], key: bytes, targets: dict[str, list[str]], variant: int, space: str
    ) -> None:
        source_has_spaces = has_spaces(self.encoded.vocabulary, self.language)
        for target, texts in targets.items():
            # A text without spaces does not say where one would stand: take the form of running text.
            before = (space if source_has_spaces else " ") if has_spaces(self.encoded.vocabulary, target) else ""
            for text in texts:
                ids = self._form(before + case_variants(text)[variant], target)
                if ids is not None and ids != key and ids not in known.get(target, ()):
                    known.setdefault(target, []).append(ids)

    def _form(self, text: str, language: str) -> bytes | None:
        ids = self.encoded.vocabulary.encode(text, language).astype(np.int64)
        return ids.tobytes() if 0 < len(ids) <= self.encoded.max_word_tokens else None

    def _store(self, forms: dict[bytes, dict[str, list[bytes]]]) -> None:
        """Flat arrays, forms in the order of their hashes."""
        keys = list(forms)
        lengths = np.array([len(key) // 8 for key in keys], dtype=np.int64)
        flat = np.frombuffer(b"".join(keys), dtype=np.int64)
        ends = np.cumsum(lengths)
        hashes = self._hash.segments(flat, ends - lengths, ends)
        order = np.argsort(hashes, kind="stable")
        self._hashes: UInt64 = hashes[order]
        # By their first bits the sorted hashes fall into at least twice as many buckets, most of one hash or none.
        num_bits = max(1, len(keys).bit_length() + 1)
        self._bucket_shift = np.uint64(64 - num_bits)
        buckets = (self._hashes >> self._bucket_shift).astype(np.int64)
        self._bucket_offsets = _offsets(np.bincount(buckets, minlength=2**num_bits))
        self._form_lengths: Int64 = lengths[order]
        self._form_offsets: Int64 = (ends - lengths)[order]
        self._form_ids: Int64 = flat
        groups = [forms[keys[i]].values() for i in order]
        self._group_offsets = _offsets([len(group) for group in groups])
        self._candidate_offsets = _offsets([len(texts) for group in groups for texts in group])
        translations = [ids for group in groups for texts in group for ids in texts]
        self._translation_offsets = _offsets([len(ids) // 8 for ids in translations])
        self._translation_ids: Int64 = np.frombuffer(b"".join(translations), dtype=np.int64)


class SegmentHash:
    """Hashes of all segments of a window in a few array operations.

    The hash of the ids x_0 ... x_k is the sum of r(x_j) B^j modulo 2^64, with random r and an odd random B. Differences of
    running sums times a power of 1/B give it for every segment at once.

    Args:
        num_ids: size of the vocabulary.
    """

    def __init__(self, num_ids: int) -> None:
        draws = generator(0, "segment hash").integers(0, 2**64, size=num_ids + 1, dtype=np.uint64)
        self._of_id: UInt64 = draws[1:]
        self._base = int(draws[0]) | 1
        self._powers: UInt64 = np.ones(1, dtype=np.uint64)
        self._inverse_powers: UInt64 = np.ones(1, dtype=np.uint64)

    def segments(self, ids: Int64, starts: Int64, ends: Int64) -> UInt64:
        """Hashes of ids[start:end], uint64 [segments]."""
        if len(self._powers) <= len(ids):
            self._grow(2 * len(ids) + 1)
        sums = np.zeros(len(ids) + 1, dtype=np.uint64)
        np.cumsum(self._of_id[ids] * self._powers[: len(ids)], out=sums[1:])
        return (sums[ends] - sums[starts]) * self._inverse_powers[starts]

    def _grow(self, length: int) -> None:
        inverse = pow(self._base, -1, 2**64)
        self._powers = _powers(self._base, length)
        self._inverse_powers = _powers(inverse, length)


def _powers(base: int, length: int) -> UInt64:
    factors = np.full(length, base, dtype=np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)


def _offsets(counts: list[int] | Int64) -> Int64:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
