"""What `compress verify` takes from the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.commands import verify
from compress.core.errors import MissingError


def test_limits_and_threads_come_from_the_run(tmp_path: Path) -> None:
    (tmp_path / "resolved.yaml").write_text("require: {max_latency_ms: 3.0}\nvalidate: {threads: 2, repeats: 64}\n")

    require, timing, device = verify.settings_of(tmp_path)

    assert require.max_latency_ms == 3.0 and (timing.threads, timing.repeats, device.target) == (2, 64, "local")
    (tmp_path / "resolved.yaml").unlink()
    with pytest.raises(MissingError, match="resolved.yaml is missing, so its limits are not known"):
        verify.settings_of(tmp_path)
