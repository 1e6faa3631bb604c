"""What a run is: strict typed configuration, presets for models and methods, YAML files with `a.b=value` overrides."""

from megalign.config.load import apply_overrides, load_run, load_study, parse_override, read_yaml, validate
from megalign.config.methods import METHODS, apply_method
from megalign.config.models import MODELS, model_preset
from megalign.config.run import RunConfig, RunDataConfig, SourceConfig
from megalign.config.sections import (
    CodeswitchConfig,
    EvaluateConfig,
    InjectConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PrecisionConfig,
    TrainConfig,
)
from megalign.config.study import CorpusConfig, MethodConfig, StudyConfig, TableConfig
from megalign.config.tasks import DynamicsConfig, FactsConfig, NliConfig

__all__ = [
    "METHODS",
    "MODELS",
    "CodeswitchConfig",
    "CorpusConfig",
    "DynamicsConfig",
    "EvaluateConfig",
    "FactsConfig",
    "InjectConfig",
    "MethodConfig",
    "ModelConfig",
    "NliConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "PrecisionConfig",
    "RunConfig",
    "RunDataConfig",
    "SourceConfig",
    "StudyConfig",
    "TableConfig",
    "TrainConfig",
    "apply_method",
    "apply_overrides",
    "load_run",
    "load_study",
    "model_preset",
    "parse_override",
    "read_yaml",
    "validate",
]
