"""`python -m okdph_jax.report`: the same as `okdph report`."""

import sys

from okdph_jax.cli.report import main

sys.exit(main(sys.argv[1:]))
