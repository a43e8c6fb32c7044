"""SAM and ASAM: the gradient at the worst point nearby, around any method."""

import jax
import jax.numpy as jnp

from okdph_jax.methods.protocol import descend
from okdph_jax.trees import norm


def sam(method, context, *, rho=0.05):
  """Sharpness-Aware Minimization (Foret et al., ICLR 2021, arXiv:2010.01412).

      eps = rho g / (||g|| + 1e-12);  descend with the gradient at theta + eps

  The norm is over all parameters; over each student's where students are independent
  (base, dml, kdcl, ...), as if each had its own optimizer. Running batch statistics and
  metrics come from the first pass, at theta. Weight decay acts on theta, in the step only.

  The paper's rho is 0.05 on CIFAR-10 and 0.1 on CIFAR-100. OKDPH's "SAM" row is in fact `asam`
  with rho 0.1 and 0.05, around `base` with `label_smoothing=0.1`.
  """
  del context  # a sharper gradient asks nothing of the surroundings

  def climb(params, grads):
    reach = rho / (norm(grads) + 1e-12)
    return jax.tree.map(lambda p, g: p + reach * g, params, grads)

  return ascend(method, climb)


def asam(method, context, *, rho=0.5, eta=0.01):
  """Adaptive SAM (Kwon et al., ICML 2021, arXiv:2102.11600).

      s = |theta| + eta;  eps = rho s^2 g / (||s g|| + 1e-12), elementwise

  All else as in `sam`. The paper's rho is 0.5 on CIFAR-10 and 1.0 on CIFAR-100; OKDPH's
  release has 0.1 and 0.05, and `eta=0.0`.
  """
  del context

  def climb(params, grads):
    scaled = jax.tree.map(lambda p, g: (jnp.abs(p) + eta) * g, params, grads)
    reach = rho / (norm(scaled) + 1e-12)
    return jax.tree.map(lambda p, g: p + reach * (jnp.abs(p) + eta) * g, params, scaled)

  return ascend(method, climb)


def ascend(method, climb):
  """`method` with its gradient taken at `climb(params, plain gradient)`."""
  if method.independent:
    climb = jax.vmap(climb)  # a norm per student

  def gradient(objective, params):
    grads, aux = descend(objective, params)  # batch statistics come from this clean pass
    return method.gradient(objective, climb(params, grads))[0], aux

  return method._replace(gradient=gradient)
