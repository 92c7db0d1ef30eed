"""diffusers' schedulers: their configs as our `config.process` and `config.sample`, and back."""

import numpy as np

from ldm_jax.base import errors
from ldm_jax.diffusion import grids, schedules
from ldm_jax.weights.foreign import refuse_unless

SCHEDULES = dict(scaled_linear="scaled_linear", linear="linear", squaredcos_cap_v2="cosine")
LISTED = ("rectified",)  # schedules that diffusers has no name for, and takes as a list of betas
PREDICTIONS = dict(epsilon="eps", sample="x0", v_prediction="v")
# Our time grids in the words of a DDIM scheduler. "exact" and "trailing" are the same where the
# number of sampling steps divides that of training steps.
SPACINGS = {
    "legacy": dict(timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False),
    "exact": dict(timestep_spacing="trailing", set_alpha_to_one=True),
    "trailing": dict(timestep_spacing="trailing", set_alpha_to_one=True),
    "leading": dict(timestep_spacing="leading", steps_offset=0, set_alpha_to_one=True),
}
LCM = "LCMScheduler"
# What it does where its config is silent.
LCM_DEFAULTS = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
LCM_DEFAULTS |= dict(original_inference_steps=50)
SHIFTED = ("shifted", "flow_match")  # our time grids with a shift, as its flow schedulers have
# Schedulers of rectified flow, whose Euler steps are DDIM's.
FLOW_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler",)
# What a DDIM scheduler does where its config is silent; PNDM differs in the last.
SPACING_DEFAULTS = dict(timestep_spacing="leading", steps_offset=0, set_alpha_to_one=True)
SAMPLERS = dict(
    DDIMScheduler="ddim",
    DDPMScheduler="ddpm",
    PNDMScheduler="plms",
    EulerDiscreteScheduler="euler",
    EulerAncestralDiscreteScheduler="euler_ancestral",
    HeunDiscreteScheduler="heun",
    DPMSolverMultistepScheduler="dpmpp_2m",
    UniPCMultistepScheduler="unipc",
    LCMScheduler="consistency",
)
THEIR_SCHEDULES = {ours: theirs for theirs, ours in SCHEDULES.items()}
THEIR_PREDICTIONS = {ours: theirs for theirs, ours in PREDICTIONS.items()}
# What a scheduler of rectified flow may not switch on.
FLOW_OFF = ("use_dynamic_shifting", "invert_sigmas", "use_karras_sigmas", "stochastic_sampling")
FLOW_OFF += ("use_exponential_sigmas", "use_beta_sigmas")


def process(scheduler) -> dict:
    """A scheduler's config as our `config.process`."""
    name = scheduler.get("_class_name", "scheduler")
    if name in FLOW_SCHEDULERS:
        timesteps = scheduler.get("num_train_timesteps", 1000)
        return dict(schedule="straight", prediction="flow", timesteps=timesteps)
    scheduler = (LCM_DEFAULTS if name == LCM else {}) | scheduler
    refuse_unless(scheduler, name, beta_schedule=("linear", *SCHEDULES))
    refuse_unless(scheduler, name, prediction_type=("epsilon", *PREDICTIONS))
    return dict(
        timesteps=scheduler.get("num_train_timesteps", 1000),
        prediction=PREDICTIONS[scheduler.get("prediction_type", "epsilon")],
        **_schedule(scheduler, name),
    )


def _schedule(scheduler, name) -> dict:
    """The keys of `config.process` that say how noise grows."""
    zero_snr, betas = scheduler.get("rescale_betas_zero_snr", False), scheduler.get("trained_betas")
    if betas is None:
        return dict(
            schedule=SCHEDULES[scheduler.get("beta_schedule", "linear")],
            beta_start=scheduler.get("beta_start", 1e-4),
            beta_end=scheduler.get("beta_end", 0.02),
            zero_terminal_snr=zero_snr,
        )
    timesteps = scheduler.get("num_train_timesteps", 1000)
    known = isinstance(betas, list) and len(betas) == timesteps and not zero_snr
    known = known and all(isinstance(beta, int | float) for beta in betas)
    for ours in LISTED if known else ():
        if np.allclose(betas, _betas(ours, timesteps), atol=1e-6):
            return dict(schedule=ours)
    raise errors.UsageError(
        f"{name}: its trained_betas are those of no schedule here ({', '.join(LISTED)})."
    )


def _betas(schedule: str, timesteps: int) -> np.ndarray:
    """What turns 1 into the schedule's alpha_bar, factor by factor; float64 [timesteps]."""
    table = schedules.alpha_bar(schedule, timesteps)
    return 1 - table / np.append(1.0, table[:-1])


