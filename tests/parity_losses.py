"""The first stage's combined losses on golden numbers, for tests/parity.py."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ldm_jax.models import bottleneck, lpips
from ldm_jax.models.discriminator import PatchDiscriminator
from ldm_jax.stages import autoencode
from ldm_jax.weights import compvis, rules
from ldm_jax.weights.readers import READERS


class OneConvolution(nn.Module):
    """An autoencoder that is its last convolution alone; latents are its features."""

    bottleneck: str
    image_channels = 3


class Given(autoencode.Autoencode):
    """The stage with a reconstruction and a regulariser from the golden file."""

    def _reconstruct(self, own, x, sample_key, dropout_key):
        kernel = own["model"]["decoder"]["conv_out"]["kernel"]
        x_hat = autoencode._convolve(own["features"], kernel) + own["bias"]
        return x_hat, own["features"], own["regulariser"], {}


def measure(case):
    io, p = case.io, case.params
    kl = "in_moments" in io
    part = dict(np.load(case.folder / case.meta["config"]["part"]))
    part = {k.removeprefix("discriminator."): v for k, v in part.items() if k != "logvar"}
    layers = p.get("disc_num_layers", 3)
    path = case.folder / "compvis" / "lpips_vgg_random.ckpt.npz"
    weights = READERS.get("lpips")(path, path)
    config = autoencode.Loss(
        kl_weight=p.get("kl_weight", 1.0),
        codebook_weight=p.get("codebook_weight", 1.0),
        beta=0.25,
        legacy_vq=True,
        perceptual_weight=p.get("perceptual_weight", 1.0),
        disc_weight=p["disc_weight"],
        disc_start=p["disc_start"],
        disc_loss=p.get("disc_loss", "hinge"),
        logvar=p.get("logvar_init", 0.0),
        learn_logvar=False,
        pixel_loss=p.get("pixel_loss", "l1"),
    )
    if kl:
        regulariser = config.kl_weight * jnp.mean(bottleneck.kl(io["in_moments"]))
    else:
        regulariser = config.codebook_weight * jnp.asarray(io["in_codebook_loss"])
    stage = Given(
        model=OneConvolution("kl" if kl else "vq"),
        loss=config,
        discriminator=PatchDiscriminator(p.get("disc_ndf", 64), layers),
        size=32,
        perceive=lambda w, x, y: lpips.LPIPS().apply({"params": w}, x, y),
        lpips=weights,
    )
    own = {
        "features": jnp.asarray(io["in_h"]),
        "bias": jnp.asarray(io["in_last_b"]),
        "regulariser": regulariser,
        "model": {"decoder": {"conv_out": {"kernel": _kernel(case)}}},
    }
    judge = rules.convert(part, compvis.discriminator(layers), compvis.RUNNING_STATISTICS)
    params, frozen = {"autoencoder": own, "discriminator": judge}, {"lpips": weights}
    batch = {"image": jnp.asarray(io["in_x"])}

    def generator(kernel, step):
        mine = own | {"model": {"decoder": {"conv_out": {"kernel": kernel}}}}
        return stage.autoencoder_loss(
            params | {"autoencoder": mine}, frozen, batch, jax.random.key(0), step, {}
        )

    def critic(judge, step, x_hat):
        players = params | {"discriminator": judge}
        return stage.discriminator_loss(players, frozen, batch, None, step, {"x_hat": x_hat})

    both = jax.jit(jax.value_and_grad(generator, has_aux=True))
    other = jax.jit(jax.value_and_grad(critic, has_aux=True))
    for step in case.meta["config"]["steps"]:
        (total, (metrics, shared)), grad = both(_kernel(case), jnp.int32(step))
        case.compare(f"train_step{step}_G_loss", total)
        case.compare(f"train_step{step}_G_nll_loss", metrics["nll"])
        case.compare(f"train_step{step}_G_g_loss", metrics["adversarial"])
        golden = grad.transpose(3, 0, 1, 2)  # as the golden file's, channels last
        case.compare(f"train_step{step}_G_grad_last_layer", golden)
        gate = float(step >= config.disc_start)
        if gate:  # ours is before the gate's product, theirs after disc_weight's
            weight = config.disc_weight * metrics["adaptive_weight"]
            case.compare(f"train_step{step}_G_d_weight", weight)
        (value, (logits, _)), grad = other(judge, jnp.int32(step), shared["x_hat"])
        case.compare(f"train_step{step}_D_loss", value)
        case.compare(f"train_step{step}_D_logits_real", logits["logits_real"])
        kernel = grad["conv_0"]["kernel"].transpose(3, 0, 1, 2)
        case.compare(f"train_step{step}_D_grad_main.0.weight", kernel)


def _kernel(case):
    """OIHW, of which the reader made [o, h, w, i], as HWIO."""
    return jnp.asarray(case.io["in_last_w"].transpose(1, 2, 3, 0))
