"""Samplers, grids and schedules against the official code and diffusers: rows of docs/parity.md.

    python tests/parity_samplers.py FOLDER [PREFIX ...] > table.md
    python tests/parity_samplers.py --pack FOLDER    # tests/golden's part of it, stripped

FOLDER is laid out as shared/golden. Three kinds of case:
* compvis/{ddim,ddpm,plms}_*: trajectories of an LDM's UNet, which runs here too;
* diffusers/schedulers/*: trajectories replayed from the recorded outputs of the network;
* tables/*: schedules, coefficients, timesteps.
Tolerance: the larger of 10 x the recorded float32 noise and 1e-4 of the rms.
"""

import functools
import io
import json
import lzma
import pathlib
import sys

import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import given_noise
import parity

from ldm_jax.base.errors import UsageError
from ldm_jax.diffusion import grids, guidance, methods, samplers
from ldm_jax.diffusion.process import PREDICTIONS, make_process

SCHEDULERS = {  # their class: our sampler
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "PNDMScheduler": "plms",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "HeunDiscreteScheduler": "heun",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "UniPCMultistepScheduler": "unipc",
    "LCMScheduler": "consistency",
}
OTHER_METHODS = {"dpm_2m_sd", "dpmpp_3m_sd", "dpmpp_2m_heun_sd_S8", "lms_sd", "unipc_ldm_order3"}
SCHEDULES = {"linear": "scaled_linear", "scaled_linear": "scaled_linear", "sqrt_linear": "linear"}
SCHEDULES |= {"sqrt": "sqrt", "cosine": "cosine", "squaredcos_cap_v2": "cosine"}
STEPS = (1, 4, 5, 10, 20, 25, 30, 50, 100, 150, 200, 250, 300, 333, 500, 999, 1000)


def cases(folder) -> list[str]:
    folder = pathlib.Path(folder)
    names = [f"compvis/{path.stem}" for path in sorted(folder.glob("compvis/*.json"))
             if json.loads(path.read_text()).get("kind") == "ldm_sampler"]  # fmt: skip
    own = sorted(folder.glob("diffusers/schedulers/*/case.json"))
    names += [f"schedulers/{p.parent.name}" for p in own if p.parent.name not in OTHER_METHODS]
    return names + [f"tables/{name}" for name in TABLES]


def measure(folder, name) -> list[tuple]:
    """[(case, output, largest error, tolerance)]."""
    kind, name = name.split("/", 1)
    kinds = {"compvis": official, "schedulers": replayed}
    kinds["tables"] = lambda folder, name: list(TABLES[name](folder))
    return kinds[kind](pathlib.Path(folder), name)


def official(folder, name):
    """The official sampler around our network, on the weights and noise of the case."""
    case = parity.Case(folder, name)
    config, given = case.meta["config"], case.meta["config"]["sampler"]
    state = {parity.KEYS + k: v for k, v in case.weights().items()}
    run = case.convert(state, config["model"])
    process = run.model.process
    x_T, noise = case.io["in_x_T"], case.io.get("in_noise")
    size = x_T.shape[1:3]
    kind = "concat" if "concat" in name else "tokens"
    cond = run._cond({kind: case.io["in_context"]}, len(x_T), size)

    def network(x, t, cond):
        return run.model.predict_x0(run._params, x, t, cond)

    scale = given.get("cfg_scale", 1.0)
    denoise = functools.partial(network, cond=cond)
    if scale != 1:
        null = run._cond({kind: case.io["in_uncond_context"]}, len(x_T), size)
        combine = lambda strong, weak, t: guidance.extrapolate(strong, weak, scale)
        denoise = guidance.guide(network, cond, null, combine)
    if given["name"] == "ddpm":
        grid = grids.exact(process, process.timesteps)
        grid = grid.last(given.get("start_T", len(grid)))
    else:
        grid = grids.legacy(process, given["S"])
    if "clip" in name:
        denoise = guidance.clip_x0(denoise)
    if given.get("quantize_x0"):
        # Recorded around an identity first stage, whose `quantize` returns the batch bare; the
        # official line unpacks that, so that both images get the first one's x_0, unquantised.
        visited = np.asarray(grid.timesteps)
        denoise = before_eps_is_known(denoise, lambda x_0: x_0[:1], grid, visited)
    method = samplers.SAMPLERS.call(given["name"], grid, eta=given.get("eta", 0.0))
    noise = None if noise is None else given.get("temperature", 1.0) * noise
    z, path = given_noise.solve(method, denoise, x_T, noise, trace=True)
    case.compare("x_final", z)
    extra = len(method) - len(case.io["out_x_steps"])  # the warm start's call
    case.compare("x_steps", path["x"][extra:])
    return case.rows


