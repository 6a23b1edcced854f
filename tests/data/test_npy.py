"""`.npy` files written row by row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compress.core.errors import StageError
from compress.data import npy


def test_rows_of_unknown_number_are_read_back_by_numpy(tmp_path: Path) -> None:
    blocks = [np.full((n, 2, 3), n, np.uint8) for n in (1, 4, 2)]
    file = npy.write_rows(tmp_path / "x.npy", iter(blocks), (2, 3), np.uint8)
    assert np.array_equal(np.load(file.path), np.concatenate(blocks)) and file.bytes == npy.HEADER_BYTES + 7 * 6
    assert npy.write_array(tmp_path / "y.npy", np.concatenate(blocks)).sha256 == file.sha256
    assert np.load(npy.write_rows(tmp_path / "z.npy", [], (2, 3), np.int64).path).shape == (0, 2, 3)
    with pytest.raises(StageError, match="does not fit rows"):
        npy.write_rows(tmp_path / "w.npy", blocks, (2, 4), np.uint8)


def test_a_full_disk_is_a_stage_error(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(StageError, match="no space left on the disk"):
        npy.write_array(Path("/dev/full"), np.zeros((100_000, 4), np.uint8))
