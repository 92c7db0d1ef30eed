"""The state of a run and the one training step, for any stage.

    state = {"step": int32, "params": {player: tree}, "opt": {player: tree}, "ema": {player: tree}}
    state, metrics = step(state, frozen, batch, key)

A player that keeps averages of several lengths has the first in "ema" and the others in
state["longer"], {player: {length: tree}}, which no other state has.

`step` is pure. All randomness is `fold_in(key, step)`, so nothing random is ever saved.
"""

import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ldm_jax.base import errors, shard
from ldm_jax.engine import optim

AFTER = 1_000_003  # folded into a step's key for what follows the update; losses fold small numbers
HOST = "pinned_host"  # jax's name of the host's memory that devices read


class Programs(NamedTuple):
    """What training a stage runs, for the devices of a mesh, which need not be there.

    mesh: that mesh.
    init: (key, {player: what it measured}) -> state, jitted; the state is born sharded.
    step: (state, frozen, batch, key) -> (state, metrics), jitted; the state is donated.
    state: its shapes, with shardings.
    rates: {player: step -> learning rate}.
    lengths: {player: lengths as text} of the players whose averages have lengths, see power.py.
    """

    mesh: jax.sharding.Mesh
    init: Callable
    step: Callable
    state: Any
    rates: dict
    lengths: dict = types.MappingProxyType({})


def programs(
    stage,
    settings: dict[str, dict],
    *,
    mesh,
    total: int,
    accumulate: int = 1,
    ema_warmup: bool = True,
    offload: bool = False,
) -> Programs:
    """The programs of `stage`.

    Args:
      settings: {player: its optimizer's}; they and `total`, `ema_warmup` are those of optim.make.
      accumulate: micro-batches per step, see make_step.
      offload: keep the optimizers' moments in the host's memory.
    """
    names = [player.name for player in stage.players]
    optimizers = {name: optim.make(settings[name], total, ema_warmup) for name in names}
    init = make_init(stage.players, optimizers)
    shapes = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))
    placement, whole = shard.infer(shapes, mesh, stage.rules), shard.replicated(mesh)
    # A random draw per weight takes XLA's CPU backend ten times longer to optimise than to run.
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    options = {"xla_backend_optimization_level": 0} if on_cpu else None
    near = placement["opt"]
    if offload:  # all but scalars, whose moves cost more than their room
        move = lambda where, leaf: where.with_memory_kind(HOST) if leaf.ndim else where
        placement["opt"] = jax.tree.map(move, near, shapes["opt"])
    gather = lambda params: shard.gather(params, mesh, stage.rules)
    step = make_step(stage.players, optimizers, gather, accumulate, near if offload else None)
    return Programs(
        mesh=mesh,
        init=jax.jit(init, out_shardings=placement, compiler_options=options),
        step=jax.jit(
            step,
            in_shardings=(placement, whole, None, whole),
            out_shardings=(placement, whole),
            donate_argnums=0,
        ),
        state=shard.abstract(shapes, placement),
        rates={name: own.rate for name, own in optimizers.items()},
        lengths={name: tuple(own.lengths) for name, own in optimizers.items() if own.lengths},
    )


def check_offload(offload: bool, mesh):
    """Raises UsageError where devices cannot read the host's memory."""
    device = mesh.devices.flat[0]
    kinds = [memory.kind for memory in device.addressable_memories()] if offload else [HOST]
    if HOST not in kinds:
        raise errors.UsageError(
            f"offload is on, but {device.platform} devices have no memory {HOST!r} (theirs: "
            f"{', '.join(kinds)}); set it to False."
        )


def make_init(players, optimizers: dict[str, optim.Optimizer]):
    """(key, {player: what it measured}) -> state; see api.Player.

    Jit it with out_shardings, so that the state is born sharded.
    """

    def init(key, measured=None):
        params, measured = {}, measured or {}
        for i, player in enumerate(players):
            start = (measured[player.name],) if player.name in measured else ()
            params[player.name] = player.init(jax.random.fold_in(key, i), *start)
        copy = lambda name: jax.tree.map(jnp.copy, params[name])
        longer = {
            name: {length: copy(name) for length in rest}
            for name, own in optimizers.items()
            if (rest := [*own.lengths][1:])
        }
        state = {
            "step": jnp.zeros((), jnp.int32),
            "params": params,
            "opt": {name: own.tx.init(params[name]) for name, own in optimizers.items()},
            # A copy: the same buffer under two names cannot be donated.
            "ema": {name: copy(name) for name, own in optimizers.items() if own.average},
        }
        return state | ({"longer": longer} if longer else {})

    return init


