"""Encoders of texts and pictures from ONNX files: sentence transformers, CLIP towers, whatever has that form."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from feature_repo.errors import BadInputError
from serving.candidates.contract import F32
from training.encoders.contract import Picture
from training.encoders.pictures import resized

INSTALL: Final = "uv pip install 'larder[onnx]'"
_BATCH: Final = 32
#: Of CLIP, where a directory has no preprocessor_config.json.
_CLIP: Final[dict[str, Any]] = {
    "size": 224,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


class OnnxTextEncoder:
    """A text model of a directory with `model.onnx` and `tokenizer.json`.

    Inputs are `input_ids` and, where the model has them, `attention_mask` and `token_type_ids`. An output of one vector
    per text is taken as it is; one of a vector per token is averaged over the text's tokens.

    Parameters
    ----------
    directory
        As `sentence-transformers` and CLIP exports have it; the model may lie in `onnx/`.
    max_tokens
        Longer texts are cut off.

    Raises
    ------
    BadInputError
        If a file or a library is missing, or the file is no such model.
    """

    def __init__(self, directory: Path, max_tokens: int = 128, threads: int = 1) -> None:
        self._session = _session(_file(directory, "model.onnx", "onnx/model.onnx", "text_model.onnx"), threads)
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise BadInputError(f"texts for ONNX models need tokenizers, which is not installed: {INSTALL}") from error
        path = _file(directory, "tokenizer.json")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises a bare Exception
            raise BadInputError(f"{path} is no tokenizer: {error}") from error
        self._tokenizer.enable_truncation(max_tokens)
        self._tokenizer.enable_padding()
        self._inputs = {one.name for one in self._session.get_inputs()}
        if "input_ids" not in self._inputs:
            raise BadInputError(f"the model of {directory} takes {sorted(self._inputs)}, not input_ids: no text model")

    def encode(self, texts: Sequence[str]) -> F32:
        """Return a vector for each text, shape (len(texts), d), length 1."""
        return _unit(
            [self._some(texts[start : start + _BATCH]) for start in range(0, len(texts), _BATCH)], self._session
        )

    def _some(self, texts: Sequence[str]) -> F32:
        found = self._tokenizer.encode_batch(list(texts))
        mask = np.array([one.attention_mask for one in found], np.int64)
        given = {
            "input_ids": np.array([one.ids for one in found], np.int64),
            "attention_mask": mask,
            "token_type_ids": np.array([one.type_ids for one in found], np.int64),
        }
        out = _run(self._session, {name: values for name, values in given.items() if name in self._inputs})
        if out.ndim == 3:
            weight = mask[..., None].astype(np.float32)
            out = (out * weight).sum(axis=1) / np.maximum(weight.sum(axis=1), 1.0)
        return out


class OnnxImageEncoder:
    """An image model of a directory with `model.onnx` and, unless it is CLIP's, `preprocessor_config.json`.

    Its one input is (n, 3, size, size), pictures cut to their middle, scaled to [0, 1] and normalised.

    Raises
    ------
    BadInputError
        As of `OnnxTextEncoder`.
    """

    def __init__(self, directory: Path, threads: int = 1) -> None:
        self._session = _session(
            _file(directory, "vision_model.onnx", "onnx/vision_model.onnx", "model.onnx", "onnx/model.onnx"), threads
        )
        inputs = [one.name for one in self._session.get_inputs()]
        if len(inputs) != 1:
            raise BadInputError(f"the model of {directory} takes {inputs}, not one tensor of pictures: no image model")
        self._input = inputs[0]
        path = directory / "preprocessor_config.json"
        try:
            config = json.loads(path.read_text("utf-8")) if path.exists() else _CLIP
            size: Any = config.get("crop_size", config.get("size", _CLIP["size"]))
            if isinstance(size, dict):
                size = size["height"] if "height" in size else size["shortest_edge"]
            self._size = int(size)
            self._mean, self._std = (
                np.array(config.get(name, _CLIP[name]), np.float32) for name in ("image_mean", "image_std")
            )
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise BadInputError(f"{path} is no configuration of a preprocessor: {error}") from error
        if not 0 < self._size <= 1024 or self._mean.shape != (3,) or self._std.shape != (3,) or not self._std.all():
            raise BadInputError(f"{path}: size {self._size}, mean {self._mean.tolist()}, std {self._std.tolist()}")

    def encode(self, pictures: Sequence[Picture]) -> F32:
        """Return a vector for each picture, shape (len(pictures), d), length 1."""
        return _unit(
            [self._some(pictures[start : start + _BATCH]) for start in range(0, len(pictures), _BATCH)], self._session
        )

    def _some(self, pictures: Sequence[Picture]) -> F32:
        pixels = np.stack([resized(one, self._size) for one in pictures]).astype(np.float32) / 255.0
        out = _run(self._session, {self._input: ((pixels - self._mean) / self._std).transpose(0, 3, 1, 2)})
        return out.mean(axis=1) if out.ndim == 3 else out


def local_directory(name: str, *, hub: bool) -> Path:
    """Return the directory of a model: a local one, or one of the Hugging Face hub where that is asked for.

    Raises
    ------
    BadInputError
        If there is no such directory and nothing may be downloaded, or the download fails.
    """
    if Path(name).is_dir():
        return Path(name)
    if not hub:
        raise BadInputError(f"there is no directory {name}; with --hub a model of that name is downloaded")
    try:
        from huggingface_hub import snapshot_download

        patterns = ["*.onnx", "tokenizer.json", "preprocessor_config.json"]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # of the network, of the hub, of a missing library: all end here
        raise BadInputError(f"cannot download {name} from the hub: {error}") from error


def _file(directory: Path, *names: str) -> Path:
    found = next((directory / name for name in names if (directory / name).is_file()), None)
    if found is None:
        raise BadInputError(f"{directory} has no {' or '.join(names)}")
    return found


def _session(path: Path, threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise BadInputError(f"ONNX models need onnxruntime, which is not installed: {INSTALL}") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads  # sums in one order
    options.log_severity_level = 3
    wanted = [one for one in ("CUDAExecutionProvider", "CPUExecutionProvider") if one in _providers(onnxruntime)]
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=wanted)
    except Exception as error:  # the library has a class of its own for each way a file can be wrong
        raise BadInputError(f"{path} is no ONNX model that can be run: {error}") from error


def _providers(onnxruntime: Any) -> list[str]:
    available: list[str] = onnxruntime.get_available_providers()
    return available


def _run(session: Any, given: dict[str, Any]) -> F32:
    """Return the first output of 2 dimensions, one vector per input, else the first of 3."""
    try:
        found = [np.asarray(one) for one in session.run(None, given)]
    except Exception as error:
        raise BadInputError(f"the ONNX model failed: {error}") from error
    fitting = [one for dimensions in (2, 3) for one in found if one.ndim == dimensions]
    if not fitting:
        raise BadInputError(f"the ONNX model gives {[one.shape for one in found]}, no vectors")
    return fitting[0].astype(np.float32)


def _unit(parts: Iterator[F32] | list[F32], session: Any) -> F32:
    """Stack batches, rows scaled to length 1."""
    from serving.candidates.text import unit_rows

    parts = list(parts)
    if not parts:
        last = session.get_outputs()[0].shape[-1]
        return np.empty((0, last if isinstance(last, int) else 0), np.float32)
    out = np.concatenate(parts)
    if not np.isfinite(out).all():
        raise BadInputError("the ONNX model gives numbers that are not finite")
    return unit_rows(out)
