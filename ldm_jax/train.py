"""Trains a first or a second stage, or goes on with one that was interrupted.

    python -m ldm_jax.train --config=configs/NAME.py[:variant] --workdir=DIR [--config.key=v ...]

--config.key=value changes any key of the config; ldm_jax/base/defaults.py lists them. The same
command on the same workdir continues from the newest checkpoint. SIGTERM saves and exits with 42.
--config.init_from=RUN starts a new run from another's weights; --config=RUN/config.json takes its
config along.
"""

import functools
import pathlib

from ldm_jax import cli
from ldm_jax.base import config as config_lib
from ldm_jax.base import disk, errors, platforms, remote, watch

# Keys of a run's config that say nothing of what it computes.
MAY_CHANGE = ("limits.", "max_bad_steps", "max_loss_spike", "max_rollbacks", "check_replicas")
MAY_CHANGE += ("mesh.", "offload", "model.attention_kernel", "model.norm_kernel")


FLAGS = dict(
    config=cli.Text("Config file, path.py[:variant], or RUN/config.json."),
    workdir=cli.Text("Folder of this run."),
    devices=cli.Text("Devices that must be there over all hosts, e.g. tpu:16 or gpu.", ""),
    deterministic=cli.Switch("Give the same bits on GPUs too, more slowly; others always do."),
    allow_config_change=cli.Listed("Keys of a run's config that may change, e.g. steps.total."),
)


def main(args, overrides):
    cli.require(args, "config", "workdir")
    cli.mirror(args)
    if args.deterministic:
        platforms.set_flags(platforms.DETERMINISTIC)
    config = config_lib.load(args.config, overrides)
    train(config, args.workdir, allow=args.allow_config_change, devices=args.devices)


def train(config, workdir, allow=(), devices="") -> dict:
    """Trains what `config` says in `workdir`; returns the summary that it writes there."""
    import jax

    from ldm_jax.build import checks
    from ldm_jax.build import objects as build
    from ldm_jax.engine import hosts, inherit, loop, phases, rollback
    from ldm_jax.evaluation import monitor

    seconds = watch.stopwatch()
    hosts.connect()
    hosts.everywhere(lambda: cli.check_writable("--workdir", workdir))
    workdir = pathlib.Path(workdir)
    source = build.open_source(config.data)
    config = build.resolve(config, source)
    checks.check(config, source)
    plan = monitor.plan(config)
    hosts.agree(
        code_version=hosts.code_version(),
        jax_version=jax.__version__,
        config=config_lib.digest(config),
        data=source.fingerprint,
    )
    hosts.check_devices(devices)
    mesh = checks.make_mesh(config)
    first_stage = build.make_autoencode(config).stage() if config.stage == "autoencode" else None
    if begun(workdir):
        can_resume(workdir)
    elif config.init_from:
        players = (first_stage or build.make_diffuse(config).stage(None)).players
        inherit.check(config.init_from, players)
    hosts.on_first(lambda: claim(workdir, config, source, allow))

    platforms.cache_compilations(workdir / "compilation_cache")
    stage = first_stage or second_stage(config, source, workdir)
    if cache := build.open_cache(config, source):
        origin = disk.read_json(workdir / "latents.json")["origin"]
        cache.check_weights(config.first_stage, origin["digest"])
    report = workdir / f"hang_{hosts.index():04d}.txt"
    with hosts.losses(), phases.Phases(dict(config.limits), report) as phase:
        session = functools.partial(
            loop.train,
            stage,
            build.make_data(config, source, stage.fields),
            workdir=workdir,
            mesh=mesh,
            steps=loop.Intervals(**config.steps),
            optimizers={name: dict(config.optim[name]) for name in (p.name for p in stage.players)},
            batch_size=config.batch_size,
            seed=config.seed,
            accumulate=config.accumulate,
            offload=config.get("offload", False),
            phase=phase,
            max_bad_steps=config.max_bad_steps,
            max_loss_spike=config.get("max_loss_spike", 0.0),  # runs from before this key lack it
            check_replicas=config.get("check_replicas", 0),
            evaluators=(monitor.distances(plan, config, source, mesh),) if plan else (),
            init_from=config.init_from,
            **config.checkpoints,
        )
        most = config.get("max_rollbacks", 0)
        rollback.persevere(lambda history: session(history=history), workdir, most)
    return hosts.on_first(lambda: summarise(workdir, seconds()))


