"""The list of all settings: it is complete, it is YAML, and filled in it is the file with the defaults."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from small_study import megalign

from megalign.cluster.profile import SiteProfile
from megalign.config import RunConfig, StudyConfig, validate
from megalign.config.reference import Setting, reference, settings_of
from megalign.crossin.tuning.settings import TuneConfig
from megalign.errors import ConfigError

FILES: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (
        RunConfig,
        {
            "name": "n",
            "folder": "f",
            "model": {"preset": "tiny"},
            "data": {"store": "s", "sources": [{"language": "en", "weight": 1.0}]},
            "train": {"steps": 1, "global_batch_size": 1},
        },
    ),
    (
        StudyConfig,
        {
            "name": "n",
            "seeds": [0],
            "methods": ["joint"],
            "corpus": {
                "kind": "procedural",
                "clone": True,
                "source_tokens": 9,
                "target_tokens": 9,
                "validation_tokens": 9,
                "vocab_size": 300,
            },
            "table": {"kind": "golden"},
            "model": {"preset": "tiny"},
            "train": {"steps": 1, "global_batch_size": 1},
        },
    ),
    (
        SiteProfile,
        {
            "name": "n",
            "tasks_per_node": 1,
            "training": {"time_limit": "01:00:00"},
            "single": {"time_limit": "01:00:00"},
        },
    ),
    (TuneConfig, {"base_model": "b", "data": "d"}),
]


def filled(written: Any, given: Any) -> Any:
    """A file with the given values in it."""
    if isinstance(written, dict) and isinstance(given, dict):
        return written | {key: filled(written.get(key), value) for key, value in given.items()}
    return given


@pytest.mark.parametrize(("model", "given"), FILES)
def test_filled_in_it_is_the_file_with_the_defaults(model: type[BaseModel], given: dict[str, Any]) -> None:
    file = filled(yaml.safe_load(reference(model)), given)
    assert validate(model, file, "the file").model_dump() == validate(model, given, "the values").model_dump()


def names(settings: tuple[Setting, ...], prefix: str = "") -> set[str]:
    return {name for one in settings for name in (prefix + one.name, *names(one.inner, f"{prefix}{one.name}."))}


@pytest.mark.parametrize(("model", "_"), FILES)
def test_every_setting_is_there_with_a_sentence(model: type[BaseModel], _: Any) -> None:
    def all_of(settings: tuple[Setting, ...]) -> list[Setting]:
        return [found for one in settings for found in (one, *all_of(one.inner))]

    assert {one.name for one in settings_of(model)} == set(model.model_fields)
    for one in all_of(settings_of(model)):
        assert one.meaning.endswith("."), one
        assert bool(one.takes) == (one.kind != "section" or one.default is not None), one
    text = reference(model)
    assert all(f"{name.rpartition('.')[2]}:" in text for name in names(settings_of(model)))
    assert max(map(len, text.splitlines())) < 160


def test_a_part_stands_where_it_stands_in_the_file() -> None:
    assert reference(RunConfig, "train.optimizer.lr").splitlines() == [
        "train:",
        "  optimizer:",
        "    # Peak learning rate. [number above 0]",
        "    lr: 0.0003",
    ]
    optional = reference(RunConfig, "data.stages").splitlines()
    assert optional[2:5] == ["  stages: []", "  # stages:", "  #   -"]
    uncommented = "\n".join(line.replace("# ", "", 1) for line in optional[3:])
    assert list(yaml.safe_load(uncommented)["stages"][0]) == ["after_tokens", "sources"]
    assert "[mapping of names to section]" in reference(RunConfig, "codeswitch.sources")
    label_mode = reference(RunConfig, "codeswitch.label_mode").replace("\n  #", "")
    assert "[omit, first_subword or vanilla]" in label_mode


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("trian", "Did you mean train?"),
        ("train.lr", "Did you mean train.optimizer.lr or inject.optimizer.lr?"),
        ("name.x", "Did you mean name?"),
        ("qqqq", "Give no key"),
    ],
)
def test_an_unknown_key_is_an_error(key: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"There is no setting {key}") as caught:
        reference(RunConfig, key)
    assert hint in caught.value.fix


@pytest.mark.parametrize("kind", ["run", "study", "site", "tune"])
def test_the_command_prints_it(kind: str) -> None:
    done = megalign("settings", kind)
    assert done.returncode == 0
    assert "name:" in done.stdout or "base_model:" in done.stdout
    assert yaml.safe_load(done.stdout)
