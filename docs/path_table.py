"""Path regularisation beside plain training, at equal FLOPs: the table of docs/objectives.md.

    python docs/path_table.py --first_stage=runs/quickstart/first_stage --out=runs/path

Denoisers of one level of `--width` channels are trained on the same latents of coloured shapes by
every variant, for as many FLOPs as plain training takes for `--steps`, with the same seeds; then
students of the plain ones, with the term and without. A figure is the mean over seeds; behind it
stands the mean difference from its plain rival of the same seed, with its 95 % interval
(Student's). The same command again skips what is finished.
"""

import dataclasses
import functools
import json
import pathlib
import sys

import jax
import numpy as np
from scipy import stats

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from configs import quickstart
from ldm_jax import cli
from ldm_jax.base import disk, raster, shard
from ldm_jax.diffusion import samplers
from ldm_jax.engine import step as step_lib
from ldm_jax.runs import codecs, data, kinds
from ldm_jax.scenes import checker
from ldm_jax.stages import scaling, thumbnails
from ldm_jax.stages.consistency import Consistency
from ldm_jax.stages.sampling import Sampling

FLAGS = dict(
    first_stage=cli.Text("Run of a first stage of one coloured shape."),
    out=cli.Text("Folder to write to."),
    width=cli.Integer("Channels of the denoisers.", 32, least=32),
    steps=cli.Integer("Steps of plain training, and of students.", 500, least=10),
    seeds=cli.Listed("Seeds.", (0, 1, 2), each=int),
    records=cli.Integer("Training pictures.", 4096, least=256),
    num=cli.Integer("Samples of each run, and held-out pictures.", 384, least=2),
)
PLAIN, STUDENT = "plain", "student"
TRAINED = {
    PLAIN: {},
    "thumbnail=1": dict(thumbnail=1.0),
    "coarse=1": dict(coarse=1.0),
}
DISTILLED = {STUDENT: {}, "student, thumbnail=1": dict(thumbnail=1.0)}
INTERVALS = 16  # of the students; their teacher is drawn by as many DDIM steps


def main(args, overrides):
    cli.refuse_overrides(overrides)
    cli.require(args, "first_stage", "out")
    out, bench, found = pathlib.Path(args.out), Bench(args), {}
    for name in (*TRAINED, *DISTILLED):
        for seed in args.seeds:
            file = out / f"{name.replace(' ', '_')}_{seed}.json"
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                disk.write_json(file, bench.cell(name, seed))
                print(name, seed, file.read_text(), flush=True)
            found.setdefault(name, []).append(json.loads(file.read_text()))
    text = "\n".join([table(found, TRAINED), table(found, DISTILLED)])
    (out / "table.md").write_text(text)
    print(text)