def replayed(folder, name):
    """Every x of a diffusers scheduler from the network outputs that it was given."""
    folder = folder / "diffusers" / "schedulers" / name
    meta = json.loads((folder / "case.json").read_text())
    config = json.loads((folder / "scheduler_config.json").read_text())
    case = {k: parity._last(v) for k, v in np.load(folder / "io.npz").items()}
    process = make_process(
        SCHEDULES[config["beta_schedule"]],
        beta_start=config["beta_start"],
        beta_end=config["beta_end"],
        prediction={"epsilon": "eps", "sample": "x0"}[config["prediction_type"]],
    )
    sde = "_sde" if config.get("algorithm_type") == "sde-dpmsolver++" else ""
    grid = grid_of(config, case, process)
    order = config.get("solver_order")
    sampler = "euler" if order == 1 else SCHEDULERS[meta["scheduler"]] + sde
    method = samplers.SAMPLERS.call(sampler, grid, eta=meta["eta"] or 0.0)

    # The calls are told apart by their index, in the place of the timestep.
    visited = [grid.timesteps.index(t) for t, _ in method.calls]
    alphas, sigmas = np.sqrt(grid.signal), np.sqrt(grid.noise)
    told = np.asarray([t for t, _ in method.calls])
    by_index = methods.Method([(i, rows) for i, (_, rows) in enumerate(method.calls)])
    outputs = jnp.asarray(case["out_model_outputs"])
    alpha, sigma = (jnp.asarray(table[visited], jnp.float32) for table in (alphas, sigmas))
    to_x0 = PREDICTIONS.get(process.prediction).to_x0

    def denoise(x, i):
        return to_x0(outputs[i[0]], x, alpha[i[0]], sigma[i[0]])

    if config.get("clip_sample") and sampler == "ddim":
        denoise = before_eps_is_known(denoise, clip, grid, np.arange(len(grid)))
    elif config.get("clip_sample"):
        denoise = guidance.clip_x0(denoise)
    noise = np.zeros((len(method), *case["in_x_T"].shape), np.float32)
    noise[: len(case.get("in_noise", []))] = case.get("in_noise", 0.0)
    # Some schedulers keep y = x / alpha.
    in_y = sampler in ("euler", "euler_ancestral", "heun") and order is None
    scale = np.append(alphas[visited[1:]], alphas[-1]) if in_y else np.ones(len(method))
    x_T = case["in_x_T"] * case["out_init_noise_sigma"] * (alphas[0] if in_y else 1.0)
    _, path = given_noise.solve(by_index, denoise, x_T, noise, trace=True)
    x = np.asarray(path["x"]) / scale[:, None, None, None, None]
    return [
        _row(f"schedulers/{name}", "x_steps", x, case["out_x_steps"]),
        _row(f"schedulers/{name}", "timesteps", told, case["out_timesteps"], 2e-3),
    ]


def grid_of(config, case, process):
    """The grid that a scheduler's config names, or, where we have none, as it recorded it."""
    steps, timesteps = len(case["out_timesteps"]), case["out_timesteps"]
    if config["_class_name"] == "LCMScheduler":
        return grids.lcm(process, steps)
    if config.get("use_karras_sigmas"):
        return grids.karras(process, steps, last=int(timesteps[-1]))
    if config.get("timestep_spacing", "leading") == "leading":
        if not config.get("set_alpha_to_one", True):
            return grids.legacy(process, steps - (config["_class_name"] == "PNDMScheduler"))
        return grids.leading(process, steps, offset=config["steps_offset"])
    once = tuple(dict.fromkeys(timesteps.tolist()))
    levels = 1.0 / (1.0 + np.square(case["out_sigmas"].astype(np.float64)))
    levels = np.asarray(list(dict.fromkeys(levels.tolist())))  # Heun's are there twice
    return grids.Grid(once, tuple(levels), tuple(1.0 - levels))


def before_eps_is_known(denoise, change, grid, visited):
    """DDIM where x_0 is changed but eps stays that of the unchanged x_0, as a wrapper of `denoise`.

    So do the official `quantize_x0` and diffusers' `clip_sample`: the next point then is
    x' + alpha' (change(x_0) - x_0). For eta 0. visited: what `denoise` is told at each step.
    """
    steps = methods._steps(grid)
    factors = jnp.asarray([s.alpha_next / s.gain for s in steps], jnp.float32)

    def changed(x, t):
        x_0 = denoise(x, t)
        return x_0 + factors[jnp.argmax(t[0] == visited)] * (change(x_0) - x_0)

    return changed


