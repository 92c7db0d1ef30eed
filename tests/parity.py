"""Every golden case against our numbers: the measurements behind docs/parity.md.

    python tests/parity.py FOLDER [PREFIX ...] > table.md

FOLDER is laid out as shared/golden (tests/golden holds a part, packed). Checkpoints go through
`convert` and `ldm_jax.load`, as a user's would; losses and modules that no run shows are called
directly. Tolerance, per output: the larger of 10 x the recorded float32 noise and 1e-4 of its rms.
"""

import contextlib
import functools
import json
import lzma
import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import parity_maths  # noqa: E402

import ldm_jax  # noqa: E402
from ldm_jax import convert  # noqa: E402
from ldm_jax.models import bottleneck  # noqa: E402
from ldm_jax.models.conditioners import ScalarEmbedder  # noqa: E402
from ldm_jax.weights import compvis, diffusers, official, official_config, rules  # noqa: E402

KEYS = "model.diffusion_model."


class Case:
    """One case of a golden folder, its inputs and outputs channels-last."""

    def __init__(self, folder, name):
        self.folder, self.name = pathlib.Path(folder), name
        self.rows, self.work = [], pathlib.Path(tempfile.mkdtemp(prefix="parity_"))
        stem, own = self.folder / "compvis" / name, self.folder / "diffusers" / name
        self.meta = json.loads(
            (own / "case.json" if own.is_dir() else stem.parent / f"{stem.name}.json").read_text()
        )
        io = own / "io.npz" if own.is_dir() else stem.parent / f"{stem.name}.io.npz"
        if not io.is_file():  # the same weights under older names
            twin = own.parent / name.removesuffix("_legacykeys")
            io, self.meta = twin / "io.npz", json.loads((twin / "case.json").read_text())
        self.io = {k: _last(v) for k, v in np.load(io).items()}
        self.params = self.meta.get("config", {}).get("params", {})

    def weights(self):
        """The state dict of this case, float32."""
        own = self.meta.get("ckpt_file") or self.meta.get("config", {}).get("unet_ckpt")
        names = [own] if own else [f"compvis/{self.name}{s}" for s in (".ckpt.npz", ".safetensors")]
        path = next(self.folder / n for n in names if (self.folder / n).is_file())
        return official.tensorfile.read(path)

    def compare(self, name, ours, noise=None):
        ours, golden = np.asarray(ours, np.float32), np.asarray(self.io[f"out_{name}"])
        record = self.meta.get("fp32_noise", {}).get(noise or name, {})
        rounding = record.get("max_abs_diff_fp32_fp64", record.get("max_abs", 0.0))
        rms = record.get("rms", float(np.sqrt(np.mean(golden.astype(np.float64) ** 2))))
        error = float(np.max(np.abs(ours.reshape(golden.shape) - golden), initial=0.0))
        self.rows.append((self.name, name, error, max(10 * rounding, 1e-4 * max(rms, 1e-2))))

    def convert(self, state, model, **kwargs):
        """Through the command, from a yaml and a file; returns the loaded run."""
        (self.work / "model.yaml").write_text(json.dumps({"model": model}))  # JSON is yaml
        np.savez(self.work / "model.npz", **state)
        argv = [f"--config={self.work}/model.yaml", f"--checkpoint={self.work}/model.npz"]
        argv += [f"--{k}={v}" for k, v in kwargs.items()]
        return self.run(["compvis", *argv])

    def run(self, argv, ema=True):
        assert convert.run([*argv, f"--out={self.work}/run"]) == 0
        return ldm_jax.load(self.work / "run", ema=ema)


def autoencoder(case):
    """AutoencoderKL and both VQModels."""
    io, run = case.io, case.convert(case.weights(), case.meta["config"])
    if run.codec.model.bottleneck == "kl":
        z = run.encode(io["in_x"])
        case.compare("mode", z)
        case.compare("recon_mode", run.decode(z))
        case.compare("decode_z", run.decode(io["in_z"]))
        case.compare("moments", _apply(run, "encode", io["in_x"]))
        return
    z = run.encode(io["in_x"])
    case.compare("prequant", z)
    interface = "Interface" in case.meta["config"]["target"]
    case.compare("recon_from_prequant", run.decode(z))
    indices = bottleneck.quantise(run._params["codebook"], z)[1]
    case.compare("indices", np.asarray(indices).reshape(io["out_indices"].shape))
    if interface:
        case.compare("decode_z", run.decode(io["in_z"]))
        case.compare("recon_force_not_quantize", _apply(run, "decode", z, quantise=False))


def unet(case):
    """A UNet inside an LDM of pixels, as LatentDiffusion would hold it."""
    io, p = case.io, case.params
    run = case.convert(*_ldm(case, p))
    channels = p["in_channels"] if p.get("n_embed") else p["out_channels"]
    x, cond = io["in_x"][..., :channels], {}
    if "in_context" in io:
        cond["tokens"] = io["in_context"]
    if "in_y" in io:
        cond["class"] = io["in_y"]
    if p["in_channels"] > channels:
        cond["concat"] = io["in_x"][..., channels:]
    case.compare("eps", run.denoise(x, io["in_t"], cond or None))


