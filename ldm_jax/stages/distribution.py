"""Distribution matching: a student whose samples are distributed as its teacher's.

Yin et al. 2024, arXiv 2405.14867 (DMD2), without its adversarial term. A second player, the critic,
is a denoiser of the student's samples; where critic and teacher disagree about a noised sample,
the student's distribution differs from the teacher's, and the sample is moved by the difference:

    x_0  = the student's x_0 at a level tau of its sampling, from noise at the top and from noised
           data below
    x_t  = alpha_t x_0 + sigma_t eps                        t uniform over the inner timesteps
    g    = (critic's x_0 - teacher's guided x_0 at x_t) / mean |x_0 - teacher's x_0|, in each row
    loss = |x_0 - stop_gradient(x_0 - g)|^2 / 2, whose gradient is g

It says nothing of which noise becomes which picture, so `match_S` tells little here.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ldm_jax.base import errors
from ldm_jax.diffusion import grids
from ldm_jax.stages import api
from ldm_jax.stages.distil import METHODS, Distilled

INNER = (0.02, 0.98)  # part of the timesteps at which samples are compared


@METHODS.register("distribution")
@dataclasses.dataclass(frozen=True)
class Distribution(Distilled):
    """The student's samples are distributed as its teacher's; a critic is trained beside it.

    See the module; the players are "denoiser" and "critic".

    calls: numbers of calls that the student is to sample by; it is trained at the levels that
      these visit. critic_steps: steps of the critic for one of the student. The student learns in
      one training step of so many.
    """

    calls: tuple[int, ...] = (1, 2, 4)
    critic_steps: int = 5

    def check(self):
        """Raises UsageError for what cannot be distilled."""
        super().check()
        if not self.teacher:
            raise errors.UsageError(
                "config.distil.method=distribution needs config.distil.teacher, the run of a "
                "second stage, whose distribution the student is to have."
            )
        if "guidance" in self.student.denoiser.told:
            raise errors.UsageError(
                "config.distil.guidance: a range of guidance is of method=consistency, as the "
                "critic is not told it; give one number."
            )
        for calls in self.calls:
            grids.exact(self.student.process, calls)

    def players(self, frozen):
        # The critic begins as the teacher, and learns in which way the student's samples differ.
        start = lambda key, weights=None: self.teacher.init(key) if weights is None else weights
        every = self.critic_steps
        return (
            api.Player("denoiser", self.student.init, self.loss, every=every, averaged=True),
            api.Player("critic", start, self.critic_loss, measure=lambda: frozen["teacher"]),
        )

    @property
    def levels(self) -> tuple[int, ...]:
        """The timesteps that each number of calls visits, one after another."""
        process = self.student.process
        return tuple(t for calls in self.calls for t in grids.exact(process, calls).timesteps)

    def loss(self, params, frozen, batch, key, step, shared):
        """Half the squared length of the move that each sample is to make."""
        draw_key, key = jax.random.split(key)
        x_0, *given = self._samples(params, frozen, batch, draw_key)
        move = jax.lax.stop_gradient(self.move_at(params, frozen, x_0, *given, key))
        loss = 0.5 * jnp.mean((x_0 - jax.lax.stop_gradient(x_0 - move)) ** 2)
        metrics = {"move": jnp.sqrt(jnp.mean(move**2)), "sample_std": jnp.std(x_0)}
        return loss, (metrics, shared)

    def move_at(self, params, frozen, x_0, fields, drop, key):
        """g of the module's words, at a random timestep of each sample x_0; [b, h, w, c]."""
        process, (t_key, eps_key) = self.student.process, jax.random.split(key)
        low, high = (round(share * process.timesteps) for share in INNER)
        t = jax.random.randint(t_key, (len(x_0),), low, high)
        x_t = process.corrupt(x_0, t, jax.random.normal(eps_key, x_0.shape))
        real = self.direction(frozen, x_t, t, fields, drop)
        critic, theirs = {"denoiser": params["critic"]}, self.of_teacher(frozen)
        drop = self.student.denoiser.drop_of(self.teacher.denoiser, drop)
        fake = self.teacher.predict_trained(critic, x_t, t, fields, drop, frozen=theirs)
        fake = self.teacher.process.to_x0(fake, x_t, t)
        distance = jnp.mean(jnp.abs(x_0 - real), axis=(1, 2, 3), keepdims=True)
        return (fake - real) / jnp.maximum(distance, 1e-6)

    def critic_loss(self, params, frozen, batch, key, step, shared):
        """The teacher's own training loss, on the student's samples in the data's place."""
        draw_key, t_key, eps_key = jax.random.split(key, 3)
        x_0, fields, drop = self._samples(params, frozen, batch, draw_key)
        drop = self.student.denoiser.drop_of(self.teacher.denoiser, drop)
        t = self.teacher.process.draw_times(t_key, (len(x_0),))
        at = jax.lax.stop_gradient(x_0), t, jax.random.normal(eps_key, x_0.shape)
        critic, theirs = {"denoiser": params["critic"]}, self.of_teacher(frozen)
        loss, error = self.teacher.loss_at(critic, *at, fields, drop, frozen=theirs)
        return loss, ({"critic_error": jnp.mean(error)}, shared)

    def _samples(self, params, frozen, batch, key):
        """(x_0, fields, drop): the student's samples, each from a random one of its levels."""
        level_key, key = jax.random.split(key)
        z, _, eps, fields, drop, dropout_key = self.student.draw_training(frozen, batch, key)
        levels = jnp.array(self.levels)
        t = levels[jax.random.randint(level_key, (len(z),), 0, len(levels))]
        x_t = self.noised(z, t, eps)
        own = self.student.predict_trained(params, x_t, t, fields, drop, dropout_key, frozen)
        return self.student.process.to_x0(own, x_t, t), fields, drop
