"""The speed and the memory of a config's networks beside those of diffusers in PyTorch.

torch and diffusers are optional dependencies, which only this module and peers.py need.
"""

import functools

import jax
import numpy as np

from ldm_jax.base import errors
from ldm_jax.cost import peers, timing
from ldm_jax.runs import kinds

PARTS = ("train", "sample", "encode", "decode")  # of `bench`, that diffusers has too


class Torch:
    """PyTorch on this machine: on its GPU, if it has one, compiled and with channels last; on the
    CPU eagerly. For bfloat16 networks keep float32 weights and use autocast, as ours do.

    dtype: of the computation, a config's.

    Raises:
      UsageError: a package is missing.
    """

    def __init__(self, dtype: str):
        try:
            import diffusers
            import torch
        except ImportError as e:
            raise errors.UsageError(
                f"--against=diffusers needs {e.name}: pip install torch diffusers"
            ) from e
        self.torch, self.diffusers, self.on_gpu = torch, diffusers, torch.cuda.is_available()
        self.device = "cuda" if self.on_gpu else "cpu"
        self._layout = torch.channels_last if self.on_gpu else torch.contiguous_format
        how = dict(dtype=torch.bfloat16, enabled=dtype != "float32")
        self.autocast = functools.partial(torch.autocast, self.device, **how)
        torch.set_float32_matmul_precision("high")

    def place(self, net, *methods: str):
        """A network on the device, with those of its methods compiled that are called."""
        net = net.to(self.device).to(memory_format=self._layout)
        for name in methods if self.on_gpu else ():
            setattr(net, name, self.torch.compile(getattr(net, name)))
        return net

    def tensor(self, array, image: bool = True):
        """An array on the device; images [b, h, w, c] as [b, c, h, w]."""
        tensor = self.torch.from_numpy(np.array(array)).to(self.device)
        return tensor.movedim(-1, 1).contiguous(memory_format=self._layout) if image else tensor

    def array(self, tensor) -> np.ndarray:
        """The inverse of `tensor`; a scalar stays one."""
        tensor = tensor.detach().float()
        return (tensor.movedim(1, -1) if tensor.ndim else tensor).cpu().numpy()

    def inferred(self, call):
        """`call` without gradients, in the dtype of the computation."""

        def inferred():
            with self.torch.inference_mode(), self.autocast():
                return call()

        return inferred

    def wait(self):
        if self.on_gpu:
            self.torch.cuda.synchronize()

    def growth(self, call) -> int | None:
        """Bytes that a call allocates at its peak beside what is held before it."""
        if not self.on_gpu:
            return timing.resident_growth(call)
        cuda = self.torch.cuda
        cuda.reset_peak_memory_stats()
        before = cuda.memory_allocated()
        call()
        self.wait()
        return cuda.max_memory_allocated() - before


class Baseline:
    """The parts of a config that diffusers has too, ours and theirs, with the same weights.

    pairs: {part: peers.Pair}; parts: those of PARTS that are wanted.

    Raises:
      UsageError: a package is missing, or diffusers has no such network.
    """

    def __init__(self, config, parts):
        self._torch = Torch(config.dtype)
        make = peers.second_stage if kinds.of(config).draws else peers.first_stage
        self.pairs = make(self._torch, config, parts)

    def clock(self, repeats: int) -> dict:
        """{part: the seconds and bytes of ours and of the baseline, and the ratio of speeds}.

        Repeats alternate.
        """
        return {name: self._clock(pair, repeats) for name, pair in self.pairs.items()}

    def _clock(self, pair, repeats: int) -> dict:
        calls = (pair.ours.call, lambda: (pair.theirs.call(), self._torch.wait()))
        seconds = [], []
        for _ in range(repeats):
            for call, found in zip(calls, seconds):
                found.append(timing.repeated(call, 1)["seconds"])
        own, other = map(timing.summary, seconds)
        found = own | {
            "baseline": "torch.compile" if self._torch.on_gpu else "torch",
            **{f"baseline_{key}": other[key] for key in other if key != "repeats"},
            "ratio": other["seconds"] / own["seconds"],
            "difference": pair.difference,
        }
        memory = self._memory(pair)
        return found | ({} if None in memory.values() else memory)

    def _memory(self, pair) -> dict:
        """Bytes of weights, moments and inputs, with what a call adds to them at its peak."""
        theirs = self._torch.growth(pair.theirs.call)
        if self._torch.on_gpu:
            ours = pair.ours.compiled.memory_analysis().temp_size_in_bytes
        else:
            ours = timing.resident_growth(lambda: jax.block_until_ready(pair.ours.call()))
        found = {"bytes": (pair.ours, ours), "baseline_bytes": (pair.theirs, theirs)}
        return {k: grown and side.held() + grown for k, (side, grown) in found.items()}
