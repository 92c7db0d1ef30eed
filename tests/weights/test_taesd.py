"""madebyollin's tiny autoencoders, against their published layout written out layer by layer."""

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

import ldm_jax
from ldm_jax import convert

WIDTH, CHANNELS = 8, 4


class Files:
    """Random weights, drawn where a layer first asks for them, under the keys of a Sequential."""

    def __init__(self):
        self.state, self._random = {}, np.random.default_rng(0)

    def conv(self, key, x, width, stride=1, bias=True, size=3):
        shape = (width, x.shape[-1], size, size)
        kernel = self._draw(f"{key}.weight", shape, 1 / np.sqrt(size * size * x.shape[-1]))
        pad = [(size // 2, size // 2)] * 2
        y = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), pad, dimension_numbers=("NHWC", "OIHW", "NHWC")
        )
        return y + (self._draw(f"{key}.bias", (width,), 0.1) if bias else 0.0)

    def block(self, key, x):
        y = x
        for i in (0, 2, 4):
            y = self.conv(f"{key}.conv.{i}", y, WIDTH)
            y = jax.nn.relu(y) if i < 4 else y
        return jax.nn.relu(x + y)

    def _draw(self, key, shape, scale):
        if key not in self.state:
            self.state[key] = (scale * self._random.standard_normal(shape)).astype(np.float32)
        return self.state[key]


def encoded(files, x):
    y = files.block("encoder.1", files.conv("encoder.0", (x + 1) / 2, WIDTH))
    for i in (2, 6, 10):
        y = files.conv(f"encoder.{i}", y, WIDTH, stride=2, bias=False)
        for j in range(i + 1, i + 4):
            y = files.block(f"encoder.{j}", y)
    return files.conv("encoder.14", y, CHANNELS)


def decoded(files, z):
    y = jax.nn.relu(files.conv("decoder.1", 3 * jnp.tanh(z / 3), WIDTH))
    for i in (3, 8, 13):
        for j in range(i, i + 3):
            y = files.block(f"decoder.{j}", y)
        y = y.repeat(2, axis=1).repeat(2, axis=2)
        y = files.conv(f"decoder.{i + 4}", y, WIDTH, bias=False)
    return 2 * files.conv("decoder.19", files.block("decoder.18", y), 3) - 1


def test_a_converted_pair_of_files_computes_what_it_was_published_to(tmp_path):
    files, x = Files(), np.random.default_rng(1).uniform(-1, 1, (1, 32, 32, 3)).astype(np.float32)
    z = encoded(files, x)
    want = decoded(files, z)
    for half in ("encoder", "decoder"):
        own = {k.removeprefix(f"{half}."): v for k, v in files.state.items() if k.startswith(half)}
        save_file(own, tmp_path / f"tiny_{half}.safetensors")
    out = tmp_path / "run"
    assert convert.run(["taef2", f"--checkpoint={tmp_path}", f"--out={out}"]) == 0
    run = ldm_jax.load(out)
    np.testing.assert_allclose(run.encode(x), z, atol=2e-5)
    np.testing.assert_allclose(run.decode(z), want, atol=2e-5)
