"""Diffusion as four values: a process, a time grid, a sampler, a guidance wrapper. jnp only."""