def make_step(players, optimizers, gather=lambda params: params, accumulate: int = 1, near=None):
    """The training step: (state, frozen, batch, key) -> (state, metrics).

    Args:
      players: api.Player, in order.
      optimizers: {player: optim.Optimizer}.
      gather: {player: tree} -> the same, whole on every device, see base/shard.py.
      accumulate: micro-batches per step; losses and gradients are their means. Statistics over a
        batch (the discriminator's BatchNorm) are those of a micro-batch.
      near: where the optimizers' state is needed, if it does not lie there.
    """
    gradients = functools.partial(_gradients, players, gather)
    if accumulate > 1:
        gradients = functools.partial(_mean_gradients, gradients, accumulate)

    def train_step(state, frozen, batch, key):
        step, params = state["step"], state["params"]
        key = jax.random.fold_in(key, step)
        if near is not None:
            state = state | {"opt": jax.device_put(state["opt"], near)}
        grads, metrics = gradients(params, frozen, batch, key, step)
        new = {"step": step + 1, "params": {}, "opt": {}, "ema": {}}
        for player in players:
            name, own = player.name, optimizers[player.name]
            before = params[name], state["opt"][name]
            updates, opt = own.tx.update(grads[name], before[1], before[0])
            if player.rates:
                updates = jax.tree.map(jnp.multiply, updates, player.rates(before[0]))
            after = optax.apply_updates(before[0], updates), opt
            if player.after:
                after = player.after(after[0], grads[name], jax.random.fold_in(key, AFTER)), opt
            if player.begins or player.every > 1:
                rest = functools.partial(jnp.where, ~_acts(player, step))
                after = jax.tree.map(rest, (before[0], _rested(before[1])), after)
            new["params"][name], new["opt"][name] = after
            if own.average:
                new["ema"][name] = own.average(state["ema"][name], new["params"][name], step)
            if name in state.get("longer", ()):
                new.setdefault("longer", {})[name] = {
                    length: own.lengths[length](average, new["params"][name], step)
                    for length, average in state["longer"][name].items()
                }
            metrics[f"{name}/grad_norm"] = player.every * optax.tree.norm(grads[name])
        # A value that is not finite spoils no weight: the step counts, and changes nothing else.
        good = jnp.all(jnp.isfinite(jnp.stack(list(metrics.values()))))
        old = state | {"step": new["step"]}
        return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old), metrics

    return train_step


def _acts(player, step):
    """Whether a player learns in this step."""
    return (step >= player.begins) & (step % player.every == 0)


def _rested(opt):
    """An optimizer's state after a step of rest: only its learning rate's schedule goes on."""
    of_rate = lambda path, _: getattr(path[-1], "tuple_name", "") == "ScaleByScheduleState"
    counts = [count for _, count in optax.tree.get_all_with_path(opt, "count", of_rate)]
    return optax.tree.set(opt, of_rate, count=counts[0] + 1) if counts else opt


def _gradients(players, gather, params, frozen, batch, key, step):
    """One forward and backward pass of every player on one (micro-)batch: (gradients, metrics)."""
    grads, metrics, shared = {}, {}, {}
    for player in players:

        def loss_fn(own, player=player, shared=shared):
            everyone = gather(params | {player.name: own})
            return player.loss(everyone, frozen, batch, key, step, shared)

        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        if player.every > 1:
            grad_fn = _sometimes(grad_fn, _acts(player, step), player.every)
        (loss, (extra, shared)), grads[player.name] = grad_fn(params[player.name])
        shared = jax.lax.stop_gradient(shared)
        metrics |= {f"{player.name}/loss": loss, **extra}
    return grads, metrics


def _sometimes(grad_fn, acts, every: int):
    """`grad_fn` where `acts`, its values times `every`; elsewhere zeros, which cost nothing.

    So the mean over `every` steps is what a loss is.
    """

    def found(own):
        (loss, (extra, shared)), grads = grad_fn(own)
        loss, extra = jax.tree.map(lambda x: every * x, (loss, extra))
        return (loss, (extra, shared)), grads

    def none(own):
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(grad_fn, own))

    return lambda own: jax.lax.cond(acts, found, none, own)


def _mean_gradients(gradients, parts: int, params, frozen, batch, key, step):
    """The means of what `gradients` gives for so many equal parts of a batch, one after another."""
    # Row r goes to part r % parts, so that every device keeps its own rows.
    split = lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)
    batches = jax.tree.map(split, batch), jax.random.split(key, parts)
    one = lambda part: gradients(params, frozen, part[0], part[1], step)
    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], batches))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    add = lambda total, part: (jax.tree.map(jnp.add, total, one(part)), None)
    total, _ = jax.lax.scan(add, zeros, batches)
    return jax.tree.map(lambda x: x / parts, total)


def averaged(state) -> dict:
    """The params that evaluation and sampling use: the EMA where a player keeps one."""
    return state["params"] | state["ema"]


def averages(state, lengths: dict) -> dict:
    """{player: {length: tree}} of the averages that have lengths; lengths: Programs.lengths."""
    longer = state.get("longer", {})
    return {
        name: {first: state["ema"][name]} | longer.get(name, {})
        for name, (first, *_) in lengths.items()
    }
