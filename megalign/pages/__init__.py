"""What all reports share: templates that escape what comes from files, one style, pictures inside the page."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2


@dataclass(frozen=True)
class Picture:
    """A PNG with the text that stands for it."""

    png: bytes
    alt: str

    @property
    def uri(self) -> str:
        """The picture as a data URI, so that the page stands alone."""
        return png_uri(self.png)


def png_uri(png: bytes) -> str:
    """A PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def template(folder: Path, name: str, filters: dict[str, Callable[..., Any]] | None = None) -> jinja2.Template:
    """A report's template; it may include the files of its folder and `base.css`.

    Values are escaped, and a name that is not given is an error.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters or {})
    return environment.get_template(name)
