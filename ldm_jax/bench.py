"""Times the programs of a config on this machine, with their MFU.

    python -m ldm_jax.bench --config=quickstart:ldm --config.first_stage=runs/quickstart/first_stage
    python -m ldm_jax.bench --config=ldm_celebahq --batch_size=64 --against=diffusers  # wants torch
    python -m ldm_jax.bench --compare=OLD.json,NEW.json    # exit code 1 if something became slower

Weights and batches are random arrays of the config's shapes, so no trained run and no data is
needed; only the part `data` reads records, and it is left out if there are none. A second stage is
timed on cached latents; with --images, on images. MFU is the rate of the model's operations (three
times those of its forward pass), divided by the rate of a large matrix product that is measured in
the same run. --against=diffusers compares those of the parts that it has; of data, torch's
DataLoader and webdataset (docs/performance.md).
"""

from ldm_jax import cli
from ldm_jax.base import errors

USUAL = ("train", "sample", "encode", "decode", "data", "checkpoint")
PARTS = (*USUAL, "dispatch", "convolutions", "latency")
FLAGS = dict(
    config=cli.Recipe("Recipe, NAME[:variant] or path.py[:variant], or a run."),
    parts=cli.Listed(
        "Parts to time; there are also dispatch, convolutions and latency.", USUAL, of=PARTS
    ),
    decoder=cli.Text("Run of a first stage whose decoder is timed, too, by the part latency.", ""),
    batch_size=cli.Integer("Images of a batch; 0 for the config's.", 0, least=0),
    images=cli.Switch("Train a second stage on images instead of cached latents."),
    steps=cli.Integer("Number of the sampler's steps; the config's by default.", None, least=1),
    guidance=cli.Number("Scale of guidance; the config's by default.", None, least=0),
    repeats=cli.Integer("How often each measurement is repeated.", 5, least=1),
    against=cli.Choice("Package to compare with: diffusers.", "", of=("", "diffusers")),
    profile=cli.Text("Folder for a trace of the training step.", ""),
    json=cli.Text("File to write; bench.json by default.", ""),
    compare=cli.Listed("Two files that this command wrote, to compare: OLD,NEW."),
    tolerance=cli.Number(
        "How many times slower a part may be before --compare fails.", 1.1, least=0
    ),
)


def main(args, overrides):
    from ldm_jax.cost import benchmarks
    from ldm_jax.runs import data

    if args.compare:
        cli.refuse_idle(args, {"compare", "tolerance"}, "--compare")
        cli.refuse_overrides(overrides, "--compare reads two files alone")
        return benchmarks.compare(args.compare, args.tolerance)
    cli.require(args, "config")
    if args["tolerance"].present:
        raise errors.UsageError("--tolerance does nothing without --compare: leave it out.")
    out = args.json or "bench.json"
    cli.check_file("--json", out, ".json")
    config = data.load(args.config, overrides)
    benchmark = cli.fill(benchmarks.Benchmark, args, config=config)
    cli.finish(out, benchmark.measure(args.config))


if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main)
