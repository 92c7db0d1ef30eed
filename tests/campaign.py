"""Bad inputs by the hundred over every command: which of them are one line, which are not.

    python tests/campaign.py --count=700 --seed=1
    python tests/campaign.py --count=100 --only=sample,train --world=/tmp/world   # kept for later

Tried are hostile values of flags and of keys of configs, damage to every file that a command reads
(damage.py), flags that do nothing, and the sound calls that all of them are made of. A command
that takes a bad input has to end within --limit seconds with exit code 2 (1 where a record is to
blame), one line, and nothing written; a training that begins has taken it. What it accepts is
listed (--verbose) where that may be right, and counted as silent where it cannot be. The exit code
is 1 if a promise broke.
"""

import argparse
import collections
import ctypes
import importlib
import json
import math
import multiprocessing
import os
import pathlib
import random
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parent.parent
OF_A_WORKER = 150  # commands of a process, which keeps what it compiled
BROKEN = ("traceback", "hang", "silent", "lines", "written", "code", "unsound")

SOUND = {  # a sound call of each command; {w}: of world.py, {o}: fresh
    "train": "--config={r}/configs/debug.py:ldm --workdir={o}/run {short} {pixels}",
    "train first": "--config={r}/configs/debug.py:first_stage --workdir={o}/run {first}",
    "train again": "--config={w}/ldm --workdir={o}/ldm",
    "train latent": "--config={w}/latent --workdir={o}/run",
    "train cache": "--config={w}/latent --workdir={o}/run --config.latents.cache={w}/latents",
    "train from": "--config={w}/ldm --workdir={o}/run --config.init_from={w}/published",
    "train images": "--config={w}/ldm --workdir={o}/run --config.data.source=folder "
    "--config.data.path={w}/images --config.conditioners.class.num_classes=4",
    "sample": "--run={w}/ldm --out={o}/s --num=8 --batch_size=8 --steps=1",
    "sample latent": "--run={w}/latent --out={o}/s --num=8 --batch_size=8 --steps=1",
    "sample published": "--run={w}/published --out={o}/s --num=8 --batch_size=8 --steps=1",
    "sample again": "--run={w}/ldm --out={o}/samples --num=8 --batch_size=8 --steps=1",
    "sample labels": "--run={w}/ldm --out={o}/s --num=8 --batch_size=8 --steps=1 "
    "--labels={w}/labels.txt",
    "sample cond": "--run={w}/ldm --out={o}/s --num=8 --batch_size=8 --steps=1 --cond={w}/cond.npz",
    "sample adapters": "--run={w}/ldm --out={o}/s --num=8 --batch_size=8 --steps=1 "
    "--adapters={w}/adapter:0.5",
    "sample weaker": "--run={w}/ldm --out={o}/s --num=8 --batch_size=8 --steps=1 --guidance=2 "
    "--weaker={w}/published",
    "evaluate": "--run={w}/ldm --out={o}/e",
    "evaluate first": "--run={w}/first --out={o}/e",
    "evaluate samples": "--samples={w}/samples --out={o}/e",
    "evaluate npz": "--samples={w}/images.npz --out={o}/e",
    "evaluate against": "--summary={w}/evaluation/summary.json "
    "--against={w}/evaluation/summary.json",
    "encode": "--run={w}/first --config={r}/configs/debug.py:ldm --out={o}/l --batch_size=8",
    "encode again": "--run={w}/first --config={r}/configs/debug.py:ldm --out={o}/latents "
    "--batch_size=8",
    "edit vary": "vary --run={w}/ldm --out={o}/e --images={w}/edited --steps=1",
    "edit inpaint": "inpaint --run={w}/ldm --out={o}/e --images={w}/edited --masks={w}/masks "
    "--steps=1",
    "edit interpolate": "interpolate --run={w}/ldm --out={o}/e --seeds=1,2 --frames=2 --steps=1",
    "edit progress": "progress --run={w}/ldm --out={o}/e --num=1 --frames=2 --steps=2",
    "edit reconstruct": "reconstruct --run={w}/first --out={o}/e --images={w}/edited",
    "adherence": "--run={w}/ldm --out={o}/a --num=8 --batch_size=8 --steps=1 --guidance=1",
    "convert compvis": "compvis --config={w}/txt2img.yaml --checkpoint={w}/txt2img.ckpt "
    "--out={o}/c",
    "convert diffusers": "diffusers --checkpoint={w}/diffusers --out={o}/c",
    "convert lora": "lora --checkpoint={w}/lora.safetensors --run={w}/ldm --out={o}/c",
    "convert dit": "dit --checkpoint={w}/lora.safetensors --out={o}/c",
    "convert uvit": "uvit --checkpoint={w}/lora.safetensors --out={o}/c",
    "convert taef2": "taef2 --checkpoint={w}/diffusers --out={o}/c",
    "convert merge": "merge --run={w}/adapter --out={o}/c",
    "convert export": "export --run={w}/first --out={o}/c",
    "sweep": "--sweep={r}/configs/sweeps/downsampling.py:debug --workdir={o}/w --dry_run",
    "sweep report": "--sweep={r}/configs/sweeps/downsampling.py:debug --workdir={o}/w --report",
    "plan": "--config={r}/configs/debug.py:ldm --config.first_stage=identity --topology=cpu:1 "
    "--out={o}/p --parts=sample {pixels}",
    "bench": "--config={r}/configs/debug.py:ldm --config.first_stage=identity --parts=data "
    "--repeats=1 --json={o}/b.json",
    "bench compare": "--compare={w}/bench_old.json,{w}/bench_new.json",
    "check_data": "--config={r}/configs/debug.py:ldm --config.first_stage=identity --out={o}/d",
    "check_data folder": "--config={r}/configs/debug.py:ldm --config.data.source=folder "
    "--config.data.path={w}/images --out={o}/d",
    "check_data table": "--config={r}/configs/debug.py:ldm --config.data.source=folder "
    "--config.data.path={w}/table --out={o}/d",
    "check_data beside": "--config={r}/configs/debug.py:ldm --config.data.source=folder "
    "--config.data.path={w}/beside --out={o}/d",
    "check_data tar": "--config={r}/configs/debug.py:ldm --config.data.source=tar "
    "--config.data.path={w}/x.tar --out={o}/d",
    "check_data parquet": "--config={r}/configs/debug.py:ldm --config.data.source=parquet "
    "--config.data.path={w}/x.parquet --out={o}/d",
    "check_data records": "--config={r}/configs/debug.py:ldm --config.data.source=arrayrecord "
    "--config.data.path={w}/x.array_record --out={o}/d",
    "check_data recipe": "--config={w}/recipe.py:ldm --out={o}/d",
    "check_data words": "--config={r}/configs/tasks.py:text_one "
    "--config.data.vocabulary={w}/vocab.txt --config.data.count=8 --out={o}/d",
    "prepare_data coco": "coco --path={o}/images --captions={w}/captions.json "
    "--instances={w}/instances.json",
    "prepare_data openimages": "openimages --path={o}/images --boxes={w}/boxes.csv "
    "--classes={w}/classes.csv",
    "doctor": "--workdir={o}/d --devices=cpu:1",
    "report": "--run={w}/ldm --out={o}/r.html",
    "compare": "--runs={w}/ldm,{w}/latent --out={o}/c.html",
    "demo": "--run={w}/ldm",
    "list": "samplers",
    "completion": "bash",
}
# Those that lack something (a package, weights of that kind, finished cells) and are refused.
LACKING = ("demo", "convert lora", "convert dit", "convert uvit", "convert taef2", "sweep report")
COPIES = {  # what of the world a command gets a copy of, as it writes there
    "train again": "ldm",
    "sample again": "samples",
    "encode again": "latents",
    "prepare_data coco": "images",
    "prepare_data openimages": "images",
}
RUN = "config.json latents.json data.txt"
STATE = "checkpoints/2/meta/metadata ?checkpoints/2/_CHECKPOINT_METADATA checkpoints/2/state/[!c]* "
STATE += "?checkpoints/2/state/commit_success.txt checkpoints/2/state/d/* "
STATE += "?checkpoints/2/state/ocdbt.process_0/manifest.ocdbt"
READ = {  # what each call reads: files of the world; with ?, which it may do without
    "train again": f"ldm: {RUN} ?summary.json ?metrics.jsonl ?timing.jsonl ?goodput.jsonl ?.owner "
    f"{STATE}",
    "train latent": f"first: config.json {STATE}",
    "train cache": "latents: index.json images/00000.array_record ?manifest.json",
    "train from": "published: config.json weights.safetensors",
    "train images": "images: metadata.jsonl ?03.png",
    "sample": f"ldm: config.json latents.json {STATE}",
    "sample latent": f"first: config.json {STATE}",
    "sample published": "published: config.json latents.json weights.safetensors",
    "sample again": "samples: manifest.json ?shards/00000.json ?images/000003.png",
    "sample labels": ": labels.txt",
    "sample cond": ": cond.npz",
    "sample adapters": "adapter: config.json latents.json checkpoints/3/state/_METADATA",
    "evaluate": "ldm: config.json latents.json",
    "evaluate first": "first: config.json ?rival.json",
    "evaluate samples": "samples: manifest.json shards/00000.json images/000003.png",
    "evaluate npz": ": images.npz",
    "evaluate against": "evaluation: summary.json",
    "encode": f"first: config.json {STATE}",
    "encode again": "latents: ?index.json manifest.json ?shards/00000.json",
    "edit vary": "edited: 03.png",
    "edit inpaint": "masks: 03.png",
    "edit reconstruct": "edited: 05.png",
    "adherence": "ldm: config.json latents.json",
    "convert compvis": ": txt2img.yaml txt2img.ckpt",
    "convert diffusers": "diffusers: config.json *.safetensors",
    "convert lora": ": lora.safetensors",
    "convert dit": ": lora.safetensors",
    "convert uvit": ": lora.safetensors",
    "convert taef2": "diffusers: *.safetensors",
    "convert merge": "adapter: config.json ?latents.json",
    "convert export": "first: config.json checkpoints/2/state/_METADATA",
    "bench compare": ": bench_old.json bench_new.json",
    "check_data folder": "images: metadata.jsonl ?03.png",
    "check_data table": "table: metadata.csv ?03.png",
    "check_data beside": "beside: ?03.json",
    "check_data tar": ": x.tar",
    "check_data parquet": ": x.parquet",
    "check_data records": ": x.array_record x.array_record.json",
    "check_data recipe": ": recipe.py",
    "check_data words": ": vocab.txt",
    "prepare_data coco": ": captions.json instances.json",
    "prepare_data openimages": ": boxes.csv classes.csv",
    "report": "ldm: config.json ?metrics.jsonl ?summary.json ?timing.jsonl ?goodput.jsonl",
    "compare": "latent: config.json ?metrics.jsonl ?summary.json",
}
NO_NUMBERS = ["nan", "inf", "-inf", "1e999", "abc", "", "[]", "{}", "0x", "1,,2", "True", "1j"]
NUMBERS = [
    *NO_NUMBERS,
    "None",
    "--",
    "-5",
    "1e",
    "9" * 5000,
    "٣.",
    "1;2",
    "1 2",
    "(1,)",
    "'3'",
    "\udcff",
    "-1",
    "1j",
    "True",
]
TEXTS = ["", " ", "nosuch", "/", "/dev/zero", "/dev/null", "/proc/self/mem", "..", "a\nb", "\udcff"]
TEXTS += ["x" * 300, "x" * 5000, "a/" * 3000, "~", "gs://", "hf:", "hf:../..", "s3://a/b", "{w}"]
TEXTS += ["file:///etc", "-", "%s%n", "{o}/x.py:", "{w}/recipe.py:nosuch", "\x1b[31m", "nan", "[]"]
KEYS = [
    "nan",
    "inf",
    "-1",
    "0",
    "1e999",
    "",
    "abc",
    "None",
    "True",
    "()",
    "(0,)",
    "[1",
    "{}",
    "-0.5",
]
KEYS += ["9" * 400, "2147483648", "1.5", "(1,2,3)", "((1,),)", "{'name': 3}", "\udcff", "/dev/zero"]
KEYS += ["{w}/ldm", "{w}/first", "{w}/samples", "{w}/x.tar", "{w}/labels.txt", "nosuch", "7", "1j"]
PLACES = ["ldm", "first", "latents", "samples", "images", "x.tar", "vocab.txt", "lora.safetensors"]
PLACES += ["evaluation", "diffusers", "adapter", "images.npz", "statistics.npz", "bench_old.json"]
PLACES += ["recipe.py", "x.parquet", "published", "masks", "evaluation/summary.json", "boxes.csv"]
PLACES += ["ldm/checkpoints", "ldm/config.json", "ldm/checkpoints/2", "captions.json"]
OUTS = ["{w}/ldm", "{w}/samples", "{w}/images", "{w}/latents", "{w}/labels.txt", "/dev/null/x"]
OUTS += ["{w}/labels.txt/x", "/proc/1/x", "{o}/" + "x" * 300, "s3://bucket/x", "\udcff"]
IDLE = [  # flags and keys that do nothing with the others: refused, or said in a line
    ("sample", "--sampler=heun --eta=0.5"),
    ("sample", "--spacing=linspace --rho=3"),
    ("sample", "--shift=3"),
    ("sample", "--interval=0.1,0.5 --guidance=1"),
    ("sample", "--rescale=0.5 --guidance=1"),
    ("sample", "--rule=cfg_zero --guidance=1"),
    ("sample", "--weaker={w}/published --guidance=1"),
    ("sample", "--prompts=a --labels=1"),
    ("sample", "--held_out --prompts=a"),
    ("sample", "--platforms=cpu"),
    ("sample", "--export={o}/x --format=png"),
    ("adherence", "--null --guidance=2"),
    ("edit progress", "--strength=0.3"),
    ("edit progress", "--images={w}/edited"),
    ("edit vary", "--masks={w}/masks"),
    ("edit vary", "--seeds=1,2"),
    ("edit vary", "--frames=3"),
    ("edit vary", "--num=3"),
    ("edit inpaint", "--strength=0.3"),
    ("edit reconstruct", "--guidance=2"),
    ("edit reconstruct", "--labels=1"),
    ("edit interpolate", "--num=3"),
    ("evaluate", "--reference={w}/images"),
    ("evaluate", "--bootstrap=3"),
    ("evaluate", "--reference_records=8"),
    ("evaluate samples", "--lpips=vgg16,lpips:vgg"),
    ("evaluate samples", "--ema=0.05"),
    ("evaluate against", "--features=inception"),
    ("evaluate against", "--metrics=fd"),
    ("convert merge", "--heads=4"),
    ("convert export", "--public"),
    ("bench compare", "--parts=data"),
    ("bench", "--tolerance=2"),
    ("plan", "--target=x"),
    ("sweep report", "--cell=f1_pixels_c3_s0"),
    ("sweep", "--report"),
    ("sweep", "--forecast=1e18"),
    ("train", "--config.data.path={w}/images"),
    ("train", "--config.data.split=val"),
    ("train", "--config.data.label_field=x"),
    ("train images", "--config.data.objects=2"),
    ("train images", "--config.data.seed=2"),
    ("train images", "--config.data.name=cifar10"),
    ("train", "--config.loss.gamma=2"),
    ("train", "--config.loss.cap=2"),
    ("train", "--config.loss.logvar_features=4"),
    ("train", "--config.process.density_shift=2"),
    ("train", "--config.process.density_mean=2"),
    ("train", "--config.process.density_std=2"),
    ("train", "--config.distil.intervals=7"),
    ("train", "--config.distil.huber=0.1"),
    ("train", "--config.adapt.rank=4"),
    ("train", "--config.optim.denoiser.floor=0.5"),
    ("train", "--config.optim.denoiser.start=0.5"),
    ("train", "--config.optim.denoiser.length=1"),
    ("train", "--config.track.project=x"),
    ("train", "--config.track.entity=x"),
    ("train", "--allow_config_change=modle.width"),
    ("train again", "--allow_config_change=steps"),
    ("train", "--config.eval.samples=64"),
    ("train", "--config.eval.features=inception"),
    ("train", "--config.eval.weights={w}/x.tar"),
    ("train", "--config.eval.every=2"),
    ("train", "--config.latents.mean=0,0,0"),
    ("train", "--config.sample.eta=0.5 --config.sample.sampler=heun"),
    ("train", "--config.sample.rho=3"),
    ("train", "--config.model.remat_saves=products"),
    ("train", "--config.init_grow=True"),
    ("train", "--config.checkpoints.snapshots=3"),
    ("train first", "--config.loss.disc_start=9 --config.loss.disc_weight=0"),
    ("train first", "--config.loss.disc_loss=vanilla --config.loss.disc_weight=0"),
    ("train first", "--config.discriminator.width=16 --config.loss.disc_weight=0"),
    ("train first", "--config.loss.disc_terms.r1=1 --config.loss.disc_weight=0"),
    ("train first", "--config.optim.discriminator.lr=1 --config.loss.disc_weight=0"),
    ("train first", "--config.loss.beta=0.5"),
    ("train first", "--config.loss.codebook_weight=0.5"),
    ("train first", "--config.loss.restart=5"),
    ("train first", "--config.loss.legacy_vq=False"),
    ("train first", "--config.model.codebook_size=32"),
    ("train first", "--config.loss.kl_weight=1 --config.model.bottleneck=vq"),
    ("train first", "--config.loss.perceptual_crop=8"),
    ("train first", "--config.lpips.backbone=vgg16"),
    ("train first", "--config.loss.latent_noise=0.5"),
]


