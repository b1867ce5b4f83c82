"""`larder items`: load a file of catalogue entries into the stream, as if the API had been sent them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from larder.session import settings_of

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Load catalogue entries from a file.")


@app.callback()
def items() -> None:
    """Load catalogue entries from a file."""


@app.command()
def load(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="Parquet, CSV or JSON lines (.jsonl) with the fields of an item.")],
    rate: Annotated[float, typer.Option(min=0, help="Entries a second at most; 0: as fast as Redis takes them.")] = 0.0,
) -> None:
    """Load new and changed items; an entry sets what it names and leaves the rest as it is.

    Empty cells of a table set nothing; in JSON lines null clears a field. The same file may be loaded again: nothing
    counts twice (within 7 days).

    Examples
    --------
      larder items load catalogue.csv
      larder --project shop items load prices.jsonl
    """
    from larder.loading.files import RowFile
    from larder.loading.load import lines_of, load_items
    from larder.progress import progress

    settings = settings_of(ctx)
    with progress(f"load {file.name}", RowFile.open(file).rows) as shown:
        report = load_items(settings, file, rate=rate, on_rows=shown.advance)
    print(f"project {settings.project}: {file}")
    print("\n".join(lines_of(report, file)))


@app.command()
def encode(
    ctx: typer.Context,
    out: Annotated[Path, typer.Argument(help="File to write, .npz.")],
    encoder: Annotated[
        str,
        typer.Option(help="onnx:DIR, sentence-transformers:NAME, images, or images-onnx:DIR (CLIP's vision tower)."),
    ],
    pictures: Annotated[
        Path | None, typer.Option(help="Directory of the pictures: an item's `image` in it, or <item_id>.png.")
    ] = None,
    dimensions: Annotated[int, typer.Option(min=1, help="Main directions that are kept.")] = 64,
    hub: Annotated[bool, typer.Option(help="Download the model by its name; without, nothing leaves here.")] = False,
) -> None:
    """Make frozen embeddings of the catalogue's texts or pictures, for the contrastive model (docs/contrastive.md).

    Examples
    --------
      larder items encode text.npz --encoder onnx:models/minilm
      larder --project simulator items encode pictures.npz --encoder images --pictures drawn
    """
    from feature_repo.datasets import read_items
    from feature_repo.errors import BadInputError
    from larder.progress import progress
    from training.encode_items import encode_pictures, encode_texts, main_directions
    from training.encoders.registry import image_model, text_model
    from training.item_vectors import write_item_vectors

    settings = settings_of(ctx)
    items = read_items(settings)
    refused: list[str] = []
    with progress("encode", items.num_rows) as shown:
        if encoder.startswith("images"):
            if pictures is None:
                raise BadInputError("say where the pictures are: --pictures DIR")
            ids, vectors, refused = encode_pictures(items, pictures, image_model(encoder, hub=hub), shown.advance)
        else:
            ids, vectors = encode_texts(items, text_model(encoder, hub=hub), shown.advance)
    if not ids:
        raise BadInputError(f"none of the {items.num_rows} items of project {settings.project} could be encoded")
    kept = main_directions(vectors, dimensions)
    write_item_vectors(out, ids, kept)
    for line in refused[:20]:
        print(f"left out: {line}")
    print(f"{len(ids)} of {items.num_rows} items, {vectors.shape[1]} numbers each, {kept.shape[1]} kept: {out}")


@app.command()
def draw(
    ctx: typer.Context,
    directory: Annotated[Path, typer.Argument(help="Where the pictures go: <item_id>.png.")],
    seed: Annotated[int | None, typer.Option(help="Of the simulated shop; the project's by default.")] = None,
) -> None:
    """Draw a picture of every item of the simulated shop, by what it is.

    Examples
    --------
      larder --project simulator items draw drawn
    """
    from feature_repo.simulator.pictures import write_pictures
    from feature_repo.simulator.world import Simulator
    from larder.progress import progress

    settings = settings_of(ctx)
    with progress("draw"):
        files = write_pictures(Simulator(seed=settings.seed if seed is None else seed).catalogue, directory)
    print(f"{len(files)} pictures in {directory}")