class Bench:
    """The data, in latents, and what is trained on them."""

    def __init__(self, args):
        self.args, self.mesh = args, shard.make_mesh()
        for once in ("trained", "programs", "counted", "sampler"):
            setattr(self, once, functools.cache(getattr(self, once)))
        config = quickstart.brief()
        config.model.update(width=args.width, mult=(1,), attention=(), cross_attention=False)
        del config.conditioners["class"]
        config.conditioners["class_vector"].width = 4 * args.width
        config.first_stage, config.sample.guidance = args.first_stage, 2.0
        config.optim.denoiser.update(warmup=args.steps // 10, ema=0.99)
        source = data.open_source(config.data)
        self.config = data.resolve(config, source)
        codec, params = codecs.open_codec(args.first_stage), codecs.read_params(args.first_stage)[0]
        moments = jax.jit(codec.moments)

        def encoded(records, count):
            config.eval.batch_size = 64
            found = []
            for batch in data.held_out_batches(config, records, ("image", "class"), count):
                keep = batch["real"] > 0
                images = np.asarray(moments(params, batch["image"]))
                found.append({"moments": images[keep], "class": batch["class"][keep]})
            return {key: np.concatenate([one[key] for one in found]) for key in found[0]}

        self.train = encoded(data.training(config, source), args.records)
        self.held_out = encoded(data.held_out(config, source), args.num)
        batches = [{"moments": self.train["moments"][:1024]}]
        latents = scaling.measure(codec, params, batches, jax.random.key(0))
        self.frozen = {"first_stage": params} | scaling.arrays(latents)
        kernel = thumbnails.measure(codec, params, batches, self.frozen, jax.random.key(0))
        self.frozen["thumbnail"] = np.float32(kernel)
        self.model = kinds.of(config).model(config)

    def trained(self, name: str, seed: int):
        """(averaged parameters of the denoiser, steps) after training."""
        programs, steps, frozen = *self.programs(name), self.of(name, seed)
        state = programs.init(jax.random.key(seed))
        if name in DISTILLED:
            copy = lambda: jax.tree.map(lambda x: np.array(x), frozen["teacher"])
            state |= {"params": {"denoiser": copy()}, "ema": {"denoiser": copy()}}
        rng = np.random.default_rng(seed)
        for _ in range(steps):
            rows = rng.integers(0, len(self.train["class"]), self.config.batch_size)
            batch = {key: value[rows] for key, value in self.train.items()}
            state, _ = programs.step(state, frozen, batch, jax.random.key(seed))
        return jax.device_get(state["ema"]["denoiser"]), steps

    def programs(self, name: str):
        """(programs, steps that cost what plain training does)."""
        made, flops = self.counted(name, self.args.steps)
        if name in DISTILLED:
            return made, self.args.steps
        steps = round(self.args.steps * self.counted(PLAIN, self.args.steps)[1] / flops)
        return (made if steps == self.args.steps else self.counted(name, steps)[0]), steps

    def counted(self, name: str, steps: int):
        """(programs of so many steps, operations of one)."""
        stage = self.stage(name, steps)
        own = self.config.optim.denoiser.to_dict()
        if name in DISTILLED:
            own["lr"] = 3e-4
        settings = {player.name: own for player in stage.players}
        made = step_lib.programs(stage, settings, mesh=self.mesh, total=steps)
        batch = {key: value[: self.config.batch_size] for key, value in self.train.items()}
        given = made.state, self.of(name, self.args.seeds[0]), batch, jax.random.key(0)
        return made, made.step.lower(*given).cost_analysis()["flops"]

    def stage(self, name: str, steps: int):
        terms = (TRAINED | DISTILLED)[name]
        loss = dataclasses.replace(self.model.loss, terms=terms)
        model = dataclasses.replace(self.model, loss=loss, total=steps)
        if name in DISTILLED:
            model = dataclasses.replace(model, loss=dataclasses.replace(loss, cond_dropout=0.0))
            return Consistency(model, self.model, steps, INTERVALS, 8).stage({})
        return model.stage({})

    def of(self, name: str, seed: int) -> dict:
        """The frozen weights; of a student also those of its teacher, the plain run of its seed."""
        teacher = {"teacher": self.trained(PLAIN, seed)[0]} if name in DISTILLED else {}
        return self.frozen | teacher

    def cell(self, name: str, seed: int) -> dict:
        """The figures of one run."""
        own, steps = self.trained(name, seed)
        found = {"steps": steps}
        if name in DISTILLED:
            z = self.drawn(own, "consistency", 1, 1.0)
            teacher = self.drawn(self.trained(PLAIN, seed)[0], "ddim", INTERVALS, 2.0)
            found["match_1"] = float(np.sqrt(np.mean((z - teacher) ** 2)))
            found["spread"] = float(np.std(z) / np.std(teacher))
        else:
            found["error"] = self.error(own)
            z = self.drawn(own, "ddim", 10, 2.0)
        return found | {"accuracy": self.accuracy(z)}

    def drawn(self, own, sampler, steps, guidance):
        """Latents for the held-out conditions, from the same noise by every run."""
        z, labels = [], self.held_out["class"]
        for begin in range(0, len(labels), 128):
            rows = np.arange(begin, min(begin + 128, len(labels)))
            keys, fields = samplers.image_keys(0, rows), {"class": labels[rows]}
            z.append(self.sampler(sampler, steps, guidance)(own, self.frozen, keys, fields))
        return np.concatenate(jax.device_get(z))

    def sampler(self, sampler, steps, guidance):
        how, size = Sampling(sampler, steps, guidance=guidance), self.model.size
        how = dict(sampling=how, height=size, width=size)
        return jax.jit(lambda own, frozen, *given: self.model.sample(own, frozen, *given, **how))

    def accuracy(self, z) -> float:
        """The share of pictures that show the shape and colour that they were asked for."""
        pixels = np.asarray(raster.to_uint8(self.decode(self.frozen, z)))
        return float(np.mean(checker.check(pixels) == self.held_out["class"]))

    @functools.cached_property
    def decode(self):
        return jax.jit(self.model.decode)

    def error(self, own) -> float:
        """The held-out error, with the same noise for every run."""
        batch = self.held_out | {"image": self.held_out["moments"]}
        return float(np.mean(self._errors(own, self.frozen, batch, jax.random.key(1))))

    @functools.cached_property
    def _errors(self):
        def errors(own, frozen, batch, key):
            t_key, eps_key = jax.random.split(key)
            z = scaling.scaled(frozen, self.model.codec.latents(batch["moments"]))
            t = jax.random.randint(t_key, (len(z),), 0, self.model.process.timesteps)
            eps, drop = jax.random.normal(eps_key, z.shape), np.zeros(len(z), bool)
            return self.model.error_at({"denoiser": own}, z, t, eps, batch, drop, frozen=frozen)

        return jax.jit(errors)


def table(found: dict, names) -> str:
    """Markdown; the first of `names` is what the others are held against."""
    rival, *_ = names
    figures = [*found[rival][0]]
    lines = [f"| |{''.join(f' {figure} |' for figure in figures)}", "|---|" + "---|" * len(figures)]
    for name in names:
        row = [f"{np.mean([one[key] for one in found[name]]):.4g}" for key in figures]
        if name != rival:
            differ = {
                key: [a[key] - b[key] for a, b in zip(found[name], found[rival], strict=True)]
                for key in figures[1:]
            }
            row[1:] = [f"{text} ({interval(differ[key])})" for text, key in zip(row[1:], differ)]
        lines.append(f"| {name} |" + "".join(f" {text} |" for text in row))
    return "\n".join(lines) + "\n"


def interval(differences) -> str:
    n = len(differences)
    width = stats.t.ppf(0.975, n - 1) * np.std(differences, ddof=1) / np.sqrt(n) if n > 1 else 0
    return f"{np.mean(differences):+.2g} ± {width:.2g}"


if __name__ == "__main__":
    cli.start(__doc__, FLAGS, main)
