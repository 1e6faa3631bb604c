"""The table of accelerators, and a user's file beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from megalign.config import PrecisionConfig
from megalign.errors import ConfigError
from megalign.scaling.devices import load_devices, named_device, recognise


def test_shipped_devices_are_whole_and_dense() -> None:
    devices = load_devices()
    assert {"a100", "h100", "h200", "b200", "mi300x"} <= set(devices)
    for device in devices.values():
        assert device.memory_bytes
        assert device.memory_bytes_per_second
        assert device.link_bytes_per_second
        assert device.network_bytes_per_second
        assert device.peak_flops["bfloat16"] > device.peak_flops["float32"]
        if "fp8" in device.peak_flops:
            assert device.peak_flops["fp8"] == pytest.approx(2 * device.peak_flops["bfloat16"], rel=1e-3)
    assert devices["h100"].peak(PrecisionConfig(dtype="bfloat16")) == 989.4e12
    assert devices["h100"].peak(PrecisionConfig(dtype="bfloat16", fp8="delayed")) == 1978.9e12
    assert devices["a100"].peak(PrecisionConfig(dtype="bfloat16", fp8="delayed")) is None


@pytest.mark.parametrize(
    ("driver_name", "name"),
    [("NVIDIA H100 80GB HBM3", "h100"), ("nvidia a100-sxm4-40gb", "a100-40gb"), ("AMD Instinct MI300X", "mi300x")],
)
def test_devices_are_recognised_by_what_the_driver_says(driver_name: str, name: str) -> None:
    devices = load_devices()
    assert recognise(driver_name, devices) == devices[name]


@pytest.mark.parametrize("driver_name", ["NVIDIA H100 PCIe", "NVIDIA H200 NVL", "NVIDIA GB200", "Tesla T4", ""])
def test_a_similar_name_is_another_device_and_unknown(driver_name: str) -> None:
    assert recognise(driver_name, load_devices()) is None


def test_a_file_adds_devices_and_replaces_them(tmp_path: Path) -> None:
    more = tmp_path / "more.yaml"
    more.write_text(
        "mine: {title: Mine, driver_names: [My 1], peak_flops: {bfloat16: 1.0e+12}}\nh100: {title: Ours}\n", "utf-8"
    )
    devices = load_devices(more)
    assert devices["mine"].peak(PrecisionConfig(dtype="bfloat16")) == 1e12
    assert devices["mine"].memory_bytes is None
    assert devices["h100"].title == "Ours"
    assert devices["h100"].peak(PrecisionConfig(dtype="bfloat16")) is None
    assert recognise("my 1", devices) == devices["mine"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("mine: {title: x, memory: 1.0}", "mine: unknown key memory: did you mean memory_bytes"),
        ("mine: {title: x, memory_bytes: -1.0}", "mine: memory_bytes: Input should be greater than 0"),
        ("mine: 3", "mine must be a mapping, not int"),
    ],
)
def test_wrong_entries_are_named(tmp_path: Path, content: str, message: str) -> None:
    more = tmp_path / "more.yaml"
    more.write_text(content, "utf-8")
    with pytest.raises(ConfigError, match=message):
        load_devices(more)


def test_an_unknown_name_is_told_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no device 'h1000' in the table, which has a100.*Did you mean 'h100'"):
        named_device("h1000", load_devices())
