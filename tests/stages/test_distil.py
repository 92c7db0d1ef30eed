"""Laws of students, on a Gaussian, where everything is known.

Of data z ~ N(0, S^2) the best x_0 is a multiple of x_t, DDIM multiplies by numbers, and a network
that multiplies by a number per timestep can be teacher and student.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ldm_jax.base import errors
from ldm_jax.diffusion import samplers
from ldm_jax.diffusion.process import make_process
from ldm_jax.models.backbones import Backbone
from ldm_jax.models.conditioners import Cond, Conditioner
from ldm_jax.models.denoiser import Denoiser
from ldm_jax.stages.codec import Codec
from ldm_jax.stages.consistency import Consistency
from ldm_jax.stages.diffuse import Diffuse, Loss
from ldm_jax.stages.distribution import Distribution
from ldm_jax.stages.sampling import Sampling

S = 0.5
PROCESS = make_process(prediction="v")
ALPHA, SIGMA = PROCESS.tables
T = PROCESS.timesteps
N = 50
FROZEN = {"first_stage": {}, "scale": jnp.float32(1.0)}


class Multiplier(Backbone):
    """The output is x times a number of the timestep."""

    @nn.compact
    def __call__(self, x, t, tokens=None, vector=None, concat=None, mask=None, train=False):
        return self.param("numbers", nn.initializers.zeros, (T,))[t][:, None, None, None] * x


def model(**changes):
    changes = {"sampling": Sampling(sampler="consistency", steps=1)} | changes
    return Diffuse(
        denoiser=Denoiser(Multiplier(name="net")),
        process=PROCESS,
        codec=Codec(None),
        size=4,
        loss=Loss("l2", "uniform", 0.0),
        **changes,
    )


def student(teacher=True, **changes):
    theirs = model(sampling=Sampling(sampler="ddim", steps=N)) if teacher else None
    return Consistency(model(), theirs, **{"total": 100, "intervals": N} | changes)


def params(x_0):
    """Those of a network whose x_0 is x_0[t] x_t, by v."""
    return {"net": {"numbers": jnp.float32((ALPHA - x_0) / SIGMA)}}


def best(s=S):
    """What the mean of z at x_t is, as a share of x_t."""
    return ALPHA * s**2 / (ALPHA**2 * s**2 + SIGMA**2)


def composed(intervals, d=None):
    """What x_t is multiplied by on the teacher's way to clean data in strides of T / intervals."""
    stride, d, found = -(-T // intervals), best() if d is None else d, np.zeros(T)
    for t in range(T):
        r = t - stride
        eps = (1 - ALPHA[t] * d[t]) / SIGMA[t]
        found[t] = d[t] if r < 0 else found[r] * (ALPHA[r] * d[t] + SIGMA[r] * eps)
    return found


TEACHER = params(best())
SOLVED = params(composed(N))


def errors_of(distil, own, t, intervals=N, frozen=FROZEN | {"teacher": TEACHER}):
    b = len(t)
    z = S * jax.random.normal(jax.random.key(1), (b, 4, 4, 3))
    eps = jax.random.normal(jax.random.key(2), z.shape)
    given = intervals, z, jnp.asarray(t), eps, {}, jnp.zeros(b, bool)
    return jax.jit(lambda own: distil.error_at({"denoiser": own}, frozen, *given))(own)


TIMES = np.array([0, 5, 19, 20, 21, 333, 500, 998, 999])


def test_the_student_that_ends_where_its_teachers_steps_end_has_no_error():
    assert np.all(errors_of(student(), SOLVED, TIMES) < 1e-8)
    wrong = errors_of(student(), TEACHER, TIMES)
    assert np.all(wrong[TIMES < 20] < 1e-8)  # one stride from clean data both are the teacher
    assert np.all(wrong[(TIMES > 20) & (TIMES <= 500)] > 1e-5)
    assert np.all(errors_of(student(), SOLVED, TIMES[5:7], intervals=8) > 1e-6)  # other strides


def test_one_call_of_that_student_is_all_steps_of_the_teacher():
    keys = samplers.image_keys(0, jnp.arange(2))
    draw = lambda own, sampling: jax.jit(
        lambda own: model().sample(own, FROZEN, keys, {}, sampling=sampling, height=4, width=4)
    )(own)
    one = draw(SOLVED, Sampling(sampler="consistency", steps=1))
    all_steps = draw(TEACHER, Sampling(sampler="ddim", steps=N))
    np.testing.assert_allclose(one, all_steps, atol=1e-4)
    # by DDIM the student's second call would start beside the data's distribution
    four = draw(SOLVED, Sampling(sampler="consistency", steps=4))
    assert np.std(four) == pytest.approx(np.std(one), rel=0.25)


def test_gradients_vanish_where_the_student_is_consistent_and_only_there():
    distil, key = student(total=300, huber=1e-2, first=8), jax.random.key(0)
    batch = {"image": S * jax.random.normal(jax.random.key(3), (32, 4, 4, 3))}
    frozen = FROZEN | {"teacher": TEACHER}

    def loss(own, step, key):
        return distil.loss({"denoiser": own}, frozen, batch, key, step, {})[0]

    gradient = jax.jit(jax.grad(loss))
    size = lambda own, step: float(
        jnp.linalg.norm(gradient(own, jnp.int32(step), key)["net"]["numbers"])
    )
    assert size(SOLVED, 299) < 0.05 * size(TEACHER, 299)
    assert size(SOLVED, 0) > size(SOLVED, 299)  # coarser strides want another student


SCALES = (1.0, 1.7, 3.0)


class Rows(Backbone):
    """As Multiplier, by a row of numbers for each value that the condition can have."""

    values: tuple = ()
    vector_width: ClassVar[int] = 1

    @nn.compact
    def __call__(self, x, t, vector=None, time=None, train=False):
        said = vector if time is None else time
        row = jnp.argmin(jnp.abs(said - jnp.asarray(self.values)), axis=1)
        numbers = self.param("numbers", nn.initializers.zeros, (len(self.values), T))
        return numbers[row, t][:, None, None, None] * x


class Shown(Conditioner):
    """A condition: 1, and its null: 0."""

    def example(self, image, latent):
        return {}

    def __call__(self, batch, drop):
        return Cond(vector=jnp.where(drop, 0.0, 1.0)[:, None])


class Told(Conditioner):
    """The guidance as it is."""

    bounds: tuple = (1.0, 3.0)
    fields, told = ("guidance",), ("guidance",)

    def example(self, image, latent):
        return {"guidance": jnp.ones(image[:1])}

    def __call__(self, batch, drop):
        return Cond(time=batch["guidance"][:, None])


def guided_by(scale):
    """The guided teacher's x_0: its null is the mean for data of deviation 1."""
    return best(1.0) + scale * (best() - best(1.0))


def rows(*x_0):
    return {"net": {"numbers": jnp.stack([params(own)["net"]["numbers"] for own in x_0])}}


def ranged(**changes):
    """A student that is told its guidance; its teacher is guided by classifier-free guidance."""
    net = lambda values, cond: Denoiser(Rows(values=values, name="net"), (cond(name="cond"),))
    how = Sampling(sampler="consistency", steps=1, guidance=SCALES[1])
    own = dataclasses.replace(model(sampling=how), denoiser=net(SCALES, Told))
    theirs = Sampling(sampler="ddim", steps=N, guidance=SCALES[1])
    theirs = dataclasses.replace(model(sampling=theirs), denoiser=net((0.0, 1.0), Shown))
    return Consistency(own, theirs, total=100, intervals=N)


GUIDED = rows(best(1.0), best())
SOLVED_ALL = rows(*(composed(N, guided_by(scale)) for scale in SCALES))


def test_a_student_that_is_told_its_guidance_ends_where_its_teacher_guided_so_does():
    """For each row its own guidance; and one call is all steps of the teacher at that guidance."""
    distil, frozen = ranged(), FROZEN | {"teacher": GUIDED}
    t, scale = (jnp.asarray(x.ravel()) for x in np.meshgrid(TIMES, SCALES))
    z = S * jax.random.normal(jax.random.key(1), (len(t), 4, 4, 3))
    given = N, z, t, jax.random.normal(jax.random.key(2), z.shape)
    error_at = jax.jit(
        lambda own, scale: distil.error_at(
            {"denoiser": own}, frozen, *given, {"guidance": scale}, jnp.zeros(len(t), bool)
        )
    )
    assert np.all(error_at(SOLVED_ALL, scale) < 1e-7)
    deaf = rows(*[composed(N, guided_by(SCALES[0]))] * 3)
    assert np.all(error_at(deaf, scale)[scale == 1] < 1e-7)
    assert np.all(error_at(deaf, scale)[(t > 20) & (t <= 500) & (scale > 1)] > 1e-6)

    keys = samplers.image_keys(0, jnp.arange(2))
    for scale in SCALES[::2]:
        drawn = [
            model.sample(own, FROZEN, keys, {}, sampling=how, height=4, width=4)
            for model, own, how in (
                (distil.student, SOLVED_ALL, Sampling("consistency", steps=1, guidance=scale)),
                (distil.teacher, GUIDED, Sampling("ddim", steps=N, guidance=scale)),
            )
        ]
        np.testing.assert_allclose(*drawn, atol=1e-4)


def test_training_shows_all_guidance_of_the_range_and_pictures_one_of_it():
    distil, frozen = ranged(), FROZEN | {"teacher": GUIDED}
    batch = {"image": S * jax.random.normal(jax.random.key(3), (64, 4, 4, 3))}
    fields = distil.student.draw_training(FROZEN, batch, jax.random.key(0))[3]
    shown = np.asarray(fields["guidance"])
    assert shown.shape == (64,) and 1.0 <= shown.min() < 1.2 and 2.8 < shown.max() <= 3.0
    assert np.mean(shown) == pytest.approx(2.0, abs=0.25)
    draw = jax.jit(lambda own: distil.draw({"denoiser": own}, frozen, batch, jax.random.key(0)))
    drawn = draw(SOLVED_ALL)["samples"]
    np.testing.assert_allclose(drawn[:8], drawn[-8:], atol=1e-4)  # one call and the teacher
    distil.check()


def test_strides_double_until_they_are_the_last():
    assert student().strides == (8, 16, 32, 50)
    assert student(intervals=8).strides == (8,)
    assert student(intervals=64).strides == (8, 16, 32, 64)


def test_without_a_teacher_the_data_gives_the_direction():
    """At the data itself: then every student that maps noise to it is consistent."""
    constant = params(1 / np.maximum(ALPHA, 1e-3))  # x_t / alpha_t, which is z where eps is 0
    distil = student(teacher=False)
    z = jax.random.normal(jax.random.key(1), (3, 4, 4, 3))
    given = N, z, jnp.array([30, 200, 500]), 0.0 * z, {}, jnp.zeros(3, bool)
    found = jax.jit(lambda own: distil.error_at({"denoiser": own}, FROZEN, *given))(constant)
    assert np.all(found < 1e-6)


def test_its_own_measures_say_how_near_the_teacher_it_is():
    distil, frozen = student(intervals=10), FROZEN | {"teacher": TEACHER}
    batch = {"image": S * jax.random.normal(jax.random.key(3), (8, 4, 4, 3))}
    measure = jax.jit(
        lambda own: distil.evaluate({"denoiser": own}, frozen, batch, jax.random.key(0))
    )
    near, far = measure(params(composed(10))), measure(TEACHER)
    assert np.all(near["match_1"] < 1e-4) and np.all(far["match_1"] > 0.1)
    assert near["spread"][0] == pytest.approx(1.0, abs=1e-3) and far["spread"][0] < 0.5
    assert near["error"].shape == (8,) and near["error"].mean() < 1e-8
    drawn = jax.jit(lambda own: distil.draw({"denoiser": own}, frozen, batch, jax.random.key(0)))(
        TEACHER
    )
    assert drawn["samples"].shape == (4 * 8, 4, 4, 3)  # 1, 2, 4 calls and the teacher


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (dict(intervals=4), "first=8, intervals=4"),
        (dict(intervals=2000), "<= 1000"),
    ],
)
def test_what_cannot_be_distilled_is_refused(changes, line):
    with pytest.raises(errors.UsageError, match=line):
        student(**changes).check()


