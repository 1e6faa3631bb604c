"""`megalign settings`: what a file may say."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel


class Kind(StrEnum):
    """Kinds of YAML files."""

    RUN = "run"
    STUDY = "study"
    SITE = "site"
    TUNE = "tune"


def settings(
    kind: Annotated[
        Kind,
        typer.Argument(
            help="Of `megalign train` (run), `study run` (study), `submit --profile` (site) or `crossin tune` (tune)."
        ),
    ],
    path: Annotated[str, typer.Argument(help="Only what is below this key, e.g. train.optimizer.")] = "",
) -> None:
    """Print all settings of a kind of file with their meaning, what they take and their defaults, as YAML to fill in.

    Example: `megalign settings run > run.yaml`, or `megalign settings run inject`
    """
    from megalign.config.reference import reference

    print(reference(_model(kind), path), end="")


def _model(kind: Kind) -> type[BaseModel]:
    if kind is Kind.SITE:
        from megalign.cluster.profile import SiteProfile

        return SiteProfile
    if kind is Kind.TUNE:
        from megalign.crossin.tuning.settings import TuneConfig

        return TuneConfig
    from megalign.config import RunConfig, StudyConfig

    return RunConfig if kind is Kind.RUN else StudyConfig
