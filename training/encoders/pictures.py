"""Reads pictures that nobody has checked: known formats only, capped in bytes and pixels before a pixel is decoded."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any, Final

import numpy as np

from feature_repo.errors import BadInputError
from training.encoders.contract import Picture

FORMATS: Final = ("PNG", "JPEG", "WEBP")
MAX_BYTES: Final = 10_000_000
#: A file of some kilobytes can claim to be a picture of gigabytes: its header is asked first.
MAX_PIXELS: Final = 25_000_000


def read_picture(path: Path) -> Picture:
    """Decode one picture to RGB, transparent parts on white.

    Raises
    ------
    BadInputError
        If there is no such file, or it is too large, of another format, damaged or cut off.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise BadInputError(f"{path} has {size:,} bytes; a picture may have {MAX_BYTES:,}")
        data = path.read_bytes()
    except OSError as error:
        raise BadInputError(f"cannot read the picture {path}: {error.strerror}") from error
    return decode_picture(data, str(path))


def decode_picture(data: bytes, name: str) -> Picture:
    """Decode the bytes of a picture, shape (height, width, 3).

    Parameters
    ----------
    name
        What errors call it.

    Raises
    ------
    BadInputError
        As of `read_picture`.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow only warns of what is somewhat too large
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return _rgb(image, name)
    except BadInputError:
        raise
    except Exception as error:  # a damaged file raises whatever its decoder stumbled over
        raise BadInputError(
            f"{name} is no whole {', '.join(FORMATS)} picture ({type(error).__name__}: {error})"
        ) from error


def _rgb(image: Any, name: str) -> Picture:
    """Decode an opened picture, unless its header says that it is too large."""
    from PIL import Image

    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadInputError(f"{name} is {width} x {height} pixels; a picture may have {MAX_PIXELS:,}")
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"), np.uint8).copy()


def resized(picture: Picture, size: int, *, crop: bool = True) -> Picture:
    """Bring a picture to (size, size, 3): the shorter side to `size` and the middle cut out, or squeezed."""
    from PIL import Image

    image = Image.fromarray(picture)
    if crop:
        scale = size / min(image.size)
        image = image.resize(
            (max(size, round(image.width * scale)), max(size, round(image.height * scale))), Image.Resampling.BICUBIC
        )
        left, top = (image.width - size) // 2, (image.height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    else:
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image, np.uint8)
