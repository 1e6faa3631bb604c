"""`megalign plan`: which layout a model should be trained in, how long it takes, what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml

from megalign.errors import ConfigError

if TYPE_CHECKING:
    from megalign.config import ModelConfig, RunConfig
    from megalign.config.sections import PrecisionConfig
    from megalign.scaling.calibrate import Calibration
    from megalign.scaling.communication import Cluster
    from megalign.scaling.devices import Device
    from megalign.scaling.search import Goal, InjectionLoad
    from megalign.scaling.step_time import Assumptions

_VOCAB_SIZE = 50_257
_BATCH_TOKENS = 2**21
_WORDS_PER_ENTRY = 2  # a word and one translation
_LOG_COLUMNS = 120
_RECIPES = ("delayed", "tensorwise", "blockwise", "mxfp8")


Preset = Annotated[
    str | None, typer.Option(help="Preset: 2.7b, 6.7b, 13b, 30b, 70b, llama-13b ... (megalign/config/models.py).")
]
NumGpus = Annotated[int, typer.Option(min=1, max=1_000_000, help="Devices, all of which are used.")]
Gpu = Annotated[str, typer.Option(help="a100-40gb, a100, h100, h200, b200, mi300x, or one of --devices.")]
Tokens = Annotated[float, typer.Option(min=1.0, max=1e18, help="To train on, e.g. 300e9.")]
Config = Annotated[
    Path | None,
    typer.Option(help="Take model, precision, batch, injection and vocabulary from this run's YAML file."),
]
GpusPerNode = Annotated[
    int | None, typer.Option(min=1, help="Devices that share the fast link. Default: the device's usual machine.")
]
Sequence = Annotated[int | None, typer.Option(min=1, help="Tokens of a window. Default: the model's.")]
BatchTokens = Annotated[
    float | None, typer.Option(min=1.0, max=1e12, help="Of a step, all devices together. Default: the run's, or 2 Mi.")
]
VocabSize = Annotated[
    int | None, typer.Option(min=1, help="Ids of the vocabulary. Default: the run's store, or 50257 (GPT-2).")
]
Precision = Annotated[
    str | None,
    typer.Option(help="bf16, fp32, fp8 (delayed scaling), or an FP8 recipe: " + ", ".join(_RECIPES) + "."),
]
Recomputation = Annotated[
    list[str] | None, typer.Option(help="none, selective or full; may be given again. Default: all are searched.")
]
Uneven = Annotated[bool, typer.Option("--uneven-stages", help="Search pipeline stages that differ by one layer too.")]
InjectWords = Annotated[
    int | None,
    typer.Option(min=0, help="Words of an injection step, for its memory. Default: two an entry of --config's."),
]
TokensPerWord = Annotated[float, typer.Option(min=1.0, max=1e6, help="With the padding of packing.")]
Price = Annotated[float | None, typer.Option(min=0.0, help="Any currency.")]
FromMetrics = Annotated[
    Path | None, typer.Option(help="Folder of a run whose measured speed calibrates the model of time.")
]
MeasuredOn = Annotated[str | None, typer.Option(help="Device that run was measured on. Default: --gpu.")]
Devices = Annotated[
    Path | None,
    typer.Option(
        help="YAML file with more devices, as megalign/scaling/devices.yaml. Default: the run's track.devices."
    ),
]
Top = Annotated[int, typer.Option(min=1, help="Layouts to show.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write all layouts that fit, as JSON.")]
YamlFile = Annotated[
    Path | None, typer.Option("--yaml", help="Also write the best layout's sections of a run's configuration.")
]


@dataclass(frozen=True)
class Asked:
    """What the command line says of the training; None: as in the run's file, or the default."""

    model: str | None = None
    sequence: int | None = None
    tokens: float = 300e9
    global_batch_tokens: float | None = None
    vocab_size: int | None = None
    precision: str | None = None
    recompute: list[str] | None = None
    uneven_stages: bool = False
    inject_words: int | None = None
    inject_tokens_per_word: float = 3.0


