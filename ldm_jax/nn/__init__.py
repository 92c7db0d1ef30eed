"""Building blocks of the networks: Linen modules that know nothing of diffusion or of configs."""
