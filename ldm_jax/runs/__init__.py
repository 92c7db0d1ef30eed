"""What training leaves behind: a run, opened, exported, converted."""

from ldm_jax.runs import first_stage, second_stage  # noqa: F401  (each registers its kind)
