"""Data: sources yield one record, transforms change it, the pipeline makes batches.

No module here imports jax (grain does, without touching a device): worker processes import this
package, and everything but `pipeline` and the record files stays at numpy and PIL.
"""

# Each registers its sources or its makers of condition fields.
from ldm_jax.data import bytepairs, captions, files, layouts, mix, parquet, records  # noqa: F401
