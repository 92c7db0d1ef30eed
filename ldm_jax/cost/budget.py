"""What a training step costs, by XLA's own count, and how many of them a budget pays for."""

import jax

from ldm_jax.base import shard
from ldm_jax.cost import programs


def training_flops(config, codec=None, cached: bool = True) -> float:
    """Floating-point operations of one training step of a config, all players and optimizers.

    Counted on the program as it is before optimisation, so that they do not depend on the machine:
    a multiplication and an addition are two, and a convolution's padding costs nothing. codec:
    a second stage's first stage, which need not be trained; cached: it trains on cached latents.
    """
    config = config.copy_and_resolve_references()
    config.accumulate = 1  # micro-batches run in a loop, whose body XLA counts once
    cpu = jax.devices("cpu")[:1]
    with jax.default_device(cpu[0]):
        program = programs.training(config, shard.make_mesh(devices=cpu), codec, cached)
        return float(program.lower().cost_analysis()["flops"])


def steps(budget, flops_per_step: float, seconds_per_step: float | None = None) -> int:
    """Steps that a budget {"kind", "amount", "max_steps"} pays for, at least one.

    seconds_per_step: as measured, for budgets of seconds.
    """
    cost = {"flops": flops_per_step, "steps": 1, "seconds": seconds_per_step}[budget["kind"]]
    return int(min(budget["max_steps"], max(1, budget["amount"] / cost)))
