"""Writes arrays to files whose bytes depend on the arrays only, and which can be mapped into memory."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

#: Arrays begin at multiples of that: compiled code and BLAS want aligned numbers.
ALIGNMENT: Final = 64
#: Of a member's name in an archive: fixed part of its header, and the identifier of a field that only fills.
_HEADER_BYTES: Final = 30
_FILLING: Final = 0xD935


def write_npz(path: Path, **arrays: npt.NDArray[Any]) -> None:
    """Write arrays as an `.npz`, uncompressed and aligned, whose bytes depend on the arrays only.

    NumPy's own stamps the time of day into it.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in sorted(arrays.items()):
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            member = zipfile.ZipInfo(f"{name}.npy")
            start = archive.start_dir + _HEADER_BYTES + len(member.filename.encode()) + 4
            filling = -start % ALIGNMENT
            member.extra = struct.pack("<HH", _FILLING, filling) + bytes(filling)
            archive.writestr(member, buffer.getvalue())
