"""Injection during and after pretraining: whole runs on the real engine, and what is told of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training_data import SEQUENCE_LENGTH, broken_off_after, run_config

from megalign.cluster.ranks import Rank
from megalign.config import RunConfig
from megalign.config.layout import Layout
from megalign.engine import checkpoint
from megalign.engine.checkpoint.describe import find
from megalign.engine.checkpoint.folder import POINTER, write_marker
from megalign.engine.engine import Engine
from megalign.engine.model import unwrapped
from megalign.errors import ConfigError
from megalign.evaluation.run import build_probe, evaluate
from megalign.scaling.flops import forward_flops
from megalign.training.initial import newest_checkpoint
from megalign.training.run import RunFolder, RunInputs, train

pytestmark = pytest.mark.usefixtures("world_of_one")

ALONE = Rank(0, 1, 0, "", "single")
INJECT_STEPS, STEPS = 6, 12
PRETRAINED = [("pretrain", n) for n in range(1, STEPS + 1)]
INJECTED = [("inject", n) for n in range(1, INJECT_STEPS + 1)]
METHODS = {
    "during": {"inject__when": "during", "inject__contrastive_weight": 0.25, "codeswitch__ratio": 0.0},
    "after": {"inject__when": "after", "codeswitch__ratio": 0.0},
}


@pytest.fixture(scope="module", params=METHODS)
def finished(request: pytest.FixtureRequest, files: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run that is trained and not measured; read-only."""
    config = run_config(files, tmp_path_factory.mktemp(request.param), **METHODS[request.param])
    train(config, ALONE)
    return config


def lines_of(folder: str | Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(folder) / name).read_text().splitlines()]


def summary_of(config: RunConfig) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((Path(config.folder) / "run.json").read_text())
    return content


def weights_of(config: RunConfig, stage: str) -> dict[str, torch.Tensor]:
    path = checkpoint.latest(RunFolder(Path(config.folder)).checkpoints(stage))
    assert path is not None
    engine = RunInputs.open(config).engine(Layout(config.parallel), None)
    checkpoint.load(engine, path, with_optimizer=False)
    return {name: value.detach().clone() for name, value in unwrapped(engine.chunks[0]).named_parameters()}


def test_stages_come_in_their_order_and_words_in_their_steps(finished: RunConfig) -> None:
    lines = lines_of(finished.folder)
    after = finished.inject.when == "after"
    assert [(line["stage"], line["step"]) for line in lines] == (PRETRAINED + INJECTED if after else PRETRAINED)
    with_words = [(line["stage"], line["step"]) for line in lines if "contrastive_by_level" in line]
    assert with_words == (INJECTED if after else [("pretrain", step) for step in (2, 4, 6, 8, 10, 12)])
    rates = {line["stage"]: line["lr"] for line in lines if line["step"] == 3}
    assert rates["pretrain"] > (rates["inject"] if after else 0)


def test_the_summary_counts_what_joint_does_not_read(finished: RunConfig) -> None:
    summary, inputs = summary_of(finished), RunInputs.open(finished)
    own_stage = finished.inject.when == "after"
    text_tokens = INJECT_STEPS * 2 * SEQUENCE_LENGTH if own_stage else 0
    batches = [inputs.word_batches().batch(number) for number in range(INJECT_STEPS)]
    word_tokens = sum(int((batch.word_of_token >= 0).sum()) for batch in batches)
    seen = summary["tokens_seen"]
    assert (seen["injection"], seen["words"]) == (text_tokens, word_tokens)
    assert summary["words_seen"] == sum(batch.num_words for batch in batches)
    assert sum(seen["pretrain"].values()) == STEPS * 4 * SEQUENCE_LENGTH
    assert summary["steps"] == {"inject": INJECT_STEPS if own_stage else 0, "pretrain": STEPS}
    forward = forward_flops(finished.model, inputs.store.vocabulary.size)
    words = forward_flops(finished.model, inputs.store.vocabulary.size, sequence_length=16).layers
    assert summary["training_flops"] == pytest.approx(
        3 * (forward.total * (STEPS * 4 * SEQUENCE_LENGTH + text_tokens) + words * word_tokens)
    )


