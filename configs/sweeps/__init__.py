"""The sweeps as a package, so that they are installed as `okdph_jax.configs.sweeps`."""
