"""Adapter for MovieLens (ml-latest-small, ml-25m, ...): ratings of movies.

Publisher: https://grouplens.org/datasets/movielens/ (its README.txt has the terms; no commercial use).
"""

from __future__ import annotations

from pathlib import Path

import duckdb

from feature_repo.adapters.assemble import accept, catalogue, judged, with_categories
from feature_repo.adapters.text_table import read_text_table
from feature_repo.datasets import Dataset, make_dataset
from feature_repo.errors import NotFoundError

NAME = "movielens"

_LINES = """
SELECT *, TRY_CAST(rating AS DOUBLE) AS stars, TRY_CAST(timestamp AS BIGINT) AS second,
    CASE
        WHEN userId IS NULL OR movieId IS NULL OR rating IS NULL OR timestamp IS NULL
            THEN 'missing_field: ' || concat_ws(', ',
                CASE WHEN userId IS NULL THEN 'userId' END, CASE WHEN movieId IS NULL THEN 'movieId' END,
                CASE WHEN rating IS NULL THEN 'rating' END, CASE WHEN timestamp IS NULL THEN 'timestamp' END)
        WHEN stars IS NULL THEN 'bad_type: column ''rating'': ''' || rating[:80] || ''' is not a number'
        WHEN second IS NULL THEN 'bad_type: column ''timestamp'': ''' || timestamp[:80] || ''' is not whole seconds'
        WHEN second NOT BETWEEN 0 AND 9000000000 THEN 'bad_time: column ''timestamp'': ' || second
    END AS problem
FROM cell
"""

#: A user rates a movie once: the pair is the event's id, and a second rating of it goes to quarantine.
_EVENTS = """
SELECT "#row", userId || '-' || movieId AS event_id, userId AS user_id, movieId AS item_id, 'rating' AS event_type,
    stars AS value, second * 1000000 AS event_timestamp
FROM line WHERE problem IS NULL ORDER BY "#row"
"""

_MOVIES = """
SELECT movieId AS item_id, title, genre[1] AS category, genre AS tags
FROM (
    SELECT DISTINCT ON (movieId) movieId, title,
        CASE WHEN genres <> '(no genres listed)' THEN string_split(genres, '|') END AS genre
    FROM cell
    WHERE movieId IN (SELECT item_id FROM event)
    ORDER BY movieId, "#row"
)
"""


def load(directory: Path) -> Dataset:
    """Load MovieLens with its own times; a rating is known when it was given.

    The catalogue has the movies that were rated, each from its first rating on, with title and genres. `tags.csv` is
    not used: what users say of a movie they say later, and a model of the past must not know it.

    Parameters
    ----------
    directory
        With `ratings.csv` and `movies.csv` as the publisher ships them.

    Raises
    ------
    NotFoundError
        If a file is missing.
    BadInputError
        If a file cannot be read, lacks a column or has no rows, or there are no two users.
    """
    for name in ("ratings.csv", "movies.csv"):
        if not (directory / name).is_file():
            raise NotFoundError(
                f"no MovieLens data at {directory / name}: get ml-latest-small.zip (or another) from "
                "https://grouplens.org/datasets/movielens/, unpack it, and set DATA_DIR to the directory that holds "
                f"{directory.name}/"
            )
    ratings = read_text_table(directory / "ratings.csv", ["userId", "movieId", "rating", "timestamp"])
    movies = read_text_table(directory / "movies.csv", ["movieId", "title", "genres"])
    events, quarantine = accept([judged(ratings, "ratings.csv", _LINES, _EVENTS)])
    with duckdb.connect() as connection:
        connection.register("cell", movies.cells)
        connection.register("event", events)
        known = connection.sql(_MOVIES).to_arrow_table()
    items = catalogue(events, known)
    return make_dataset(NAME, with_categories(events, items), items, quarantine, target="rating", repeats="drop")
