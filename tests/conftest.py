"""The suite runs on two host devices, so that sharding is tested wherever it runs."""

import jax

jax.config.update("jax_num_cpu_devices", 2)