def test_a_student_has_no_guidance_and_does_not_predict_eps():
    student().check()
    guided = model(sampling=Sampling(guidance=2.0))
    with pytest.raises(errors.UsageError, match=r"config.sample.guidance=2.0.*set it to 1"):
        dataclasses.replace(student(), student=guided).check()
    of_eps = dataclasses.replace(model(), process=make_process(prediction="eps"))
    with pytest.raises(errors.UsageError, match="cannot predict eps"):
        dataclasses.replace(student(), student=of_eps).check()
    other = dataclasses.replace(model(), process=make_process("cosine", prediction="v"))
    with pytest.raises(errors.UsageError, match="is not the teacher's, 'cosine'"):
        dataclasses.replace(student(), teacher=other).check()


def matched(**changes):
    theirs = model(sampling=Sampling(sampler="ddim", steps=N))
    return Distribution(model(), theirs, **{"total": 100} | changes)


def mapped(deviation):
    """Of a student that maps noise of every level to samples of this deviation."""
    return params(deviation / np.sqrt(ALPHA**2 * S**2 + SIGMA**2))


def denoising(deviation):
    """Of the best critic of samples of this deviation."""
    return params(ALPHA * deviation**2 / (ALPHA**2 * deviation**2 + SIGMA**2))


def test_a_student_moves_to_its_teachers_distribution_and_rests_there():
    distil, frozen = matched(calls=(1,)), FROZEN | {"teacher": TEACHER}
    batch = {"image": S * jax.random.normal(jax.random.key(3), (32, 4, 4, 3))}

    def loss(own, critic):
        both = {"denoiser": own, "critic": critic}
        return distil.loss(both, frozen, batch, jax.random.key(0), 0, {})[0]

    gradient = jax.jit(jax.grad(loss))
    # v's share of x_0 is -sigma: a larger number means smaller samples.
    slope = lambda *given: float(gradient(*given)["net"]["numbers"][-1])
    assert slope(mapped(2 * S), denoising(2 * S)) < -1e-3
    assert slope(mapped(S / 2), denoising(S / 2)) > 1e-3
    assert abs(slope(mapped(S), denoising(S))) < 1e-7
    assert abs(slope(mapped(2 * S), TEACHER)) < 1e-7  # a critic that sees no difference


