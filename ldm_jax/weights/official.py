"""Official checkpoints: a yaml and a state dict as our stages.

official_config.py translates the yaml, which says `target` (a class) and `params` (its arguments),
nested; compvis.py has the tables of keys.
"""

import re

import jax
import numpy as np

from ldm_jax.base import disk, errors, hub, tensorfile
from ldm_jax.diffusion.schedules import alpha_bar
from ldm_jax.weights import compvis, text_encoders
from ldm_jax.weights import official_config as translate
from ldm_jax.weights.foreign import Foreign, refuse_unless
from ldm_jax.weights.rules import Rule, under, within

# Arguments of the official losses that ours call the same.
LOSS = ("kl_weight", "codebook_weight", "perceptual_weight", "pixel_loss")
LOSS += ("disc_weight", "disc_start", "disc_loss")
FIRST_STAGES = ("AutoencoderKL", "VQModel", "VQModelInterface")


def open_checkpoint(config, checkpoint, *, heads: int = 0, tokenizer: str = "") -> Foreign:
    """The stage that a yaml and the file of a state dict describe.

    heads: overrules the yaml, see `official_config.heads_of`. tokenizer: the folder of the
      vocabulary of a CLIP text encoder inside.
    """
    model = _read_yaml(config).get("model")
    if not isinstance(model, dict) or "target" not in model:
        raise errors.UsageError(f"{config} has no model.target: not an official model's yaml.")
    state = tensorfile.read(checkpoint)
    name, params = translate.target(model)
    if name in FIRST_STAGES:
        return first_stage(name, params, state)
    if name in ("LatentDiffusion", "DDPM"):
        return second_stage(params, state, heads, tokenizer)
    raise errors.UsageError(
        f"{config}: model.target={model['target']!r} is not supported; LatentDiffusion, DDPM, "
        f"{', '.join(FIRST_STAGES)} are."
    )


def first_stage(name, params, state, prefix="") -> Foreign:
    """AutoencoderKL, VQModel or VQModelInterface. prefix: of its keys."""
    own = under(prefix, state)
    _, loss = translate.target(params.get("lossconfig", {"target": "Identity"}))
    config = {
        "model": translate.autoencoder(name, params),
        "data": {"size": params["ddconfig"]["resolution"]},
        "loss": {key: loss[key] for key in LOSS if key in loss},
        "discriminator": {"norm": "actnorm" if loss.get("use_actnorm") else "batch"},
    }
    if (logvar := own.get("loss.logvar", loss.get("logvar_init"))) is not None:
        config["loss"]["logvar"] = float(logvar)
    rules = within([("", "model/")], compvis.AUTOENCODER)
    tables = {"autoencoder": (own, rules, compvis.BESIDE_AUTOENCODER)}
    # its discriminator comes along, so that training can go on
    judge = under("loss.discriminator.", own)
    if judge and loss:
        layers, width = loss.get("disc_num_layers", 3), len(judge["main.0.weight"])
        config["discriminator"] |= {"layers": layers, "width": width}
        rules = compvis.discriminator(layers)
        tables["discriminator"] = (judge, rules, compvis.RUNNING_STATISTICS)
    return Foreign("autoencode", config, tables, step=int(own.get("global_step", 0)))


def second_stage(params, state, heads=0, tokenizer="") -> Foreign:
    """LatentDiffusion, or DDPM on pixels."""
    refuse_unless(params, "LatentDiffusion", l_simple_weight=(1.0,), v_posterior=(0.0,))
    _, net = translate.target(params["unet_config"])
    beneath, channels, factor = _beneath(params, net, state)
    process = _process(params, state)
    conditioners, conditioner_rules, notes = translate.conditioners(params, net, channels)
    files = _text_encoder(conditioners, state, tokenizer, notes)
    model, unet_args = translate.unet(net, heads)
    legacy = net.get("use_spatial_transformer", False) and net.get("legacy", True)
    if legacy and net.get("num_head_channels", -1) != -1 and not heads:
        notes.append(
            "num_head_channels with a spatial transformer: as in today's official code, this run's "
            f"heads have {net['num_head_channels']} channels each; weights from before April 2022 "
            "(cin256 on VQ-f8, layout2img, text2img256) need --heads=1."
        )
    rules = [
        *within([(r"model\.diffusion_model\.", "unet/")], compvis.unet(**unet_args)),
        *conditioner_rules,
        Rule("logvar", "logvar", "bare"),  # where it was learned
    ]
    ignore = (*compvis.BUFFERS, *compvis.BESIDE_DENOISER, *_unread(conditioners, net))
    averaged = _averaged(state)
    size = net.get("image_size", params.get("image_size", 32))
    scale = state["scale_factor"] if "scale_factor" in state else params.get("scale_factor", 1.0)
    return Foreign(
        stage="diffuse",
        config={
            "model": model,
            "conditioners": conditioners,
            "process": process,
            "loss": {
                "distance": params.get("loss_type", "l2"),
                "elbo_weight": params.get("original_elbo_weight", 0.0),
                "logvar": params.get("logvar_init", 0.0),
                "learn_logvar": "logvar" in state,
            },
            "data": {"size": (size if isinstance(size, int) else min(size)) * factor},
            "latents": {"scale": float(scale)},
            "sample": {"spacing": "legacy"},
            "optim": {"denoiser": {"ema": 0.9999 if averaged else 0.0}},
        },
        tables={"denoiser": (state, rules, ignore)},
        ema={"denoiser": (averaged, rules, ignore)} if averaged else {},
        first_stage=beneath,
        step=int(state.get("global_step", 0)),
        files=files,
        notes=notes,
    )