def fill(text: str, world, out) -> str:
    """The words of SOUND with what they stand for."""
    from world import PIXELS, SHORT, first_stage_flags, flags

    words = {"w": world, "o": out, "r": ROOT, "short": shlex.join(flags(*SHORT))}
    words |= {"pixels": shlex.join(flags(*PIXELS)), "first": shlex.join(first_stage_flags())}
    for name, value in words.items():
        text = text.replace(f"{{{name}}}", str(value))
    return text


def table_of(command: str):
    """{flag: (default, parser)} of a command, with those of Fields."""
    from ldm_jax import cli

    module = importlib.import_module(f"ldm_jax.{command.split()[0]}")
    values = cli.define(module.FLAGS)
    return {name: values[name].parser for name in values}


def flag_cases(rng):
    from ldm_jax import cli

    numeric = (cli.Number, cli.Integer, cli.Value, cli.Choice)
    for call in SOUND:
        for name, parser in table_of(call).items():
            is_number = isinstance(parser, numeric)
            is_place = name in ("out", "workdir", "json", "export")
            texts = NUMBERS if is_number else OUTS if is_place else TEXTS
            if not is_number and not is_place:
                texts = texts + [f"{{w}}/{place}" for place in PLACES]
            for text in texts:
                must = isinstance(parser, (cli.Number, cli.Integer)) and text in NO_NUMBERS
                yield dict(call=call, more=[f"--{name}={text}"], must=must)


