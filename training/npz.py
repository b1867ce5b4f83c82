"""Writes arrays to files whose bytes depend on the arrays only."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def write_npz(path: Path, **arrays: npt.NDArray[Any]) -> None:
    """Write arrays as an `.npz` whose bytes depend on the arrays only (numpy stamps the time of day into it)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in sorted(arrays.items()):
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue())
