import pytest

from ldm_jax.base import errors, registry


def test_a_name_is_given_once_and_an_unknown_one_lists_the_known():
    kinds = registry.Registry("sampler")
    assert kinds.register("ddim")(len) is len and kinds.get("ddim") is len
    kinds.register("ddpm")(max)
    with pytest.raises(ValueError, match="twice"):
        kinds.register("ddim")
        kinds.register("ddim")(min)
    with pytest.raises(errors.UsageError, match=r"'dimm'; registered: ddim, ddpm; did you mean"):
        kinds.get("dimm")


def test_an_entry_gets_the_options_that_it_takes_and_no_option_is_ignored_silently():
    kinds = registry.Registry("sampler")
    kinds.register("ddim")(lambda grid, *, eta=0.0: (grid, eta))
    kinds.register("heun")(lambda grid: grid)
    assert kinds.call("ddim", 3, eta=0.5) == (3, 0.5)
    assert kinds.call("heun", 3, eta=0.0) == 3
    words = "eta=0.5 does nothing with sampler 'heun', only with ddim: leave it at 0.0"
    with pytest.raises(errors.UsageError, match=words):
        kinds.call("heun", 3, eta=0.5)
    with pytest.raises(
        errors.UsageError, match="churn=1 does nothing with sampler 'heun', nor with any"
    ):
        kinds.call("heun", 3, churn=1)
    assert kinds.takers("eta") == {"ddim": 0.0}
