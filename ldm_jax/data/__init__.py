"""Data: sources yield one record, transforms change it, the pipeline makes batches.

No module here imports jax (grain does, without touching a device): worker processes import this
package, and everything but `pipeline` and the record files stays at numpy and PIL.
"""

from ldm_jax.data import files, records, scenes  # noqa: F401  (each registers its sources)
