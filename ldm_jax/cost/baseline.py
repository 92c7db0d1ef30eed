"""diffusers' networks of the same architecture and weights, to be timed beside ours.

torch and diffusers are optional; nothing else here needs them.
"""

import contextlib
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.base import errors
from ldm_jax.cost import timing
from ldm_jax.runs import kinds
from ldm_jax.weights import to_diffusers

LEARNING_RATE = 1e-4


class Baseline:
    """A config's networks in PyTorch, and ours with the same weights.

    On a GPU compiled, channels last; on the CPU eager. Precision is the config's: bfloat16 by
    autocast, as ours keeps float32 weights.
    """

    def __init__(self, config):
        import torch

        self._torch, self._config = torch, config
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self.name = "torch.compile" if self._device == "cuda" else "torch"
        torch.set_float32_matmul_precision("high")

    def pairs(self) -> dict:
        """{part: (ours, theirs, the largest difference of one output)}: () -> arrays each."""
        make = self._denoiser if kinds.of(self._config).draws else self._first_stage
        with tempfile.TemporaryDirectory() as folder:
            return make(pathlib.Path(folder))

    def wait(self, value):
        """Returns `value` once the baseline's device is idle."""
        if self._device == "cuda":
            self._torch.cuda.synchronize()
        return value

    def _denoiser(self, folder):
        import diffusers

        torch, config = self._torch, self._config
        model = kinds.of(config).model(config)
        params = _random(jax.eval_shape(model.init, jax.random.key(0)))
        whole = config.to_dict() | {"f": model.codec.f}
        to_diffusers.write_second_stage(folder, whole, params)
        kind = (
            diffusers.UNet2DConditionModel
            if config.model.cross_attention
            else diffusers.UNet2DModel
        )
        net = self._place(kind.from_pretrained(folder / "unet", low_cpu_mem_usage=False))
        b, size = config.batch_size, config.data.size
        rng = np.random.default_rng(0)
        normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
        z, eps = (normal(b, *model.latent_shape(size, size)) for _ in range(2))
        t = np.arange(b) * 7 % model.process.timesteps
        fields = model.example(b, size, size)
        cond = jax.jit(model.condition)(params, fields, jnp.ones(b, bool))
        theirs_of = [self._tensor(z), torch.from_numpy(t).to(self._device)]
        if config.model.cross_attention:
            theirs_of.append(self._tensor(cond.tokens, image=False))
        labels = {}
        if rows := net.config.get("num_class_embeds"):  # the last is the null class
            labels["class_labels"] = torch.full((b,), rows - 1, device=self._device)
        predict = jax.jit(model.predict).lower(params, z, t, cond).compile()
        placed = jax.device_put((params, z, t, cond))

        def theirs():
            with torch.inference_mode(), self._autocast():
                return net(*theirs_of, **labels).sample

        difference = self._difference(predict(*placed), theirs())
        optimizer = torch.optim.AdamW(net.parameters(), LEARNING_RATE)
        target = self._tensor(eps)

        def theirs_step():
            optimizer.zero_grad(set_to_none=True)
            with self._autocast():
                loss = torch.mean((net(*theirs_of, **labels).sample.float() - target) ** 2)
            loss.backward()
            optimizer.step()
            return loss

        step = _our_step(model, placed, jnp.asarray(eps))
        return {
            "denoise": (lambda: predict(*placed), theirs, difference),
            "train": (step, theirs_step, difference),
        }

    def _first_stage(self, folder):
        import diffusers

        torch, config = self._torch, self._config
        model = kinds.of(config).network(config)
        side, b = config.data.size, config.batch_size
        image = jnp.zeros((1, side, side, 3))
        params = _random(jax.eval_shape(model.init, jax.random.key(0), image)["params"])
        kind = to_diffusers.write_first_stage(
            folder, dict(config.model), {"model": params}, size=side
        )
        net = self._place(getattr(diffusers, kind).from_pretrained(folder, low_cpu_mem_usage=False))
        rng = np.random.default_rng(0)
        x = rng.uniform(-1, 1, (b, side, side, 3)).astype(np.float32)
        encode = lambda p, x: model.apply({"params": p}, x, method="encode")
        decode = lambda p, z: model.apply({"params": p}, z, method="decode")
        x_theirs = self._tensor(x)
        moments = jax.jit(encode)(params, x)
        z = np.asarray(moments)[..., : model.latent_channels]
        pairs, z_theirs = {}, self._tensor(z)
        own = {"encode": (encode, x), "decode": (decode, z)}
        other = {
            "encode": lambda: net.encode(x_theirs).latent_dist.parameters
            if kind == "AutoencoderKL"
            else net.encode(x_theirs).latents,
            "decode": lambda: net.decode(z_theirs).sample,
        }
        for name, (function, given) in own.items():
            placed = jax.device_put((params, given))
            program = jax.jit(function).lower(*placed).compile()

            def theirs(name=name):
                with torch.inference_mode(), self._autocast():
                    return other[name]()

            ours = lambda program=program, placed=placed: program(*placed)
            pairs[name] = (ours, theirs, self._difference(ours(), theirs()))
        return pairs

    def _place(self, net):
        net = net.to(self._device)
        if self._device == "cuda":
            net = net.to(memory_format=self._torch.channels_last)
            net.forward = self._torch.compile(net.forward)
        return net

    def _tensor(self, array, image=True):
        tensor = self._torch.from_numpy(np.array(array))
        tensor = tensor.movedim(-1, 1).contiguous() if image else tensor
        tensor = tensor.to(self._device)
        if image and self._device == "cuda":
            tensor = tensor.to(memory_format=self._torch.channels_last)
        return tensor

    def _autocast(self):
        if self._config.dtype == "float32":
            return contextlib.nullcontext()
        return self._torch.autocast(self._device, self._torch.bfloat16)

    def _difference(self, ours, theirs) -> float:
        theirs = theirs.detach().float().movedim(1, -1).cpu().numpy()
        ours = np.asarray(ours, np.float32)
        return float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))


