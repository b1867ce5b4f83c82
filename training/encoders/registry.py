"""Encoders by name, as `larder items encode --encoder` takes them."""

from __future__ import annotations

from typing import Final

from feature_repo.errors import BadInputError
from training.encoders.contract import ImageModel, TextModel

#: Form to what it is; those of pictures begin with `images`.
ENCODERS: Final = {
    "onnx:DIR": "texts by an ONNX model with its tokenizer",
    "sentence-transformers:NAME": "texts by a sentence transformer (PyTorch)",
    "images": "pictures by colours and edges: built in",
    "images-onnx:DIR": "pictures by an ONNX model, CLIP's vision tower for one",
}


def text_model(name: str, *, hub: bool = False) -> TextModel:
    """Return an encoder of texts.

    Raises
    ------
    BadInputError
        For an unknown one, or one that cannot be loaded.
    """
    kind, _, where = name.partition(":")
    if kind == "onnx" and where:
        from training.encoders.onnx_encoder import OnnxTextEncoder, local_directory

        return OnnxTextEncoder(local_directory(where, hub=hub))
    if kind == "sentence-transformers" and where:
        from training.encoders.sentence_transformer_encoder import SentenceTransformerEncoder

        return SentenceTransformerEncoder(where, hub=hub)
    raise _unknown(name)


def image_model(name: str, *, hub: bool = False) -> ImageModel:
    """Return an encoder of pictures; raises as `text_model` does."""
    kind, _, where = name.partition(":")
    if name == "images":
        from training.encoders.histogram_encoder import HistogramEncoder

        return HistogramEncoder()
    if kind == "images-onnx" and where:
        from training.encoders.onnx_encoder import OnnxImageEncoder, local_directory

        return OnnxImageEncoder(local_directory(where, hub=hub))
    raise _unknown(name)


def _unknown(name: str) -> BadInputError:
    return BadInputError(f"no encoder {name!r}; there are {', '.join(ENCODERS)}")
