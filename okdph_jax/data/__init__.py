"""Data sets as arrays in canonical order, and batches that are functions of (seed, step)."""

from okdph_jax.data.batches import epoch_steps, indices, on_device, padded
from okdph_jax.data.sources import NORMALISATION, Dataset, load

__all__ = ["NORMALISATION", "Dataset", "epoch_steps", "indices", "load", "on_device", "padded"]