def _text_encoder(conditioners, state, tokenizer, notes) -> dict:
    """Puts CLIP's text encoder, where the checkpoint has it, in place of its tokens; its files."""
    own = under("cond_stage_model.transformer.", state)
    if "tokens" not in conditioners or not under("text_model.", own):
        if tokenizer:
            raise errors.UsageError(
                f"--tokenizer={tokenizer}: this checkpoint has no CLIP text encoder."
            )
        return {}
    if not tokenizer:
        notes.append(
            "The checkpoint has CLIP's text encoder, whose vocabulary is elsewhere: this run takes "
            "ready `tokens`; for prompts convert with --tokenizer=FOLDER of vocab.json and "
            "merges.txt, at https://huggingface.co/openai/clip-vit-large-patch14."
        )
        return {}
    del conditioners["tokens"]
    conditioners["text"], files = text_encoders.inside(own, tokenizer)
    return files


def _beneath(params, net, state):
    """The first stage: (Foreign or "identity:CHANNELS", channels of its latents, f)."""
    inner = params.get("first_stage_config", {"target": "IdentityFirstStage"})
    name, first = translate.target(inner)
    if name == "IdentityFirstStage":
        channels = params.get("channels", net["out_channels"])
        return f"identity:{channels}", channels, 1
    if name not in FIRST_STAGES:
        raise errors.UsageError(f"first_stage_config: target {name!r} is not supported.")
    factor = 2 ** (len(first["ddconfig"]["ch_mult"]) - 1)
    return first_stage(name, first, state, "first_stage_model."), first["embed_dim"], factor


def _process(params, state) -> dict:
    process = dict(
        schedule=translate.SCHEDULES.get(kind := params.get("beta_schedule", "linear"), kind),
        timesteps=params.get("timesteps", 1000),
        beta_start=params.get("linear_start", 1e-4),
        beta_end=params.get("linear_end", 2e-2),
    )
    ours = alpha_bar(**process)
    theirs = state.get("alphas_cumprod", ours)
    if np.shape(theirs) != ours.shape or not np.allclose(theirs, ours, rtol=1e-3, atol=1e-7):
        raise errors.UsageError(
            "The checkpoint's alphas_cumprod is not the schedule of this yaml (beta_schedule, "
            "linear_start, linear_end, timesteps): they do not belong together."
        )
    return process | {"prediction": params.get("parameterization", "eps")}


def _unread(conditioners, net):
    """Keys of parts that we do not build."""
    ours = {"class", "text_ids", "layout_ids", "segmentation"} & conditioners.keys()
    whole = () if ours and not net.get("num_classes") else (r"cond_stage_model\..*",)
    head = (r"model\.diffusion_model\.out\..*",) if net.get("n_embed") else ()
    return whole + head


def _averaged(state) -> dict | None:
    """The state with the EMA's weights for the trained ones; their names have no dots."""
    if not any(key.startswith("model_ema.diffusion_model") for key in state):
        return None
    shadow = lambda key: "model_ema." + key.removeprefix("model.").replace(".", "")
    own = [key for key in state if key.startswith("model.")]
    if missing := [key for key in own if shadow(key) not in state]:
        raise errors.UsageError(f"The EMA lacks {len(missing)} weights, first {missing[0]}.")
    return state | {key: state[shadow(key)] for key in own}


MOST_YAML = 2**20  # characters


def _read_yaml(path) -> dict:
    import yaml

    text = disk.read_text(hub.file(path))
    if len(text) > MOST_YAML or re.search(r"(?m)[\s\[,:]\*\w", text):
        # An alias may stand for others, and a few lines for more than fits into memory.
        raise errors.UsageError(
            f"--config={path} is too long or has aliases: no model's yaml does."
        )
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as e:
        raise errors.UsageError(f"--config={path} is not yaml: {errors.reason(e)}") from e
    if not isinstance(content, dict):
        raise errors.UsageError(f"--config={path} is not the yaml of a model.")
    # yaml takes 1e-6, without a dot, for a string
    number = re.compile(r"[-+]?[\d.]+[eE][-+]?\d+")
    read = lambda x: float(x) if isinstance(x, str) and number.fullmatch(x) else x
    return jax.tree.map(read, content)
