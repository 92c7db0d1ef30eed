"""What the run of an adapter has to do with its base's: the weights, what must be alike.

`config.adapt.base` names the run of a second stage. Its averaged weights are frozen, and their
digest is recorded when the adapter's run begins.
"""

import dataclasses
import functools

import jax
import numpy as np

from ldm_jax.base import errors, tree
from ldm_jax.base import record as record_lib
from ldm_jax.engine import snapshots
from ldm_jax.runs import codecs, keys, kinds
from ldm_jax.runs import frozen as frozen_lib
from ldm_jax.stages import adapt, kept
from ldm_jax.weights import control, lora

PLAYER = "denoiser"
# Keys of config.model in which a run and its base may differ: none changes what is computed.
FREE = ("dropout", "remat", "remat_saves", "attention_kernel", "norm_kernel")


def of(config):
    """The adapter that a config trains, a value of adapt.ADAPTERS; None for all weights."""
    options = dict(config.adapt)
    name, _ = options.pop("name"), options.pop("base")
    return adapt.ADAPTERS.call(name, **options) if name else None


def refuse(path, said: str):
    """Raises UsageError for the run of an adapter, where whole weights are wanted."""
    if keys.read(path).get("adapt", {}).get("name"):
        raise errors.UsageError(
            f"{said} is the run of an adapter: make it a run of its own first, by python -m "
            f"ldm_jax.convert merge --run={path} --out=RUN"
        )


def check(config, model):
    """Raises UsageError for an adapter that does not fit its base; touches no device.

    model: the config's, a stages.diffuse.Diffuse.
    """
    said, start = f"config.adapt.base={config.adapt.base}", config.init_from
    if not config.adapt.name:
        if config.adapt.base:
            raise errors.UsageError(f"{said} is of an adapter: set config.adapt.name=lora.")
        if start and record_lib.Record(start).exists():
            refuse(start, f"config.init_from={start}")
        return
    if not config.adapt.base:
        raise errors.UsageError(
            f"config.adapt.name={config.adapt.name} needs config.adapt.base, the run whose weights "
            "it adapts: start from configs/lora.py:RUN."
        )
    base = keys.read(config.adapt.base)
    kinds.expect(base, "diffuse", said)
    refuse(config.adapt.base, said)
    adapter, own = of(config), config.conditioners
    added = [k for k in own if k not in base.conditioners and own[k].get("name") in adapter.adds]
    for key, free in (("model", FREE), ("conditioners", added)):
        theirs, ours = (dict(one[key].items()) for one in (base, config))
        for name in sorted(theirs.keys() | ours.keys()):
            if theirs.get(name) != ours.get(name) and name not in free:
                raise errors.UsageError(
                    f"{said} has config.{key}.{name}={theirs.get(name)}, and this config "
                    f"{ours.get(name)}: an adapter fits the network it was made for alone."
                )
    begun = record_lib.Record(start) if start else None
    if begun and begun.exists() and not begun.config.get("adapt", {}).get("name"):
        raise errors.UsageError(
            f"config.init_from={start} holds no adapter: an adapter starts from all weights by "
            "config.adapt.base."
        )
    if keep := config.adapt.keep:
        _check_keep(config, keep)
    with errors.of("config.adapt"):
        adapter.check(_shapes(model), _shapes(kinds.of(base).model(base, model.codec)))


def keeping(config, model):
    """`model`, a Diffuse, as it learns: with config.adapt.keep some rows stay as the base's."""
    if not (keep := config.adapt.name and config.adapt.keep):
        return model
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    own = dict(part=sorted(config.data.mix).index(keep), weight=config.adapt.keep_weight)
    return kept.Kept(**fields, **own)


def stage(config, whole):
    """`whole`, a stage of the config's, in which its adapter learns, where it has one."""
    adapter = of(config)
    return adapt.adapted(whole, adapter, PLAYER) if adapter else whole


def whole(config):
    """({player: tree}, frozen) -> {player: tree}, with a network's parameters for an adapter's."""
    if not (adapter := of(config)):
        return lambda params, frozen: params
    return functools.partial(adapt.whole, adapter, PLAYER)


