"""Few-step students: what every method of distillation has.

A student is a denoiser that draws in one to four calls what its teacher, any second stage, draws in
dozens; consistency.py and distribution.py are methods. It is drawn from by the sampler
`consistency`, whose calls predict x_0 and noise it anew.

A student may be told its guidance (the conditioner `scalar`): then every row has its own, in which
its teacher is guided. It is measured and shown at that of its `config.sample`.

`frozen` holds, beside what diffuse.py says, "teacher", the parameters of a second stage, and
"weaker", those of the run that its autoguidance leads away from, where it has one.
"""

import abc
import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.base import errors, registry
from ldm_jax.stages import api, thumbnails
from ldm_jax.stages.diffuse import TIME_BANDS, Diffuse
from ldm_jax.stages.sampling import Sampling

# (student, teacher, total, **its own options) -> a value with `check` and `stage`
METHODS = registry.Registry("method of distillation")
CALLS = (1, 2, 4)  # of the student, that are drawn beside the teacher while training goes on
STEPS = 50  # of the teacher, which they are held against
COMPARED = 8  # rows of a batch that are drawn for it


@dataclasses.dataclass(frozen=True)
class Distilled(abc.ABC):
    """The second stage of a student; what every method of distillation has.

    Its player "denoiser" is a second stage's, so that the run is one. terms: what further terms of
    its loss may name, see thumbnails.py; a method of no terms has None.

    teacher: the model whose parameters are frozen["teacher"]; its sampling says the guidance that
      the student learns, unless the student is told its own. total: training steps.
    """

    student: Diffuse
    teacher: Diffuse | None
    total: int
    terms: ClassVar[tuple[str, ...] | None] = None

    def check(self):
        """Raises UsageError for what cannot be distilled."""
        process, teacher = self.student.process, self.teacher
        for name, weight in thumbnails.weighty(self.student.loss.terms).items():
            if self.terms is None or thumbnails.named({name: weight}) - {*self.terms}:
                raise errors.UsageError(
                    f"config.loss.terms.{name}={weight} is not of this config.distil.method: set "
                    "it to 0."
                )
        if process.prediction == "eps":
            raise errors.UsageError(
                "config.process.prediction='eps': a student cannot predict eps, whose errors grow "
                "without bound towards pure noise: train its weights on with v first."
            )
        if self.student.sampling.guidance != 1.0 and "guidance" not in self.student.denoiser.told:
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

    @abc.abstractmethod
    def players(self, frozen) -> tuple[api.Player, ...]:
        """Whoever learns; frozen: as `stage` has it."""

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
