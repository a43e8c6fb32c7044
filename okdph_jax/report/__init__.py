"""Tables and pictures of finished runs; nothing here imports JAX."""