def frozen(config, codec=None) -> tuple[frozen_lib.Frozen, ...]:
    """The weights that are adapted. codec: of its first stage, for the shapes."""
    if not (path := config.adapt.name and config.adapt.base):
        return ()

    def shapes():
        own = keys.read(path)
        return _shapes(kinds.of(own).model(own, codec))

    def read():
        params, step = snapshots.read_params(path, (PLAYER,))
        return params[PLAYER], {"base_run": path, "base_step": step}

    given = f"config.adapt.base={path}"
    networks = dict(name=adapt.BASE, key="base", given=given, read=read, shapes=shapes)
    return (frozen_lib.Frozen(**networks, digest=tree.digest),)


def check_drawn(run, config, ema, weaker=None, others=None):
    """Raises UsageError for what a run cannot be drawn with; touches no device.

    The arguments are those of runs.opened.load, `others` its adapters.
    """
    for learnt in (*(others or (run,)), *filter(None, (weaker,))):
        snapshots.check(learnt, ema)
    if not others:
        return
    kinds.expect(config, "diffuse", str(run))
    if config.adapt.name:
        raise errors.UsageError(
            f"{run} is the run of an adapter: give its base, {config.adapt.base}, and all adapters "
            "beside it."
        )
    for path in others:
        theirs = keys.read(path)
        kinds.expect(theirs, "diffuse", path)
        if not theirs.adapt.name:
            raise errors.UsageError(f"{path} is the run of no adapter, but of whole weights.")
        if of(theirs).adds:
            raise errors.UsageError(
                f"{path} is a control, which its base cannot follow: draw from it itself, --run="
                f"{path}, with --conditioning_scale for how often it counts."
            )


def weights(record, config, ema: bool | float = True, others: dict | None = None):
    """(a denoiser's weights with the adapters in them, the step of the run), ready to draw with.

    config: the run's. ema: of what the run, and each of the others, has learnt itself; the base of
    an adapter is averaged always.
    others: {run of an adapter of this run: how often it is added}, 0.7 of it, say; see
      `check_drawn`.

    Raises:
      UsageError: an adapter of other weights.
    """
    own, step = snapshots.read_params(record.path, (PLAYER,), ema=ema if not others else True)
    params, adapter = own[PLAYER], of(config)
    if adapter:
        base, _ = frozen_lib.read(frozen(config), record.frozen, record.shown)
        return adapter.merged(base[adapt.BASE], params), step
    digest = tree.digest(params) if others else ""
    for path, weight in (others or {}).items():
        other = record_lib.Record(path)
        if other.frozen.get("base") != digest:
            raise errors.UsageError(
                f"{path} adapts other weights than those of {record.shown}: give its base, "
                f"{other.config.adapt.base}, as it was then."
            )
        found, _ = snapshots.read_params(other.path, (PLAYER,), ema=ema)
        params = of(other.config).merged(params, found[PLAYER], weight)
    return params, step


def export(record, config, folder, ema=True) -> str:
    """Writes what an adapter's run has learnt into a folder; returns what loads it."""
    own, _ = snapshots.read_params(record.path, (PLAYER,), ema=ema)
    if config.adapt.name not in EXPORTS:
        raise errors.UsageError(
            f"config.adapt.name={config.adapt.name}: diffusers has no such adapter; make a run of "
            "whole weights of it (convert merge)."
        )
    return EXPORTS[config.adapt.name](record, config, folder, own[PLAYER])


def _check_keep(config, keep):
    parts = sorted(config.data.mix) if config.data.source == "mix" else []
    if keep not in parts:
        has = f"mix has {', '.join(parts)}" if parts else f"source is {config.data.source!r}"
        raise errors.UsageError(
            f"config.adapt.keep={keep} is no part of a mix: config.data.{has}; start from "
            "configs/lora.py:RUN,PICTURES, or keep nothing (--config.adapt.keep=)."
        )
    if config.distil.method:
        raise errors.UsageError(
            f"config.adapt.keep={keep} does nothing with config.distil.method="
            f"{config.distil.method}, which learns from its teacher alone: leave it empty."
        )


def _export_lora(record, config, folder, own):
    updates = jax.tree.map(np.asarray, of(config).updates(own))
    lora.write(folder, dict(config.model), updates)
    return lora.LOADER


def _export_control(record, config, folder, own):
    base, _ = frozen_lib.read(frozen(config), record.frozen, record.shown)
    whole = config.to_dict() | {"f": codecs.open_codec(config.first_stage).f}
    control.write(folder, whole, own, base[adapt.BASE])
    return control.LOADER


EXPORTS = {"lora": _export_lora, "control": _export_control}


def _shapes(model):
    return jax.eval_shape(lambda: model.init(jax.random.key(0)))
