"""Sweeps: a grid of configs and seeds, each a run in its own directory and process."""
