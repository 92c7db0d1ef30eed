"""What ours and diffusers' networks both do, as pairs of calls with equal weights and inputs.

Every pair is compared before it is timed: a network by its outputs, sampling by the latents that it
ends with, a training step by the loss of the step after it.
"""

import functools
import math
import operator
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ldm_jax.base import tree
from ldm_jax.diffusion import samplers
from ldm_jax.models import bottleneck
from ldm_jax.runs import codecs, conditions, kinds
from ldm_jax.weights import schedulers, to_diffusers

ADAMW = dict(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01)  # torch's defaults
LEARNING_RATE = 1e-4
KL_WEIGHT = 1e-6


class Side(NamedTuple):
    """call: () -> arrays, which need not be ready yet; held: () -> bytes that it keeps between
    calls; compiled: of ours, the executable."""

    call: Callable
    held: Callable[[], int]
    compiled: Any = None


class Pair(NamedTuple):
    """difference: the largest one between what both compute, relative to the largest value."""

    ours: Side
    theirs: Side
    difference: float


def second_stage(torch, config, parts) -> dict[str, Pair]:
    """The denoiser's forward pass and training step, drawing images, and the first stage's pairs.

    torch: a baseline.Torch. A step is forward, backward and AdamW of the denoiser alone. Images are
    drawn by DDIM with the config's steps and guidance, and decoded.
    """
    config = _by_ddim(config)
    kind, first = kinds.of(config), _first_stage_of(config)
    model, b = kind.model(config), config.batch_size
    params = _random(jax.eval_shape(model.init, jax.random.key(0)))
    net, scheduler = _denoiser(torch, config, model, params)
    pairs, both = {}, _Given(torch, config, model, params, net)
    if "train" in parts:
        eps = np.random.default_rng(1).normal(size=both.z.shape).astype(np.float32)
        target, drop = torch.tensor(eps), jnp.ones(b, bool)
        t = np.arange(b) * 7 % model.process.timesteps
        cond, predicts = both.condition(drop), both.network(drop)
        ours = _ours(jax.jit(model.predict), params, both.z, t, cond)
        t_theirs = torch.tensor(t, image=False)
        theirs = torch.inferred(lambda: predicts(both.z_theirs, t_theirs))
        pairs["denoise"] = _pair(torch, ours, _theirs(net, theirs))
    if "sample" in parts:
        pairs["sample"] = _drawing(torch, config, both, scheduler, first)
    if first:
        pairs |= first_stage(torch, first, set(parts) - {"train"})
    if "train" in parts:  # at last: it changes the weights of theirs

        def our_loss(params, z, t, cond, eps):
            return jnp.mean((model.predict(params, z, t, cond) - eps) ** 2)

        def their_loss():
            with torch.autocast():
                pred = predicts(both.z_theirs, t_theirs)
            return torch.torch.mean((pred.float() - target) ** 2)

        pairs["train"] = _steps(torch, our_loss, (params, both.z, t, cond, eps), net, their_loss)
    return pairs


def first_stage(torch, config, parts) -> dict[str, Pair]:
    """Encoding, decoding, and a training step.

    A step is encoding, a sample, decoding and AdamW for the mean absolute error and the
    bottleneck's own term: diffusers has neither an adversary nor LPIPS.
    """
    config = _evenly_grouped(config)
    kind = kinds.of(config)
    model, b, size = kind.network(config), config.batch_size, config.data.size
    params = _random(_autoencoder_shapes(model, size))
    net = _autoencoder(torch, config, params)
    is_kl = isinstance(net, torch.diffusers.AutoencoderKL)
    own = lambda name: lambda p, given: model.apply({"params": p}, given, method=name)
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (b, size, size, 3)).astype(np.float32)
    moments = np.asarray(jax.jit(own("encode"))(params, x), np.float32)
    z = moments[..., : model.latent_channels]
    x_theirs, z_theirs = torch.tensor(x), torch.tensor(z)
    made = operator.attrgetter("latent_dist.parameters" if is_kl else "latents")
    calls = {
        "encode": (x, lambda: made(net.encode(x_theirs))),
        "decode": (z, lambda: net.decode(z_theirs).sample),
    }
    pairs = {}
    for name in [name for name in calls if name in parts]:
        given, theirs = calls[name]
        ours = _ours(jax.jit(own(name)), params, given)
        pairs[name] = _pair(torch, ours, _theirs(net, torch.inferred(theirs)))
    if "train" in parts:
        noise = rng.normal(size=z.shape).astype(np.float32)
        noise_theirs = torch.tensor(noise)

        def our_loss(params, x, noise):
            moments = own("encode")(params, x)
            if is_kl:
                mean, logvar = bottleneck.split(moments)
                z, term = mean + jnp.exp(0.5 * logvar) * noise, jnp.mean(bottleneck.kl(moments))
                term = KL_WEIGHT * term
            else:
                z = jnp.float32(moments)
                term = bottleneck.vq_loss(z, bottleneck.quantise(params["codebook"], z)[0])
            return jnp.mean(jnp.abs(own("decode")(params, z) - x)) + term

        def their_loss():
            with torch.autocast():
                encoded = net.encode(x_theirs)
                if is_kl:
                    posterior = encoded.latent_dist
                    z, term = posterior.mean + posterior.std * noise_theirs, posterior.kl().mean()
                    decoded, term = net.decode(z), KL_WEIGHT * term
                else:
                    decoded = net.decode(encoded.latents)
                    term = decoded.commit_loss
            return torch.torch.mean(torch.torch.abs(decoded.sample.float() - x_theirs)) + term

        pairs["train"] = _steps(torch, our_loss, (params, x, noise), net, their_loss)
    return pairs


