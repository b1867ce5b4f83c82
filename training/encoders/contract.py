"""The contract of an encoder: texts or pictures in, one vector each out, whatever stands beside an input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from serving.candidates.contract import F32

#: A decoded picture: height, width and RGB, 0 to 255.
Picture = npt.NDArray[np.uint8]


class TextModel(Protocol):
    """Encodes texts of items (title, category, description)."""

    def encode(self, texts: Sequence[str]) -> F32:
        """Return a vector for each text, shape (len(texts), d), finite."""
        ...


class ImageModel(Protocol):
    """Encodes pictures of items."""

    def encode(self, pictures: Sequence[Picture]) -> F32:
        """Return a vector for each picture, shape (len(pictures), d), finite."""
        ...
