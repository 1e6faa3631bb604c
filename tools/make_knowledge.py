"""Invent places and continents with names in every language, and write what to teach and to ask for CLiKA's conductivity test.

  python tools/make_knowledge.py --out runs/knowledge                              (400 places, 20 continents, 9 languages)
  python tools/make_knowledge.py --out runs/knowledge --language de --places 40 --continents 4 --roots own

Writes train/DE.json, test/target/testDE.jsonl, test/target/testEN.jsonl, test/Translate/translateDE.jsonl and knowledge.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from _command import command

from megalign.clika.fictional import ENGLISH, WorldSettings, invent, knowledge_of, words
from megalign.clika.knowledge import write_knowledge
from megalign.config.load import validate
from megalign.errors import ConfigError
from megalign.files import make_folder, new_folder, write_json

_DIRECTIONS = {"both": ["to_english", "from_english"], "to_english": ["to_english"], "from_english": ["from_english"]}


def make_knowledge(
    out: Annotated[Path, typer.Option(help="The folder to write; knowledge that is there is replaced.")],
    language: Annotated[list[str] | None, typer.Option(help="Code; may stand often; unset: all.")] = None,
    places: Annotated[int, typer.Option(help="Places, shared out evenly over continents and types.")] = 400,
    continents: Annotated[int, typer.Option(help="Continents.")] = 20,
    variants: Annotated[int, typer.Option(help="Wordings of each row, 1 to 25.")] = 10,
    roots: Annotated[
        str, typer.Option(help="shared: one root spelled everywhere; own: others in each language.")
    ] = "shared",
    translations: Annotated[str, typer.Option(help="Taught: both, to_english (as released), from_english.")] = "both",
    seed: Annotated[int, typer.Option(help="Of the names.")] = 0,
) -> None:
    """Write a set of invented knowledge."""
    content = {"places": places, "continents": continents, "variants": variants, "roots": roots, "seed": seed}
    content["directions"] = _DIRECTIONS.get(translations, [translations])
    settings = validate(WorldSettings, content, "the options")
    world = invent(settings)
    if out.exists() and not (out / "knowledge.json").is_file():
        raise ConfigError(
            f"{out} exists and holds no invented knowledge.", "It would be replaced.", "Choose another name."
        )
    languages = list(dict.fromkeys(language or ())) or [code for code in words().languages if code != ENGLISH]
    make_folder(out.parent)
    with new_folder(out) as folder:
        for code in languages:
            write_knowledge(knowledge_of(world, code), folder)
        write_json(folder / "knowledge.json", {"languages": languages, **settings.model_dump(mode="json")})
    print(f"{places} places on {continents} continents in English and {', '.join(languages)}: {out}")


if __name__ == "__main__":
    make_knowledge.__doc__ = __doc__
    command(make_knowledge)