class _Given:
    """What both denoisers are given: latents z [b, h, w, c], and conditions."""

    def __init__(self, torch, config, model, params, net):
        b, size = config.batch_size, config.data.size
        self.torch, self.model, self.params, self.net = torch, model, params, net
        self.keys = samplers.image_keys(0, jnp.arange(b))
        self.z = samplers.initial_noise(self.keys, model.latent_shape(size, size))
        self.z = np.asarray(self.z)
        self.z_theirs = torch.tensor(self.z)
        classes, self.fields = conditions.classes(config), model.example(b, size, size)
        self.labels = np.arange(b) % max(classes, 1)
        if "class" in self.fields:
            self.fields["class"] = jnp.int32(self.labels)
        # the last row of their table is the null class
        transformer = net.config.get("num_embeds_ada_norm")
        rows = net.config.get("num_class_embeds", transformer and transformer + 1)
        self.null = rows and rows - 1

    def condition(self, drop):
        """A Cond of ours; drop: [b] bool, rows to give the null condition."""
        return jax.jit(self.model.condition)(self.params, self.fields, drop)

    def network(self, *drops):
        """(x, t [b]) -> their prediction, for so many times b rows, each part with its `drop`."""
        torch, conds = self.torch, [self.condition(drop) for drop in drops]
        part = lambda name: [getattr(cond, name) for cond in conds]
        whole = lambda name, image: torch.tensor(np.concatenate(part(name)), image)
        given, before = {}, None
        if conds[0].tokens is not None:
            given["encoder_hidden_states"] = whole("tokens", False)
            if conds[0].mask is not None:
                given["encoder_attention_mask"] = whole("mask", False)
        if conds[0].concat is not None:
            before = whole("concat", True)
        if self.null:
            labels = [np.where(drop, self.null, self.labels) for drop in drops]
            given["class_labels"] = torch.tensor(np.concatenate(labels), image=False)

        def predict(x, t):
            x = x if before is None else torch.torch.cat([x, before], 1)
            return self.net(x, t, **given).sample

        return predict


def _drawing(torch, config, given, scheduler, first) -> Pair:
    """Drawing by DDIM and decoding, from the noise `given.z`, as diffusers' pipelines do it."""
    model, how, b = given.model, given.model.sampling, config.batch_size
    strong, null = jnp.zeros(b, bool), jnp.ones(b, bool)
    guided, (height, width) = how.guidance != 1.0, (config.data.size,) * 2
    frozen, decode = {"scale": jnp.float32(1.0), "first_stage": {}}, lambda z: z
    if first:
        network = kinds.of(first).network(first)
        frozen["first_stage"] = _random(_autoencoder_shapes(network, first.data.size))
        autoencoder = _autoencoder(torch, first, frozen["first_stage"])
        decode = lambda z: autoencoder.decode(z).sample

    def draw(params, frozen, keys, z, cond, null):
        same = dict(sampling=how, height=height, width=width, cond=cond, null=null, noise=z)
        z = model.sample(params, frozen, keys, **same)
        return z, model.render(frozen, z, how)

    conds = given.condition(strong), given.condition(null) if guided else None
    ours = _ours(jax.jit(draw), given.params, frozen, given.keys, given.z, *conds)
    predict = given.network(*((null, strong) if guided else (strong,)))
    scheduler.set_timesteps(how.steps, device=torch.device)

    def draw_theirs():
        z = given.z_theirs
        for t in scheduler.timesteps:
            rows = torch.torch.cat([z, z]) if guided else z
            pred = predict(rows, t.expand(len(rows)))
            if guided:
                weak, pred = pred.chunk(2)
                pred = weak + how.guidance * (pred - weak)
            z = scheduler.step(pred, t, z).prev_sample
        return z, decode(z)

    nets = given.net, *([autoencoder] if first else [])
    theirs = _theirs(nets, torch.inferred(draw_theirs))
    return Pair(ours, theirs, _difference(torch, ours.call()[0], theirs.call()[0]))


def _by_ddim(config):
    """The config with DDIM on a time grid that diffusers has; steps and guidance are its own."""
    config = config.copy_and_resolve_references()
    same = dict(sampler="ddim", eta=0.0, rule="linear", rescale=0.0, interval=(), clip=0.0, tile=0)
    with config.unlocked():
        config.sample.update(same)
        if config.process.schedule in schedulers.THEIR_SCHEDULES:
            exact = config.sample.spacing not in schedulers.SPACINGS
            config.sample.spacing = "trailing" if exact else config.sample.spacing
    return config


