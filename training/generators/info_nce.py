"""Trains the two towers of the contrastive model with InfoNCE, in JAX. Serving needs none of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from feature_repo.errors import BadInputError
from serving.candidates.contract import F32, I32

INSTALL = "uv pip install 'larder[contrastive]'"
#: How often an item's embeddings other than its text are left out.
DROP_OTHERS = 0.2


@dataclass(frozen=True)
class Batch:
    """Some users as of one moment, what each took afterwards, and other items.

    Attributes
    ----------
    history, weight
        Items each user dealt with, shape (b, l), n for none, and their weights by pool, shape (b, l, p).
    positive, negative
        Items, shapes (b,) and (m,).
    hidden
        Which of (positive, negative) each user took as well, its own positive apart, shape (b, b + m).
    log_q
        Logarithm of the chance that each of (positive, negative) is drawn, shape (b + m,).
    popularity
        Of all items at that moment, log(1 + .) by window, shape (n, w).
    """

    history: I32
    weight: F32
    positive: I32
    negative: I32
    hidden: npt.NDArray[np.bool_]
    log_q: F32
    popularity: F32


@dataclass(frozen=True)
class Towers:
    """What was learned, as of `serving.candidates.contrastive`; `own`, (n, f + 1), is added to what content says."""

    item_hidden: F32
    item_bias: F32
    item_out: F32
    user_hidden: F32
    user_bias: F32
    user_out: F32
    own: F32
    popularity_weight: F32
    temperature: float
    loss: float


def require_jax() -> None:
    """Say early what is missing.

    Raises
    ------
    BadInputError
        Where JAX or optax is not installed.
    """
    try:
        import jax  # noqa: F401
        import optax  # noqa: F401
    except ImportError as error:
        raise BadInputError(f"the contrastive model is trained with JAX, which is not installed: {INSTALL}") from error


def train_towers(
    content: F32,
    batches: Iterator[Batch],
    *,
    steps: int,
    pools: int,
    windows: int,
    dimensions: int,
    hidden: int,
    drop_own: float,
    content_parts: tuple[int, ...],
    learning_rate: float,
    decay: float,
    seed: int,
) -> Towers:
    """Fit by AdamW on `steps` batches, the learning rate falling along a cosine.

    The loss is InfoNCE (van den Oord et al. 2018) with in-batch negatives whose logits are corrected by log Q (Yi et
    al. 2019) and uniformly drawn ones beside them (Yang et al. 2020); the temperature is learned (Radford et al. 2021).

    Parameters
    ----------
    content
        Frozen embeddings of all items, shape (n, d).
    drop_own
        How often an item's own vector is left out, so that content alone places an item that nobody knows.
    content_parts
        Where another embedding begins in `content`: all after the first are now and then left out (`DROP_OTHERS`), as
        text is all that is known of an item that comes later.

    Raises
    ------
    BadInputError
        Where JAX is not installed.
    """
    require_jax()
    import jax
    import jax.numpy as jnp

    n, d = content.shape
    rng = np.random.default_rng([seed, 11])

    def drawn(rows: int, columns: int) -> Any:
        return jnp.asarray(rng.normal(0.0, rows**-0.5, (rows, columns)).astype(np.float32))

    params: dict[str, Any] = {
        "item_hidden": drawn(d, hidden),
        "item_bias": jnp.zeros(hidden),
        "item_out": drawn(hidden, dimensions + 1) * jnp.append(jnp.ones(dimensions), 0.0),
        "user_hidden": drawn(pools * dimensions, hidden),
        "user_bias": jnp.zeros(hidden),
        "user_out": drawn(hidden, dimensions) * 0.1,
        "own": drawn(dimensions, n).T * 0.1,
        "own_bias": jnp.zeros(n),
        "popularity": jnp.zeros(windows),
        "scale": jnp.asarray(np.log(10.0), jnp.float32),
    }
    start, step = _compiled(n, dimensions, drop_own, content_parts, learning_rate, steps, decay)
    known, state, key, losses = jnp.asarray(content), start(params), jax.random.PRNGKey(seed), []
    for number, batch in zip(range(steps), batches, strict=False):
        params, state, loss = step(params, state, known, vars(batch), jax.random.fold_in(key, number))
        losses.append(loss)
    found = {name: np.asarray(value, np.float32) for name, value in params.items()}
    return Towers(
        found["item_hidden"],
        found["item_bias"],
        found["item_out"],
        found["user_hidden"],
        found["user_bias"],
        found["user_out"],
        np.column_stack([found["own"], found["own_bias"]]),
        np.logaddexp(found["popularity"], np.float32(0.0)).astype(np.float32),
        float(np.exp(-found["scale"])),
        float(np.mean([float(one) for one in losses[-50:]])),
    )


@cache
def _compiled(
    n: int,
    dimensions: int,
    drop_own: float,
    content_parts: tuple[int, ...],
    learning_rate: float,
    steps: int,
    decay: float,
) -> tuple[Any, Any]:
    """Build the optimiser's start and its compiled step; fits of one shape share them."""
    import jax
    import jax.numpy as jnp
    import optax

    def unit(rows: Any) -> Any:
        return rows / jnp.sqrt((rows * rows).sum(-1, keepdims=True) + 1e-12)

    def loss_of(p: dict[str, Any], known: Any, batch: dict[str, Any], key: Any) -> Any:
        keep = jax.random.bernoulli(key, 1.0 - drop_own, (n, 1))
        first = content_parts[0] if content_parts else known.shape[1]
        others = jax.random.bernoulli(jax.random.fold_in(key, 1), 1.0 - DROP_OTHERS, (n, 1))
        x = jnp.hstack([known[:, :first], known[:, first:] * others])
        said = jax.nn.relu(x @ p["item_hidden"] + p["item_bias"]) @ p["item_out"]
        items = unit(said[:, :-1] + p["own"] * keep)
        bias = said[:, -1] + p["own_bias"] * keep[:, 0]
        padded = jnp.vstack([items, jnp.zeros((1, dimensions))])
        pooled = jnp.einsum("blf,blp->bpf", padded[batch["history"]], batch["weight"])
        flat = pooled.reshape(len(pooled), -1)
        users = unit(pooled[:, -1] + jax.nn.relu(flat @ p["user_hidden"] + p["user_bias"]) @ p["user_out"])
        shown = jnp.concatenate([batch["positive"], batch["negative"]])
        logits = users @ items[shown].T * jnp.exp(p["scale"]) + bias[shown]
        logits += batch["popularity"][shown] @ jax.nn.softplus(p["popularity"]) - batch["log_q"]
        logits = jnp.where(batch["hidden"], -1e9, logits)
        own = jnp.arange(len(pooled))
        return -jax.nn.log_softmax(logits)[own, own].mean()

    optimiser = optax.adamw(optax.cosine_decay_schedule(learning_rate, steps), weight_decay=decay)

    def step(p: Any, state: Any, known: Any, batch: Any, key: Any) -> Any:
        loss, gradient = jax.value_and_grad(loss_of)(p, known, batch, key)
        updates, state = optimiser.update(gradient, state, p)
        return optax.apply_updates(p, updates), state, loss

    return optimiser.init, jax.jit(step)
