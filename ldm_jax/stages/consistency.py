"""Consistency distillation: in one call a student reaches where its teacher's steps end.

Discrete and guided (Song et al. 2023, arXiv 2303.01469; Luo et al. 2023, arXiv 2310.04378), with
strides that shrink while training goes on and, without a teacher, the data in its place (Geng et
al. 2024, arXiv 2406.14548):

    x_t = alpha_t z + sigma_t eps
    d   = the teacher's guided x_0 at x_t, or z without a teacher
    x_r = one DDIM step from x_t towards d, k timesteps down; r = t - k, where r < 0 is clean data
    y   = the student's own x_0 at x_r, without gradient; d itself where r < 0
    loss = sqrt(|student's x_0 at x_t - y|^2 / gain_t + huber^2) - huber

`Process.to_x0` is the consistency function: for v and the velocity of a flow it is the identity as
sigma goes to 0, and the division by `gain` makes the error that of the network's output. The
student's fixed point is its teacher's DDIM of stride k, from any timestep, in one call. As y is a
function of x_t, any metric keeps that: `config.loss.terms` (stages/thumbnails.py) are added to the
square.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from ldm_jax.base import errors
from ldm_jax.stages import api, thumbnails
from ldm_jax.stages.distil import METHODS, Distilled


@METHODS.register("consistency")
@dataclasses.dataclass(frozen=True)
class Consistency(Distilled):
    """In one call the student reaches where its teacher's steps end, see the module.

    teacher: None lets the data give the direction.
    intervals: strides from noise to data at the end of the training; first: at its beginning,
      doubled until they are `intervals`, for equal times. huber: the deviation at which the loss
      turns from squares to lengths, in each row.
    """

    intervals: int = 50
    first: int = 8
    huber: float = 1e-3
    terms = ("small",)

    def check(self):
        """Raises UsageError for what cannot be distilled."""
        super().check()
        timesteps = self.student.process.timesteps
        if not 1 <= self.first <= self.intervals <= timesteps:
            raise errors.UsageError(
                f"config.distil.first={self.first}, intervals={self.intervals}: needs 1 <= first "
                f"<= intervals <= {timesteps}."
            )

    @property
    def steps(self) -> int:
        """Those whose end is the student's fixed point."""
        return self.intervals

    def players(self, frozen):
        return (api.Player("denoiser", self.student.init, self.loss, averaged=True),)

    @property
    def strides(self) -> tuple[int, ...]:
        """Numbers of intervals, each for an equal part of the training."""
        doubled = [self.first]
        while 2 * doubled[-1] < self.intervals:
            doubled.append(2 * doubled[-1])
        return (*doubled, self.intervals) if doubled[-1] < self.intervals else tuple(doubled)

    def loss(self, params, frozen, batch, key, step, shared):
        """As `Diffuse.denoiser_loss`."""
        z, *given = self.student.draw_training(frozen, batch, key)
        strides = self.strides
        intervals = jnp.array(strides)[step * len(strides) // self.total]
        difference = self.difference_at(params, frozen, intervals, z, *given)
        error, small = (
            thumbnails.mean_square(difference),
            functools.partial(thumbnails.small, frozen),
        )
        more, terms = thumbnails.total(self.student.loss.terms, difference, small=small)
        loss = jnp.sqrt(error + more + self.huber**2) - self.huber
        metrics = {"error": jnp.mean(error), "intervals": jnp.float32(intervals)} | terms
        return jnp.mean(loss), (metrics | {"latent_std": jnp.std(z)}, shared)

    def error_at(self, *given):
        """Mean square over h, w, c of `difference_at`, which says what is given; [b]."""
        return thumbnails.mean_square(self.difference_at(*given))

    def difference_at(self, params, frozen, intervals, z, t, eps, fields, drop, dropout_key=None):
        """The student's inconsistency in units of its output; [b, h, w, c]."""
        process = self.student.process
        r = t - (process.timesteps + intervals - 1) // intervals
        alpha, sigma = (x[:, None, None, None] for x in (process.alpha(t), process.sigma(t)))
        x_t, d = self.noised(z, t, eps), z
        if self.teacher:
            d = jax.lax.stop_gradient(self.direction(frozen, x_t, t, fields, drop))

        def predict(x, t):  # dropout, where there is any, drops alike in both calls
            own = self.student.predict_trained(params, x, t, fields, drop, dropout_key, frozen)
            return process.to_x0(own, x, t)

        # A table that is indexed with -1 would give its last entry.
        clean, back = (r < 0)[:, None, None, None], jnp.maximum(r, 0)
        alpha_r, sigma_r = process.alpha(back), process.sigma(back)
        noise = (x_t - alpha * d) / sigma
        x_r = alpha_r[:, None, None, None] * d + sigma_r[:, None, None, None] * noise
        y = jax.lax.stop_gradient(jnp.where(clean, d, predict(x_r, back)))
        gain = jnp.asarray(process.gain, jnp.float32)[t]
        return (predict(x_t, t) - y) / jnp.sqrt(gain)[:, None, None, None]

    def evaluate(self, params, frozen, batch, key):
        """Also the inconsistency at the last strides, over all timesteps and in each quarter."""
        error_at = functools.partial(self.error_at, params, frozen, self.intervals)
        found = self.student.in_bands(error_at, frozen, batch, key)
        return found | super().evaluate(params, frozen, batch, key)