def _first_stage_of(config):
    """The config of a second stage's first stage, for its batches; None for pixels."""
    if codecs.is_identity(config.first_stage):
        return None
    first = codecs.read_config(config.first_stage).copy_and_resolve_references()
    with first.unlocked():
        first.batch_size, first.dtype = config.batch_size, config.dtype
        first.data.size = config.data.size
    return _evenly_grouped(first)


def _evenly_grouped(config):
    """A first stage whose group norms have as many groups at every width, as diffusers' have.

    The work of a norm does not depend on their number.
    """
    config, model = config.copy_and_resolve_references(), config.model
    if "groups" in model:
        config.model.groups = math.gcd(model.groups, *(model.width * m for m in model.mult))
    return config


def _denoiser(torch, config, model, params):
    """diffusers' denoiser with these weights, and its scheduler."""
    diffusers = torch.diffusers
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        to_diffusers.write_second_stage(folder, config.to_dict() | {"f": model.codec.f}, params)
        if (part := folder / "transformer").is_dir():
            kind = diffusers.DiTTransformer2DModel
        else:
            part, attends = folder / "unet", config.model.cross_attention
            kind = diffusers.UNet2DConditionModel if attends else diffusers.UNet2DModel
        net = kind.from_pretrained(part, low_cpu_mem_usage=False)
        name = schedulers.config_of(config)["_class_name"]
        scheduler = getattr(diffusers, name).from_pretrained(folder / "scheduler")
    return torch.place(net, "forward"), scheduler


def _autoencoder(torch, config, params):
    """diffusers' first stage with these weights."""
    with tempfile.TemporaryDirectory() as folder:
        given = pathlib.Path(folder), dict(config.model), {"model": params}
        kind = to_diffusers.write_first_stage(*given, size=config.data.size)
        net = getattr(torch.diffusers, kind).from_pretrained(folder, low_cpu_mem_usage=False)
    return torch.place(net, "encode", "decode")


def _autoencoder_shapes(model, size: int):
    init = lambda: model.init(jax.random.key(0), jnp.zeros((1, size, size, 3)))["params"]
    return jax.eval_shape(init)


def _random(shapes):
    """Random weights of these shapes. No layer is left at zero, so every layer matters."""
    rng = np.random.default_rng(0)
    noise = lambda s: (0.05 * rng.standard_normal(s.shape, np.float32)).astype(s.dtype)
    return jax.tree.map(noise, shapes)


def _ours(function, *given) -> Side:
    placed = jax.device_put(given)
    compiled = function.lower(*placed).compile()
    return Side(functools.partial(compiled, *placed), lambda: tree.nbytes(placed), compiled)


def _theirs(nets, call) -> Side:
    nets = nets if isinstance(nets, tuple) else (nets,)
    return Side(call, lambda: sum(_nbytes(net.parameters()) for net in nets))


def _nbytes(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _pair(torch, ours: Side, theirs: Side) -> Pair:
    return Pair(ours, theirs, _difference(torch, ours.call(), theirs.call()))


def _difference(torch, ours, theirs) -> float:
    ours, theirs = np.asarray(ours, np.float32), torch.array(theirs)
    return float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))


def _steps(torch, our_loss, given, net, their_loss) -> Pair:
    """Training steps: forward, backward and AdamW; both are called once before they are compared.

    our_loss: (params, ...) -> scalar, with `given` as its arguments; their_loss: () -> scalar.
    """
    ours, theirs = _our_step(our_loss, *given), _their_step(torch, net, their_loss)
    for side in (ours, theirs):
        side.call()
    return _pair(torch, ours, theirs)


def _our_step(loss, params, *given) -> Side:
    tx = optax.adamw(LEARNING_RATE, **ADAMW)

    def step(state, *given):
        params, opt = state
        value, grads = jax.value_and_grad(loss)(params, *given)
        updates, opt = tx.update(grads, opt, params)
        return (optax.apply_updates(params, updates), opt), value

    placed = jax.device_put(given)
    state = jax.jit(lambda params: (params, tx.init(params)))(params)
    compiled = jax.jit(step, donate_argnums=0).lower(state, *placed).compile()

    def call():
        nonlocal state
        state, value = compiled(state, *placed)
        return value

    return Side(call, lambda: tree.nbytes((state, placed)), compiled)


def _their_step(torch, net, loss) -> Side:
    how = dict(betas=(ADAMW["b1"], ADAMW["b2"]), eps=ADAMW["eps"])
    decay = dict(weight_decay=ADAMW["weight_decay"])
    optimizer = torch.torch.optim.AdamW(net.parameters(), LEARNING_RATE, **how, **decay)

    def call():
        optimizer.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        optimizer.step()
        return value.detach()

    def held():
        moments = [m for own in optimizer.state.values() for m in own.values()]
        grads = [p.grad for p in net.parameters() if p.grad is not None]
        return _nbytes([*net.parameters(), *grads, *moments])

    return Side(call, held)
