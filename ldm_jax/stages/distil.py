"""Few-step students: a denoiser learns to reach, in one call, where its teacher's steps end.

Consistency distillation, discrete and guided (Song et al. 2023, arXiv 2303.01469; Luo et al. 2023,
arXiv 2310.04378), with strides that shrink while training goes on and, without a teacher, the data
in its place (Geng et al. 2024, arXiv 2406.14548):

    x_t = alpha_t z + sigma_t eps
    d   = the teacher's guided x_0 at x_t, or z without a teacher
    x_r = one DDIM step from x_t towards d, k timesteps down; r = t - k, where r < 0 is clean data
    y   = the student's own x_0 at x_r, without gradient; d itself where r < 0
    loss = sqrt(|student's x_0 at x_t - y|^2 / gain_t + huber^2) - huber

`Process.to_x0` is the consistency function: for v and the velocity of a flow it is the identity as
sigma goes to 0, and the division by `gain` makes the error that of the network's output. The
student's fixed point is its teacher's DDIM of stride k, from any timestep, in one call. It is drawn
from by the sampler `consistency`, whose calls noise their prediction anew.

A student may be told its guidance (the conditioner `scalar`): then every row has its own, in which
its teacher is guided. It is measured and shown at that of its `config.sample`.

`frozen` holds, beside what diffuse.py says, "teacher", the parameters of a second stage, and
"weaker", those of the run that its autoguidance leads away from, where it has one.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.base import errors, registry
from ldm_jax.stages import api
from ldm_jax.stages.diffuse import TIME_BANDS, Diffuse
from ldm_jax.stages.sampling import Sampling

# (student, teacher, total, **its own options) -> a value with `check` and `stage`
METHODS = registry.Registry("method of distillation")
CALLS = (1, 2, 4)  # of the student, that are drawn beside the teacher while training goes on
STEPS = 50  # of the teacher, which they are held against
COMPARED = 8  # rows of a batch that are drawn for it


@dataclasses.dataclass(frozen=True)
class Distilled:
    """The second stage of a student; what every method of distillation has.

    Its player "denoiser" is a second stage's, so that the run is one.

    teacher: the model whose parameters are frozen["teacher"]; its sampling says the guidance that
      the student learns, unless the student is told its own. total: training steps.
    """

    student: Diffuse
    teacher: Diffuse | None
    total: int

    def check(self):
        """Raises UsageError for what cannot be distilled."""
        process, teacher = self.student.process, self.teacher
        if process.prediction == "eps":
            raise errors.UsageError(
                "a student cannot predict eps, whose errors grow without bound towards pure noise: "
                "train its weights on with config.process.prediction=v first."
            )
        if self.student.sampling.guidance != 1.0 and not self.student.denoiser.told:
            raise errors.UsageError(
                f"config.sample.guidance={self.student.sampling.guidance}: a student has its "
                "guidance in its weights (config.distil.guidance); set it to 1."
            )
        if not teacher:
            return
        ours, theirs = process.tables, teacher.process.tables
        if np.shape(ours) != np.shape(theirs) or not np.allclose(ours, theirs):
            raise errors.UsageError(
                f"config.process.schedule={process.schedule!r} is not the teacher's, "
                f"{teacher.process.schedule!r}: both need the same noise levels."
            )

    def stage(self, frozen) -> api.Stage:
        """frozen: see the module."""
        return dataclasses.replace(
            self.student.stage(frozen),
            players=self.players(frozen),
            evaluate=self.evaluate,
            draw=self.draw,
            columns={"samples": COMPARED},
            watched="",
        )

    @property
    def steps(self) -> int:
        """DDIM steps of the teacher whose samples the student's are held against."""
        return STEPS

    def players(self, frozen) -> tuple[api.Player, ...]:
        """Whoever learns; frozen: as `stage` has it."""
        raise NotImplementedError

    def evaluate(self, params, frozen, batch, key):
        """With a teacher, [b] each, all of the batch's first rows and alike in every row:

        `match_S`: how far the student's samples by S calls are from its teacher's by `steps` of
        DDIM from the same noise (root mean square; 1.4 for unrelated ones of variance 1).
        `spread`: the deviation of its one-call samples over that of the teacher's, which falls
        below 1 where samples collapse. `drift`: how far the means of their channels lie apart.
        """
        if not self.teacher:
            return {}
        drawn = self._drawn(params, frozen, batch, jax.random.fold_in(key, TIME_BANDS + 1))
        steps = drawn.pop("teacher")
        rms = lambda x: jnp.sqrt(jnp.mean(x**2))
        mean = functools.partial(jnp.mean, axis=(0, 1, 2))
        found = {f"match_{calls}": rms(x - steps) for calls, x in drawn.items()}
        found["spread"] = jnp.std(drawn[1]) / jnp.std(steps)
        found["drift"] = rms(mean(drawn[1]) - mean(steps))
        return {name: jnp.full((len(batch["image"]),), value) for name, value in found.items()}

    def draw(self, params, frozen, batch, key):
        """Samples of the same noise: a row of each number of calls, the teacher's last."""
        drawn = self._drawn(params, frozen, batch, key)
        render = functools.partial(self.student.render, frozen, sampling=self.student.sampling)
        return {"samples": jnp.concatenate([render(z) for z in drawn.values()])}

    def _drawn(self, params, frozen, batch, key) -> dict:
        """{calls, or "teacher": latents} of the first rows' conditions."""
        few = jax.tree.map(lambda x: x[:COMPARED], batch)
        keys = jax.random.split(key, len(few["image"]))
        size = dict(height=self.student.size, width=self.student.size)

        def drawn(model, own, frozen, sampling):
            fields = {name: few[name] for name in model.fields}
            return model.sample(own, frozen, keys, fields, sampling=sampling, **size)

        own = self.student.sampling
        how = Sampling(sampler="consistency", clip=own.clip, guidance=own.guidance)
        student = functools.partial(drawn, self.student, params["denoiser"], frozen)
        found = {calls: student(dataclasses.replace(how, steps=calls)) for calls in CALLS}
        if self.teacher:
            how = dict(sampler="ddim", spacing="exact", steps=self.steps)
            how, theirs = self.teacher.sampling.over(how), self.of_teacher(frozen)
            found["teacher"] = drawn(self.teacher, frozen["teacher"], theirs, how)
        return found

    def noised(self, z, t, eps):
        """Latents at timesteps t, as sampling meets them: the last one is noise alone."""
        process = self.student.process
        top = (t == process.timesteps - 1)[:, None, None, None]
        return jnp.where(top, np.sqrt(process.variance[-1]) * eps, process.corrupt(z, t, eps))

    def direction(self, frozen, x_t, t, fields, drop):
        """The teacher's guided x_0 at x_t."""
        teacher, theirs, own = self.teacher, self.of_teacher(frozen), frozen["teacher"]
        drop = self.student.denoiser.drop_of(teacher.denoiser, drop)
        cond, null = teacher.condition(own, fields, drop, theirs), None
        scale = fields.get("guidance")  # of each row, where the student is told it
        if scale is not None or teacher.sampling.guidance != 1.0:
            null = teacher.away(own, theirs, fields, drop)
        return teacher.guided(own, theirs, cond, null, teacher.sampling, scale=scale)(x_t, t)

    def of_teacher(self, frozen) -> dict:
        """The frozen weights as the teacher's model takes them."""
        return frozen | ({"guide": frozen["weaker"]} if "weaker" in frozen else {})


