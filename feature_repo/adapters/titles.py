"""Categories from titles, for a shop that has none: the head noun of the title, if enough items share it. PURE."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

#: A word must be the head (or, failing that, any word) of this many titles to name a category.
MIN_TITLES = 15
#: A category that ends up with fewer items than this is given up.
MIN_ITEMS = 8
OTHER = "OTHER"

#: What follows one of these describes the thing: HOLDER in "T-LIGHT HOLDER WITH STARS" is the head.
_TAIL = re.compile(r"\b(?:WITH|IN|FOR|ON|W)\b|[,/(]")
_WORD = re.compile(r"[A-Z]{3,}")
#: Frequent words of gift shops that say how a thing looks, not what it is.
_NOT_A_THING = frozenset(
    """
    RED BLUE WHITE PINK GREEN BLACK IVORY CREAM SILVER GOLD PURPLE BROWN YELLOW ORANGE TURQUOISE CLEAR AMBER COLOUR
    MULTICOLOUR LARGE SMALL MEDIUM MINI BIG GIANT JUMBO TALL LONG HIGH ROUND SQUARE SIZE SHAPE DESIGN RETROSPOT SPOT
    RETRO VINTAGE POLKADOT ASSORTED ASSTD ASST SET PACK PIECE PACKET TIER DRAWER PAISLEY SKULL STRAWBERRY AND THE WITH
    FOR UNION JACK LONDON PARIS ENGLAND ENGLISH FRENCH SPACEBOY WOODLAND ANTIQUE EDWARDIAN REGENCY BAROQUE MODERN
    CLASSIC TRAD TRADITIONAL HANGING DAY LOVE HOME SWEET SWEETHEART GIRL BOY CHILDREN KID HAPPY FUNKY OFF NEW OLD TOP
    METAL WOOD WOODEN GLASS CERAMIC ENAMEL ZINC WICKER PAPER FELT ACRYLIC PLASTIC DIAMANTE STRIPE FLORAL WALL FINISH
    PAINTED DECORATIVE JEWELLED SCENTED BOTANICAL GINGHAM STYLE FONT MAGIC LOLA WATER IMAGE
    """.split()  # noqa: SIM905 - eighty quoted words would be unreadable
)


def categories_of(titles: Sequence[str | None]) -> list[str]:
    """Return a category for every title of a catalogue.

    The title is cut at "with", "in", "for", "on" or a comma; its last word that names a thing is the head. The
    category is the first of: the rightmost word before the cut, else of the whole title, that is the head of at least
    `MIN_TITLES` titles; else the same with words that occur anywhere in `MIN_TITLES` titles; else `OTHER`.

    Parameters
    ----------
    titles
        One title per item; None counts as a title without words.

    Returns
    -------
    list of str
        Same length; singular upper-case words, or `OTHER`.
    """
    words = [_things(title or "") for title in titles]
    heads = Counter(before[-1] for before, _ in words if before)
    anywhere = Counter(word for _, whole in words for word in set(whole))
    frequent_heads = {word for word, count in heads.items() if count >= MIN_TITLES}
    frequent = {word for word, count in anywhere.items() if count >= MIN_TITLES}
    picked = [
        next(
            (
                word
                for candidates, names in (
                    (before, frequent_heads),
                    (whole, frequent_heads),
                    (before, frequent),
                    (whole, frequent),
                )
                for word in reversed(candidates)
                if word in names
            ),
            OTHER,
        )
        for before, whole in words
    ]
    sizes = Counter(picked)
    return [word if sizes[word] >= MIN_ITEMS else OTHER for word in picked]


def _things(title: str) -> tuple[list[str], list[str]]:
    """Return the words that can name a thing: those before the describing tail, and all."""
    text = title.upper().strip()
    return _nouns(_TAIL.split(text)[0]), _nouns(text)


def _nouns(text: str) -> list[str]:
    return [word for word in map(_singular, _WORD.findall(text)) if word not in _NOT_A_THING]


def _singular(word: str) -> str:
    if word.endswith("IES") and len(word) > 4:
        return word[:-3] + "Y"
    if word.endswith(("SHES", "CHES", "XES", "SSES")):
        return word[:-2]
    if word.endswith("S") and len(word) > 3 and not word.endswith(("SS", "US", "AS")):
        return word[:-1]
    return word
