"""Arrays that are written row by row, however many there will be."""

from pathlib import Path
from typing import BinaryIO

import numpy as np


class Growing:
    """A ``.npy`` file that rows are appended to; their number is written into the header at the end.

    Args:
        path: The file.
        kind: Of the numbers, as NumPy writes it.
        columns: Numbers in a row; 0: the array has one dimension.
    """

    def __init__(self, path: Path, kind: str, columns: int = 0) -> None:
        self.path, self.kind, self.columns, self.length = path, kind, columns, 0

    def __enter__(self) -> "Growing":
        self.file: BinaryIO = self.path.open("wb")
        self._header()
        self.begin = self.file.tell()
        return self

    def append(self, rows: np.ndarray) -> None:
        """(n,) or (n, columns)."""
        assert rows.dtype == self.kind, rows.dtype
        self.file.write(np.ascontiguousarray(rows).data)
        self.length += len(rows)

    def __exit__(self, *error: object) -> None:
        self.file.seek(0)
        self._header()
        assert self.file.tell() == self.begin, "NumPy pads the header so that a longer length fits in"
        self.file.close()

    def _header(self) -> None:
        shape = (self.length, self.columns) if self.columns else (self.length,)
        np.lib.format.write_array_header_1_0(self.file, {"descr": self.kind, "fortran_order": False, "shape": shape})