@METHODS.register("consistency")
@dataclasses.dataclass(frozen=True)
class Consistency(Distilled):
    """Consistency distillation, see the module. teacher: None lets the data give the direction.

    intervals: strides from noise to data at the end of the training; first: at its beginning,
      doubled until they are `intervals`, for equal times. huber: the deviation at which the loss
      turns from squares to lengths, in each row.
    """

    intervals: int = 50
    first: int = 8
    huber: float = 1e-3

    def check(self):
        """Raises UsageError for what cannot be distilled."""
        super().check()
        timesteps = self.student.process.timesteps
        if not 1 <= self.first <= self.intervals <= timesteps:
            raise errors.UsageError(
                f"config.distil.first={self.first}, intervals={self.intervals}: needs 1 <= first "
                f"<= intervals <= {timesteps}."
            )
        if not self.huber > 0:
            raise errors.UsageError(f"config.distil.huber={self.huber} must be above 0.")

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
        error = self.error_at(params, frozen, intervals, z, *given)
        loss = jnp.sqrt(error + self.huber**2) - self.huber
        metrics = {"error": jnp.mean(error), "intervals": jnp.float32(intervals)}
        return jnp.mean(loss), (metrics | {"latent_std": jnp.std(z)}, shared)

    def error_at(self, params, frozen, intervals, z, t, eps, fields, drop, dropout_key=None):
        """Mean square of the student's inconsistency over h, w, c, in units of its output; [b]."""
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
        square = jnp.mean((predict(x_t, t) - y) ** 2, axis=(1, 2, 3))
        return square / jnp.asarray(process.gain, jnp.float32)[t]

    def evaluate(self, params, frozen, batch, key):
        """Also the inconsistency at the last strides, over all timesteps and in each quarter."""
        error_at = functools.partial(self.error_at, params, frozen, self.intervals)
        found = self.student.in_bands(error_at, frozen, batch, key)
        return found | super().evaluate(params, frozen, batch, key)
