"""Build cross-lingual instruction data: CTD (Platypus format) and LUD (Alpaca format, one aligned file per language) to a mix.

  python tools/build_crossin.py --ctd platypus.jsonl --lud en=alpaca.json --lud zh=zh.json --mix base=all,x2x=6000 --out OUT \
    --pairs zh-vi=2,en-zh --template alpaca --format both
  ... --lud en=alpaca.json --translate zh,es --translator http://127.0.0.1:8000/v1 --model M        (or --translator hf:FOLDER)

Modes: base (CTD), en2x, x2en, x2x, translation; sizes are rows or all. Writes OUT/mix.jsonl (or dataset/), dropped.jsonl, manifest.json
and datasheet.md. Translations that fail the quality gate are dropped and counted, never filled with English.
"""

from pathlib import Path
from typing import Annotated

import typer
from _command import command

from megalign.cli.progress import late_bar
from megalign.crossin.data.build import BuildOptions, build, check_replaceable
from megalign.crossin.data.mix import Mix
from megalign.crossin.data.quality import Gate
from megalign.crossin.data.sources import parse_named
from megalign.crossin.prompts import DEFAULT_TAG
from megalign.crossin.translators import TranslatorOptions, with_translations


def build_crossin(
    out: Annotated[Path, typer.Option(help="The folder to write; an earlier mix there is replaced.")],
    mix: Annotated[str, typer.Option(help="Modes and sizes: base=all,x2x=6000.")],
    ctd: Annotated[str | None, typer.Option(help="json, jsonl, parquet or hub:ID.")] = None,
    lud: Annotated[list[str] | None, typer.Option(help="LANGUAGE=FILE; once per language, en among them.")] = None,
    pairs: Annotated[str, typer.Option(help="Weights of pairs, asked-answered: zh-vi=2,en-zh. Default: all.")] = "",
    tag: Annotated[str, typer.Option(help="Asks for the answer's language; {code} or {name}.")] = DEFAULT_TAG,
    template: Annotated[str | None, typer.Option(help="plain, alpaca, chatml, llama-2, vicuna, or a folder.")] = None,
    format: Annotated[str, typer.Option(help="jsonl, hf (a saved data set) or both.")] = "jsonl",
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    gate: Annotated[list[str] | None, typer.Option(help="A threshold, such as max_copied_share=0.8.")] = None,
    max_dropped_share: Annotated[float, typer.Option(help="Of a language's rows; more is an error.")] = 0.5,
    note: Annotated[list[str] | None, typer.Option(help="KEY=TEXT for the datasheet, such as licence=...")] = None,
    translate: Annotated[str, typer.Option(help="Languages to translate LUD into: zh,es.")] = "",
    translations: Annotated[Path | None, typer.Option(help="Folder for them and their cache.")] = None,
    translator: Annotated[str, typer.Option(help="An endpoint's address, or hf:FOLDER.")] = "",
    model: Annotated[str, typer.Option(help="The endpoint's model.")] = "",
    api_key_variable: Annotated[str, typer.Option(help="Environment variable with the endpoint's key.")] = "",
    requests_per_minute: Annotated[float, typer.Option(help="At most, at the endpoint.")] = 600.0,
    allow_download: Annotated[bool, typer.Option(help="May fetch hf:NAME from the Hub.")] = False,
) -> None:
    check_replaceable(out)
    wanted, files, notes = Mix.parse(mix, pairs, tag, seed), parse_named(lud or []), parse_named(note or [])
    asked = TranslatorOptions(translator, model, api_key_variable, requests_per_minute, allow_download=allow_download)
    with late_bar("rows translated") as shown:
        files = with_translations(files, translate, asked, translations or Path(f"{out}-translations"), print, shown)
    options = BuildOptions(wanted, ctd, files, Gate.parse(gate or []), max_dropped_share, template, format, notes)
    built = build(options, out, print)
    print("\n".join([*built.losses(), f"{len(built.rows)} rows ({built.by_mode()}): {out}"]))


if __name__ == "__main__":
    build_crossin.__doc__ = __doc__
    command(build_crossin)
