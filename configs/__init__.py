"""The recipes, and with them those of folders configs/ of your own (ldm_jax/base/recipes.py)."""

import pkgutil

__path__ = pkgutil.extend_path(__path__, __name__)