def key_cases(rng):
    from ldm_jax.base import config as config_lib

    for call, variant in (("train", "ldm"), ("train first", "first_stage")):
        config = config_lib.load(f"{ROOT}/configs/debug.py:{variant}")
        for key in config_lib.flat(config.to_dict()):
            for text in KEYS:
                yield dict(call=call, more=[f"--config.{key}={text}"], must=False)
    for call in ("bench", "plan", "check_data", "encode", "adherence", "doctor"):
        for key in ("data.size", "batch_size", "data.source", "data.path", "nosuch", "data", ""):
            for text in KEYS:
                yield dict(call=call, more=[f"--config.{key}={text}"], must=False)


def file_cases(rng, world):
    import damage

    for call, text in READ.items():
        folder, names = text.split(":")
        for name in names.split():
            files = sorted(p for p in (world / folder).glob(name.lstrip("?")) if p.is_file())
            for file in rng.sample(files, min(2, len(files))):
                kinds = damage.of(file)
                for kind, (_, hard) in kinds.items():
                    must = hard and not name.startswith("?")
                    where = str(file.relative_to(world))
                    yield dict(call=call, file=where, damage=kind, must=must, more=[])


def sound_cases(rng):
    for call in SOUND.keys() - {*LACKING}:
        yield dict(call=call, more=[], must=False)