def plan(
    model: Preset = None,
    gpus: NumGpus = 8,
    gpu: Gpu = "h100",
    tokens: Tokens = 300e9,
    config: Config = None,
    gpus_per_node: GpusPerNode = None,
    sequence: Sequence = None,
    global_batch_tokens: BatchTokens = None,
    vocab_size: VocabSize = None,
    precision: Precision = None,
    recompute: Recomputation = None,
    uneven_stages: Uneven = False,
    inject_words: InjectWords = None,
    inject_tokens_per_word: TokensPerWord = 3.0,
    price_per_gpu_hour: Price = None,
    from_metrics: FromMetrics = None,
    measured_on: MeasuredOn = None,
    devices: Devices = None,
    top: Top = 10,
    json_file: JsonFile = None,
    yaml_file: YamlFile = None,
) -> None:
    """Find the fastest layout of a model on so many devices: what fits, how long it takes, what it costs, why others fall.

    Searches all degrees of tensor, pipeline (plain and interleaved), data and context parallelism whose product is --gpus,
    with and without sequence parallelism, all micro-batches, all recomputation. Nothing is started, no GPU is needed.

    * Memory is counted tensor by tensor, as in `megalign train --dry-run`; a tenth of the device is left free.
    * Time is a model: matrix products at what devices reach of their dense peak, everything else by bytes over bandwidths.
      It was adjusted on published speeds, which it meets within -15 % to +28 %. To calibrate it, train some steps on some
      devices and give the folder with --from-metrics.
    * MFU is against the dense peak, attention counted over the whole window, without recomputation.

    Examples:

    `megalign plan --model 13b --gpus 64 --gpu h100 --tokens 300e9`

    `megalign plan --model llama-70b --gpus 512 --precision fp8 --price-per-gpu-hour 2.5 --yaml layout.yaml`

    `megalign plan --config run.yaml --gpus 16 --gpu a100 --tokens 10e9 --from-metrics runs/short`

    Put the YAML it prints into the run's file, then check it: `megalign train run.yaml --dry-run --device h100`.
    """
    from megalign.config import load_run
    from megalign.scaling.communication import Cluster
    from megalign.scaling.devices import load_devices, named_device

    if measured_on and not from_metrics:
        raise ConfigError("--measured-on says what --from-metrics was measured on.", fix="Give both, or neither.")
    run = load_run(config) if config else None
    if devices is None and run and run.track.devices:
        devices = Path(run.track.devices)
    table = load_devices(devices)
    device = named_device(gpu, table)
    calibration = None
    if from_metrics:
        ran_on = named_device(measured_on or gpu, table)
        calibration = calibration_from(from_metrics, ran_on, trust_device=bool(measured_on), vocab_size=vocab_size)
    asked = Asked(
        *(model, sequence, tokens, global_batch_tokens, vocab_size, precision, recompute, uneven_stages),
        *(inject_words, inject_tokens_per_word),
    )
    cluster = Cluster(device, gpus, gpus_per_node or device.devices_per_node or gpus)
    goal = goal_of(asked, run, cluster, calibration.assumptions if calibration else None)
    _search(goal, calibration, top, price_per_gpu_hour, json_file, yaml_file)


def _search(
    goal: Goal,
    calibration: Calibration | None,
    top: int,
    price_per_gpu_hour: float | None,
    json_file: Path | None,
    yaml_file: Path | None,
) -> None:
    """Search, write, print; ends with 2 where nothing fits."""
    from rich.console import Console

    from megalign.cli.plan_report import rendered, to_json
    from megalign.files import write_json, write_text
    from megalign.scaling.search import run_sections, search

    console = Console()
    with console.status("looking at all layouts"):
        found = search(goal)
    if json_file:
        write_json(json_file, to_json(goal, found, price_per_gpu_hour))
    if yaml_file and found.plans:
        write_text(yaml_file, yaml.safe_dump(run_sections(goal, found.plans[0]), sort_keys=False))
    wide = console if console.is_terminal else Console(width=max(console.width, _LOG_COLUMNS))
    wide.print(rendered(goal, found, calibration, top=top, price_per_gpu_hour=price_per_gpu_hour), highlight=False)
    if not found.plans:
        raise typer.Exit(2)