def clip(x_0):
    return jnp.clip(x_0, -1.0, 1.0)


def _schedules(folder):
    """The official buffers; those are float32, ours are compared in float64."""
    golden = np.load(folder / "compvis" / "schedules.npz")
    for name in sorted({key.split("/")[0] for key in golden}):
        kind, *numbers = _named(name)
        if "vpost" in name:  # v_posterior is not offered
            continue
        named = dict(zip(("timesteps", "beta_start", "beta_end"), numbers))
        process = make_process(SCHEDULES[kind], **named)
        _, _, variance = process.posterior
        ours = {
            "alphas_cumprod": process.signal,
            "posterior_variance": variance,
            "posterior_mean_coef1": process.posterior[0],
            "posterior_mean_coef2": process.posterior[1],
            "lvlb_weights_eps": np.asarray(process.weight(jnp.arange(process.timesteps), "vlb")),
        }
        for key, value in ours.items():
            if f"{name}/{key}" in golden:
                # Theirs is a quotient of float32 buffers.
                rtol = 3e-4 if key == "lvlb_weights_eps" else 1e-5
                yield _relative(f"schedules/{name}", key, value, golden[f"{name}/{key}"], rtol)


def _named(name):
    """linear_0.0015_0.0195_T20 -> kind, timesteps, beta_start, beta_end."""
    parts = name.split("_")
    total = next((int(p[1:]) for p in parts if p.startswith("T")), 1000)
    numbers = [float(p) for p in parts if p[0].isdigit()]
    kind = "_".join(p for p in parts if p.isalpha())
    return kind, total, *numbers


def _ddim_tables(folder):
    golden = np.load(folder / "compvis" / "ddim_timesteps.npz")
    process = make_process()
    for steps in STEPS:
        key, name = f"uniform/S{steps}", f"ddim_timesteps/S{steps}"
        try:
            grid = grids.legacy(process, steps)
        except UsageError:
            # The official code would fail too: it has no coefficients there.
            yield (name, "refused", float(f"{key}/alphas" in golden), 0.0)
            continue
        yield _row(name, "timesteps", grid.timesteps[::-1], golden[f"{key}/timesteps"], 0.0)
        levels = np.asarray(grid.signal)[::-1]
        yield _relative(name, "alphas", levels[1:], golden[f"{key}/alphas"], 1e-5)
        yield _relative(name, "alphas_prev", levels[:-1], golden[f"{key}/alphas_prev"], 1e-5)
        for eta in (0.0, 0.5, 1.0):
            table = samplers.SAMPLERS.call("ddim", grid, eta=eta).tables
            std = table[::-1, 0, -1]
            yield _row(name, f"sigmas, eta {eta}", std, golden[f"{key}/eta{eta}/sigmas"], 1e-6)


def _diffusers_tables(folder):
    golden = np.load(folder / "diffusers" / "schedulers" / "tables.npz")
    sd = make_process("scaled_linear", beta_start=0.00085, beta_end=0.012)
    named = {
        "ddim_sd": lambda s: grids.leading(sd, s, offset=1),
        "ddim_ldm": lambda s: grids.leading(sd, s),
        "ddim_linspace": lambda s: grids.linspace(sd, s),
        "ddim_trailing": lambda s: grids.trailing(sd, s),
        "euler_leading1": lambda s: grids.leading(sd, s, offset=1),
    }
    for name, make in named.items():
        for steps in (10, 20, 50, 200, 250):
            key, grid = f"{name}/S{steps}", make(steps)
            yield _row(key, "timesteps", grid.timesteps, golden[f"{key}/timesteps"], 0.0)
            if f"{key}/sigmas" in golden:
                s = np.sqrt(np.divide(grid.noise, grid.signal))
                yield _row(key, "sigmas", s, golden[f"{key}/sigmas"])
    schedules = {
        "sd": sd,
        "ldm": make_process(),
        "linear_ddpm": make_process("linear", beta_start=1e-4, beta_end=0.02),
        "squaredcos_cap_v2": make_process("cosine"),
        "sd_zero_snr": make_process(
            prediction="v", beta_start=0.00085, beta_end=0.012, zero_terminal_snr=True
        ),
    }
    for name, process in schedules.items():
        yield _row(name, "alpha_bar", process.signal, golden[f"{name}/alphas_cumprod"], 1e-6)
    x_0, eps, t = (golden[f"sd/add_noise/{key}"] for key in ("x0", "noise", "t"))
    yield _row("sd", "add_noise", sd.corrupt(x_0, t, eps), golden["sd/add_noise/out"])
    v = make_process("scaled_linear", beta_start=0.00085, beta_end=0.012, prediction="v")
    yield _row("sd", "get_velocity", v.target(x_0, eps, t), golden["sd/get_velocity/out"])