def sampling(scheduler, notes) -> dict:
    """A scheduler's config as our `config.sample`; the notes get what our samplers do not do."""
    name = scheduler.get("_class_name", "scheduler")
    if name in FLOW_SCHEDULERS:
        refuse_unless(scheduler, name, **dict.fromkeys(FLOW_OFF, (False,)), shift_terminal=(None,))
        return dict(sampler="ddim", spacing="flow_match", shift=float(scheduler.get("shift", 1.0)))
    if name == LCM:
        return _of_lcm(scheduler, notes)
    silent = SPACING_DEFAULTS | {"set_alpha_to_one": name != "PNDMScheduler"}
    given = {k: scheduler.get(k, v) for k, v in silent.items()}
    sampler = SAMPLERS.get(name, "ddim")
    if name not in SAMPLERS:
        notes.append(f"{name} is none of our samplers: this run samples by DDIM.")
    if scheduler.get("thresholding"):
        notes.append(f"{name} thresholds x_0 at every step; our samplers do not.")
    clips = scheduler.get("clip_sample", name in ("DDIMScheduler", "DDPMScheduler"))
    clip = float(scheduler.get("clip_sample_range", 1.0)) if clips else 0.0
    if clips and sampler == "ddim":
        notes.append(f"{name} clips x_0 but keeps its eps; here eps follows the clipped x_0.")
    for spacing, theirs in SPACINGS.items():
        if theirs.items() <= given.items():
            return {"sampler": sampler, "spacing": spacing, "clip": clip}
    notes.append(f"{name} with {given}: no time grid here is that one, 'exact' takes its place.")
    return {"sampler": sampler, "clip": clip}


def _of_lcm(scheduler, notes) -> dict:
    """LCMScheduler's steps, as a pipeline of latent consistency models takes four of them."""
    refuse_unless(scheduler, LCM, timestep_scaling=(10.0,), thresholding=(False,))
    steps = (LCM_DEFAULTS | scheduler)["original_inference_steps"]
    every = scheduler.get("num_train_timesteps", 1000)
    spacing = {grids.LCM_TIMESTEPS: "lcm", every: "exact"}.get(steps)
    if not spacing:
        notes.append(
            f"{LCM} with original_inference_steps={steps}: no time grid here is that one, 'exact' "
            "takes its place."
        )
    clip = float(scheduler.get("clip_sample_range", 1.0)) if scheduler.get("clip_sample") else 0.0
    return dict(sampler="consistency", spacing=spacing or "exact", steps=4, clip=clip)


def config_of(config, offset: int = 0) -> dict:
    """The scheduler_config.json of a run. offset: what its network adds to its timesteps."""
    process, sample = config["process"], config["sample"]
    if sample["sampler"] == "consistency":
        return _lcm(process, sample)
    if (process["schedule"], process["prediction"]) == ("straight", "flow"):
        return _flow(process, sample, offset)
    return _ddim(process, sample["spacing"])


def _flow(process, sample, offset: int) -> dict:
    """Rectified flow, by Euler's steps."""
    if offset != 1:
        raise errors.UsageError(
            "diffusers tells a flow model the timestep t + 1 where this run's network was told t: "
            "only a DiT that was trained with config.model.time_offset=1 can be exported."
        )
    shifts = sample["spacing"] in SHIFTED
    return {
        "_class_name": FLOW_SCHEDULERS[0],
        "num_train_timesteps": process["timesteps"],
        "shift": sample["shift"] if shifts else 1.0,
    }


def _lcm(process, sample) -> dict:
    """The scheduler that noises each prediction anew, as the sampler `consistency` does.

    Its c_skip and c_out are within 1e-5 of 0 and 1 from timestep 19 on, which is the last one of
    50 steps. Its grid of all timesteps is "exact" where the steps divide them.
    """
    clip, lcm = sample["clip"], sample["spacing"] == "lcm"
    return _gaussian(process, "LCMScheduler, which draws from students") | {
        "_class_name": LCM,
        "original_inference_steps": grids.LCM_TIMESTEPS if lcm else process["timesteps"],
        "timestep_scaling": 10.0,
        "clip_sample": bool(clip),
        "clip_sample_range": clip or 1.0,
    }


def _ddim(process, spacing) -> dict:
    """A DDIM scheduler on the run's time grid; "legacy" is as the official code samples."""
    # where its DDIM has no such grid, the one that differs least
    grid = SPACINGS.get(spacing, SPACINGS["exact"])
    own = {"_class_name": "DDIMScheduler", "clip_sample": False}
    return _gaussian(process, "DDIM") | own | grid


def _gaussian(process, scheduler: str) -> dict:
    """What all schedulers say of noise that is added by betas. scheduler: its name in words."""
    schedule, timesteps = process["schedule"], process["timesteps"]
    if schedule not in (*THEIR_SCHEDULES, *LISTED):
        raise errors.UsageError(f"diffusers has no schedule like {schedule!r}.")
    if process["prediction"] not in THEIR_PREDICTIONS:
        raise errors.UsageError(
            f"diffusers' {scheduler} has no prediction like {process['prediction']!r}; 'flow' goes "
            "with schedule 'straight' and its Euler steps alone."
        )
    if schedule in LISTED:
        noise = {"trained_betas": _betas(schedule, timesteps).tolist()}
    else:
        noise = {
            "beta_start": process["beta_start"],
            "beta_end": process["beta_end"],
            "beta_schedule": THEIR_SCHEDULES[schedule],
            "rescale_betas_zero_snr": process["zero_terminal_snr"],
        }
    return noise | {
        "num_train_timesteps": timesteps,
        "prediction_type": THEIR_PREDICTIONS[process["prediction"]],
        "steps_offset": 1,  # StableDiffusionPipeline insists; it counts for "leading" alone
    }
