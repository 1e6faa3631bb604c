"""Tables, word batches and codeswitching run in data workers and tools that have no torch."""

from __future__ import annotations

import subprocess
import sys


def test_only_the_loss_imports_torch() -> None:
    program = (
        "import sys, megalign.prealign.codeswitch, megalign.prealign.muse, megalign.prealign.words\n"
        "print(sorted({'torch', 'megatron'} & set(sys.modules)))\n"
        "import megalign.prealign.loss\n"
        "print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split("\n")[:2] == ["[]", "True"]
