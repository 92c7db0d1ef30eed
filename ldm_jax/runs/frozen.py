"""Networks that a stage uses and never trains: read, shaped, digested and recorded in one place.

A first stage under a denoiser, a text encoder, LPIPS, the teacher of a student: each is one
`Frozen`. The run records the digest of each when it begins; a later session, and whoever opens the
run, is refused other weights.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from ldm_jax.base import errors, tree

NOTHING = "identity"  # the digest of a network that has no weights


@dataclasses.dataclass(frozen=True)
class Frozen:
    """One frozen network.

    name: its key among the stage's frozen weights.
    key: its key in the run's record.
    given: how the user named it, for errors: "config.first_stage=runs/x".
    read: () -> (weights, {what the record says beside the digest}).
    shapes: () -> the weights without memory.
    digest: (weights) -> what the record says of them.
    """

    name: str
    key: str
    given: str
    read: Callable[[], tuple[Any, dict]]
    shapes: Callable[[], Any]
    digest: Callable[[Any], str] = lambda weights: tree.digest(weights) if weights else NOTHING


def read(networks: tuple[Frozen, ...], began: dict, run: str) -> tuple[dict, dict]:
    """({name: weights}, what to record), of networks that have weights.

    began: what the run recorded when it began, {} for one that begins now; run: its name.

    Raises:
      UsageError: a network holds other weights than the run began with.
    """
    found, record = {}, {}
    for network in networks:
        weights, about = network.read()
        now = network.digest(weights)
        if (then := began.get(network.key, now)) != now:
            raise errors.UsageError(
                f"{network.given} has changed since {run} began: it holds other weights (then "
                f"{then}, now {now}). Restore them, or train a new run on a copy that stays."
            )
        found[network.name] = weights
        record |= about | {network.key: now}
    return found, record


def shapes(networks: tuple[Frozen, ...]) -> dict:
    """{name: weights without memory}."""
    return {network.name: network.shapes() for network in networks}
