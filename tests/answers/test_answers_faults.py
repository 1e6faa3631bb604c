"""Models, tokenizers and files that are not as they should be: named, or answered as without the fault."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_models import write_model

from megalign.answers import Choice, Greedy, Item, answer_items, open_model
from megalign.errors import ConfigError, DataError

PROMPTS = ["Where?", "A much longer prompt than that."]


@pytest.fixture
def copy(models: dict[str, Path], tmp_path: Path) -> Path:
    """A model's folder that may be changed."""
    return Path(shutil.copytree(models["llama"], tmp_path / "copy"))


def reopened(folder: Path, **changed: Any) -> Any:
    return open_model(str(folder), device="cpu", batch_size=4, **changed)


def change_tokenizer(folder: Path, change: Any) -> Any:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    change(tokenizer)
    tokenizer.save_pretrained(folder)
    return tokenizer


def change_weights(folder: Path, change: Any) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_damaged_weights_are_named(copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"cannot be opened as a causal language model: SafetensorError"):
        reopened(copy)


def test_weights_that_are_missing_are_not_drawn_at_random(copy: Path) -> None:
    change_weights(copy, lambda weights: weights.pop("lm_head.weight"))
    with pytest.raises(DataError, match=r"lacks 1 of the model's weights, such as lm_head\.weight"):
        reopened(copy)


@pytest.mark.parametrize("how", [Greedy(2), Choice()])
def test_a_model_that_computes_no_numbers_gives_no_answers(how: Greedy | Choice, copy: Path, tmp_path: Path) -> None:
    change_weights(copy, lambda weights: weights["model.norm.weight"].fill_(float("nan")))
    with pytest.raises(DataError, match="copy computes what is no number"):
        answer_items(reopened(copy), [Item(0, "Where?", (" a", " b"))], tmp_path / "a.jsonl", how)
    assert not (tmp_path / "a.jsonl").exists()


def test_a_padding_token_without_an_embedding_changes_nothing(models: dict[str, Path], copy: Path) -> None:
    change_tokenizer(copy, lambda tokenizer: tokenizer.add_special_tokens({"pad_token": "[PAD]"}))
    for ask in (
        lambda model: model.generate(PROMPTS, max_new_tokens=4),
        lambda model: model.option_log_likelihoods(PROMPTS, [[" a", " b b"]] * 2),
    ):
        assert ask(reopened(copy)) == ask(reopened(models["llama"]))


def test_a_tokenizer_of_another_model_is_named(copy: Path) -> None:
    change_tokenizer(copy, lambda tokenizer: tokenizer.add_tokens(["Where"]))
    with pytest.raises(DataError, match=r"gives the id 400, and the model has 400 embeddings"):
        reopened(copy).generate(PROMPTS, max_new_tokens=4)


def test_a_tokenizer_that_closes_texts_does_not_end_prompts(models: dict[str, Path], copy: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    def close(tokenizer: Any) -> None:
        tokenizer._tokenizer.post_processor = TemplateProcessing(
            single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
        )

    change_tokenizer(copy, close)
    closing, plain = reopened(copy), reopened(models["llama"])
    assert closing.tokenizer("a")["input_ids"][-1] == 0
    assert closing.encode_pair("Where?", " here") == plain.encode_pair("Where?", " here")
    assert closing.generate(PROMPTS, max_new_tokens=4) == plain.generate(PROMPTS, max_new_tokens=4)


@pytest.mark.parametrize("template", ["{{ raise_exception('not so') }}", "{% for %}"])
def test_a_chat_template_that_fails_is_named(template: str, copy: Path) -> None:
    change_tokenizer(copy, lambda tokenizer: setattr(tokenizer, "chat_template", template))
    with pytest.raises(ConfigError, match=r"chat template cannot be filled in: Template"):
        reopened(copy).chat_prompt("Where?")


def test_a_model_named_by_a_dot_has_its_folders_name(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models["llama"])
    assert reopened(Path()).name == "llama"
    with pytest.raises(DataError, match=r"config\.json is no folder"):
        reopened(models["llama"] / "config.json")


def test_likelihoods_do_not_change_with_where_a_run_was_killed(models: dict[str, Path], tmp_path: Path) -> None:
    """What stands in a batch together decides the last digits: a write that was torn is made again as a whole."""
    items = [
        Item(number, f"{'very ' * (number * 7 % 11)}{number}", (" yes", " no", " so it is")) for number in range(48)
    ]
    model = open_model(str(models["llama"]), device="cpu", batch_size=3)
    whole, torn = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    answer_items(model, items, whole, Choice())
    answer_items(model, items, torn, Choice())
    lines = whole.read_bytes().splitlines(keepends=True)
    torn.write_bytes(b"".join(lines[:31]) + lines[31][:9])
    assert answer_items(model, items, torn, Choice()) == 24  # 24 of a write are kept
    assert torn.read_bytes() == whole.read_bytes()


def test_answers_with_other_labels_are_not_continued(models: dict[str, Path], tmp_path: Path) -> None:
    """The label is in the row, and scores are made of it."""
    model, path = reopened(models["llama"]), tmp_path / "a.jsonl"
    item = Item(0, "Where?", copied={"label": "A"})
    answer_items(model, [item], path, Greedy(2))
    with pytest.raises(ConfigError, match="items_digest was"):
        answer_items(model, [replace(item, copied={"label": "B"})], path, Greedy(2))


def test_the_item_that_does_not_fit_is_named(tmp_path: Path) -> None:
    model = reopened(write_model(tmp_path / "gpt2", "gpt2"))
    items = [*(Item(f"short {number}", "Where?") for number in range(40)), Item("long", "word " * 200)]
    with pytest.raises(DataError, match=r"a\.jsonl: the prompt of item 'long' has \d+ tokens and 2 new ones"):
        answer_items(model, items, tmp_path / "a.jsonl", Greedy(2))


def test_a_prompt_that_is_no_utf_8_is_named(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Item 0 is no UTF-8"):
        answer_items(reopened(models["llama"]), [Item(0, "Where\udcff?")], tmp_path / "a.jsonl", Greedy(2))
