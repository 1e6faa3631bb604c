"""Found by the interpreters of a job through PYTHONPATH: steps of its first attempt take longer, so that a test can act."""

from __future__ import annotations

import os
import sys
import time
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


class _Slowing(MetaPathFinder):
    """Lets each `megalign.training.loop._step` wait before it begins."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "megalign.training.loop":
            return None
        spec = PathFinder.find_spec(name, path, target)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def slowed(module: ModuleType) -> None:
            execute(module)
            step = module._step

            def late(*arguments: Any) -> Any:
                time.sleep(float(os.environ.get("MEGALIGN_TEST_STEP_SECONDS", "0.5")))
                return step(*arguments)

            module._step = late  # type: ignore[attr-defined]

        spec.loader.exec_module = slowed  # type: ignore[method-assign]
        return spec


if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
    sys.meta_path.insert(0, _Slowing())
