"""Finding the table's words in running text by their token ids, and their translations in the same form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from megalign.errors import ConfigError
from megalign.prealign.collector import collector_paused
from megalign.prealign.encoded import EncodedTable, Int64, has_spaces, ranges
from megalign.prealign.segments import SegmentValues, with_room
from megalign.prealign.table import Entry, case_variants

_NUM_CASE_VARIANTS = len(case_variants(""))
_NO_FORM = -1


class FormLookup:
    """From a word's token ids in one language to its translations' token ids in others.

    A word is known in every form it takes in text: with or without the space before it, and in each of `case_variants`.
    Its translations take the same form: " Bank" after "(" or at a line start has no space, so its translation has none. A
    form that the table itself writes is that word's, and only forms the table does not write are derived from others.
    Languages without spaces have no form with a space; text of other languages put into theirs gets one. Two words are
    translations of each other if they are in one entry, so a target language's words lead to another's as well.

    Forms with more tokens than `encoded.max_word_tokens`, and translations that read exactly like the word, are left out.

    A segment is looked at when text first has it, and then remembered: a table is ready at once, and most of its forms are
    in no text. What is found does not depend on what was looked for before.

    Args:
        encoded: the table in token ids.
        language: language of the text.
        targets: languages of the translations, alike or with weights.
        max_segments: segments that are remembered at most.

    Raises:
        ConfigError: a language is not in the table, the text's language is its own target, or a weight is not positive.
    """

    def __init__(
        self,
        encoded: EncodedTable,
        language: str,
        targets: Sequence[str] | Mapping[str, float],
        *,
        max_segments: int = 1 << 20,
    ) -> None:
        for name in (language, *targets):
            if name not in encoded.languages:
                raise ConfigError(
                    f"The alignment table has no {name!r} words.",
                    fix=f"It has {', '.join(encoded.languages)}: change the codeswitching targets or the table.",
                )
        if language in targets:
            raise ConfigError(f"The language {language!r} cannot be codeswitched to itself.")
        weights = dict(targets) if isinstance(targets, Mapping) else dict.fromkeys(targets, 1.0)
        if any(weight <= 0 for weight in weights.values()):
            raise ConfigError(
                f"The languages {language} is codeswitched to have weights {weights}; all must be above 0."
            )
        self.encoded, self.language, self.targets = encoded, language, tuple(targets)
        self._weights = np.array(list(weights.values()), dtype=np.float64)
        self._are_alike = len(set(weights.values())) < 2
        self._has_spaces = has_spaces(encoded.vocabulary, language)
        self._known = SegmentValues(encoded.vocabulary.size, max_segments)
        self._form_numbers: dict[bytes, int] = {}
        self._group_offsets = _Growing(0)
        self._group_languages = _Growing()  # index into `targets`
        self._candidate_offsets = _Growing(0)
        self._translation_offsets = _Growing(0)
        self._translation_ids = _Growing()
        self._words = self._index()

    @property
    def num_forms(self) -> int:
        """Number of forms found so far."""
        return len(self._form_numbers)

    def find(self, ids: Int64, starts: Int64, ends: Int64) -> Int64:
        """The form that each segment is, int64 [segments]; -1 where it is none.

        Args:
            ids: token ids of a window, int64 [tokens].
            starts: first token of each segment, int64 [segments].
            ends: token after the last of each segment, int64 [segments].
        """
        forms, hashes = self._known.find(ids, starts, ends)
        resolved: dict[bytes, int] = {}
        for index in np.flatnonzero(forms == SegmentValues.UNKNOWN).tolist():
            segment = ids[starts[index] : ends[index]]
            key = segment.tobytes()
            if key not in resolved:
                resolved[key] = self._form_of(segment, key)
                self._known.add(segment, hashes[index], resolved[key])
            forms[index] = resolved[key]
        return forms

    def choose(
        self, forms: Int64, draw_language: npt.NDArray[np.float64], draw_translation: npt.NDArray[np.float64]
    ) -> Int64:
        """A translation of each form: first one of the languages that have any, by weight, then one of its translations.

        Args:
            forms: int64 [words], none -1.
            draw_language, draw_translation: uniform in [0, 1), float64 [words].

        Returns:
            Indices for `translations`, int64 [words].
        """
        if self._are_alike:
            groups = self._pick(self._group_offsets.values, forms, draw_language)
        else:
            groups = self._pick_weighted(forms, draw_language)
        return self._pick(self._candidate_offsets.values, groups, draw_translation)

    def translations(self, chosen: Int64) -> tuple[Int64, Int64]:
        """Token ids of the chosen translations one after the other, int64 [tokens], and their lengths, int64 [words]."""
        offsets = self._translation_offsets.values
        start, end = offsets[chosen], offsets[chosen + 1]
        return self._translation_ids.values[ranges(start, end - start)], end - start

    @staticmethod
    def _pick(offsets: Int64, index: Int64, draw: npt.NDArray[np.float64]) -> Int64:
        return offsets[index] + (draw * (offsets[index + 1] - offsets[index])).astype(np.int64)

    def _pick_weighted(self, forms: Int64, draw: npt.NDArray[np.float64]) -> Int64:
        """The group of the language in whose share of the form's weight the draw falls."""
        offsets, languages = self._group_offsets.values, self._group_languages.values
        chosen = offsets[forms]
        for place, form in enumerate(forms.tolist()):
            ends = np.cumsum(self._weights[languages[offsets[form] : offsets[form + 1]]])
            inside = int(np.searchsorted(ends, draw[place] * ends[-1], side="right"))
            chosen[place] += min(inside, len(ends) - 1)
        return chosen

    @collector_paused()
    def _index(self) -> dict[str, list[tuple[int, str]]]:
        """Text without regard to case -> the words (entry, text) with a form that reads so, in the table's order."""
        index: dict[str, list[tuple[int, str]]] = {}
        is_source = self.language == self.encoded.source_language
        # Dictionaries repeat their words; what is done per word is done once.
        folds: dict[str, tuple[str, ...]] = {}
        for number, entry in enumerate(self.encoded.table.entries):
            texts = [entry.word] if is_source else [t.text for t in entry.translations if t.language == self.language]
            for text in texts:
                if text not in folds:
                    folds[text] = self._folds(text)
                for fold in folds[text]:
                    index.setdefault(fold, []).append((number, text))
        return index

    def _folds(self, text: str) -> tuple[str, ...]:
        vocabulary = self.encoded.vocabulary
        if not vocabulary.is_lossless:
            text = vocabulary.decode(vocabulary.encode(text, self.language))
        text = text.strip(" ")
        if text.isascii():
            return (text.lower(),)
        # Outside ASCII a variant may fold otherwise than its word.
        return tuple(dict.fromkeys(variant.casefold() for variant in case_variants(text)))

    def _form_of(self, segment: Int64, key: bytes) -> int:
        """The number of the form that a segment is, a new one where it is found for the first time; -1 where it is none."""
        if key in self._form_numbers:
            return self._form_numbers[key]
        if len(segment) > self.encoded.max_word_tokens:
            return _NO_FORM
        vocabulary = self.encoded.vocabulary
        text = vocabulary.decode(segment)
        spaces = ("", " ") if self._has_spaces else ("",)
        words = self._words.get(text.strip(" ").casefold(), ())
        for variant in range(_NUM_CASE_VARIANTS if words else 0):
            found: dict[str, list[bytes]] = {}
            for number, word in words:
                variants = case_variants(word)
                if variants[variant] in variants[:variant]:
                    continue
                for space in spaces:
                    form = space + variants[variant]
                    if (form == text or not vocabulary.is_lossless) and self._ids(form, self.language) == key:
                        self._add_translations(found, key, self.encoded.table.entries[number], variant, space)
            if found:
                return self._add_form(key, found)
        return _NO_FORM

    def _add_translations(
        self, known: dict[str, list[bytes]], key: bytes, entry: Entry, variant: int, space: str
    ) -> None:
        """Add the translations of an entry, in the form that the word has: ids as bytes by language."""
        for target in self.targets:
            texts = [entry.word] if target == self.encoded.source_language else []
            texts += [translation.text for translation in entry.translations if translation.language == target]
            # A text without spaces does not say where one would stand: take the form of running text.
            before = (space if self._has_spaces else " ") if has_spaces(self.encoded.vocabulary, target) else ""
            for text in texts:
                ids = self._ids(before + case_variants(text)[variant], target)
                if ids is not None and ids != key and ids not in known.get(target, ()):
                    known.setdefault(target, []).append(ids)

    def _add_form(self, key: bytes, translations: dict[str, list[bytes]]) -> int:
        """Number a form and keep its translations."""
        groups, candidates, offsets = self._group_offsets, self._candidate_offsets, self._translation_offsets
        for target, texts in translations.items():
            self._group_languages.add(self.targets.index(target))
            for ids in texts:
                self._translation_ids.add(np.frombuffer(ids, dtype=np.int64))
                offsets.add(len(self._translation_ids))
            candidates.add(len(offsets) - 1)
        groups.add(len(candidates) - 1)
        number = self._form_numbers[key] = len(groups) - 2
        return number

    def _ids(self, text: str, language: str) -> bytes | None:
        """Ids of a text as bytes; None where they are too many or none."""
        ids = self.encoded.vocabulary.encode(text, language).astype(np.int64)
        return ids.tobytes() if 0 < len(ids) <= self.encoded.max_word_tokens else None


class _Growing:
    """Int64 numbers that others are added to."""

    def __init__(self, *first: int) -> None:
        self._array: Int64 = np.zeros(1 << 10, dtype=np.int64)
        self._length = 0
        self.add(np.array(first, dtype=np.int64))

    def __len__(self) -> int:
        return self._length

    @property
    def values(self) -> Int64:
        """The numbers, int64 [length]."""
        return self._array[: self._length]

    def add(self, numbers: Int64 | int) -> None:
        """Put one or several numbers at the end."""
        end = self._length + np.size(numbers)
        self._array = with_room(self._array, end)
        self._array[self._length : end] = numbers
        self._length = end