def idle_cases(rng):
    for call, more in IDLE:
        yield dict(call=call, more=more.split(), must=True)


def cases(rng, world, only) -> list[dict]:
    """All cases, in turn of each kind, so that the first N have all kinds."""
    kinds = [flag_cases(rng), key_cases(rng), file_cases(rng, world), idle_cases(rng)]
    kinds.append(sound_cases(rng))
    names, lists = ("flag", "key", "file", "idle", "sound"), []
    for name, kind in zip(names, kinds):
        found = [case | {"kind": name} for case in kind]
        chosen = (
            lambda case: not only or {case["call"], case["call"].split()[0], case["kind"]} & only
        )
        found = [case for case in found if chosen(case)]
        rng.shuffle(found)
        lists.append(found)
    mixed = []
    while any(lists):
        mixed += [found.pop() for found in lists if found]
    for number, case in enumerate(mixed):
        case["seed"] = rng.randrange(2**32) + number
    return mixed


# A worker: commands, called in its process.


class Began(BaseException):
    """Ends a training that took its input where its first step would begin."""


def worker(pipe, cache):
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["XDG_CACHE_HOME"] = str(cache)
    os.environ["HF_HUB_OFFLINE"] = "1"
    obey_permissions()
    from ldm_jax import cli
    from ldm_jax.engine import loop

    def begin_alone(run):
        raise Began

    loop.train = begin_alone
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while argv := pipe.recv():
        name, out, *argv = argv
        command = importlib.import_module(f"ldm_jax.{name}")
        verbs, words = getattr(command, "VERBS", None), getattr(command, "WORDS", "")
        with open(out, "wb", buffering=0) as file:
            os.dup2(file.fileno(), 2)
        with open(f"{out}.out", "wb", buffering=0) as file:
            os.dup2(file.fileno(), 1)
        begin, raised = time.monotonic(), ""
        try:
            code = cli.run(command.__doc__, command.FLAGS, command.main, argv, verbs, words)
        except Began:
            code = 0
        except BaseException as e:
            code, raised = -1, "".join(traceback.format_exception(e)[-3:])
        sys.stdout.flush()
        pipe.send((code, raised, time.monotonic() - begin))


