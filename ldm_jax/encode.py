"""Encodes a data set into latents that a second stage trains from.

    python -m ldm_jax.encode --run=runs/quickstart/first_stage --config=quickstart:ldm --out=latents
    python -m ldm_jax.train --config=quickstart:ldm --config.latents.cache=latents \\
        --config.first_stage=runs/quickstart/first_stage --workdir=runs/quickstart/cached

The cache holds the posterior's mean and variance for every training record (and for its mirror
image, if the config flips), so that training samples from the posterior as it does with images. The
data set is the `data` group of --config, or of the run's own config. The same command resumes an
interrupted job with the missing shards. Several machines that share DIR can fill one cache:
--worker=0/4 ... --worker=3/4.
"""

import pathlib

from ldm_jax import cli

FLAGS = dict(
    run=cli.Text("Folder of a trained first stage."),
    config=cli.Recipe("Config whose data to encode; the run's own by default."),
    out=cli.Text("Folder to write to."),
    dtype=cli.Choice("Type of the moments on disk.", "float16", of=("float16", "bfloat16")),
    batch_size=cli.Integer("Images encoded at a time, over all devices.", 64, 1, 2**16),
    shard_size=cli.Integer("Records of a shard, the unit of work.", 4096, least=1, most=2**20),
    worker=cli.Text("K/N encodes every N-th shard from the K-th on, counted from 0.", ""),
)


def main(args, overrides):
    cli.require(args, "run", "out")
    cli.mirror(args)
    cli.check_out("--out", args.out, "manifest.json")
    from ldm_jax.jobs import encoding
    from ldm_jax.runs import data

    given = data.load(args.config or f"{args.run}/config.json", overrides)
    if summary := encoding.encode(cli.fill(encoding.Encoding, args), given.data):
        cli.finish(pathlib.Path(args.out) / "summary.json", summary)


if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main)
