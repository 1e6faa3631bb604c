"""A ladder's rungs follow its rules: shapes, rates, batches, budgets, each recomputed here by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megalign.config import RunConfig, StudyConfig, apply_overrides, read_yaml, validate
from megalign.errors import ConfigError
from megalign.scaling.flops import training_flops_per_token
from megalign.study.expand import LadderRun, StudyFolder, describe, ladder_runs, methods_of, run_config

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "scaling" / "ladder.yaml"


def study(**changes: Any) -> StudyConfig:
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return validate(StudyConfig, apply_overrides(read_yaml(EXAMPLE), dotted.items()), "ladder")


def rungs(**changes: Any) -> dict[str, LadderRun]:
    return {run.method.label: run for run in ladder_runs(study(**changes))}


def run_of(config: StudyConfig, label: str, seed: int = 0) -> RunConfig:
    method = next(method for method in methods_of(config) if method.label == label)
    return run_config(config, StudyFolder(Path("x")), method, seed)


def test_sizes_times_ratios_times_methods() -> None:
    found = rungs(ladder__sizes=[64, 128], ladder__target_ratios=[20, 10])
    assert list(found) == [
        "joint-w64-r20", "prealign-w64-r20", "joint-w64-r10", "joint-w128-r20", "prealign-w128-r20", "joint-w128-r10",
    ]  # fmt: skip
    everywhere = rungs(ladder__sizes=[64], ladder__target_ratios=[20, 10], ladder__ratios_of={})
    assert len(everywhere) == 4


def test_the_base_size_is_the_study_itself() -> None:
    """Width of the base and the base's budget: every setting is that of a study without a ladder."""
    config = study(ladder__sizes=[128])
    plain = study(ladder=None, corpus__target_tokens=15000)
    for method in plain.methods:
        base = run_config(plain, StudyFolder(Path("x")), method, 0)
        rung = run_of(config, f"{method.label}-w128-r20")
        assert rung.model.model_copy(update={"preset": "tiny"}) == base.model
        assert (rung.train, rung.inject, rung.codeswitch, rung.method) == (
            base.train, base.inject, base.codeswitch, base.method,
        )  # fmt: skip
        assert [(s.language, s.weight) for s in rung.data.sources] == [("en", 300000.0), ("en-clone", 15000.0)]


@pytest.mark.parametrize(("width", "layers"), [(32, 1), (64, 2), (96, 2), (128, 3), (160, 4), (192, 4), (256, 6)])
def test_shape_and_rates_follow_the_width(width: int, layers: int) -> None:
    config = study(ladder__sizes=[width])
    run = run_of(config, f"prealign-w{width}-r20")
    model, optimizer = run.model, run.train.optimizer
    assert (model.num_layers, model.hidden_size, model.ffn_hidden_size) == (layers, width, 4 * width)
    assert model.hidden_size // model.num_attention_heads == 32
    assert optimizer.lr == pytest.approx(3e-3 * 128 / width)
    assert optimizer.lr * optimizer.embedding_lr_multiplier == pytest.approx(3e-3 * 0.5)
    injection = run.inject.optimizer
    assert injection.lr * injection.embedding_lr_multiplier == pytest.approx(3e-3 * 3.0)
    assert model.init_std == pytest.approx(0.02 * (128 / width) ** 0.5)
    assert model.embedding_init_std == 0.1
    joint = run_of(config, f"joint-w{width}-r20").train.optimizer
    assert joint.lr * joint.embedding_lr_multiplier == pytest.approx(3e-3 * 3.0)


def test_exponents_of_zero_leave_settings_alone() -> None:
    rules = dict.fromkeys(("depth_exponent", "lr_exponent", "embedding_lr_exponent", "init_std_exponent"), 0.0)
    run = run_of(study(ladder__sizes=[256], ladder__rules=rules), "joint-w256-r20")
    assert (run.model.num_layers, run.train.optimizer.lr, run.model.init_std) == (3, 3e-3, 0.02)
    assert run.train.optimizer.embedding_lr_multiplier == 3.0


def test_a_ratio_changes_target_text_alone() -> None:
    for label, target in (("joint-w64-r20", 15000), ("joint-w64-r10", 30000), ("joint-w64-r5", 60000)):
        rung = rungs()[label].rung
        assert rung.tokens == {"en": 300000, "en-clone": target}
        assert rung.steps == (300000 + target) // 512
        run = run_of(study(), label)
        assert {s.language: s.weight for s in run.data.sources} == rung.tokens
        assert run.train.steps == rung.steps


