"""Weights that a run starts from: an imported model, or another run's checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megalign.config import ModelConfig, RunConfig, load_run, validate
from megalign.config.compare import differences
from megalign.config.load import read_yaml
from megalign.corpus.store import TokenStore
from megalign.corpus.tokenizer import Tokenizer
from megalign.corpus.vocabulary import Vocabulary
from megalign.engine import checkpoint
from megalign.errors import ConfigError, DataError
from megalign.files import read_json_object
from megalign.training.inputs import RunFolder, RunInputs

if TYPE_CHECKING:
    from megalign.engine.engine import Engine

STAGE = "import"
_NOT_COMPUTED = {
    *("preset", "init_std", "embedding_init_std", "hidden_dropout", "attention_dropout", "vocab_size_multiple"),
}


class ImportedFolder:
    """The files of an imported model."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = path / "model.yaml"
        self.tokenizer = path / "tokenizer.json"
        self.facts = path / "import.json"
        self.checkpoints = path / "checkpoints" / STAGE

    @property
    def exists(self) -> bool:
        """Whether there is one."""
        return self.model.is_file() and self.facts.is_file()


@dataclass(frozen=True)
class Weights:
    """A checkpoint and what belongs to it.

    Attributes:
        checkpoint: the folder with the shards.
        model: its shape.
        vocabulary: meaning of its ids.
        store: the token store it was trained on; None for an imported model.
        config: of the run; None for an imported model.
        state: what the checkpoint says of itself.
    """

    checkpoint: Path
    model: ModelConfig
    vocabulary: Vocabulary
    store: TokenStore | None
    config: RunConfig | None
    state: dict[str, Any]

    @property
    def identity(self) -> str:
        """16 hex digits that change with the weights."""
        return checkpoint.weights_identity(self.checkpoint)


def find_weights(path: Path, store: Path | None = None) -> Weights:
    """Open an imported model's folder, a run's folder (its newest checkpoint), or a checkpoint of either.

    Args:
        path: the folder.
        store: where a run's token store stands now; None: where its configuration says.

    Raises:
        DataError: it is none of them, or its store is missing or another one.
    """
    named = path if (path / checkpoint.MARKER).is_file() else None
    # OWNER/checkpoints/STAGE/step_00000012
    owner = (path / "../../..").resolve() if named else path
    imported = ImportedFolder(owner)
    if imported.exists:
        return _imported(imported, named)
    folder = RunFolder(owner)
    if not (folder.config.is_file() and (owner / "checkpoints").is_dir()):
        raise DataError(
            f"{path} holds no weights to read.",
            "They are in a run's folder (config.yaml and checkpoints), in an imported model's (model.yaml, import.json), "
            "or in a checkpoint of one of them.",
            "Name such a folder.",
        )
    config = load_run(folder.config, [f"folder={owner}", *([f"data.store={store}"] if store else [])])
    where = named or newest_checkpoint(folder)
    state, _ = checkpoint.read_marker(where)
    opened = TokenStore.open(Path(config.data.store))
    if state.get("store") != opened.fingerprint:
        raise DataError(
            f"{where} was trained on the token store {state.get('store')}, {config.data.store} is {opened.fingerprint}.",
            "Its ids may mean other words.",
            "Restore the store, or name the right one.",
        )
    return Weights(where, config.model, opened.vocabulary, opened, config, state)


def _imported(folder: ImportedFolder, named: Path | None) -> Weights:
    where = named or checkpoint.latest(folder.checkpoints)
    if where is None:
        raise DataError(f"{folder.path} has no checkpoint.", fix="Import the model again.")
    section = read_yaml(folder.model).get("model")
    model = validate(ModelConfig, section if isinstance(section, dict) else {}, str(folder.model))
    facts = read_json_object(folder.facts)
    try:
        vocabulary = Vocabulary.from_json(facts["vocabulary"], Tokenizer.load(folder.tokenizer, facts["eos_token"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder.facts} does not say what an import says: {type(error).__name__} {error}.",
            "It was changed by hand or damaged.",
            "Import the model again.",
        ) from None
    state, _ = checkpoint.read_marker(where)
    return Weights(where, model, vocabulary, None, None, state)


def newest_checkpoint(folder: RunFolder) -> Path:
    """The newest checkpoint of fine-tuning, else of the last stage of training from pretraining on.

    Raises:
        DataError: there is none.
    """
    path = checkpoint.latest(folder.checkpoints("finetune")) or trained_checkpoint(folder)
    if path is None:
        raise DataError(f"{folder.path} has no checkpoint of pretraining.", fix="Train the run first.")
    return path


def trained_checkpoint(folder: RunFolder) -> Path | None:
    """The newest checkpoint of the last stage of training, pretraining or one after it; None where there is none."""
    if checkpoint.latest(folder.checkpoints("pretrain")) is None:
        return None
    return checkpoint.newest([folder.checkpoints(stage) for stage in ("inject", "pretrain")])


def initial_weights(inputs: RunInputs) -> Weights | None:
    """The weights a run starts from, checked against its tokenizer; None where it starts from random ones.

    Raises:
        ConfigError: they are the run's own.
        DataError: there are none, or their ids mean something else.
    """
    config = inputs.config
    if config.initial_weights is None:
        return None
    path = Path(config.initial_weights)
    if path.resolve().is_relative_to(Path(config.folder).resolve()):
        raise ConfigError(
            f"initial_weights is {path}, in the run's own folder {config.folder}.",
            "A run goes on from its own checkpoints by itself.",
            "Leave initial_weights out, or name another folder.",
        )
    found = find_weights(path)
    own, other = inputs.store.vocabulary, found.vocabulary
    if own.tokenizer.fingerprint != other.tokenizer.fingerprint:
        raise DataError(
            f"The weights {path} were made for the tokenizer {other.tokenizer.fingerprint}, the store {config.data.store} "
            f"has {own.tokenizer.fingerprint}.",
            "The same ids mean other words.",
            f"Build the store with the tokenizer of {path}.",
        )
    if own.size != other.size:
        raise DataError(
            f"The weights {path} know {other.size} ids ({_clones(other)}), the store {config.data.store} has {own.size} "
            f"({_clones(own)}).",
            "Ids of clone languages would have no rows, or other rows.",
            "Build the store with as many clone languages.",
        )
    changed = differences(_function(found.model, other.size), _function(config.model, own.size))
    if changed:
        told = "; ".join(f"{name} is {here}, theirs {there}" for name, there, here in changed)
        raise DataError(
            f"The weights {path} belong to a model with other settings: {told}.",
            "They would not fit, or compute something else.",
            "Take the model section that stands beside the weights.",
        )
    return found


def _function(model: ModelConfig, vocab_size: int) -> dict[str, Any]:
    """The settings that decide what the weights compute."""
    content = model.model_dump(exclude=_NOT_COMPUTED)
    content["num_query_groups"] = model.num_query_groups or model.num_attention_heads
    content["rows of the padded vocabulary"] = model.padded_vocab_size(vocab_size)
    if model.position_embedding == "rotary":
        del content["sequence_length"]
    else:
        del content["rotary_base"]
    return content


def start_from(engine: Engine, weights: Weights | None) -> None:
    """Load the weights into a fresh engine, if there are any. All ranks call this.

    Raises:
        DataError: their shapes are not the model's.
    """
    if weights is not None:
        checkpoint.load_weights(engine, weights.checkpoint)


def _clones(vocabulary: Vocabulary) -> str:
    return f"clones: {', '.join(vocabulary.clone_of) or 'none'}"
