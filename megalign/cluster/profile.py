"""What a site's Slurm wants to know of a job: one YAML file a site (see slurm/profiles)."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from megalign.config.load import apply_overrides, read_yaml, validate
from megalign.config.sections import NonNegative, Positive, Section

_TIME = re.compile(r"(?:(\d+)-)?(\d{1,2}):(\d\d):(\d\d)\Z")


def _word(value: str) -> str:
    """A value that stands behind `#SBATCH --option=`: sbatch ends it at white space, and has quotes of its own."""
    if not value or re.search(r"[\s\"'\\`$#;]|[^\x20-\x7e]", value):
        raise ValueError(f"{value!r} must be one word without quotes, '$', '#', ';' and '\\'")
    return value


def _line(value: str) -> str:
    """A value that is quoted for the shell: anything but control characters, which would end its line."""
    if re.search(r"[\x00-\x1f\x7f]", value):
        raise ValueError(f"{value!r} holds a control character")
    return value


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError(f"{name!r} is no name of an environment variable")
    return name


def _option(value: str) -> str:
    if not re.match(r"--[a-z][a-z-]*(=|\Z)", value):
        raise ValueError(f"{value!r} is not of the form --option or --option=value")
    return _word(value)


def seconds_of(time_limit: str) -> int:
    """Seconds of Slurm's HH:MM:SS or D-HH:MM:SS.

    Raises:
        ValueError: of another form.
    """
    match = _TIME.match(time_limit)
    if match is None:
        raise ValueError(f"{time_limit!r} is not of the form HH:MM:SS or D-HH:MM:SS (in YAML, put it in quotes)")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _time_limit(value: object) -> object:
    """Before the type is looked at: without quotes, 4:00:00 is the number 14400 in YAML."""
    seconds_of(str(value))
    return value


def _file(value: str) -> str:
    if not value:
        raise ValueError("it is empty")
    return _line(value)


def _resource(value: str) -> str:
    if re.search(r":\d+\Z", value):
        raise ValueError(f"{value!r} has a count: every task gets one, leave it out")
    return _word(value)


Word = Annotated[str, AfterValidator(_word)]
Line = Annotated[str, AfterValidator(_line)]
File = Annotated[str, AfterValidator(_file)]
Variable = Annotated[str, AfterValidator(_variable)]
Option = Annotated[str, AfterValidator(_option)]


class Resources(Section):
    """What a job asks for. Unset values are left to the site's defaults."""

    partition: Word | None = Field(None, description="Partition.")
    qos: Word | None = Field(None, description="Quality of service.")
    constraint: Word | None = Field(None, description="Node features, e.g. h100 or rack1|rack2.")
    gres: Annotated[str, AfterValidator(_resource)] | None = Field(
        None, description="Generic resource that every task gets one of, without a count, e.g. gpu or gpu:h100."
    )
    cpus_per_task: Positive = Field(1, description="CPUs of a task; it computes with as many threads.")
    memory_per_cpu: Word | None = Field(None, description="Memory for each CPU, e.g. 5G.")
    exclusive: bool = Field(False, description="Jobs that fill their nodes share them with no other job.")
    time_limit: Annotated[str, BeforeValidator(_time_limit)] = Field(description="HH:MM:SS or D-HH:MM:SS.")


class Container(Section):
    """The image in which every task runs."""

    kind: Literal["pyxis", "enroot", "apptainer"] = Field(
        description="pyxis: srun --container-image; enroot: enroot start; apptainer: apptainer exec."
    )
    image: File = Field(description="Image: a file, or for pyxis also a registry's address.")
    mounts: list[Line] = Field(default_factory=list, description="FROM:TO; mount what study, data and cache need.")
    options: list[Option] = Field(default_factory=list, description="More options of the container's command.")


class SiteProfile(Section):
    """A site, as its jobs see it."""

    name: Word = Field(description="The site's name, for comments and records.")
    account: Word | None = Field(None, description="Account that is charged.")
    reservation: Word | None = Field(None, description="Reservation.")
    tasks_per_node: Positive = Field(description="Processes of a run on a full node: its GPUs, or parts of its CPUs.")
    training: Resources = Field(description="Jobs that train and measure.")
    single: Resources = Field(description="Jobs of one process without GPU: data and report.")
    sbatch_options: list[Option] = Field(
        default_factory=list, description="More options of sbatch, e.g. --mail-type=END."
    )
    srun_options: list[Option] = Field(default_factory=list, description="More options of srun, e.g. --cpu-bind=cores.")
    modules: list[Word] = Field(default_factory=list, description="Environment modules to load, in order.")
    environment: dict[Variable, Line] = Field(default_factory=dict, description="Variables of every task.")
    python: File = Field(sys.executable, description="Python that has megalign; unset: the one that submits.")
    container: Container | None = Field(None, description="Container; unset: none.")
    node_local: Line | None = Field(
        None, description="Folder on every node's own disk; caches of compilers and temporary files go into it."
    )
    signal_margin_seconds: Positive = Field(
        300, description="Ask for the last checkpoint so long before the time limit. Slurm may do it a minute earlier."
    )
    exit_grace_seconds: Positive = Field(
        120, description="After a task has ended the others have so long to end, then they are killed."
    )
    preflight_seconds: Positive = Field(120, description="Processes that have not met within so long are named.")
    max_stalls: NonNegative = Field(3, description="Give up after so many restarts without a new checkpoint.")
    max_array_size: Positive = Field(1001, description="Slurm's MaxArraySize: longer arrays become several.")
    max_array_running: Positive | None = Field(None, description="Tasks of an array that run at a time; unset: all.")

    @model_validator(mode="after")
    def _margin_fits(self) -> SiteProfile:
        if self.signal_margin_seconds >= seconds_of(self.training.time_limit):
            raise ValueError(
                f"signal_margin_seconds {self.signal_margin_seconds} is not less than training.time_limit "
                f"{self.training.time_limit}: every job would stop as it starts"
            )
        return self


def load_profile(path: Path, overrides: Iterable[tuple[str, Any]] = ()) -> SiteProfile:
    """The profile in a YAML file, overrides (dotted key, value) applied.

    Raises:
        ConfigError: the file or an override is wrong.
    """
    content: Mapping[str, Any] = apply_overrides(read_yaml(path), overrides)
    return validate(SiteProfile, content, str(path))
