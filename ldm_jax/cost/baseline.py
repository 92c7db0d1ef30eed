"""diffusers' networks with the architecture and the weights of ours, to compare their speed.

torch and diffusers are optional dependencies, which only this module needs.
"""

import functools
import operator
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ldm_jax.base import errors
from ldm_jax.cost import timing
from ldm_jax.runs import kinds
from ldm_jax.weights import to_diffusers

LEARNING_RATE = 1e-4


class Baseline:
    """A config's networks, ours and those of diffusers in PyTorch, with the same weights.

    On a GPU, PyTorch's are compiled and use the channels-last layout; on the CPU they run eagerly.
    For bfloat16 they use autocast, so that both keep float32 weights.

    Attributes:
      pairs: {part: (ours, theirs, the largest relative difference of their outputs)}, where ours
        and theirs are functions () -> arrays.

    Raises:
      UsageError: a package is missing.
    """

    def __init__(self, config):
        try:
            import diffusers
            import torch
        except ImportError as e:
            raise errors.UsageError(
                f"--against=diffusers needs {e.name}: pip install torch diffusers"
            ) from e
        self._diffusers, self._torch, self._config = diffusers, torch, config
        self._device, self._layout, self._wait = "cpu", torch.contiguous_format, lambda: None
        if torch.cuda.is_available():
            self._device, self._layout = "cuda", torch.channels_last
            self._wait = torch.cuda.synchronize
        how = dict(dtype=torch.bfloat16, enabled=config.dtype != "float32")
        self._autocast = functools.partial(torch.autocast, self._device, **how)
        torch.set_float32_matmul_precision("high")
        pair = self._denoiser if kinds.of(config).draws else self._first_stage
        with tempfile.TemporaryDirectory() as folder:
            self.pairs = pair(pathlib.Path(folder))

    def clock(self, repeats: int) -> dict:
        """{part: the seconds of ours and of the baseline, and their ratio}; repeats alternate."""
        found = {}
        for name, (ours, theirs, difference) in self.pairs.items():
            waited = lambda theirs=theirs: (theirs(), self._wait())
            both = {ours: [], waited: []}
            for call, seconds in repeats * [*both.items()]:
                seconds.append(timing.repeated(call, 1)["seconds"])
            own, clock = map(timing.summary, both.values())
            found[name] = own | {
                "baseline": "torch.compile" if self._device == "cuda" else "torch",
                **{f"baseline_{key}": clock[key] for key in clock if key != "repeats"},
                "ratio": clock["seconds"] / own["seconds"],
                "difference": difference,
            }
        return found

    def _denoiser(self, folder):
        diffusers, torch, config = self._diffusers, self._torch, self._config
        model = kinds.of(config).model(config)
        params = _random(jax.eval_shape(model.init, jax.random.key(0)))
        whole = config.to_dict() | {"f": model.codec.f}
        to_diffusers.write_second_stage(folder, whole, params)
        attends = config.model.cross_attention
        if (part := folder / "transformer").is_dir():
            kind = diffusers.DiTTransformer2DModel
        else:
            part = folder / "unet"
            kind = diffusers.UNet2DConditionModel if attends else diffusers.UNet2DModel
        net = self._place(kind.from_pretrained(part, low_cpu_mem_usage=False))
        b, size = config.batch_size, config.data.size
        rng = np.random.default_rng(0)
        shape = b, *model.latent_shape(size, size)
        z, eps = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
        t = np.arange(b) * 7 % model.process.timesteps
        cond = jax.jit(model.condition)(params, model.example(b, size, size), jnp.ones(b, bool))
        given = [self._tensor(z), torch.from_numpy(t).to(self._device)]
        given += [self._tensor(cond.tokens, image=False)] if attends else []
        labels, classes = {}, net.config.get("num_embeds_ada_norm")
        if rows := net.config.get("num_class_embeds", classes and classes + 1):
            # the last row is the null class
            labels["class_labels"] = torch.full((b,), rows - 1, device=self._device)
        placed = jax.device_put((params, z, t, cond))
        predict = jax.jit(model.predict).lower(params, z, t, cond).compile()
        ours = functools.partial(predict, *placed)
        theirs = self._inferred(lambda: net(*given, **labels).sample)
        difference = self._difference(ours(), theirs())
        optimizer = torch.optim.AdamW(net.parameters(), LEARNING_RATE)
        target = self._tensor(eps)

        def their_step():
            optimizer.zero_grad(set_to_none=True)
            with self._autocast():
                loss = torch.mean((net(*given, **labels).sample.float() - target) ** 2)
            loss.backward()
            optimizer.step()
            return loss

        our_step = _our_step(model, placed, jnp.asarray(eps))
        steps = our_step, their_step, difference
        return {"denoise": (ours, theirs, difference), "train": steps}

    def _first_stage(self, folder):
        config = self._config
        model = kinds.of(config).network(config)
        b, side = config.batch_size, config.data.size
        image = jnp.zeros((1, side, side, 3))
        params = _random(jax.eval_shape(model.init, jax.random.key(0), image)["params"])
        write, weights = to_diffusers.write_first_stage, {"model": params}
        kind = getattr(self._diffusers, write(folder, dict(config.model), weights, size=side))
        net = self._place(kind.from_pretrained(folder, low_cpu_mem_usage=False))
        own = lambda name: lambda p, given: model.apply({"params": p}, given, method=name)
        x = np.random.default_rng(0).uniform(-1, 1, (b, side, side, 3)).astype(np.float32)
        z = np.asarray(jax.jit(own("encode"))(params, x))[..., : model.latent_channels]
        x_theirs, z_theirs = self._tensor(x), self._tensor(z)
        is_kl = kind is self._diffusers.AutoencoderKL
        moments = operator.attrgetter("latent_dist.parameters" if is_kl else "latents")
        networks = {
            "encode": (x, lambda: moments(net.encode(x_theirs))),
            "decode": (z, lambda: net.decode(z_theirs).sample),
        }
        pairs = {}
        for name, (given, theirs) in networks.items():
            placed, theirs = jax.device_put((params, given)), self._inferred(theirs)
            ours = functools.partial(jax.jit(own(name)).lower(*placed).compile(), *placed)
            pairs[name] = ours, theirs, self._difference(ours(), theirs())
        return pairs

    def _inferred(self, call):
        """`call` without gradients, in the config's precision."""

        def inferred():
            with self._torch.inference_mode(), self._autocast():
                return call()

        return inferred

    def _place(self, net):
        net = net.to(self._device).to(memory_format=self._layout)
        if self._device == "cuda":
            net.forward = self._torch.compile(net.forward)
        return net

    def _tensor(self, array, image=True):
        tensor = self._torch.from_numpy(np.array(array)).to(self._device)
        return tensor.movedim(-1, 1).contiguous(memory_format=self._layout) if image else tensor

    def _difference(self, ours, theirs) -> float:
        theirs = theirs.detach().float().movedim(1, -1).cpu().numpy()
        ours = np.asarray(ours, np.float32)
        return float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))


def _random(shapes):
    """Random weights of these shapes. No layer is left at zero, so every layer matters."""
    rng = np.random.default_rng(0)
    noise = lambda s: (0.05 * rng.standard_normal(s.shape, np.float32)).astype(s.dtype)
    return jax.tree.map(noise, shapes)


def _our_step(model, placed, eps):
    """() -> loss: forward, backward and AdamW, the state kept between calls."""
    params, *given = placed
    tx = optax.adamw(LEARNING_RATE)

    def step(state, z, t, cond, eps):
        params, opt = state
        loss = lambda params: jnp.mean((model.predict(params, z, t, cond) - eps) ** 2)
        value, grads = jax.value_and_grad(loss)(params)
        updates, opt = tx.update(grads, opt, params)
        return (optax.apply_updates(params, updates), opt), value

    state = jax.tree.map(jnp.copy, (params, tx.init(params)))
    program = jax.jit(step, donate_argnums=0).lower(state, *given, eps).compile()

    def call():
        nonlocal state
        state, value = program(state, *given, eps)
        return value

    return call
