"""Whether what is taught is what is asked: faults that would make a conductivity score meaningless, found before training."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from megalign.clika.findings import Finding, some
from megalign.clika.knowledge import ENGLISH, Knowledge, Stated, read_knowledge, test_path, train_path, translation_path

KINDS = {
    "bad_row": "rows that cannot be used; left out",
    "other_continent": "statements that teach another continent than is tested",
    "unknown_place": "statements about no tested place",
    "not_taught": "tested places that no statement teaches, in English or, for type 0, in the language",
    "type_1_taught": "places of type 1 that are taught in the language too: not conduction but recall would be measured",
    "translation_missing": "names whose tested translation is not taught in any direction",
    "translation_differs": "names whose taught translation is not the tested one",
    "unknown_name": "translations of names that no test has",
    "translation_direction": "translations tested out of English and taught into English alone",
    "names_disagree": "places or continents whose name in the language's questions is not the tested translation",
    "tests_differ": "questions of the language that are not those of English in number, order or type",
    "shared_name": "places that share a name and lie on different continents",
    "contained_name": "continents whose name stands inside another name, so that a response may hold it by accident",
    "other_script": "names with letters of another script than the language's",
}
# With one of these, a score would not be of conduction.
FATAL = (
    "other_continent",
    "not_taught",
    "type_1_taught",
    "translation_missing",
    "translation_differs",
    "names_disagree",
    "tests_differ",
)
_SCRIPTS = {
    "ru": ("CYRILLIC",),
    "ar": ("ARABIC",),
    "he": ("HEBREW",),
    "zh": ("CJK",),
    "ja": ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "CJK"),
}


def check_folder(folder: Path, languages: Sequence[str]) -> list[Finding]:
    """Findings in the files of the languages, in the order of the languages.

    Raises:
        DataError: files are missing, or have no usable row.
    """
    findings: list[Finding] = []
    for language in languages:
        knowledge, unusable = read_knowledge(folder, language)
        findings += [*unusable, *check_knowledge(knowledge)]
    return list(dict.fromkeys(findings))


def check_knowledge(knowledge: Knowledge) -> list[Finding]:
    """Findings in what is taught and tested of one language; kinds are those of KINDS."""
    checks = (_tests, _statements, _translations, _shared_names, _contained_names, _scripts)
    return [finding for check in checks for finding in check(knowledge)]


def _train_name(knowledge: Knowledge) -> str:
    return str(train_path(Path(), knowledge.language))


def _test_name(language: str) -> str:
    return str(test_path(Path(), language))


def _tests(knowledge: Knowledge) -> Iterator[Finding]:
    """The two languages' questions side by side, and against the translations."""
    english, other = knowledge.tests[ENGLISH], knowledge.tests[knowledge.language]
    path = _test_name(knowledge.language)
    if len(english) != len(other):
        yield Finding("tests_differ", path, (), f"{len(other)} questions; English has {len(english)}")
        return
    types = [n for n, (a, b) in enumerate(zip(english, other, strict=True), 1) if a.type != b.type]
    if types:
        yield Finding("tests_differ", path, tuple(types), f"{len(types)} question(s) are of another type in English")
    translated = {name.english: name.translated for name in knowledge.names}
    wrong: dict[int, str] = {}
    for number, (a, b) in enumerate(zip(english, other, strict=True), 1):
        for ours, theirs in ((a.place, b.place), (a.continent, b.continent)):
            if translated.get(ours, theirs) != theirs:
                wrong.setdefault(number, f"{ours} is {theirs}, its translation is {translated[ours]}")
    if wrong:
        text = f"{len(wrong)} question(s) name things otherwise than {translation_path(Path(), knowledge.language)}: "
        yield Finding("names_disagree", path, tuple(wrong), text + some(list(wrong.values())))


def _statements(knowledge: Knowledge) -> Iterator[Finding]:
    """What the rows without input teach."""
    places: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for code, tests in knowledge.tests.items():
        for at, one in enumerate(tests):
            places[one.place].append((code, at))
    names = re.compile("|".join(map(re.escape, sorted(places, key=len, reverse=True))))
    taught: set[tuple[str, int]] = set()
    other: dict[int, str] = {}
    unknown: dict[int, str] = {}
    leaked: dict[int, str] = {}
    statements = [(number, row) for number, row in enumerate(knowledge.train, 1) if not row.input]
    for number, row in statements:
        match = names.search(row.prompt)
        if match is None:
            unknown[number] = row.prompt
            continue
        asked = [(code, at, knowledge.tests[code][at]) for code, at in places[match.group()]]
        fitting = [(code, at) for code, at, one in asked if one.continent in row.answer]
        if not fitting:
            other[number] = f"line {number}: {row.answer!r}, tested is {asked[0][2].continent!r}"
        taught.update(fitting or [(code, at) for code, at, _ in asked])
        if all(code != ENGLISH and one.type == 1 for code, _, one in asked):
            leaked[number] = match.group()
    path, num_statements = _train_name(knowledge), len(statements)
    if other:
        text = f"{len(other)} of {num_statements} statements name another continent than the tests: "
        yield Finding("other_continent", path, tuple(other), text + some(list(other.values())))
    if unknown:
        text = f"{len(unknown)} statement(s) are about no tested place: {some(list(unknown.values()))}"
        yield Finding("unknown_place", path, tuple(unknown), text)
    if leaked:
        text = f"{len(leaked)} statement(s) teach places of type 1: {some(list(dict.fromkeys(leaked.values())))}"
        yield Finding("type_1_taught", path, tuple(leaked), text)
    for code, tests in knowledge.tests.items():
        wanted = [at for at, one in enumerate(tests) if code == ENGLISH or one.type == 0]
        missing = [tests[at].place for at in wanted if (code, at) not in taught]
        if missing:
            text = f"{len(missing)} place(s) are not taught in {code}: {some(missing)}"
            yield Finding("not_taught", path, (), text)