def sampler(case):
    """DDIM and DDPM from a given x_T. What draws noise is held against the recorded noise."""
    io, config = case.io, case.meta["config"]
    state = {KEYS + k: v for k, v in case.weights().items()}
    run = case.convert(state, config["model"])
    kind = "concat" if "concat" in case.name else "tokens"
    cond = {kind: io["in_context"]}
    if "in_uncond_context" in io:
        cond["null_tokens"] = io["in_uncond_context"]
    z = run.sample(
        len(io["in_x_T"]),
        steps=config["sampler"]["S"],
        guidance=config["sampler"].get("cfg_scale", 1.0),
        spacing="legacy",
        cond=cond,
        noise=io["in_x_T"],
        latents=True,
    )
    case.compare("x_final", z)


def discriminator(case):
    from ldm_jax.models.discriminator import PatchDiscriminator

    io, p, state = case.io, case.params, case.weights()
    actnorm = p.get("use_actnorm", False)
    model = PatchDiscriminator(p["ndf"], p["n_layers"], "actnorm" if actnorm else "batch")
    shapes = jax.eval_shape(model.init, jax.random.key(0), io["in_x"])["params"]
    table = compvis.discriminator(p["n_layers"])
    params = rules.convert(state, table, compvis.RUNNING_STATISTICS, shapes)
    if actnorm:
        case.compare("logits_eval", model.apply({"params": params}, io["in_x"]))
        # without its norms' parameters, they start from the batch at hand
        params = {k: v for k, v in params.items() if k.startswith("conv")}
        rngs, kinds = {"params": jax.random.key(0)}, ["params"]
        params = model.apply({"params": params}, io["in_x"], mutable=kinds, rngs=rngs)[1]["params"]
    case.compare("logits_train_first", model.apply({"params": params}, io["in_x"]))
    case.compare("logits_train_second", model.apply({"params": params}, io["in_x2"]))


def conditioner(case):
    """Class, tokens and segmentation maps, by the conditioner that a yaml would give."""
    from ldm_jax.models.conditioners import CONDITIONERS

    io, name = case.io, case.meta["config"]["target"].rpartition(".")[2]
    field, kwargs, table = official_config.ENCODERS[name](case.params, [])
    state = case.weights() if table else {}
    state = {k: v for k, v in state.items() if "to_logits" not in k}
    params = rules.convert(state, table)
    model = CONDITIONERS.get(kwargs.pop("name"))(**kwargs)
    pairs = {"class": [("labels", "out")], "segmentation": [("x", "out")]}
    for given, out in pairs.get(field, [("tokens", "out"), ("tokens_short", "out_short")]):
        if f"in_{given}" in io:
            x = io[f"in_{given}"]
            cond = model.apply({"params": params}, {field: x}, np.zeros(len(x), bool))
            case.compare(out, cond.concat if field == "segmentation" else cond.tokens)


def lpips(case):
    from ldm_jax.models import lpips
    from ldm_jax.weights.readers import READERS

    io, path = case.io, case.folder / "compvis" / "lpips_vgg_random.ckpt.npz"
    params, model = READERS.get("lpips")(path, path), lpips.LPIPS()
    distance = lambda y: model.apply({"params": params}, io["in_x"], y)
    case.compare("lpips", distance(io["in_y"]))
    case.compare("grad_y", jax.jit(jax.grad(lambda y: distance(y).sum()))(io["in_y"]))


def loss(case):
    """The whole first-stage loss in training mode, through stages/autoencode.py."""
    from parity_losses import measure

    measure(case)


def diffusers_model(case):
    """A folder of diffusers, through convert."""
    io, source = case.io, case.folder / "diffusers" / case.name
    if case.name == "ldmbert":
        config = json.loads((source / "config.json").read_text())
        state = official.tensorfile.read(source / "model.safetensors")
        return _ldmbert(case, config, state)
    run = case.run(["diffusers", f"--checkpoint={source}"])
    if "in_t" in io:
        fields = {"context": "tokens", "labels": "class"}
        cond = {ours: io[f"in_{k}"] for k, ours in fields.items() if f"in_{k}" in io}
        eps = run.denoise(io["in_x"], io["in_t"], cond or None, io.get("in_guidance"))
        case.compare("eps", eps)
        return "in_scales" in io and _scalar(case)
    z = run.encode(io["in_x"])
    kl = run.codec.model.bottleneck == "kl"
    case.compare("mode" if kl else "latents", z)
    case.compare("recon_mode" if kl else "recon", run.decode(z))


def pipeline(case):
    """A whole LatentDiffusion: conditioned, sampled, decoded, by its EMA and its raw weights."""
    io, source = case.io, case.folder / "compvis" / case.name
    argv = ["compvis", f"--config={source}.yaml", f"--checkpoint={source}.ckpt"]
    averaged = case.run(argv)
    cond = {"text_ids": io["in_tokens"], "null_text_ids": io["in_uncond_tokens"]}
    for end, run in (("_ema", averaged), ("", ldm_jax.load(case.work / "run", ema=False))):
        draw = dict(steps=20, guidance=3.0, spacing="legacy", cond=cond, noise=io["in_x_T"])
        z = run.sample(2, **draw, latents=True)
        case.compare(f"latent{end}", z)
        case.compare(f"image{end}", run.decode(z))
        case.compare(f"image01{end}", (run.sample(2, **draw) + 1) / 2)
    case.compare("enc_mode_scaled", averaged.encode(io["in_pixels"]))


