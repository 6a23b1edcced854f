"""Start Python, or two processes under torchrun, for the tests of distributed training."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DISTRIBUTED_RUN = Path(__file__).parent / "distributed_run.py"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ENVIRONMENT = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}


def run_python(*command: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments, from the top of the repository."""
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT, timeout=300, check=False
    )


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script as two processes that share a training."""
    return run_python(*TORCHRUN, *arguments)