def open_baseline(config) -> Baseline:
    """Raises UsageError where the packages are missing."""
    try:
        import diffusers  # noqa: F401
        import torch  # noqa: F401
    except ImportError as e:
        raise errors.UsageError(
            f"--against=diffusers needs {e.name}: pip install torch diffusers"
        ) from e
    return Baseline(config)


def clock_both(ours, theirs, wait, repeats: int) -> tuple[dict, dict]:
    """Both clocks, (ours, theirs), a repeat of one after a repeat of the other."""
    clocks = [], []
    for _ in range(repeats):
        clocks[0].append(timing.repeated(ours, 1)["seconds"])
        clocks[1].append(timing.repeated(lambda: wait(theirs()), 1)["seconds"])
    return tuple(timing.summary(seconds) for seconds in clocks)


def _random(shapes):
    """Weights in these shapes: small noise, so that no layer's output vanishes."""
    rng = np.random.default_rng(0)
    noise = lambda s: (0.05 * rng.standard_normal(s.shape, np.float32)).astype(s.dtype)
    return jax.tree.map(noise, shapes)


def _our_step(model, placed, eps):
    """() -> loss: forward, backward and AdamW, the state kept between calls."""
    import optax

    params, z, t, cond = placed
    tx = optax.adamw(LEARNING_RATE)

    def step(state, z, t, cond, eps):
        params, opt = state

        def loss(params):
            return jnp.mean((model.predict(params, z, t, cond) - eps) ** 2)

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt = tx.update(grads, opt, params)
        return (optax.apply_updates(params, updates), opt), value

    state = jax.tree.map(jnp.copy, (params, tx.init(params)))
    program = jax.jit(step, donate_argnums=0).lower(state, z, t, cond, eps).compile()

    def call():
        nonlocal state
        state, value = program(state, z, t, cond, eps)
        return value

    return call
