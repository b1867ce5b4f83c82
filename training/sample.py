"""A small training for trying things out: the same steps on fewer users, windows, items and trees."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from training.generators.contract import GeneratorFit
from training.generators.contrastive import Contrastive
from training.generators.ease import Ease
from training.generators.next_basket import NextBasket
from training.line_up import LineUp
from training.train import TrainConfig

WINDOWS: Final = 1
#: Users of each window, and of the test window.
USERS: Final = 300
#: Items of the closed-form generators, whose cost grows with the cube of it.
MAX_ITEMS: Final = 1_000
NEXT_CUTS: Final = 4
CONTRASTIVE_STEPS: Final = 100
TREES: Final = 100


def sample_of(config: TrainConfig) -> TrainConfig:
    """Return a training of the same shape that takes under a minute on Online Retail.

    Its figures are those of a worse model on fewer users: good to see that things work, not to compare models by.
    """
    trees = min(config.ranker.iterations, TREES)
    return replace(
        config,
        windows=min(config.windows, WINDOWS),
        users=USERS,
        line_up=_smaller(config.line_up),
        ranker=replace(config.ranker, iterations=trees),
    )


def _smaller(line_up: LineUp) -> LineUp:
    out: list[GeneratorFit] = []
    for one in line_up:
        if isinstance(one, NextBasket):
            out.append(replace(one, max_items=min(one.max_items, MAX_ITEMS), cuts=min(one.cuts, NEXT_CUTS)))
        elif isinstance(one, Contrastive):
            out.append(replace(one, steps=min(one.steps, CONTRASTIVE_STEPS)))
        elif isinstance(one, Ease):
            out.append(replace(one, max_items=min(one.max_items, MAX_ITEMS)))
        else:
            out.append(one)
    return tuple(out)
