"""A Hugging Face model as weights that a run starts from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from megalign.answers.trained_run import single_process
from megalign.config.layout import Layout
from megalign.config.sections import ModelConfig, ParallelConfig, PrecisionConfig
from megalign.corpus.vocabulary import Vocabulary
from megalign.engine import checkpoint
from megalign.engine.engine import Engine, LanguageBatch
from megalign.engine.model import unwrapped
from megalign.engine.weights import set_weights
from megalign.errors import DataError
from megalign.evaluation.huggingface.architectures import model_from, named
from megalign.evaluation.huggingface.export import refuse_filled
from megalign.evaluation.huggingface.files import output_name, quiet, read_model, transformers
from megalign.evaluation.huggingface.parity import Parity, compare, random_windows
from megalign.evaluation.huggingface.tokenizer_files import own_facts, read_tokenizer
from megalign.evaluation.huggingface.weights import EMBEDDING, OUTPUT, Tensors, from_huggingface, rules
from megalign.files import new_folder, read_json_object, write_json, write_text
from megalign.hub import local_model
from megalign.training.initial import STAGE, ImportedFolder

Say = Callable[[str], None]


@dataclass(frozen=True)
class Imported:
    """What was written.

    Attributes:
        folder: model.yaml, tokenizer.json, import.json and a checkpoint of weights.
        model: the model section of a run that starts from it.
        vocab_size: ids of the vocabulary, clones included.
        num_dropped_rows: rows of the Hugging Face embedding that belong to no id of the tokenizer and were left out.
        padding_mass: probability of the vocabulary's padding, mean over the compared positions: what a run's loss at its
            first step is above the model's own, in nats.
        parity: how the logits compare.
    """

    folder: Path
    model: ModelConfig
    vocab_size: int
    num_dropped_rows: int
    padding_mass: float
    parity: Parity


def import_model(
    name_or_path: str,
    out: Path,
    *,
    languages: Sequence[str] = (),
    eos_token: str | None = None,
    vocab_size_multiple: int | None = None,
    say: Say = lambda text: None,
) -> Imported:
    """Write a GPT-2, sequential GPT-NeoX or Llama model as weights for `initial_weights`.

    The folder appears under its name only after the written checkpoint, read back, gave the logits of the Hugging Face
    model on windows of random ids, in float32. float16 is kept as float32.

    Args:
        name_or_path: a folder with config.json, safetensors and a tokenizer, or a name on the Hub that was downloaded.
        out: the folder, which must not exist or be empty.
        languages: of the vocabulary; none: those an exported model names, else en.
        eos_token: the end-of-text token; None: the tokenizer's.
        vocab_size_multiple: model.vocab_size_multiple, which a tensor-parallel degree must divide; None: the largest power
            of 2 up to 128 that needs no padding. Rows of padding are copies of the row of the least likely id.

    Raises:
        ConfigError: `out` holds something.
        DataError: the model computes what ours do not, its files are damaged or have no safetensors, or the logits differ.
        EnvironmentProblem: transformers is missing.
    """
    refuse_filled(out)
    transformers()
    source = Path(local_model(name_or_path))
    _refuse_early(source)
    tokenizer = read_tokenizer(source, eos_token)
    told = own_facts(source)
    named_languages = tuple(languages) or tuple(told.get("languages", ("en",)))
    vocabulary = Vocabulary(tokenizer, named_languages, told.get("clone_of"))
    with quiet():
        say(f"reading {source}")
        theirs = read_model(source)
        model = model_from(theirs.config, vocabulary.size, vocab_size_multiple, str(source))
        weights = _our_weights(theirs, model, vocabulary, source)
        dropped = max(len(weights[EMBEDDING]) - model.padded_vocab_size(vocabulary.size), 0)
        # float32 from here on, as ours will be; changed in place, so that one copy is in memory.
        theirs.float()
        _pad(weights, model, vocabulary.size, theirs)
        out.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(out) as folder:
            files = ImportedFolder(folder)
            say("writing the checkpoint")
            with single_process():
                _write_checkpoint(files, model, vocabulary, weights)
            del weights
            say("comparing logits")
            parity, mass = _compare(files, model, vocabulary.size, theirs)
            _write_facts(files, model, vocabulary, source, parity)
    return Imported(out, model, vocabulary.size, dropped, mass, parity)


def _refuse_early(source: Path) -> None:
    """Before the weights are read."""
    if not (source / "config.json").is_file():
        raise DataError(f"{source} has no config.json.", "It is no Hugging Face model.", "Name the folder of a model.")
    named(str(read_json_object(source / "config.json").get("model_type")), str(source))


def _our_weights(theirs: Any, model: ModelConfig, vocabulary: Vocabulary, source: Path) -> Tensors:
    architecture = named(theirs.config.model_type, str(source))
    output = output_name(theirs)
    tensors = {name: tensor.detach() for name, tensor in theirs.state_dict().items()}
    _refuse_broken(tensors, str(source))
    if model.tied_embeddings:
        _refuse_untied(tensors.pop(output, None), theirs.get_input_embeddings().weight, str(source))
    dtypes = {tensor.dtype for tensor in tensors.values()}
    target = torch.bfloat16 if dtypes == {torch.bfloat16} else torch.float32
    weights = from_huggingface(rules(architecture, model, output), model, tensors)
    rows = len(weights[EMBEDDING])
    if rows < vocabulary.size:
        raise DataError(
            f"The model has {rows} rows of embeddings, the tokenizer with its clones {vocabulary.size} ids.",
            "Some ids would have no row.",
            "Use the tokenizer the model was trained with.",
        )
    return {name: tensor.to(target) for name, tensor in weights.items()}


def _refuse_broken(tensors: Tensors, name: str) -> None:
    broken = sorted(key for key, tensor in tensors.items() if not bool(torch.isfinite(tensor.float()).all()))
    if broken:
        raise DataError(
            f"{name} has {len(broken)} tensors with values that are not finite ({', '.join(broken[:3])}).",
            "Nothing can be learned from such weights.",
            "Download or save the model again.",
        )


def _refuse_untied(output: torch.Tensor | None, embedding: torch.Tensor, name: str) -> None:
    if output is not None and not torch.equal(output, embedding):
        raise DataError(
            f"{name} has output rows of its own, and its config.json says tie_word_embeddings.",
            "One of them would be lost.",
            "Set tie_word_embeddings to false in config.json if the output rows are to be used.",
        )


def _pad(weights: Tensors, model: ModelConfig, vocab_size: int, theirs: Any) -> None:
    """Bring the rows of the vocabulary to their padded number: theirs beyond the ids first, then copies of an unlikely id."""
    padded = model.padded_vocab_size(vocab_size)
    unlikely: int | None = None
    for name in (EMBEDDING, OUTPUT):
        if name not in weights:
            continue
        rows = weights[name][:padded]
        if len(rows) < padded:
            unlikely = _least_likely(theirs, model, vocab_size) if unlikely is None else unlikely
            rows = torch.cat([rows, rows[unlikely].expand(padded - len(rows), -1)])
        weights[name] = rows


@torch.inference_mode()
def _least_likely(theirs: Any, model: ModelConfig, vocab_size: int) -> int:
    windows = torch.from_numpy(random_windows(vocab_size, model.sequence_length, 1))
    logits = theirs.eval()(input_ids=windows, use_cache=False).logits[0, :, :vocab_size]
    return int(logits.float().log_softmax(-1).logsumexp(0).argmin())


def _write_checkpoint(files: ImportedFolder, model: ModelConfig, vocabulary: Vocabulary, weights: Tensors) -> None:
    dtype = "bfloat16" if weights[EMBEDDING].dtype is torch.bfloat16 else "float32"
    precision = PrecisionConfig.model_validate({"dtype": dtype})
    engine = Engine(model, Layout(ParallelConfig()), precision, vocab_size=vocabulary.size, seed=0)
    set_weights([unwrapped(chunk) for chunk in engine.chunks], weights)
    state = {"stage": STAGE, "tokenizer": vocabulary.tokenizer.fingerprint}
    checkpoint.save(engine, files.checkpoints, 0, state, keep=1)


def _compare(files: ImportedFolder, model: ModelConfig, vocab_size: int, theirs: Any) -> tuple[Parity, float]:
    path = checkpoint.latest(files.checkpoints)
    assert path is not None
    masses: list[float] = []
    with single_process():
        engine = Engine(model, Layout(ParallelConfig()), PrecisionConfig(), vocab_size=vocab_size, seed=0)
        checkpoint.load(engine, path, with_optimizer=False)
        padded = model.padded_vocab_size(vocab_size)

        def weigh(tokens: np.ndarray, logits: torch.Tensor) -> None:
            masses.append(_padding_mass(engine, tokens, vocab_size, padded))

        windows = random_windows(vocab_size, model.sequence_length)
        parity = compare(engine, theirs, model, windows, vocab_size, weigh)
    return parity, float(np.mean(masses))


def _padding_mass(engine: Engine, tokens: np.ndarray, vocab_size: int, padded: int) -> float:
    if padded == vocab_size:
        return 0.0
    batch = LanguageBatch(tokens, tokens, np.ones(tokens.shape, dtype=np.float32))
    (scores,) = engine.score([batch], {"padding": (vocab_size, padded)})
    return float(scores.mass["padding"].mean(dtype=np.float64))


def _write_facts(
    files: ImportedFolder, model: ModelConfig, vocabulary: Vocabulary, source: Path, parity: Parity
) -> None:
    vocabulary.tokenizer.save(files.tokenizer)
    content = {"model": model.model_dump(mode="json", exclude_none=True)}
    write_text(files.model, yaml.safe_dump(content, sort_keys=False))
    write_json(
        files.facts,
        {
            "source": source.name,
            "eos_token": vocabulary.tokenizer.eos_token,
            "vocabulary": vocabulary.to_json(),
            "max_difference_of_logits": parity.max_difference,
            "tolerance": parity.tolerance,
        },
    )
