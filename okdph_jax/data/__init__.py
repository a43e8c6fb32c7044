"""Datasets in canonical order, and batches that are functions of (seed, step)."""

from okdph_jax.data.batches import epoch_steps, indices
from okdph_jax.data.dataset import NORMALISATION, Dataset, load
from okdph_jax.data.split import Split

__all__ = ["NORMALISATION", "Dataset", "Split", "epoch_steps", "indices", "load"]
