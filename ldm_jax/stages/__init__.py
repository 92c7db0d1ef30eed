"""Layer 3: what is learned. A stage composes models and diffusion into players with losses."""