def second_stage(config, source, workdir):
    """The diffusion stage with its frozen first stage; measures the latents once and keeps that."""
    import itertools
    import json

    import jax
    import jax.numpy as jnp

    from ldm_jax.base import tree
    from ldm_jax.build import objects as build
    from ldm_jax.engine import hosts
    from ldm_jax.stages import diffuse

    model = build.make_diffuse(config)
    params, step = build.codec_params(config.first_stage)
    digest = tree.digest(params) if params else build.IDENTITY
    frozen = model.denoiser.read_frozen()
    file = workdir / "latents.json"

    def measured() -> dict:
        if file.exists():
            return disk.read_json(file)
        given = {"scale": config.latents.scale} if config.latents.scale else {}
        statistics = inherited_latents(config.init_from, digest) or given
        if not statistics:
            # One host reads whole batches, so that the scale is the same on any number of hosts.
            batches = build.make_data(config, source, ("image",), dict(host=0, hosts=1)).train(0)
            some = itertools.islice(batches, config.latents.batches)
            key = jax.random.key(config.seed)
            statistics = diffuse.latent_statistics(model.codec, params, some, key)
            batches.close()
        origin = {"first_stage": config.first_stage, "step": step, "digest": digest}
        if frozen:
            origin["conditioners"] = tree.digest(frozen)
        disk.write_text(file, json.dumps(statistics | {"origin": origin}, indent=2) + "\n")
        return statistics | {"origin": origin}

    record = hosts.on_first(measured, seconds=3600)
    if record["origin"]["digest"] != digest:
        raise errors.UsageError(
            f"{config.first_stage} has changed since this run began (weights {digest}, then "
            f"{record['origin']['digest']}); train on a copy that stays, or take a fresh --workdir."
        )
    check_frozen(frozen, record, workdir)
    own = {"conditioners": frozen} if frozen else {}
    return model.stage({"first_stage": params, "scale": jnp.float32(record["scale"])} | own)


def check_frozen(frozen, record, workdir):
    """Raises UsageError where conditioners' frozen weights are not those that a run began with."""
    from ldm_jax.base import tree

    began = record["origin"].get("conditioners")
    if frozen and began and tree.digest(frozen) != began:
        raise errors.UsageError(
            f"{workdir} was trained with other weights of its conditioners ({began}, now "
            f"{tree.digest(frozen)}): restore the files that config.conditioners names."
        )


def inherited_latents(init_from, digest: str) -> dict:
    """What the source of this run's weights says of its latents, if its first stage is the same."""

    file = pathlib.Path(remote.local(init_from)) / "latents.json"
    record = disk.read_json(file) if init_from and file.is_file() else {"origin": {}}
    return record if record.pop("origin").get("digest") == digest else {}


def begun(workdir) -> bool:
    """Whether there is a checkpoint to go on from, or to protect."""
    return any(remote.place(workdir / "checkpoints").glob("[0-9]*"))


def can_resume(workdir):
    """Raises UsageError for a run that was converted: it has no optimizer's state to go on with."""
    from ldm_jax.engine import checkpoint

    try:
        trained = checkpoint.saved(workdir).get("opt")
    except errors.UsageError:
        return  # a damaged checkpoint; restoring walks back to a sound one
    if not trained:
        raise errors.UsageError(
            f"--workdir={workdir} holds weights without an optimizer's state, as converted runs "
            f"do: take a new --workdir and start from it with --config.init_from={workdir}"
        )


def claim(workdir, config, source, allow):
    """Writes config.json into a new workdir; refuses one with another config or other data.

    A workdir without a checkpoint holds nothing to protect: a corrected config may take it over.
    """

    text = config_lib.to_json(config)
    file, data_file = workdir / "config.json", workdir / "data.txt"
    taken = begun(workdir)
    if not taken:
        (workdir / "latents.json").unlink(missing_ok=True)
        if not file.exists() or file.read_text() != text:
            (workdir / "rollbacks.jsonl").unlink(missing_ok=True)
    if taken and file.exists():
        saved = config_lib.from_json(file.read_text())
        lines = config_lib.difference(saved, config, unset=config_lib.OFF)
        changed = {line.split(":")[0]: line for line in lines}
        changed = {key: line for key, line in changed.items() if not key.startswith(MAY_CHANGE)}
        if changed.keys() - set(allow):
            raise errors.UsageError(
                f"{workdir} holds a run with another config ({'; '.join(changed.values())}): take "
                f"another --workdir, or allow it with --allow_config_change={','.join(changed)}"
            )
    data = data_file.read_text().strip() if taken and data_file.exists() else source.fingerprint
    if data != source.fingerprint:
        raise errors.UsageError(
            f"{workdir}: the data has changed since this run began (fingerprint {data}, now "
            f"{source.fingerprint}); restore it, or take another --workdir."
        )
    disk.write_text(file, text)
    disk.write_text(data_file, source.fingerprint + "\n")


def summarise(workdir, seconds: float) -> dict:
    """summary.json: the newest value of every metric, the rates, the clock."""
    import statistics

    from ldm_jax.engine import goodput

    newest = {}
    for line in disk.read_jsonl(workdir / "metrics.jsonl"):
        newest |= line
    rates = [
        line["images_per_second"]
        for line in disk.read_jsonl(workdir / "timing.jsonl")
        if "images_per_second" in line
    ]
    summary = {"steps": newest.pop("step"), "seconds": seconds}
    if rates:
        summary["images_per_second"] = statistics.median(rates)
    summary |= {
        name.removeprefix("val/"): v for name, v in newest.items() if name.startswith("val/")
    }
    summary["train"] = {name: v for name, v in newest.items() if not name.startswith("val/")}
    summary["goodput"] = goodput.report(workdir)
    pictures = remote.shown(workdir / "images")
    lines = [f"goodput: {goodput.words(summary['goodput'])}", f"pictures: {pictures}"]
    cli.finish(workdir / "summary.json", summary, lines)
    return summary


if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main)
