"""Hugging Face folders, imported folders and checkpoints that are damaged or contradict themselves; ends in the middle."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_import import write_model

from megalign.cli.huggingface import export
from megalign.engine import checkpoint
from megalign.errors import ConfigError, DataError, EnvironmentProblem, MegalignError, StoppedOnRequest
from megalign.evaluation.huggingface import export_run, import_model
from megalign.evaluation.huggingface.parity import LONGEST, random_windows
from megalign.training.initial import find_weights

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def neox(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied GPT-NeoX model of two layers."""
    return write_model(files, tmp_path_factory.mktemp("neox") / "hf", "neox", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def exported(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_run(runs["rotary"], tmp_path_factory.mktemp("exported") / "hf").folder


def refused(source: Path, folder: Path, change: Change, message: str, **options: Any) -> None:
    shutil.copytree(source, folder / "changed")
    change(folder / "changed")
    with pytest.raises(MegalignError, match=message):
        import_model(str(folder / "changed"), folder / "start", **options)
    assert [path.name for path in folder.iterdir()] == ["changed"]


def setting(**changed: Any) -> Change:
    def change(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**content, **changed}))

    return change


def tensors(change: Callable[[dict[str, Any]], object]) -> Change:
    def changed(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        content = load_file(folder / "model.safetensors")
        change(content)
        (folder / "model.safetensors").unlink()
        save_file(content, folder / "model.safetensors", {"format": "pt"})

    return changed


def written(name: str, content: bytes) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).write_bytes(content)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: os.truncate(folder / "model.safetensors", 5000), "SafetensorError"),
        (written("model.safetensors", b""), "SafetensorError"),
        (written("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"), "SafetensorError"),
        (setting(num_hidden_layers=1), r"config\.json knows nothing of: gpt_neox\.layers\.1\..* \(12 in all\)"),
        (tensors(lambda all: all.update({"more": torch.ones(2)})), r"knows nothing of: more \(1 in all\)"),
        (setting(hidden_size=48), r"other shapes .*embed_in\.weight \(400 x 32, not 400 x 48\)"),
        (setting(vocab_size=300), r"other shapes .*embed_in\.weight \(400 x 32, not 300 x 32\)"),
        (tensors(lambda all: all["gpt_neox.embed_in.weight"].fill_(torch.nan)), "values that are not finite"),
        (tensors(lambda all: all.update({"lm_head.weight": torch.ones(400, 32)})), "has output rows of its own"),
        (setting(num_attention_heads=5), "cannot be opened as a causal language model"),
        (setting(num_attention_heads=0), "cannot be opened as a causal language model: ZeroDivisionError"),
        (setting(layer_norm_eps="x"), "cannot be opened as a causal language model"),
        (setting(layer_norm_eps=float("nan")), "norm_epsilon: Input should be a finite number"),
        (setting(attention_dropout=2.0), "attention_dropout: Input should be less than or equal to 1"),
        (setting(dtype="nonsense"), "cannot be opened as a causal language model"),
        (
            setting(rope_parameters={"rope_theta": float("inf"), "rope_type": "default", "partial_rotary_factor": 1.0}),
            "rotary frequencies is inf, no whole number",
        ),
        (written("config.json", b"[]"), r"config\.json holds no JSON object"),
        (written("tokenizer.json", b"null"), "cannot be used: This is not a tokenizer"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("[]"), "holds no JSON object"),
    ],
)
def test_damaged_models_are_refused(change: Change, message: str, neox: Path, tmp_path: Path) -> None:
    refused(neox, tmp_path, change, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setting(megalign="x"), "is not what an export writes"),
        (setting(megalign={"tokenizer": {}}), "is not what an export writes"),
        (setting(megalign={"languages": 3, "clone_of": {}, "tokenizer": {}}), "is not what an export writes"),
        (written("tokenizer.json", b"[]"), r"tokenizer\.json holds no JSON object"),
    ],
)
def test_a_damaged_note_of_an_export_is_refused(change: Change, message: str, exported: Path, tmp_path: Path) -> None:
    refused(exported, tmp_path, change, message)


def test_another_end_of_text_than_the_exported_one_is_not_ignored(exported: Path, tmp_path: Path) -> None:
    refused(
        exported, tmp_path, lambda folder: None, "was exported with '<|endoftext|>'".replace("|", r"\|"), eos_token="x"
    )


def test_the_windows_of_a_long_model_stay_short() -> None:
    assert random_windows(10, 10**9).shape == (4, LONGEST)
    assert random_windows(10, 64).shape == (4, 64)


def test_others_may_read_what_is_exported(exported: Path) -> None:
    assert {path.stat().st_mode & 0o777 for path in exported.iterdir()} == {0o644}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.yaml", ""), ("model.yaml", "[]"), ("model.yaml", "model: 3"), ("model.yaml", "{"),
        ("import.json", "[]"), ("import.json", "{}"), ("import.json", '{"vocabulary": 3, "eos_token": null}'),
    ],
)  # fmt: skip
def test_a_damaged_import_is_told(name: str, content: str, neox: Path, tmp_path: Path) -> None:
    import_model(str(neox), tmp_path / "start")
    (tmp_path / "start" / name).write_text(content)
    with pytest.raises((DataError, ConfigError), match=name.replace(".", r"\.")):
        find_weights(tmp_path / "start")


def test_a_checkpoint_near_the_root_has_no_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "MARKER", "passwd")
    with pytest.raises(DataError, match="/etc holds no weights to read"):
        find_weights(Path("/etc"))


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGTERM), StoppedOnRequest),
        (lambda: (_ for _ in ()).throw(MemoryError()), EnvironmentProblem),
    ],
)
def test_an_export_that_is_ended_leaves_nothing(
    problem: Callable[[], object],
    expected: type[MegalignError],
    runs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def compare(*_: Any) -> None:
        assert [path.name[:8] for path in tmp_path.iterdir()] == [".tmp-out"]
        problem()

    monkeypatch.setattr("megalign.evaluation.huggingface.export._compare", compare)
    with pytest.raises(expected):
        export(runs["learned"], tmp_path / "out", checkpoint=None, store=None)
    assert not any(tmp_path.iterdir())
