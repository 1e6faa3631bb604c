"""Make facts of Wikidata relations about invented names, to be stated in one language and asked in others (PreAlign's CLKA).

  python tools/make_facts.py --out runs/facts --languages en,de                      (36 relations, 6 objects each)
  python tools/make_facts.py --out runs/facts --languages en,zh,ru --relations P19,P36,P37,P6 --stated-in en --times 50

Writes knowledge.json (data.facts of a run), facts.jsonl (a fact a line, true and false statements in every language) and
train/LANGUAGE.jsonl (documents that state the facts of that language, to be mixed into its training text).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from _command import command

from megalign.corpus.knowledge.export import FILES, write_facts
from megalign.corpus.knowledge.wikidata import make_knowledge
from megalign.errors import ConfigError


def make_facts(
    out: Annotated[Path, typer.Option(help="The folder to write; facts that are there are replaced.")],
    languages: Annotated[
        str, typer.Option(help="Of en, zh, de, ru, ar: all entities are named in each.")
    ] = "en,zh,de,ru,ar",
    stated_in: Annotated[str, typer.Option(help="Languages that state facts of their own; unset: all.")] = "",
    relations: Annotated[str, typer.Option(help="Wikidata properties, e.g. P19,P36; unset: all 36.")] = "",
    objects: Annotated[int, typer.Option(help="Objects of a relation; a fact for each in every stating language.")] = 6,
    times: Annotated[int, typer.Option(help="How often each fact is stated in train/.")] = 200,
    seed: Annotated[int, typer.Option(help="Of names and choices.")] = 0,
) -> None:
    """Write a set of facts."""
    if out.exists() and not (out.is_dir() and {path.name for path in out.iterdir()} <= FILES):
        raise ConfigError(f"{out} exists and is no folder of facts alone.", "It would be replaced.", "Choose another.")
    knowledge = make_knowledge(
        seed,
        _named(languages),
        relations=_named(relations) or None,
        objects_per_relation=objects,
        stated_in=_named(stated_in) or None,
        times=times,
    )
    write_facts(knowledge, out, seed)
    controls = len(knowledge.select(None))
    print(
        f"{len(knowledge.facts) - controls} facts and {controls} control facts in {', '.join(knowledge.languages)}: {out}"
    )


def _named(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


if __name__ == "__main__":
    make_facts.__doc__ = __doc__
    command(make_facts)