TABLES = {
    "schedules": _schedules,
    "ddim_timesteps": _ddim_tables,
    "diffusers": _diffusers_tables,
}


def _row(case, output, ours, golden, tolerance=None):
    ours, golden = np.asarray(ours, np.float64), np.asarray(golden, np.float64)
    if ours.shape != golden.shape:
        return (case, f"{output} {ours.shape} for {golden.shape}", np.inf, 0.0)
    if tolerance is None:
        tolerance = 1e-4 * max(float(np.sqrt(np.mean(golden**2))), 1e-2)
    return (case, output, float(np.max(np.abs(ours - golden), initial=0.0)), tolerance)


def _relative(case, output, ours, golden, tolerance):
    scale = np.maximum(np.abs(np.asarray(golden, np.float64)), 1e-12)
    return _row(case, f"{output}, relative", np.asarray(ours) / scale, golden / scale, tolerance)


KEPT = {  # what is read here of each file; all of it where no file is named
    "io.npz": ("in_x_T", "in_noise", "out_x_steps", "out_model_outputs", "out_timesteps",
               "out_sigmas", "out_init_noise_sigma"),
    "schedules.npz": ("alphas_cumprod", "posterior_variance", "posterior_mean_coef1",
                      "posterior_mean_coef2", "lvlb_weights_eps"),
    "ddim_timesteps.npz": ("timesteps", "alphas", "alphas_prev", "sigmas"),
}  # fmt: skip


def pack(folder, to):
    """Copies the cases that need no weights, and the official trajectories, as small xz files."""
    folder, to = pathlib.Path(folder), pathlib.Path(to)
    for name in cases(folder):
        kind, stem = name.split("/", 1)
        if kind == "schedulers" and "cfg" in stem:  # the same on a guided network
            continue
        if kind == "compvis":
            files = [f"compvis/{stem}.json", f"compvis/{stem}.io.npz"]
        elif kind == "schedulers":
            own = ("case.json", "scheduler_config.json", "io.npz")
            files = [f"diffusers/schedulers/{stem}/{file}" for file in own]
        else:
            where = "diffusers/schedulers/tables" if stem == "diffusers" else f"compvis/{stem}"
            files = [f"{where}.npz"]
        for file in files:
            _pack(folder / file, to / file)


def _pack(source, target):
    if target.with_name(target.name + ".xz").exists() or target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".json":
        target.write_bytes(source.read_bytes())
        return
    kept, arrays = KEPT.get(source.name), np.load(source)
    keys = [k for k in arrays if kept is None or k.split("/")[-1] in kept]
    keys = [k for k in keys if not k.startswith("quad/") and k not in _UNREAD]
    buffer = io.BytesIO()
    one = "schedulers" in source.parts and source.name == "io.npz"  # image is as good as two
    np.savez(buffer, **{k: _first_image(arrays[k]) if one else arrays[k] for k in keys})
    target.with_name(target.name + ".xz").write_bytes(lzma.compress(buffer.getvalue(), preset=9))


def _first_image(array):
    """Of [b, c, h, w] or [steps, b, c, h, w]."""
    return array[..., :1, :, :, :] if array.ndim >= 4 else array


_UNREAD = ("out_pred_x0_steps", "out_eps_steps")


def main(*args):
    if args[0] == "--pack":
        return pack(args[1], parity.ROOT / "tests" / "golden")
    folder, prefixes, wrong = args[0], args[1:], 0
    print("| case | output | largest error | tolerance |\n|---|---|---|---|")
    for name in cases(folder):
        if not prefixes or name.startswith(tuple(prefixes)):
            rows = measure(folder, name)
            for case, output, error, tolerance in _worst(rows) if "tables/" in name else rows:
                wrong += not error <= tolerance
                print(f"| {case} | {output} | {error:.1e} | {tolerance:.1e} |", flush=True)
    return wrong > 0


def _worst(rows):
    """Of each output of a table, over its schedules or step counts, the row nearest its limit."""
    worst = {}
    for case, output, error, tolerance in sorted(rows, key=lambda r: r[2] / max(r[3], 1e-12)):
        worst[(case.split("/")[0], output)] = (case, output, error, tolerance)
    return sorted(worst.values())


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
