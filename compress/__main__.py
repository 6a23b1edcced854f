"""`python -m compress`."""

from __future__ import annotations

import sys

from compress.cli.main import main
from compress.core import distributed

if __name__ == "__main__":
    code = main()
    if distributed.under_torchrun():
        distributed.leave(code)
    sys.exit(code)