def test_budgets() -> None:
    many = {"corpus__source_tokens": 10**9, "corpus__target_tokens": 10**9, "ladder__target_ratios": [20, 10]}
    by_size = rungs(**many, ladder__sizes=[64, 128], ladder__budget={"source_tokens_per_parameter": 20.0})
    for label in ("joint-w64-r20", "joint-w128-r20"):
        rung = by_size[label].rung
        assert rung.tokens["en"] == 20 * rung.non_embedding_parameters
    # Injection keeps its share of the steps, whatever the length.
    config = study(**many, ladder__sizes=[128], ladder__budget={"source_tokens": 3000000})
    assert run_of(config, "prealign-w128-r20").inject.steps == pytest.approx(2250, rel=0.002)
    equal = rungs(**many, ladder__sizes=[64, 96, 128], ladder__budget={"flops": 4e12})
    for size in ("w64", "w96", "w128"):
        rung = equal[f"joint-{size}-r20"].rung
        assert rung.flops == pytest.approx(4e12, rel=0.01)
        assert rung.flops == training_flops_per_token(rung.model, 2 * 1536) * rung.steps * rung.batch_tokens
        assert equal[f"prealign-{size}-r20"].rung.tokens == rung.tokens


def test_the_batch_follows_the_tokens_and_the_layout() -> None:
    changes = {"corpus__source_tokens": 10**7, "corpus__target_tokens": 10**7, "ladder__target_ratios": [20]}
    changes |= {"ladder__budget": {"source_tokens": 4 * 300000}, "ladder__rules": {"batch_exponent": 0.5}}
    assert rungs(**changes, ladder__sizes=[64])["joint-w64-r20"].rung.batch_tokens == 2 * 512
    wide = {"name": "wide", "model": {"hidden_size": 64}, "set": {"parallel.data": 3, "train.micro_batch_size": 2}}
    run = run_of(study(**changes, ladder__sizes=[wide]), "joint-wide-r20")
    assert (run.train.global_batch_size, run.parallel.data) == (6, 3)
    fixed = {**wide, "set": {"train.global_batch_size": 16, "train.optimizer.lr": 0.5}}
    run = run_of(study(**changes, ladder__sizes=[fixed]), "joint-wide-r20")
    assert (run.train.global_batch_size, run.train.optimizer.lr) == (16, 0.5)
    assert run.train.steps == 1260000 // (16 * 128)


def test_a_preset_keeps_its_shape_and_its_context() -> None:
    changes = {
        "corpus__source_tokens": 10**8,
        "corpus__target_tokens": 10**8,
        "ladder__budget": {"source_tokens": 10**8},
    }
    run = run_of(study(**changes, ladder__sizes=["150m"], train__global_batch_size=16), "joint-150m-r20")
    assert (run.model.num_layers, run.model.hidden_size, run.model.sequence_length) == (12, 1024, 1024)
    assert run.train.global_batch_size == 2  # as many tokens: 16 windows of 128
    assert run.train.optimizer.lr == pytest.approx(3e-3 / 8)


def test_the_description_names_the_rungs() -> None:
    config = study()
    entries = {entry["name"]: entry["ladder"] for entry in describe(config)["methods"]}
    assert entries["prealign-w64-r20"] == {"method": "prealign", "size": "w64", "target_ratio": 20.0}
    assert len(entries) == len(methods_of(config)) == 24
    assert "ladder" not in describe(study(ladder=None))["methods"][0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ladder__sizes": [80]}, "size w80 has hidden_size 80, which is not a multiple of the base model's head width 32"),
        ({"corpus__target_tokens": 50000}, r"reads 60,000 tokens of en-clone at the target ratio 5; corpus\.target_tokens is"),
        ({"corpus__source_tokens": 299999}, r"reads 300,000 tokens of en at the target ratio 20; corpus\.source_tokens is"),
        ({"ladder__budget": {"source_tokens": 100}}, "has 105 tokens of pretraining at the target ratio 20, less than a batch"),
        ({"ladder__budget": {}}, "set exactly one of source_tokens, source_tokens_per_parameter, flops; set are: none"),
        ({"ladder__budget": {"flops": 1e9, "source_tokens": 5}}, "set are: source_tokens, flops"),
        ({"ladder__sizes": [64, 64]}, "sizes has w64 twice"),
        ({"ladder__target_ratios": [20, 20.0]}, "target_ratios has 20 twice"),
        ({"ladder__ratios_of": {"prealign": [7]}}, r"ratios_of\.prealign has 7, which target_ratios has not"),
        ({"ladder__ratios_of": {"golden": [20]}}, r"ladder\.ratios_of names golden, which is not among methods: joint, prealign"),
        ({"ladder__sizes": [{"name": "a b", "model": {"hidden_size": 64}}]}, "the size's name 'a b' must be letters"),
        ({"ladder__sizes": [{"name": "a", "model": {}}]}, r"the size a needs model\.hidden_size or model\.preset"),
        ({"ladder__sizes": [{"name": "a", "model": {"hidden_size": 64, "depth": 2}}]}, "size a: unknown key depth"),
        ({"ladder__sizes": [0]}, "size w0 has hidden_size 0"),
        ({"ladder__sizes": [2**40]}, "size w1099511627776 has hidden_size 1099511627776"),
        ({"ladder__sizes": ["15m"]}, "there is no model preset '15m'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ladder_runs(study(**changes))
