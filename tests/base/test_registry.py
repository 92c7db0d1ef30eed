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
