"""The diffusion maths, training losses and EMA on golden numbers, for tests/parity.py."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ldm_jax.engine import optim
from ldm_jax.models import bottleneck
from ldm_jax.runs import kinds
from ldm_jax.stages import adversary

KEYS = "model.diffusion_model."


def maths(case):
    """q(x_t | x_0), the posterior, and p_losses with their gradients."""
    io, config = case.io, case.meta["config"]
    state = {KEYS + k: v for k, v in case.weights().items()}
    run = case.convert(state, config["model"])
    process, t, x_0, x_t = run.model.process, io["in_t"], io["in_x0"], io["in_x_t"]
    wide = lambda table: np.asarray(table)[t].reshape(-1, 1, 1, 1)
    case.compare("q_sample", process.corrupt(x_0, t, io["in_noise"]))
    case.compare("x0_from_eps", process.to_x0(io["in_noise"], x_t, t))
    alpha, sigma = map(wide, process.tables)
    case.compare("eps_from_x0", (x_t - alpha * x_0) / sigma)
    case.compare("q_mean", alpha * x_0)
    case.compare("q_var", wide(process.noise))
    case.compare("q_logvar", wide(np.log(process.noise)))
    coef_x0, coef_xt, variance = process.posterior
    case.compare("post_mean", wide(coef_x0) * x_0 + wide(coef_xt) * x_t)
    case.compare("post_var", wide(variance))
    case.compare("post_logvar_clipped", wide(np.log(np.maximum(variance, 1e-20))))
    case.compare("model_out", run.denoise(io["out_q_sample"], t, {"tokens": io["in_context"]}))
    for prediction in ("eps", "x0"):
        for distance in ("l1", "l2"):
            _losses(case, run, prediction, distance)


def _losses(case, run, prediction, distance):
    io, ramp = case.io, case.meta["config"].get("logvar_ramp")
    own = dict(run._params)
    if ramp:
        own["logvar"] = jnp.linspace(*ramp, run.model.process.timesteps)

    def stage(**loss):
        config = run.config.copy_and_resolve_references()
        config.unlock()
        config.process.prediction = prediction
        config.loss.update(distance=distance, **loss)
        return kinds.of(config).model(config)

    def loss(own, stage):
        noise, drop = jnp.asarray(io["in_noise"]), jnp.zeros(len(io["in_t"]), bool)
        fields = {"tokens": jnp.asarray(io["in_context"])}
        args = jnp.asarray(io["in_x0"]), jnp.asarray(io["in_t"]), noise, fields, drop
        return stage.loss_at({"denoiser": own}, *args)

    name = f"{prediction}_{distance}_elbo"
    grad = jax.value_and_grad(lambda own: loss(own, stage()), has_aux=True)

    @jax.jit
    def everything(own):
        bare = {k: v for k, v in own.items() if k != "logvar"}
        bound = loss(bare, stage(weight="vlb_legacy"))[0]
        return grad(own), bound, loss(own, stage(elbo_weight=0.3))[0]

    ((value, error), grads), bound, with_elbo = everything(own)
    case.compare(f"{name}0.0_loss", value)
    case.compare(f"{name}0.0_loss_simple", jnp.mean(error))
    case.compare(f"{name}0.0_loss_vlb", bound)
    # the official x_0 weights slip, those that are added here do not
    case.compare(f"{name}0.3_loss", with_elbo if prediction == "eps" else value + 0.3 * bound)
    unet = grads["unet"]
    last, first = (unet[layer]["kernel"] for layer in ("conv_out", "conv_in"))
    case.compare(f"{name}0.0_grad_out.2.weight", last.transpose(3, 0, 1, 2))
    case.compare(f"{name}0.0_grad_input_blocks.0.0.weight", first.transpose(3, 0, 1, 2))
    case.compare(f"{name}0.0_grad_norm_total", optax.tree.norm(unet))


def ema(case):
    """LitEma's average after each of twenty updates."""
    io, names, ours, golden = case.io, case.meta["shadow_names"], [], []
    average = {name: io[f"init/{name}"] for name in names}
    for n in range(1, 21):
        params = {name: io[f"params/{n}/{name}"] for name in names}
        update = optim.ema(case.meta["decay"], case.meta["use_num_updates"])
        average = update(average, params, jnp.int32(n - 1))
        ours += [np.ravel(average[name]) for name in names]
        golden += [np.ravel(io[f"shadow/{n}/{dotless}"]) for dotless in names.values()]
    io["out_shadow"] = np.concatenate(golden)
    case.compare("shadow", np.concatenate(ours))


def pieces(case):
    """Discriminator losses, codebook usage and the KL of a posterior."""
    io = case.io
    real, fake = io["in_logits_real"], io["in_logits_fake"]
    case.compare("hinge_d", adversary.hinge(real, fake))
    case.compare("vanilla_d", adversary.vanilla(real, fake))
    k = case.meta["n_embed"]
    usage = bottleneck.usage(jnp.asarray(io["in_indices"]), k)
    case.compare("perplexity", usage["perplexity"])
    case.compare("cluster_use", usage["usage"] * k)
    mean, logvar = bottleneck.split(io["in_moments"])
    case.compare("mean", mean)
    case.compare("logvar", logvar)
    # one value of 2.4e8 among hundreds: relative, as an absolute tolerance would see that alone
    golden, ours = np.asarray(io["out_kl"]), np.asarray(bottleneck.kl(io["in_moments"]))
    case.io["out_kl"] = np.ones(3, np.float32)
    case.compare("kl", ours / golden)
