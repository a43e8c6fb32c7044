"""`python -m okdph_jax.views`: the same as `okdph views`."""

import sys

from okdph_jax.cli.views import main

sys.exit(main(sys.argv[1:]))