def test_the_critic_learns_what_the_students_samples_are():
    distil, frozen = matched(calls=(1, 2)), FROZEN | {"teacher": TEACHER}
    assert distil.visits.tolist() == [[999, 999], [999, 499]]
    batch = {"image": S * jax.random.normal(jax.random.key(3), (64, 4, 4, 3))}

    @jax.jit
    def loss(critic, own):
        both = {"denoiser": own, "critic": critic}
        return distil.critic_loss(both, frozen, batch, jax.random.key(0), 0, {})[0]

    for own in (S, 2 * S):
        found = {d: float(loss(denoising(d), mapped(own))) for d in (S / 2, S, 2 * S, 3 * S)}
        assert min(found, key=found.get) == own
    to_student = jax.grad(lambda own: loss(TEACHER, own))(mapped(S))
    assert not np.any(to_student["net"]["numbers"])


def test_a_student_is_trained_on_its_own_samples():
    """Not on noised data: the second of two calls starts from what the first one drew."""
    distil, batch = matched(calls=(2,)), {"image": jnp.zeros((64, 4, 4, 3))}
    own = {"denoiser": mapped(4.0)}
    draw = jax.jit(lambda key: jnp.std(distil._samples(own, FROZEN, batch, key)[0]))
    found = sorted(float(draw(jax.random.key(i))) for i in range(6))
    alpha, sigma = ALPHA[499], SIGMA[499]
    second = 4.0 * np.hypot(4.0 * alpha, sigma) / np.hypot(S * alpha, sigma)
    assert found[0] == pytest.approx(4.0, rel=0.05) and found[-1] == pytest.approx(second, rel=0.05)