def _translations(knowledge: Knowledge) -> Iterator[Finding]:
    """What the rows with input teach."""
    path = _train_name(knowledge)
    pairs: dict[tuple[str, str], int] = {}
    for number, row in enumerate(knowledge.train, 1):
        if row.input:
            pairs.setdefault((row.input, row.answer), number)
    missing, out_of_english = [], 0
    english_of, other_of = _meanings(knowledge, english=True), _meanings(knowledge, english=False)
    for name in knowledge.names:
        out = (name.english, name.translated) in pairs
        out_of_english += out and name.english != name.translated
        if not out and (name.translated, name.english) not in pairs:
            missing.append(f"{name.english} = {name.translated}")
    differs = {
        number: f"{source} as {target}"
        for (source, target), number in pairs.items()
        if (source in english_of and target not in english_of[source])
        or (source in other_of and target not in other_of[source])
    }
    if missing:
        text = f"{len(missing)} tested translation(s) are not taught: {some(missing)}"
        yield Finding("translation_missing", path, (), text)
    if differs:
        text = f"{len(differs)} translation(s) are taught otherwise than tested: {some(list(differs.values()))}"
        yield Finding("translation_differs", path, tuple(sorted(differs)), text)
    tested = {text for name in knowledge.names for text in (name.english, name.translated)}
    unknown = {n: f"{a} = {b}" for (a, b), n in pairs.items() if a not in tested and b not in tested}
    if unknown:
        text = f"{len(unknown)} translation(s) are of names that no test has: {some(list(unknown.values()))}"
        yield Finding("unknown_name", path, tuple(sorted(unknown.keys())), text)
    if not out_of_english and len(missing) < len(knowledge.names):
        text = "all translations are taught into English and tested out of English"
        yield Finding("translation_direction", path, (), text)


def _meanings(knowledge: Knowledge, *, english: bool) -> dict[str, set[str]]:
    """Name -> what it may be translated as; a name that both languages share may stand for itself."""
    found: dict[str, set[str]] = defaultdict(set)
    shared = {name.english for name in knowledge.names} & {name.translated for name in knowledge.names}
    for name in knowledge.names:
        source, target = (name.english, name.translated) if english else (name.translated, name.english)
        if source not in shared:
            found[source].add(target)
    return found


def _shared_names(knowledge: Knowledge) -> Iterator[Finding]:
    for code, tests in knowledge.tests.items():
        continents: dict[str, set[str]] = defaultdict(set)
        for one in tests:
            continents[one.place].add(one.continent)
        shared = [name for name, found in continents.items() if len(found) > 1]
        if shared:
            lines = tuple(number for number, one in enumerate(tests, 1) if one.place in shared)
            num_type_1 = sum(one.type == 1 and one.place in shared for one in tests)
            text = f"{len(shared)} name(s) stand for several places ({num_type_1} of type 1): {some(shared)}"
            yield Finding("shared_name", _test_name(code), lines, text)


def _contained_names(knowledge: Knowledge) -> Iterator[Finding]:
    for code, tests in knowledge.tests.items():
        continents = dict.fromkeys(one.continent for one in tests)
        inside = [f"{a} in {b}" for a in continents for b in continents if a != b and a in b]
        inside += [f"{a} in {one.place}" for a in continents for one in tests if a in one.place]
        if inside:
            yield Finding("contained_name", _test_name(code), (), f"{len(inside)} time(s): {some(inside)}")


def _scripts(knowledge: Knowledge) -> Iterator[Finding]:
    allowed = _SCRIPTS.get(knowledge.language)
    if allowed is None:
        return
    tests = knowledge.tests[knowledge.language]
    odd = {
        number: name
        for number, one in enumerate(tests, 1)
        for name in (one.place, one.continent)
        if any(letter.isalpha() and not unicodedata.name(letter, "").startswith(allowed) for letter in name)
    }
    if odd:
        text = f"{len(odd)} name(s) have letters of another script: {some(list(odd.values()))}"
        yield Finding("other_script", _test_name(knowledge.language), tuple(odd), text)


def same_names(tests: dict[str, tuple[Stated, ...]], language: str) -> int:
    """Number of type-1 places whose own and whose continent's name are the same in both languages."""
    pairs = zip(tests[ENGLISH], tests[language], strict=True)
    return sum(a.type == 1 and a.place == b.place and a.continent == b.continent for a, b in pairs)
