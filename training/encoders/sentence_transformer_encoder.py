"""An encoder of texts by the sentence-transformers library (PyTorch), where it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from feature_repo.errors import BadInputError
from serving.candidates.contract import F32


class SentenceTransformerEncoder:
    """A model from a local directory; from the hub only where that is asked for. No code of a model is run.

    Raises
    ------
    BadInputError
        If the library is missing, or there is no such model.
    """

    def __init__(self, name: str, *, hub: bool = False) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise BadInputError(
                "sentence-transformers is not installed: uv pip install sentence-transformers "
                "(it brings PyTorch; an ONNX export of the same model needs neither)"
            ) from error
        try:
            self._model: Any = SentenceTransformer(name, local_files_only=not hub, trust_remote_code=False)
        except Exception as error:  # of files, of the hub, of PyTorch
            raise BadInputError(f"no sentence transformer {name!r}: {error}") from error

    def encode(self, texts: Sequence[str]) -> F32:
        """Return a vector for each text, shape (len(texts), d), length 1."""
        found = self._model.encode(
            list(texts), normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )
        return np.asarray(found, np.float32).reshape(len(texts), -1)