def test_guidance_that_asks_for_more_than_samples_are_exceeds_them():
    """The mean of what could lie behind x_t varies less than that does; much guidance, more."""
    frozen, key = FROZEN | {"teacher": GUIDED}, jax.random.key(1)
    x_0, params = S * jax.random.normal(key, (64, 4, 4, 3)), {"denoiser": GUIDED, "critic": GUIDED}

    def excess(scale):
        theirs = Sampling(sampler="ddim", steps=N, guidance=scale)
        net = Denoiser(Rows(values=(0.0, 1.0), name="net"), (Shown(name="cond"),))
        theirs = dataclasses.replace(model(sampling=theirs), denoiser=net)
        distil, drop = Distribution(theirs, theirs, total=100), jnp.zeros((64, 1), bool)
        return float(
            jax.jit(lambda: distil.move_at(params, frozen, x_0, {}, drop, key))()[1]["excess"]
        )

    assert excess(1.0) < 1.0 < excess(8.0)


def test_the_critic_starts_as_the_teacher_and_the_student_learns_later_in_one_step_of_five():
    denoiser, critic = matched().players(FROZEN | {"teacher": TEACHER})
    assert (denoiser.begins, denoiser.every) == (100, 5) and (critic.begins, critic.every) == (0, 1)
    assert critic.init(jax.random.key(0), critic.measure()) is TEACHER


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (dict(teacher=None), "config.distil.method=distribution needs config.distil.teacher"),
        (dict(calls=(1, 2000)), "2000"),
    ],
)
def test_what_cannot_be_matched_is_refused(changes, line):
    with pytest.raises(errors.UsageError, match=line):
        dataclasses.replace(matched(), **changes).check()