def obey_permissions():
    """Makes root as bound by files' permissions as everybody else is; see capabilities(7)."""
    libc, header = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0)
    held = (ctypes.c_uint32 * 6)()
    if libc.capget(header, held) == 0:
        for i in range(3):  # effective, permitted, inheritable
            held[i] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        libc.capset(header, held)


class Workers:
    """One worker at a time, replaced where it hangs."""

    def __init__(self, cache, limit):
        self._cache, self._limit, self._process, self._count = cache, limit, None, 0

    def call(self, argv):
        """(code, raised, seconds) of a command; None where it hangs."""
        if not self._process or self._count >= OF_A_WORKER or not self._process.is_alive():
            self.end()
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=worker, args=(theirs, self._cache), daemon=True)
            self._process.start()
            theirs.close()
            self._count = 0
        self._count += 1
        self._pipe.send(argv)
        try:
            if self._pipe.poll(self._limit + 30 * (self._count == 1)):
                return self._pipe.recv()
        except EOFError:
            return -2, "the process died", 0.0
        self.end()
        return None

    def end(self):
        if self._process:
            self._process.kill()
            self._process.join()
        self._process = None


def attempt(case, world, scratch, workers) -> dict:
    """Runs a case; adds its verdict, what was said, its seconds."""
    import damage

    rng = random.Random(case["seed"])
    call, out = case["call"], pathlib.Path(tempfile.mkdtemp(dir=scratch))
    kept = None
    try:
        if copy := COPIES.get(call):
            shutil.copytree(world / copy, out / copy, symlinks=True)
            (out / "images" / "metadata.jsonl").unlink(missing_ok=True) if copy == "images" else 0
        if case.get("damage"):
            copied = copy and case["file"].startswith(f"{copy}/")
            file = (out if copied else world) / case["file"]
            if not copied:
                kept = scratch / "kept"
                shutil.copy2(file, kept)
            damage.of(file)[case["damage"]][0](file, rng)
        before = contents(out)
        said = scratch / "stderr"
        words = shlex.split(fill(SOUND[call], world, out))
        more = [fill(text, world, out) for text in case["more"]]
        case["argv"] = [call.split()[0], *words, *more]
        found = workers.call([call.split()[0], str(said), *words, *more])
        text = said.read_text(errors="replace") if said.exists() else ""
        left = sorted(contents(out) - before)
    finally:
        if kept:
            file.rmdir() if file.is_dir() and not file.is_symlink() else file.unlink(
                missing_ok=True
            )
            shutil.copy2(kept, file)
        shutil.rmtree(out, ignore_errors=True)
    return case | judged(case, found, text, left)


