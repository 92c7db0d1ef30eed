"""Layer 0: registries, configs, trees, meshes. Imports nothing else of ldm_jax."""
