"""What a recipe starts from: every key of a config with its default (ldm_jax/base/defaults.py).

from configs import base

def get_config(arg=None):
    config = base.first_stage()      # or base.ldm()
    config.model.width = 64
    return config
"""

from ldm_jax.base.defaults import class_condition, common, dit, first_stage, ldm, optimizer, uvit

__all__ = ["class_condition", "common", "dit", "first_stage", "ldm", "optimizer", "uvit"]
