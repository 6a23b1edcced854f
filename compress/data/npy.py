"""`.npy` files written row by row, with bytes that depend on the values alone and not on NumPy's version.

Source of the format: NumPy NEP 1, version 1.0: magic, header length (uint16, little endian), a Python literal,
padding, newline.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from compress.core.errors import StageError
from compress.core.records.base import File

# Room for any shape here; a multiple of 64, so that a memory-mapped array is aligned.
HEADER_BYTES = 128


def _header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    text = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    room = HEADER_BYTES - 10
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", room) + text.ljust(room - 1) + b"\n"


def _write(stream: BinaryIO, blocks: Iterable[np.ndarray], row: tuple[int, ...], dtype: np.dtype) -> None:
    stream.write(_header(dtype, (0, *row)))
    count = 0
    for block in blocks:
        if block.shape[1:] != row or block.dtype != dtype:
            raise StageError(
                f"{stream.name}: a block of {block.dtype} {block.shape[1:]} does not fit rows of {dtype} {row}; "
                "this is a bug in the data source"
            )
        stream.write(np.ascontiguousarray(block).data)
        count += len(block)
    stream.seek(0)
    stream.write(_header(dtype, (count, *row)))


def write_rows(path: Path, blocks: Iterable[np.ndarray], row: tuple[int, ...], dtype: type | np.dtype) -> File:
    """Write blocks of rows to a new `.npy` file; the number of rows need not be known beforehand.

    The file is written with plain writes, not through a memory map: a full disk is then an error, not a crash.

    Args:
        path: File to write.
        blocks: Arrays (n, *row) of one dtype.
        row: Shape of a row.
        dtype: Type of the values.

    Raises:
        StageError: The disk is full, or a block has another shape or dtype.
    """
    try:
        with path.open("wb") as stream:
            _write(stream, blocks, row, np.dtype(dtype))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StageError(
            f"{path}: no space left on the disk; free some, or choose another place with --artifacts"
        ) from error
    return File.of(path)


def write_array(path: Path, array: np.ndarray) -> File:
    """Write one array (N, ...) as `.npy`."""
    return write_rows(path, [array], array.shape[1:], array.dtype)
