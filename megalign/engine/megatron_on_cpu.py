"""Megatron-Core on the host: an import hook on `megatron.core` alone. With CUDA it does nothing.

Megatron-Core spells its device as string constants, as `torch.cuda.*` and as `tensor.cuda()`. Without CUDA, every source
file below `megatron.core` is compiled with that spelling changed:

    'cuda', 'cuda:0'            -> 'cpu'                 device='cuda', torch.autocast('cuda'), ...
    'torch.cuda.FloatTensor'    -> 'torch.FloatTensor'   the optimizer's checks of param.type()
    torch.cuda.<name>           -> _cuda.<name>          torch.cpu, and the few names that it lacks
    <tensor>.cuda(...)          -> <tensor>.cpu()
    torch.distributed.all_reduce -> _all_reduce          does nothing in a group of one (host_kernels)
    pin_memory=True             -> pin_memory=False      there is no device to copy to, and torch refuses

torch itself is left alone, nothing is added per call, and line numbers in tracebacks stay right. Patching torch instead
would not reach the string checks without changing `torch.Tensor.type` for everybody.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.machinery
import importlib.util
import logging
import os
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from megalign.engine import host_kernels

PACKAGE = "megatron.core"


class _CudaStandIn(types.ModuleType):
    """torch.cuda as megatron.core sees it: torch.cpu, and the names that torch.cpu lacks."""

    is_available = staticmethod(torch.cuda.is_available)
    manual_seed = staticmethod(torch.manual_seed)
    get_rng_state = staticmethod(lambda device=None: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, device=None: torch.set_rng_state(state))
    empty_cache = staticmethod(lambda: None)

    def __getattr__(self, name: str) -> Any:
        found = getattr(torch.cpu, name, None)
        return found if found is not None else getattr(torch.cuda, name)


_stand_in = _CudaStandIn("torch.cuda")
_stand_in.random = _stand_in  # type: ignore[attr-defined]


class _Respell(ast.NodeTransformer):
    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        value = node.value
        if isinstance(value, str) and " " not in value:
            if value == "cuda" or value.startswith("cuda:"):
                node.value = "cpu"
            elif value.startswith("torch.cuda."):
                node.value = value.replace("torch.cuda.", "torch.")
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        if node.attr == "cuda" and isinstance(node.value, ast.Name) and node.value.id == "torch":
            return ast.copy_location(ast.Name("_cuda", ast.Load()), node)
        if node.attr == "all_reduce" and ast.unparse(node.value) == "torch.distributed":
            return ast.copy_location(ast.Name("_all_reduce", ast.Load()), node)
        return node

    def visit_keyword(self, node: ast.keyword) -> ast.AST:
        self.generic_visit(node)
        if node.arg == "pin_memory" and isinstance(node.value, ast.Constant):
            node.value.value = False
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute) and node.func.attr == "cuda":
            node.func.attr, node.args, node.keywords = "cpu", [], []
        return node


def respell(source: bytes | str, path: str = "<string>") -> ast.Module:
    """The syntax tree of `source` with the device respelled."""
    tree: ast.Module = _Respell().visit(ast.parse(source, path))
    return ast.fix_missing_locations(tree)


def _cache_folder() -> str:
    """Compiled files apart from the real package's, and apart for every version of this hook."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    return str(base / "megalign" / f"megatron_on_cpu-{version}")


class _Loader(importlib.machinery.SourceFileLoader):
    cache_folder: str

    def source_to_code(self, data: Any, path: Any, *, _optimization: int = -1) -> types.CodeType:  # type: ignore[override]
        code: types.CodeType = compile(respell(data, path), path, "exec", dont_inherit=True, optimize=_optimization)
        return code

    def get_code(self, fullname: str) -> types.CodeType | None:
        before, sys.pycache_prefix = sys.pycache_prefix, self.cache_folder
        try:
            return super().get_code(fullname)
        finally:
            sys.pycache_prefix = before

    def exec_module(self, module: types.ModuleType) -> None:
        module._cuda = _stand_in  # type: ignore[attr-defined]
        super().exec_module(module)
        host_kernels.install(module)
        if module.__name__ == f"{PACKAGE}.tensor_parallel.random":
            # These two reach into torch._C; on the host one generator plays both roles.
            module._get_cuda_rng_state = lambda device=None, clone=False, graph_safe=False: torch.get_rng_state()  # type: ignore[attr-defined]
            module._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: torch.set_rng_state(state)  # type: ignore[attr-defined]
            # It would warn at every fork that the CPU generator changed inside the GPU's context: here they are one.
            logging.getLogger(module.__name__).setLevel(logging.ERROR)


class _Finder:
    def __init__(self, cache_folder: str) -> None:
        self.cache_folder = cache_folder

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != PACKAGE and not name.startswith(PACKAGE + "."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or type(spec.loader) is not importlib.machinery.SourceFileLoader:
            return None
        loader = _Loader(spec.loader.name, spec.loader.path)
        loader.cache_folder = self.cache_folder
        spec.loader = loader
        return spec


def install() -> bool:
    """Install the hook where there is no CUDA. Says whether it is installed. May be called again.

    Raises:
        RuntimeError: megatron.core was imported before, so it cannot be respelled any more.
    """
    if torch.cuda.is_available():
        return False
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return True
    if PACKAGE in sys.modules:
        raise RuntimeError(
            f"{PACKAGE} was imported before megalign.engine: on a machine without CUDA, import megalign.engine.mcore first."
        )
    sys.meta_path.insert(0, _Finder(_cache_folder()))  # type: ignore[arg-type]
    if importlib.util.find_spec("triton") is None:
        # From 0.19 this one kernel file is imported unguarded, and needs triton; its kernels are for MoE on GPUs.
        stash = types.ModuleType(f"{PACKAGE}.transformer.moe.ops.paged_stash")
        stash.__getattr__ = lambda name: None  # type: ignore[method-assign]
        sys.modules[stash.__name__] = stash
    return True
