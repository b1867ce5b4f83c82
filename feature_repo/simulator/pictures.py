"""Pictures of simulated items: what is drawn follows from the item's category, hidden style and price alone."""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from feature_repo.simulator.catalogue import Catalogue

#: Pixels a side.
SIZE = 64


def draw(catalogue: Catalogue, item: int) -> npt.NDArray[np.uint8]:
    """Draw one item: shape and ground by category, colour and stripes by style, size by price.

    Returns
    -------
    ndarray
        Shape (SIZE, SIZE, 3), RGB.
    """
    category, style = int(catalogue.category[item]), np.resize(catalogue.style[item], 6)
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    reach = 0.65 + 0.2 * np.tanh(float(catalogue.price_level[item]))
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    corners = 3 + category % 6
    # A regular polygon for each category, in some of them with a hole or with points like a star.
    edge = reach * np.cos(np.pi / corners) / np.cos((angle + category) % (2 * np.pi / corners) - np.pi / corners)
    if category // 6 % 3 == 1:
        edge = reach * (0.75 + 0.25 * np.cos(corners * (angle + category)))
    inside = radius < edge
    if category // 6 % 3 == 2:
        inside &= radius > 0.45 * edge
    hue = (np.arctan2(style[1], style[0]) / (2 * np.pi)) % 1.0
    colour = np.array(colorsys.hsv_to_rgb(hue, 0.55 + 0.4 * np.tanh(style[2]), 0.8 + 0.2 * np.tanh(style[3])))
    turn, width = np.pi * (1.0 + np.tanh(style[4])) / 2, 4.0 + 3.0 * np.tanh(style[5])
    stripes = 0.85 + 0.15 * np.sign(np.sin(2 * np.pi * width * (x * np.cos(turn) + y * np.sin(turn)) / 2))
    ground = np.array(colorsys.hsv_to_rgb(category * 0.618 % 1.0, 0.12, 1.0))
    picture = np.where(inside[..., None], colour * stripes[..., None], ground)
    return np.round(np.clip(picture, 0.0, 1.0) * 255).astype(np.uint8)


def write_pictures(catalogue: Catalogue, directory: Path) -> dict[str, Path]:
    """Draw every item into a directory, `<item_id>.png`; nothing else of the simulator needs pictures.

    Returns
    -------
    dict
        Item id to file: what `image` of the item may be set to.
    """
    from PIL import Image

    directory.mkdir(parents=True, exist_ok=True)
    files = {item_id: directory / f"{item_id}.png" for item_id in catalogue.ids}
    for item, path in enumerate(files.values()):
        Image.fromarray(draw(catalogue, item)).save(path, format="PNG")
    return files
