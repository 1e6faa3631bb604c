"""The import hook: what it respells, and that torch stays as it is."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
import torch

from megalign.engine.megatron_on_cpu import respell


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 'cuda'", "x = 'cpu'"),
        ("x = torch.empty(3, device='cuda:0')", "x = torch.empty(3, device='cpu')"),
        ("ok = p.type() == 'torch.cuda.FloatTensor'", "ok = p.type() == 'torch.FloatTensor'"),
        ("ok = p.type() == 'torch.cuda.BFloat16Tensor'", "ok = p.type() == 'torch.BFloat16Tensor'"),
        ("torch.cuda.synchronize()", "_cuda.synchronize()"),
        ("d = torch.cuda.current_device()", "d = _cuda.current_device()"),
        ("with torch.cuda.stream(s): pass", "with _cuda.stream(s): pass"),
        ("y = x.cuda()", "y = x.cpu()"),
        ("y = x.cuda(device, non_blocking=True)", "y = x.cpu()"),
        ("y = torch.tensor([1]).float().cuda()", "y = torch.tensor([1]).float().cpu()"),
        ("y = torch.tensor([1], pin_memory=True)", "y = torch.tensor([1], pin_memory=False)"),
        ("y = torch.cuda.FloatTensor([1.0])", "y = _cuda.FloatTensor([1.0])"),
    ],
)
def test_device_is_respelled(source: str, expected: str) -> None:
    assert ast.unparse(respell(source)) == ast.unparse(ast.parse(expected))


@pytest.mark.parametrize(
    "source",
    [
        "raise ValueError('cuda is not available here')",
        "raise ValueError('needs torch.cuda. Install it')",
        "x = 'cudagraph'",
        "x = 'cuda_rng_state'",
        "x = config.cuda_graph_impl",
        "import megatron.cuda_helpers",
        "x = other.cuda",
        "x = b'cuda'",
        "def cuda(): pass",
    ],
)
def test_everything_else_stays(source: str) -> None:
    assert ast.unparse(respell(source)) == ast.unparse(ast.parse(source))


def test_line_numbers_stay() -> None:
    tree = respell("a = 1\n\n\nb = torch.cuda.is_available()\nc = b.cuda()\n")
    assert [node.lineno for node in tree.body] == [1, 4, 5]


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=400, check=False)


_SNAPSHOT = """
import torch
names = [(torch, n) for n in ("tensor", "empty", "zeros", "ones", "autocast", "get_rng_state")]
names += [(torch.Tensor, n) for n in ("cuda", "cpu", "type", "to", "__torch_function__")]
names += [(torch.cuda, n) for n in dir(torch.cuda) if not n.startswith("__")]
before = [getattr(o, n) for o, n in names]
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="the hook is not installed where there is CUDA")
def test_torch_is_untouched_by_importing_the_engine() -> None:
    result = _python(
        _SNAPSHOT
        + """
import megalign.engine.mcore as mcore
assert mcore.ON_HOST
after = [getattr(o, n) for o, n in names]
assert [n for (_, n), b, a in zip(names, before, after) if not (b is a or b == a)] == []
assert torch.cuda.is_available() is False
try:
    torch.zeros(1).cuda()
except (RuntimeError, AssertionError) as error:
    print("refused:", type(error).__name__)
import megatron.core.optimizer.clip_grads as clip
assert clip._cuda.current_device() == torch.cpu.current_device()
"""
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("refused:")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the hook is not installed where there is CUDA")
def test_megatron_imported_before_is_refused() -> None:
    """The mistake is made with a stand-in: the real import without the hook takes seconds and may fail by itself."""
    result = _python(
        "import sys, types; sys.modules['megatron.core'] = types.ModuleType('megatron.core'); import megalign.engine.mcore"
    )
    assert result.returncode != 0
    assert "RuntimeError: megatron.core was imported before megalign.engine" in result.stderr
    assert "import megalign.engine.mcore first" in result.stderr


def test_with_cuda_the_hook_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from megalign.engine import megatron_on_cpu

    before = list(sys.meta_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert megatron_on_cpu.install() is False
    assert sys.meta_path == before


def test_only_megatron_core_is_adapted() -> None:
    from megalign.engine.megatron_on_cpu import _Finder

    finder = _Finder("unused")
    assert finder.find_spec("torch") is None
    assert finder.find_spec("megatron") is None
    assert finder.find_spec("megatron.corelike") is None
