"""The effects that the example's script computes, against planted ones."""

from __future__ import annotations

import importlib.util
import sys
from itertools import product
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "examples" / "enclone"
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("drift_effects", EXAMPLE / "drift_effects.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def methods() -> dict[str, dict[str, object]]:
    """Names of the study's methods -> settings that differ from the study's."""
    study = yaml.safe_load((EXAMPLE / "drift.yaml").read_text(encoding="utf-8"))
    return {m["name"]: {"method": m["method"], **m.get("set", {})} for m in study["methods"]}


def test_the_study_is_the_half_that_it_says(script: ModuleType, methods: dict[str, dict[str, object]]) -> None:
    signs = {name: script.signs_of(name) for name in methods}
    assert sorted(s[:3] for s in signs.values()) == sorted(map(list, product((-1, 1), repeat=3)))
    assert all(d == a * b * c for a, b, c, d in signs.values())
    for name, own in methods.items():
        expected = [
            own.get("train.optimizer.embedding_lr_multiplier") == 3.0,
            own.get("model.tied_embeddings") is False,
            own["method"] == "prealign",
            own.get("train.optimizer.warmup_fraction") == 0.2,
        ]
        assert [sign > 0 for sign in signs[name]] == expected


def planted(script: ModuleType, methods: dict[str, dict[str, object]], noise: float) -> dict[tuple[str, int], float]:
    rng = np.random.default_rng(1)
    found = {}
    for name, seed in product(methods, SEEDS):
        a, b, c, d = script.signs_of(name)
        found[name, seed] = 5 + seed + 0.5 * a - 1.5 * c + 0.25 * a * c + 0 * b * d + noise * rng.normal()
    return found


def test_planted_effects_are_found(script: ModuleType, methods: dict[str, dict[str, object]]) -> None:
    values = planted(script, methods, 0.1)
    found = {effect.name[:7].strip(): effect for effect in script.effects_of(values)}
    wanted = {
        "A embed": 1.0,
        "B outpu": 0.0,
        "C codes": -3.0,
        "D warm-": 0.0,
        "AB + CD": 0.0,
        "AC + BD": 0.5,
        "AD + BC": 0.0,
    }
    assert found.keys() == wanted.keys()
    for name, effect in found.items():
        assert effect.value == pytest.approx(wanted[name], abs=0.15)
        assert effect.low < effect.value < effect.high
        # By hand: the mean at the second level less the mean at the first.
        if name[1] == " ":
            place = "ABCD".index(name[0])
            sides = [[v for (m, _), v in values.items() if script.signs_of(m)[place] == sign] for sign in (1, -1)]
            assert effect.value == pytest.approx(np.mean(sides[0]) - np.mean(sides[1]))
    assert found["C codes"].high < 0 < found["A embed"].low


def test_intervals_hold_what_they_say(script: ModuleType, methods: dict[str, dict[str, object]]) -> None:
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(200):
        noise = {key: float(rng.normal()) for key in product(methods, SEEDS)}
        inside += sum(effect.low < 0 < effect.high for effect in script.effects_of(noise))
    assert 0.93 < inside / 1400 < 0.97


def test_too_few_runs_are_told(script: ModuleType, methods: dict[str, dict[str, object]]) -> None:
    one_seed = {key: value for key, value in planted(script, methods, 0.1).items() if key[1] == 0}
    with pytest.raises(ValueError, match="8 runs do not tell 8 parameters apart: run all"):
        script.effects_of(one_seed)


def test_responses_are_read_from_a_report(
    script: ModuleType, methods: dict[str, dict[str, object]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["method,seed,metric,language,level,value"]
    for (name, seed), value in planted(script, methods, 0.1).items():
        rows += [f"{name},{seed},perplexity,en-clone,,{2**value}", f"{name},{seed},perplexity,en,,7"]
        rows += [f"{name},{seed},clka,en-clone,,{value / 100}"]
        rows += [f"{name},{seed},aligned_cosine,en-clone,{level},{value}" for level in range(5)]
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "summary.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    script.main(tmp_path)
    told = capsys.readouterr().out
    assert told.count("over 24 runs") == len(script.RESPONSES)
    assert told.count("C codeswitching") == 5
    assert [line.endswith(" *") for line in told.splitlines() if "C codeswitching" in line] == [True] * 5
