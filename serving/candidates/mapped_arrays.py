"""Maps the arrays of a verified `.npz` into memory: processes of one host share them, and nothing is read at once."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

#: Smaller arrays are read: a map takes whole pages and a file handle.
LEAST_BYTES: Final = 65_536
_ALIGNMENT: Final = 64
_HEADER: Final = struct.Struct("<4s22xHH")


def read_mapped(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of an `.npz`, large ones mapped where they are stored uncompressed and aligned.

    A write into a mapped array stays in this process. The file may be removed, but must not be changed in place: a
    bundle's files are written once, under a name that is their hash.

    Raises
    ------
    ValueError
        If a member is no array of plain numbers (pickled ones are refused), or the file is no archive.
    """
    found: dict[str, npt.NDArray[Any]] = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for member in archive.infolist():
            if not member.filename.endswith(".npy"):
                raise ValueError(f"{path} holds {member.filename!r}, which is no array")
            name = member.filename.removesuffix(".npy")
            if member.compress_type == zipfile.ZIP_STORED and member.file_size >= LEAST_BYTES:
                file.seek(member.header_offset)
                _, name_bytes, extra_bytes = _HEADER.unpack(file.read(_HEADER.size))
                file.seek(name_bytes + extra_bytes, 1)
                shape, fortran, dtype = _array_header(file)
                if not dtype.hasobject and file.tell() % _ALIGNMENT == 0:
                    order = "F" if fortran else "C"
                    mapped = np.memmap(path, dtype, "c", file.tell(), shape, order)  # type: ignore[call-overload] # "F"|"C"
                    found[name] = np.asarray(mapped)
                    continue
            with archive.open(member) as stored:
                found[name] = np.lib.format.read_array(stored, allow_pickle=False)
    return found


def _array_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)