KINDS = {
    "autoencoder_kl": autoencoder,
    "vq": autoencoder,
    "unet": unet,
    "ldm_sampler": sampler,
    "discriminator": discriminator,
    "module": conditioner,
    "lpips": lpips,
    "loss": loss,
    "pipeline": pipeline,
}


KINDS |= {"ldm_maths": parity_maths.maths, "ema": parity_maths.ema, "plain": parity_maths.pieces}


def cases(folder) -> list[str]:
    """Names of the cases here that this script knows."""
    folder = pathlib.Path(folder)
    found = []
    for path in sorted(folder.glob("compvis/**/*.json")):
        meta = json.loads(path.read_text())
        name = str(path.relative_to(folder / "compvis").with_suffix(""))
        plain = meta.get("kind") != "ldm_sampler" or _deterministic(name)
        if meta.get("kind") in KINDS and plain:
            found.append(name)
    return found + [path.parent.name for path in sorted(folder.glob("diffusers/*/config.json"))]


def measure(folder, name) -> list[tuple]:
    """[(case, output, largest error, tolerance)]."""
    case = Case(folder, name)
    KINDS.get(case.meta.get("kind"), diffusers_model)(case)
    return case.rows


def unpack(folder, to):
    """tests/golden, whose files are xz, as the layout above."""
    for path in pathlib.Path(folder).rglob("*.*"):
        target = pathlib.Path(to) / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes()
        packed = path.suffix == ".xz"
        target.with_suffix("" if packed else target.suffix).write_bytes(
            lzma.decompress(data) if packed else data
        )
    return pathlib.Path(to)


def _deterministic(name):
    kept = ("ddim_S20_eta0", "ddim_S20_eta0_cfg3", "ddim_S30_nondivisor", "ddim_S10_concat")
    return name in kept


def _ldm(case, net):
    """(state, yaml's model) of an LDM without a first stage around a UNet's weights."""
    net = {"image_size": 16} | net
    state = {KEYS + k: v for k, v in case.weights().items()}
    channels = net["in_channels"] if net.get("n_embed") else net["out_channels"]
    params = {"unet_config": {"target": "UNetModel", "params": net}, "channels": channels}
    params |= {"first_stage_config": {"target": "ldm.models.IdentityFirstStage"}}
    return state, {"target": "LatentDiffusion", "params": params}


def _ldmbert(case, config, state):
    from ldm_jax.models.transformer import Block, TokenTransformer

    state = {k: v for k, v in state.items() if not k.startswith("to_logits")}
    params = rules.convert(state, diffusers.bert_table(config["encoder_layers"]))["transformer"]
    model = TokenTransformer(
        config["vocab_size"],
        config["max_position_embeddings"],
        config["d_model"],
        config["encoder_layers"],
        functools.partial(Block, config["encoder_attention_heads"], config["head_dim"]),
    )
    ids = next(v for k, v in case.io.items() if k.startswith("in_"))
    out = next(k for k in case.io if k.startswith("out_")).removeprefix("out_")
    case.compare(out, model.apply({"params": params}, ids))


def _scalar(case):
    """What the conditioner of guidance makes of scales before its layer."""
    scales, width = case.io["in_scales"], case.io["out_embedding"].shape[1]
    params = {"params": {"to_time": {"kernel": np.eye(width, dtype=np.float32)}}}
    told = ScalarEmbedder(width, width).apply(params, {"guidance": scales}, scales < 0)
    case.compare("embedding", told.time)


def _apply(run, method, x, **kwargs):
    apply = lambda params, x: run.codec.model.apply({"params": params}, x, method=method, **kwargs)
    return jax.jit(apply)(run._params, jnp.asarray(x))


def _last(array):
    """Channels last, of what has them; [steps, b, c, h, w] too."""
    return np.moveaxis(array, -3, -1) if array.ndim >= 4 else array


def main(folder, *prefixes):
    wrong = 0
    print("| case | output | largest error | tolerance |\n|---|---|---|---|")
    for name in cases(folder):
        if prefixes and not name.startswith(prefixes):
            continue
        try:
            with contextlib.redirect_stdout(sys.stderr):
                rows = measure(folder, name)
        except Exception as e:  # the rest of the table is still wanted
            print(f"| {name} | **failed: {' '.join(str(e).split())[:120]}** | | |", flush=True)
            wrong += 1
            continue
        for case, output, error, tolerance in rows:
            mark = "" if error <= tolerance else " **over**"
            wrong += bool(mark)
            print(f"| {case} | {output} | {error:.1e}{mark} | {tolerance:.1e} |", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
    sys.exit(main(*sys.argv[1:]))