def goal_of(asked: Asked, run: RunConfig | None, cluster: Cluster, assumptions: Assumptions | None = None) -> Goal:
    """The goal of a search.

    Raises:
        ConfigError: neither or both of a preset and a run, or an option that is none of its choices.
        DataError: the run's store cannot be read.
    """
    from megalign.scaling.search import RECOMPUTE, Goal
    from megalign.scaling.step_time import Assumptions

    if unknown := set(asked.recompute or []) - set(RECOMPUTE):
        raise ConfigError(f"--recompute is {min(unknown)!r}.", fix=f"Choose of {', '.join(RECOMPUTE)}.")
    model = _model(asked, run)
    batch_tokens = asked.global_batch_tokens or (0 if run else _BATCH_TOKENS)
    windows = run.train.global_batch_size if run else 0
    return Goal(
        model=model,
        precision=_precision(asked.precision, run),
        vocab_size=_vocab_size(asked.vocab_size, run),
        cluster=cluster,
        global_batch_size=max(round(batch_tokens / model.sequence_length), 1) if batch_tokens else windows,
        tokens=asked.tokens,
        recompute=tuple(way for way in RECOMPUTE if not asked.recompute or way in asked.recompute),
        uneven_stages=asked.uneven_stages,
        injection=_injection(asked, run),
        assumptions=assumptions or Assumptions(),
    )


def _model(asked: Asked, run: RunConfig | None) -> ModelConfig:
    from megalign.config import ModelConfig, model_preset

    if asked.model and not run:
        values = model_preset(asked.model)
    elif run and not asked.model:
        values = run.model.model_dump()
    else:
        raise ConfigError(
            "megalign plan needs a model: give one of --model and --config.",
            fix="E.g. --model 13b; a run's file has a model of its own.",
        )
    if asked.sequence:
        values["sequence_length"] = asked.sequence
    return ModelConfig.model_validate(values)


def _precision(name: str | None, run: RunConfig | None) -> PrecisionConfig:
    from megalign.config.sections import PrecisionConfig

    if name is None:
        return run.precision if run else PrecisionConfig(dtype="bfloat16")
    if name in ("bf16", "fp32"):
        return PrecisionConfig(dtype="bfloat16" if name == "bf16" else "float32")
    recipe = "delayed" if name == "fp8" else name
    if recipe not in _RECIPES:
        raise ConfigError(f"--precision is {name!r}.", fix=f"Choose one of bf16, fp32, fp8, {', '.join(_RECIPES)}.")
    return PrecisionConfig.model_validate({"dtype": "bfloat16", "fp8": recipe})


def _injection(asked: Asked, run: RunConfig | None) -> InjectionLoad | None:
    from megalign.scaling.search import InjectionLoad

    settings = run.inject if run and run.inject.steps else None
    num_words = asked.inject_words
    if num_words is None:
        num_words = settings.entries_per_step * _WORDS_PER_ENTRY if settings else 0
    if not num_words:
        return None
    width = settings.row_width_tokens if settings else InjectionLoad.row_width_tokens
    during = settings is not None and settings.when == "during"
    return InjectionLoad(num_words, asked.inject_tokens_per_word, width, during=during)


def _vocab_size(given: int | None, run: RunConfig | None) -> int:
    """As given, or of the run's store.

    Raises:
        ConfigError: there is no store yet.
        DataError: it cannot be read.
    """
    from megalign.corpus.store import TokenStore

    if given or run is None:
        return given or _VOCAB_SIZE
    store = Path(run.data.store)
    if not store.is_dir():
        raise ConfigError(
            f"The run's store {store} does not exist.",
            "The size of the model depends on the vocabulary, which stands there.",
            "Build it first, or give --vocab-size.",
        )
    return int(TokenStore.open(store).manifest["vocabulary"]["size"])


def calibration_from(folder: Path, device: Device, *, trust_device: bool, vocab_size: int | None) -> Calibration:
    """See `megalign.scaling.calibrate`.

    Args:
        folder: of the measured run.
        device: what it ran on.
        trust_device: the user says so.
        vocab_size: as given.
    """
    from megalign.config import load_run
    from megalign.scaling.calibrate import calibrate, read_measured

    run = load_run(folder / "config.yaml")
    measured = read_measured(folder / "metrics.jsonl", run)
    return calibrate(run, measured, device, _vocab_size(vocab_size, run), trust_device=trust_device)
