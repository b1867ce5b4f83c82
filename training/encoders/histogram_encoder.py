"""The built-in image encoder: where which colours are, and which way edges run. No model, no download."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serving.candidates.contract import F32
from serving.candidates.text import unit_rows
from training.encoders.contract import Picture
from training.encoders.pictures import resized


@dataclass(frozen=True)
class HistogramEncoder:
    """Colour histogram, mean colour per cell, and histograms of gradients per cell (Dalal and Triggs 2005).

    Attributes
    ----------
    size
        Pictures are brought to so many pixels a side.
    cells
        Per side.
    levels
        Of each colour channel in the histogram.
    directions
        Of edges, over half a turn.
    """

    size: int = 64
    cells: int = 4
    levels: int = 4
    directions: int = 8

    def encode(self, pictures: Sequence[Picture]) -> F32:
        """Return a vector for each picture, shape (len(pictures), levels^3 + cells^2 (3 + directions))."""
        found = [self._one(picture) for picture in pictures]
        width = self.levels**3 + self.cells**2 * (3 + self.directions)
        return np.array(found, np.float32).reshape(len(found), width)

    def _one(self, picture: Picture) -> F32:
        small = resized(picture, self.size).astype(np.float32) / 255.0
        level = np.minimum((small * self.levels).astype(np.int64), self.levels - 1)
        code = (level[..., 0] * self.levels + level[..., 1]) * self.levels + level[..., 2]
        colours = np.bincount(code.ravel(), minlength=self.levels**3).astype(np.float32)
        side = self.size // self.cells
        cells = small[: side * self.cells, : side * self.cells].reshape(self.cells, side, self.cells, side, 3)
        means = cells.mean(axis=(1, 3)) - 0.5
        down, right = np.gradient(small.mean(axis=2))
        strength = np.hypot(down, right)
        turn = np.arctan2(down, right) % np.pi
        direction = np.minimum((turn / np.pi * self.directions).astype(np.int64), self.directions - 1)
        place = np.minimum(np.arange(self.size) // side, self.cells - 1)
        bins = (place[:, None] * self.cells + place[None, :]) * self.directions + direction
        edges = np.bincount(bins.ravel(), strength.ravel(), self.cells**2 * self.directions)
        # Each kind weighs the same, however many numbers it has.
        kinds = [unit_rows(part.reshape(1, -1)) for part in (np.sqrt(colours), means, np.sqrt(edges))]
        one: F32 = unit_rows(np.concatenate(kinds, axis=1))[0]
        return one