def contents(folder) -> set:
    return {
        str(p.relative_to(folder))
        for p in folder.rglob("*")
        if (p.is_file() or p.is_symlink()) and "compilation_cache" not in str(p)
    }


def judged(case, found, text, left) -> dict:
    lines = [line for line in text.splitlines() if line.strip()]
    about = {"lines": lines[-3:], "left": left}
    if found is None:
        return about | {"verdict": "hang", "seconds": math.inf}
    code, raised, about["seconds"] = found
    about["code"] = code
    if case["kind"] == "sound":
        return about | {"verdict": "unsound" if code else "accepted"}
    if code < 0:
        return about | {"verdict": "traceback", "lines": raised.splitlines()[-6:]}
    if code == 0:
        said = any(word in text for word in ("warning: ", "note: ", "ALARM", "ERROR", "NOT "))
        return about | {"verdict": "said" if said else "silent" if case["must"] else "accepted"}
    lines = [line for line in lines if not line.startswith(("warning: ", "ERROR:"))]
    if len(lines) != 1 or not lines[0].startswith("ldm_jax: ") or len(lines[0]) > 1000:
        return about | {"verdict": "lines"}
    # The config of a training without a checkpoint protects nothing: the next one replaces it.
    harmless = (".owner", "run/config.json", "run/data.txt")
    if code == 2 and [name for name in left if not name.endswith(harmless)]:
        return about | {"verdict": "written"}
    return about | {"verdict": "refused" if code in (1, 2) else "code"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=700)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--limit", type=float, default=120, help="seconds of a command")
    parser.add_argument("--world", type=pathlib.Path, help="examples to spoil; made if need be")
    parser.add_argument("--only", default="", help="calls, commands or kinds, with commas")
    parser.add_argument("--verbose", action="store_true", help="say what was accepted")
    parser.add_argument("--log", type=pathlib.Path, help="a .jsonl file of every case")
    args = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # what is run once is not tuned
    import world as world_lib

    scratch = pathlib.Path(tempfile.mkdtemp(prefix="ldm_jax_campaign_"))
    world = args.world or scratch / "world"
    print(f"seed {args.seed}: python tests/campaign.py --count={args.count} --seed={args.seed}")
    if not world.exists():
        world_lib.make(world)
    rng, workers = (
        random.Random(args.seed),
        Workers(world.with_name(f"{world.name}.cache"), args.limit),
    )
    tally, longest = collections.defaultdict(collections.Counter), 0.0
    broke, begin = 0, time.monotonic()
    only = {word for word in args.only.split(",") if word}
    for case in cases(rng, world, only)[: args.count]:
        found = attempt(case, world, scratch, workers)
        tally[found["kind"]][found["verdict"]] += 1
        longest = max(longest, found["seconds"])
        if args.log:
            with args.log.open("a") as log:
                log.write(json.dumps(found) + "\n")
        wrong = found["verdict"] in BROKEN
        broke += wrong
        if wrong or (args.verbose and found["verdict"] == "accepted"):
            about = f" [{found['file']}: {found['damage']}]" if "file" in found else ""
            print(f"{found['verdict']:9} {ascii(shlex.join(found['argv']))[:400]}{about}")
            print(*(f"    {line[:300]}" for line in found["lines"]), sep="\n", flush=True)
            if found["verdict"] == "written":
                print("    left:", *found["left"][:5])
    workers.end()
    shutil.rmtree(scratch, ignore_errors=True)
    verdicts = sorted({verdict for row in tally.values() for verdict in row})
    print(f"{'':8}" + "".join(f"{verdict:>11}" for verdict in verdicts))
    for kind, row in tally.items():
        print(f"{kind:8}" + "".join(f"{row[verdict]:11}" for verdict in verdicts))
    seconds = time.monotonic() - begin
    print(
        f"{broke} broken; the longest took {longest:.1f} s, all {seconds:.0f} s; seed {args.seed}"
    )
    sys.exit(1 if broke else 0)


if __name__ == "__main__":
    main()
