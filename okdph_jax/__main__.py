"""`python -m okdph_jax COMMAND ...`: the same as `okdph COMMAND ...`."""

from okdph_jax.cli import main

main()