def test_words_during_pretraining_leave_its_text_as_it_is(files: Path, tmp_path: Path) -> None:
    """The first step without words is that of joint, the one with words is joint's and an added loss."""
    joint = run_config(files, tmp_path / "joint", inject__steps=0, codeswitch__ratio=0.0)
    config = run_config(files, tmp_path / "during", **METHODS["during"])
    for each in (joint, config):
        train(each, ALONE)
    plain, mixed = (lines_of(each.folder) for each in (joint, config))
    assert mixed[0]["loss"] == plain[0]["loss"]
    assert mixed[1]["loss"] == plain[1]["loss"], "the second step's words only act on the weights after it"
    assert mixed[1]["grad_norm"] != plain[1]["grad_norm"]
    assert mixed[2]["loss"] != plain[2]["loss"]
    for name in ("samples", "tokens_by_source"):
        assert [line[name] for line in mixed] == [line[name] for line in plain]


def test_the_injection_after_pretraining_starts_from_its_weights(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joint = run_config(files, tmp_path / "joint", inject__steps=0, codeswitch__ratio=0.0)
    config = run_config(files, tmp_path / "after", **METHODS["after"])
    begun: dict[str, torch.Tensor] = {}
    step = Engine.step

    def noting(self: Engine, *arguments: Any, **named: Any) -> Any:
        if arguments[1] == 1 and named["inject"] is not None:
            begun.update({n: v.detach().clone() for n, v in unwrapped(self.chunks[0]).named_parameters()})
        return step(self, *arguments, **named)

    monkeypatch.setattr(Engine, "step", noting)
    for each in (joint, config):
        train(each, ALONE)
    pretrained, injected = weights_of(config, "pretrain"), weights_of(config, "inject")
    assert all(torch.equal(value, pretrained[name]) for name, value in weights_of(joint, "pretrain").items())
    assert all(torch.equal(value, pretrained[name]) for name, value in begun.items())
    assert not any(torch.equal(value, pretrained[name]) for name, value in injected.items() if value.dim() > 1)


@pytest.mark.parametrize("when", METHODS)
def test_crashed_again_and_again_it_is_the_uninterrupted_run(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """A crash at every eighth step: those after the last checkpoint are taken again."""
    changes = {**METHODS[when], "train__checkpoint_interval": 5, "inject__measure_interval": 3}
    whole, resumed = (run_config(files, tmp_path / name, **changes) for name in ("whole", "resumed"))
    train(whole, ALONE)
    step, taken = Engine.step, 0

    def breaking(self: Engine, *arguments: Any, **named: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken % 8 == 0:
            raise KeyboardInterrupt
        return step(self, *arguments, **named)

    monkeypatch.setattr(Engine, "step", breaking)
    num_crashes = 0
    while True:
        try:
            train(resumed, ALONE)
            break
        except KeyboardInterrupt:
            num_crashes += 1
    assert num_crashes == (1 if when == "during" else 2)
    names = ("stage", "step", "loss", "grad_norm", "lr", "samples", "contrastive_by_level", "uniformity_by_level")
    ours, theirs = ([[line.get(name) for name in names] for line in lines_of(c.folder)] for c in (resumed, whole))
    assert ours == theirs
    last = whole.stages[-1]
    assert all(torch.equal(value, weights_of(whole, last)[name]) for name, value in weights_of(resumed, last).items())
    for name in ("tokens_seen", "words_seen", "training_flops", "steps"):
        assert summary_of(resumed)[name] == summary_of(whole)[name]


def test_measuring_reads_the_last_stage(files: Path, tmp_path: Path) -> None:
    """Steps of the scores go on after those of pretraining; alignment is seen to rise in the injection."""
    config = run_config(
        files, tmp_path, **METHODS["after"], inject__steps=20, inject__optimizer__lr=1e-2, train__evaluate_interval=6,
        evaluate__max_windows=2,
    )  # fmt: skip
    train(config, ALONE, build_probe(config, ALONE))
    folder = RunFolder(tmp_path)
    last = checkpoint.latest(folder.checkpoints("inject"))
    assert newest_checkpoint(folder) == find(tmp_path) == last
    assert evaluate(config, ALONE)[0].step == STEPS + 20
    assert summary_of(config)["status"] == "done"
    cosine = {
        line["step"]: line["value"]
        for line in lines_of(tmp_path, "scores.jsonl")
        if (line["metric"], line["level"]) == ("aligned_cosine", 0)
    }
    assert list(cosine) == [0, 6, 12, 18, 24, 30, 32]
    assert cosine[32] > cosine[12] + 0.1


def test_a_run_whose_injection_is_to_come_is_not_done(files: Path, tmp_path: Path) -> None:
    config = run_config(files, tmp_path, **METHODS["after"])
    with broken_off_after(STEPS), pytest.raises(KeyboardInterrupt):
        train(config, ALONE)
    assert not (tmp_path / "run.json").exists()
    assert {score.step for score in evaluate(config, ALONE)} == {STEPS}
    train(config, ALONE)
    assert summary_of(config)["status"] == "trained"


def test_a_part_of_the_table_is_injected_and_switched_and_all_of_it_measured(files: Path, tmp_path: Path) -> None:
    config = run_config(files, tmp_path, data__table_fraction=0.25)
    inputs = RunInputs.open(config)
    entries = inputs.whole_table.table.entries
    used = inputs.encoded.table.entries
    assert used == entries[: round(len(entries) / 4)]
    assert min(entry.frequency for entry in used) >= max(entry.frequency for entry in entries[len(used) :])
    assert RunInputs.open(run_config(files, tmp_path)).table_fingerprint != inputs.table_fingerprint
    words = {used[entry].word for step in range(50) for entry in inputs.word_batches().entries(step)}
    assert words == {entry.word for entry in used}
    switcher = inputs.samples.switcher
    assert switcher is not None
    assert all(lookup.encoded is inputs.encoded for lookup in switcher.lookups.values())
    train(config, ALONE)
    scores = {s.level: s for s in evaluate(config, ALONE) if s.metric == "retrieval_at_1"}
    assert {score.n for score in scores.values()} == {min(len(entries), config.evaluate.alignment_entries)}


def test_epochs_that_leave_no_room_for_the_words_are_told(files: Path, tmp_path: Path) -> None:
    changes = {**METHODS["during"], "inject__steps": 12, "train__max_epochs": 0.2}
    config = run_config(files, tmp_path, **changes)
    inputs = RunInputs.open(config)
    assert 0 < inputs.num_steps < 12
    with pytest.raises(ConfigError) as caught:
        train(config, ALONE)
    assert str(caught.value).startswith(
        f"The {inputs.num_steps} steps of pretraining have no room for 12 batches of words (inject.steps)."
    )


@pytest.mark.parametrize(
    ("numbers", "last"),
    [
        ({"inject": 0, "pretrain": 1}, "pretrain"),
        ({"inject": 1, "pretrain": 0}, "inject"),
        # Written before stages had numbers: the order in which they are given.
        ({"inject": None, "pretrain": None}, "pretrain"),
        ({"inject": 0}, "inject"),
    ],
)
def test_the_last_stage_is_told_by_its_number(tmp_path: Path, numbers: dict[str, int | None], last: str) -> None:
    for stage, number in numbers.items():
        path = checkpoint.path_of(tmp_path / stage, 3)
        path.mkdir(parents=True)
        write_marker(path, {} if number is None else {"stage_number": number}, {"files": {}})
        (tmp_path / stage / POINTER).write_text(path.name)
    found = checkpoint.newest([tmp_path / stage for stage in ("inject", "pretrain")])
    assert found == checkpoint.path_of(tmp_path / last, 3)
    assert checkpoint.newest([tmp_path / "nowhere"]) is None
