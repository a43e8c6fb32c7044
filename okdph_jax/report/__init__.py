"""Tables and curves from what runs left on disk; nothing here imports JAX."""
