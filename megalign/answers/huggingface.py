"""Answers of a Hugging Face causal model, with or without a PEFT adapter: safetensors, no remote code, local unless allowed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from megalign.answers.fingerprint import weights_fingerprint
from megalign.answers.model import AnswerModel, ScoredInput
from megalign.errors import ConfigError, DataError, EnvironmentProblem, first_line
from megalign.files import read_json
from megalign.hub import (
    ADAPTER_CONFIG,
    chat_text,
    local_model,
    num_embeddings,
    require_all_weights,
    require_known_ids,
    unreadable,
)

ADAPTER_WEIGHTS = "adapter_model.safetensors"
DTYPES = ("auto", "float32", "bfloat16", "float16")
_LENGTH_NAMES = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length")


class HuggingFaceModel(AnswerModel):
    """A loaded model and its tokenizer.

    Args:
        model: a causal model in evaluation mode.
        tokenizer: of the model.
        name, fingerprint, batch_size, truncate: see AnswerModel.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, name: str, fingerprint: str, batch_size: int, truncate: bool = False
    ) -> None:
        from transformers import GenerationConfig

        self.model, self.tokenizer = model.eval(), tokenizer
        self.name, self.fingerprint, self.batch_size, self.truncate = name, fingerprint, batch_size, truncate
        self.dtype = str(model.dtype).removeprefix("torch.")
        config = model.config.get_text_config()
        lengths = [getattr(config, key, None) for key in _LENGTH_NAMES]
        self.max_length_tokens = next((length for length in lengths if length), None)
        named = model.generation_config.eos_token_id
        if named is None:
            named = tokenizer.eos_token_id
        self._eos = [] if named is None else [named] if isinstance(named, int) else list(named)
        self._num_embeddings = num_embeddings(model)
        # Padding is masked, so that any id will do; a padding token may have been added to the tokenizer alone.
        pads = (one for one in (tokenizer.pad_token_id, *self._eos) if one is not None)
        pad = next((one for one in pads if one < self._num_embeddings), 0)
        # In place of the model's own, whose penalties would enter: `generate` takes what is unset from there.
        model.generation_config = GenerationConfig(
            do_sample=False, num_beams=1, eos_token_id=self._eos or None, pad_token_id=pad
        )
        self._pad = pad
        names = signature(getattr(model, "get_base_model", lambda: model)().forward).parameters
        self._keeps_logits = "logits_to_keep" in names

    @property
    def end_id(self) -> int | None:
        """The end-of-text token, if there is one."""
        return self._eos[0] if self._eos else None

    def chat_prompt(self, prompt: str, system: str | None = None) -> str:
        """The prompt as a user's turn in the model's chat template, up to where the answer starts.

        Raises:
            ConfigError: the model has no chat template, or one that cannot be filled in.
        """
        if not self.tokenizer.chat_template:
            return super().chat_prompt(prompt, system)
        turns = [{"role": "user", "content": prompt}]
        if system is not None:
            turns.insert(0, {"role": "system", "content": system})
        return chat_text(self.tokenizer, turns, answer_next=True)

    def _encode(self, text: str) -> list[int]:
        # A chat template has written the start token already.
        start = self.tokenizer.bos_token
        special = not (start and text.startswith(start))
        ids = list(self.tokenizer(text, add_special_tokens=special)["input_ids"])
        end = self.tokenizer.eos_token
        if special and end and ids[-1:] == [self.tokenizer.eos_token_id] and not text.endswith(end):
            ids.pop()  # some tokenizers close every text; here it goes on
        require_known_ids(self.name, ids, self._num_embeddings)
        return ids

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _start_ids(self) -> list[int]:
        start = self.tokenizer.bos_token_id
        return self._eos[:1] if start is None else [start]

    @torch.inference_mode()
    def _continue(self, rows: list[list[int]], max_new_tokens: int, stop: Sequence[str]) -> list[list[int]]:
        ids, mask = self._padded(rows, left=True)
        width = ids.size(1)
        criteria = [partial(self._stopped, width, stop)] if stop else []
        output = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            stopping_criteria=criteria,
            logits_processor=[self._numbers],
        )
        return [self._until_eos(row) for row in output[:, width:].tolist()]

    def _stopped(self, width: int, stop: Sequence[str], ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        ended = [self.ends_with_stop(row, stop) for row in ids[:, width:].tolist()]
        return torch.tensor(ended, device=ids.device)

    def _numbers(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if bool(scores.isnan().any()):
            raise self.no_number()
        return scores

    def _until_eos(self, ids: list[int]) -> list[int]:
        ends = [at for at, token in enumerate(ids) if token in self._eos]
        return ids[: ends[0]] if ends else ids

    @torch.inference_mode()
    def _score(self, inputs: list[ScoredInput]) -> list[list[float]]:
        ids, mask = self._padded([list(one.ids) for one in inputs], left=False)
        counts = [len(one.continuations[0]) for one in inputs]
        first = min(len(one.ids) - count for one, count in zip(inputs, counts, strict=True))
        # Only these positions: the logits of all would be the largest tensor by far.
        keep = {"logits_to_keep": torch.arange(first, ids.size(1), device=ids.device)} if self._keeps_logits else {}
        logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False, **keep).logits
        offset = first if self._keeps_logits else 0
        totals = []
        for row, one, count in zip(logits, inputs, counts, strict=True):
            read = row[len(one.ids) - count - offset : len(one.ids) - offset].float().log_softmax(-1)
            wanted = torch.tensor(one.continuations, device=row.device)  # [continuations, count]
            picked = read.gather(1, wanted.T).double().sum(0)
            totals.append(picked.tolist())
        return totals

    def _padded(self, rows: list[list[int]], *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """int64 ids and attention mask, both [rows, longest row]."""
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self._pad)
        mask = torch.zeros((len(rows), width), dtype=torch.int64)
        for number, row in enumerate(rows):
            place = slice(width - len(row), width) if left else slice(0, len(row))
            ids[number, place], mask[number, place] = torch.tensor(row), 1
        return ids.to(self.model.device), mask.to(self.model.device)


def open_huggingface(
    name_or_path: str,
    *,
    batch_size: int,
    device: str | None = None,
    dtype: str | None = None,
    allow_download: bool = False,
    truncate: bool = False,
) -> HuggingFaceModel:
    """Load a model, or an adapter over the model its adapter_config.json names.

    Raises:
        ConfigError: an unknown dtype or device.
        DataError: it is not there, is no causal model, has no safetensors, lacks weights, or needs code of its own.
        EnvironmentProblem: transformers or peft is not installed.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype}.", fix=f"Set one of {', '.join(DTYPES)}.")
    where = _device(device)
    transformers = _library("transformers")
    path = Path(name_or_path if allow_download else local_model(name_or_path))
    adapter = (path / ADAPTER_CONFIG).is_file()
    named = _base_of(path) if adapter else name_or_path
    base = named if allow_download else local_model(named)
    options = {"local_files_only": not allow_download, "trust_remote_code": False}
    try:
        model, loading = transformers.AutoModelForCausalLM.from_pretrained(
            base, dtype=dtype or "auto", use_safetensors=True, output_loading_info=True, **options
        )
        require_all_weights(named, loading)
        own = adapter and any((path / name).exists() for name in ("tokenizer.json", "tokenizer.model"))
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(path) if own else base, **options)
        if adapter:
            model = _library("peft").PeftModel.from_pretrained(model, str(path), **options)
    except unreadable() as error:
        raise DataError(
            f"{name_or_path} cannot be opened as a causal language model: {first_line(error)}.",
            "Models are read from local files with safetensors weights; code that comes with a model is never run.",
            "Correct the path, or convert the weights to safetensors.",
        ) from error
    parts = [Path(base), *([path] if adapter else [])]
    return HuggingFaceModel(
        model.to(where),
        tokenizer,
        name=_name_of(Path(name_or_path)),
        fingerprint=_fingerprint(parts, model.config),
        batch_size=batch_size,
        truncate=truncate,
    )


def _name_of(path: Path) -> str:
    """The last part of a path or name; of "." and "..", that of the folder they stand for."""
    return path.resolve().name if path.name in ("", "..") else path.name


def _base_of(path: Path) -> str:
    if not (path / ADAPTER_WEIGHTS).is_file():
        raise DataError(
            f"{path} has no {ADAPTER_WEIGHTS}.",
            "Other formats of weights can hold code, and are not read.",
            "Save the adapter with safetensors.",
        )
    base = read_json(path / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise DataError(
            f"{path / ADAPTER_CONFIG} names no base_model_name_or_path.", fix="Name the model it was made for."
        )
    # Relative to the adapter where that is there, so that both can be moved together.
    beside = path / base
    return str(beside) if beside.is_dir() else base


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {name} cannot be used: {first_line(error)}.", fix="Leave it unset for what there is."
        ) from None
    return device


def _library(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError as error:
        raise EnvironmentProblem(
            f"{name} cannot be imported: {error}.", "It reads Hugging Face models.", "pip install megalign[hf]"
        ) from None


def _fingerprint(folders: list[Path], config: Any) -> str:
    """Of the configuration and of the sizes and ends of the local weights."""
    left_out = {"_name_or_path", "transformers_version", "_commit_hash"}
    content = {key: value for key, value in config.to_dict().items() if key not in left_out}
    return weights_fingerprint(folders, seed=repr(sorted(content.items(), key=lambda item: item[0])).encode())
