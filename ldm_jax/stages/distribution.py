"""Distribution matching: a student whose samples are distributed as its teacher's.

Yin et al. 2024, arXiv 2405.14867 (DMD2), without its adversarial term. A second player, the critic,
is a denoiser of the student's samples; where critic and teacher disagree about a noised sample,
the student's distribution differs from the teacher's, and the sample is moved by the difference:

    x_0  = the student's x_0 in a random call of its own sampling, by a random one of the numbers of
           calls; the calls before it are the student's, too, and carry no gradient
    x_t  = alpha_t x_0 + sigma_t eps                        t uniform over the inner timesteps
    g    = (critic's x_0 - teacher's guided x_0 at x_t) / mean |x_0 - teacher's x_0|, in each row
    loss = |x_0 - stop_gradient(x_0 - g)|^2 / 2, whose gradient is g

It says nothing of which noise becomes which picture, so `match_S` tells little here.

At rest the teacher's x_0 is the mean of the samples that could lie behind x_t, and such means vary
less than samples do. Guidance can ask for more than that at high noise, and then there is no rest:
samples grow (`excess`, `spread`). The critic begins as the teacher without guidance, so it has to
learn what the student's samples are before the student may follow it (`critic_first`).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.base import errors
from ldm_jax.diffusion import grids
from ldm_jax.stages import api
from ldm_jax.stages.distil import METHODS, Distilled

INNER = (0.02, 0.98)  # part of the timesteps at which samples are compared
ADVICE = (
    "the teacher's guided pictures vary more than the student's can, so that these grow without "
    "rest: lower config.distil.guidance"
)


def rms(x):
    return jnp.sqrt(jnp.mean(x**2))


@METHODS.register("distribution")
@dataclasses.dataclass(frozen=True)
class Distribution(Distilled):
    """The student's samples are distributed as its teacher's; a critic is trained beside it.

    See the module; the players are "denoiser" and "critic".

    calls: numbers of calls that the student is to sample by. critic_steps: steps of the critic for
      one of the student, which learns in one training step of so many. critic_first: training steps
      before it does, in which the critic learns alone.
    """

    calls: tuple[int, ...] = (1, 2, 4)
    critic_steps: int = 5
    critic_first: int = 100

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

    def stage(self, frozen):
        return dataclasses.replace(super().stage(frozen), alarms={"excess": (1.0, ADVICE)})

    def players(self, frozen):
        # The critic begins as the teacher, and learns in which way the student's samples differ.
        start = lambda key, weights=None: self.teacher.init(key) if weights is None else weights
        when = dict(begins=self.critic_first, every=self.critic_steps)
        return (
            api.Player("denoiser", self.student.init, self.loss, **when, averaged=True),
            api.Player("critic", start, self.critic_loss, measure=lambda: frozen["teacher"]),
        )

    @property
    def visits(self) -> np.ndarray:
        """The timesteps that each number of calls visits, in rows that end with its last one."""
        process, most = self.student.process, max(self.calls)
        rows = [grids.exact(process, calls).timesteps for calls in self.calls]
        return np.array([[*row, *[row[-1]] * (most - len(row))] for row in rows])

    def loss(self, params, frozen, batch, key, step, shared):
        """Half the squared length of the move that each sample is to make."""
        draw_key, key = jax.random.split(key)
        x_0, *given = self._samples(params, frozen, batch, draw_key)
        move, metrics = jax.lax.stop_gradient(self.move_at(params, frozen, x_0, *given, key))
        loss = 0.5 * jnp.mean((x_0 - jax.lax.stop_gradient(x_0 - move)) ** 2)
        metrics |= {"move": rms(move), "sample_std": jnp.std(x_0)}
        return loss, (metrics, shared)

    def move_at(self, params, frozen, x_0, fields, drop, key):
        """(g of the module's words, [b, h, w, c], metrics), at a random timestep of each sample.

        The metric `excess` is the teacher's guided x_0 over the sample, both root mean squares.
        """
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
        return (fake - real) / jnp.maximum(distance, 1e-6), {"excess": rms(real) / rms(x_0)}

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
        """(x_0, fields, drop): what the student predicts in a random call of its sampling."""
        draw_key, calls_key, call_key, noise_key = jax.random.split(key, 4)
        z, _, eps, fields, drop, dropout_key = self.student.draw_training(frozen, batch, draw_key)
        process, which = self.student.process, jax.random.randint(calls_key, (), 0, len(self.calls))
        visits, calls = jnp.array(self.visits)[which], jnp.array(self.calls)[which]

        def predict(params, x_t, call, dropout_key=None):
            t = jnp.full(len(z), visits[call])
            own = self.student.predict_trained(params, x_t, t, fields, drop, dropout_key, frozen)
            return process.to_x0(own, x_t, t)

        def before(call, x_t):  # as the sampler `consistency` goes on
            x_0 = predict(jax.lax.stop_gradient(params), x_t, call)
            noise = jax.random.normal(jax.random.fold_in(noise_key, call), z.shape)
            return process.corrupt(x_0, jnp.full(len(z), visits[call + 1]), noise)

        call = jax.random.randint(call_key, (), 0, calls)
        x_t = jax.lax.fori_loop(0, call, before, np.sqrt(process.variance[-1]) * eps)
        return predict(params, x_t, call, dropout_key), fields, drop
