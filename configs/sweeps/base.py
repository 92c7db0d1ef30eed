"""What a sweep starts from: every key of its config."""

from ml_collections import ConfigDict


def sweep(first_stages: dict, ldms: dict, axes: dict | None = None) -> ConfigDict:
    """first_stages, ldms: {f: config}. axes: {name: values}, see ldm_jax/sweeps/axes.py."""
    return ConfigDict(
        dict(
            f=tuple(ldms),
            bottlenecks=("kl",),  # kl | vq
            channels=(),  # of the latents; () leaves them to first_stages
            axes=tuple((axes or {}).items()),  # what else varies
            design="grid",  # every combination; star: those that leave the baseline in one axis
            seeds=(0,),  # of the second stage and its samples
            seed_first_stages=False,  # whether every seed has a first stage of its own
            data=dict(),  # keys of `data` that both stages of every cell take
            parameters=0,  # of every denoiser, by its width; 0 leaves the widths
            tolerance=0.1,  # of parameters
            # What each denoiser may spend. flops: of training, by XLA's count; steps; seconds, by
            # the speed of a few steps.
            budget=dict(kind="flops", amount=1e15, max_steps=10_000_000),
            # First stages train the steps of their recipe, then twice as many from the start, until
            # that gains less than gain_db of held-out PSNR, but `doublings` times at most.
            plateau=dict(doublings=0, gain_db=0.3),
            points=4,  # times in training at which samples are judged
            spacing="even",  # of these points; doubling: each has twice the steps of the one before
            sampling=dict(
                num=5_000,
                batch_size=100,
                steps=(10, 20, 50, 100, 200),  # at the end of training
                curve=100,  # one of them, at all points
                flags=(),  # further ones of ldm_jax.sample
            ),
            evaluate=dict(  # further flags of ldm_jax.evaluate
                first_stage=(), samples=()
            ),
            encode=dict(batch_size=64, shard_size=4096),
            first_stages={f"f{f}": config for f, config in first_stages.items()},
            ldms={f"f{f}": config for f, config in ldms.items()},
        ),
        type_safe=False,
    )
