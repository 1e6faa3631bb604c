"""The page: one self-contained HTML file that any browser opens, without scripts and without the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megalign.crossin.scoring.figures import Dot, heat_map, plane
from megalign.pages import Picture, template

if TYPE_CHECKING:
    from megalign.crossin.scoring.run import Scored, ScoreOptions

Row = dict[str, Any]
HEADLINE = 3
MAX_HEAT_MAP_FILES = 60
MAX_FINDINGS_SHOWN = 200
ENDINGS = (".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True)
class Group:
    """Files with the same questions in the same languages: only these can be laid side by side."""

    title: str
    s: int | None
    scored: list[Scored]
    names: dict[str, str]

    def bound(self, one: Scored, metric: str, s: int | None = None, language: str | None = None) -> Row:
        """The interval row of a score."""
        return next(row for row in one.intervals if (row["metric"], row["s"], row["language"]) == (metric, s, language))


def render_page(
    scored: Sequence[Scored], comparisons: Sequence[Row], findings: Sequence[Row], options: ScoreOptions
) -> str:
    """The whole page as HTML. Everything that comes from files is escaped by the template engine."""
    groups = groups_of(scored)
    return template(Path(__file__).parent, "consistency.html.j2", {"share": share}).render(
        groups=groups,
        planes={group.title: picture for group in groups if (picture := _plane(group)) is not None},
        heat_maps={group.title: picture for group in groups if (picture := _heat_map(group)) is not None},
        num_files=len(scored),
        num_responses=sum(one.answers.options.size for one in scored),
        num_drawn=sum(len(one.answers.undecided) for one in scored),
        num_published=sum("published_difference" in one.row for one in scored),
        options=options,
        compared=[row for row in comparisons if _is_shown(row, groups)],
        short={name: short for group in groups for name, short in group.names.items()},
        num_comparisons=len(comparisons),
        findings=findings[:MAX_FINDINGS_SHOWN],
        num_findings=len(findings),
    )


def _is_shown(row: Row, groups: Sequence[Group]) -> bool:
    """Whether a comparison is of a whole file, at its headline number of languages."""
    group = next(group for group in groups if row["base"] in group.names)
    return row["language"] is None and row["s"] in (None, group.s)


def groups_of(scored: Sequence[Scored]) -> list[Group]:
    """Files by their questions and languages, in the order of the first of each."""
    together: dict[tuple[frozenset[str], frozenset[str]], list[Scored]] = {}
    for one in scored:
        key = (frozenset(one.answers.languages), frozenset(one.answers.items))
        together.setdefault(key, []).append(one)
    groups: list[Group] = []
    for (languages, items), members in together.items():
        title = f"{len(items)} questions in {len(languages)} language{'s' if len(languages) != 1 else ''}"
        if any(group.title.startswith(title) for group in groups):
            title += f", set {len(groups) + 1}"
        s = min(HEADLINE, len(languages)) if len(languages) > 1 else None
        groups.append(Group(title, s, members, short_names([one.answers.name for one in members])))
    return groups


def short_names(names: Sequence[str]) -> dict[str, str]:
    """File names without the folders that all share, without their ending, and without a "predictions.json" that all share."""
    parts = [Path(name).parts for name in names]
    shared = 0
    while len(names) > 1 and all(len(one) > shared + 1 and one[shared] == parts[0][shared] for one in parts):
        shared += 1
    if len(names) == 1:
        shared = max(0, len(parts[0]) - 3)
    kept = [one[shared:] for one in parts]
    # Files that megalign wrote are all named alike; their folders tell them apart.
    if all(len(one) > 1 and one[-1] == "predictions.json" for one in kept):
        kept = [one[:-1] for one in kept]
    return {name: _without_ending("/".join(one)) for name, one in zip(names, kept, strict=True)}


def _without_ending(name: str) -> str:
    return next((name.removesuffix(ending) for ending in ENDINGS if name.endswith(ending)), name)


def _plane(group: Group) -> Picture | None:
    if group.s is None:
        return None
    dots = []
    for one in group.scored:
        ends = [_ends(group.bound(one, "accuracy")), _ends(group.bound(one, "consistency", group.s))]
        values = one.row["deterministic"]
        name = group.names[one.answers.name]
        dots.append(Dot(name, values["accuracy"], values["consistency"][str(group.s)], ends[0], ends[1]))
    num_options = max(one.answers.num_options for one in group.scored)
    title = f"Accuracy and consistency, {group.title}"
    return Picture(plane(title, group.s, num_options, dots), f"{title}: a dot per file; the numbers are in the table")


def _ends(row: Row) -> tuple[float, float] | None:
    return None if row["low"] is None else (row["low"], row["high"])


def _heat_map(group: Group) -> Picture | None:
    if len(group.scored) > MAX_HEAT_MAP_FILES:
        return None
    rows = {group.names[one.answers.name]: one.row["deterministic"]["accuracy_by_language"] for one in group.scored}
    languages = group.scored[0].answers.languages
    alt = f"Accuracy by language, {group.title}: a row per file; the numbers are in scores.csv"
    return Picture(heat_map(group.title, rows, languages), alt)


def share(value: float | None) -> str:
    """A score as three decimals; n/a where it is undefined."""
    return "n/a" if value is None else f"{value:.3f}"
