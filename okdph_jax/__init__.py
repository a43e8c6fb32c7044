"""Online knowledge distillation in JAX: OKDPH and the methods around it.

Importing the package imports nothing, so that `okdph_jax.report` runs where
JAX is not installed. The rooms: `hybridization`, `methods`, `models`, `views`,
`data`, `step`, `train`, `report`; the first command: `python -m okdph_jax.main`.
"""
