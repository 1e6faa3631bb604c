"""Accelerators: memory, dense peak, links; from a file that users extend."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

from pydantic import Field

from megalign.config.load import read_yaml, validate
from megalign.config.sections import PrecisionConfig, Section
from megalign.errors import ConfigError

_TABLE = Path(__file__).with_name("devices.yaml")
Amount = Annotated[float, Field(gt=0)]


class Device(Section):
    """One kind of accelerator; None is unknown."""

    title: str = Field(description="What reports call it.")
    driver_names: list[str] = Field(default_factory=list, description="Names that drivers give it.")
    memory_bytes: Amount | None = Field(None, description="Memory of one device.")
    memory_bytes_per_second: Amount | None = Field(None, description="Its bandwidth.")
    peak_flops: dict[str, Amount] = Field(
        default_factory=dict, description="dtype (bfloat16, float32, fp8) -> dense peak, operations a second."
    )
    reached_shares: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(
        default_factory=dict,
        description="dtype -> share of that peak that large products reach; unset: as the planner assumes for any device.",
    )
    link_bytes_per_second: Amount | None = Field(None, description="To devices of the node, one direction.")
    network_bytes_per_second: Amount | None = Field(None, description="To other nodes, one direction.")
    devices_per_node: int | None = Field(None, ge=1, description="In the usual machine.")

    def peak(self, precision: PrecisionConfig) -> float | None:
        """Dense peak in the dtype of the matrix products, operations a second; None: unknown."""
        return self.peak_flops.get("fp8" if precision.fp8 else precision.dtype)

    def reached_share(self, precision: PrecisionConfig) -> float | None:
        """Share of that peak that large products reach; None: unknown."""
        return self.reached_shares.get("fp8" if precision.fp8 else precision.dtype)


def load_devices(more: Path | None = None) -> dict[str, Device]:
    """The table: name -> device.

    Args:
        more: a file of the same form, whose entries are added or replace those of that name.

    Raises:
        ConfigError: the file is missing, or an entry is wrong.
    """
    devices: dict[str, Device] = {}
    for path in [_TABLE, *([more] if more else [])]:
        for name, entry in read_yaml(path).items():
            if not isinstance(entry, dict):
                raise ConfigError(f"{path}: {name} must be a mapping, not {type(entry).__name__}.")
            devices[str(name)] = validate(Device, entry, f"{path}: {name}")
    return devices


def named_device(name: str, devices: Mapping[str, Device]) -> Device:
    """The device of a name of the table.

    Raises:
        ConfigError: there is none; the message lists them.
    """
    if name in devices:
        return devices[name]
    near = get_close_matches(name.lower(), devices, n=1)
    raise ConfigError(
        f"There is no device {name!r} in the table, which has {', '.join(devices)}.",
        fix=(f"Did you mean {near[0]!r}? " if near else "") + "Describe others in a file that track.devices names.",
    )


def recognise(driver_name: str, devices: Mapping[str, Device]) -> Device | None:
    """The device whose driver calls it `driver_name` (e.g. torch.cuda.get_device_name()), or None if the table has none."""
    for device in devices.values():
        if driver_name.lower() in (name.lower() for name in device.driver_names):
            return device
    return None
