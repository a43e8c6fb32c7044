"""SAM and ASAM: the gradient at a point of higher loss nearby, around any method."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from okdph_jax.methods.protocol import Context, Method, check_nonnegative, plain_gradient


def sam(method: Method, context: Context, *, rho: float = 0.05) -> Method:
  """Sharpness-Aware Minimization (Foret et al., ICLR 2021, arXiv:2010.01412).

      eps = rho g / (||g|| + 1e-12);  the step uses the gradient at theta + eps

  The norm is over all parameters, or over those of each student where students are independent
  (base, dml, kdcl, ...), as if each had its own optimizer. Batch statistics and metrics come
  from the first pass, at theta. Weight decay is that of theta.

  The paper's rho is 0.05 on CIFAR-10 and 0.1 on CIFAR-100. The "SAM" row of OKDPH's tables is
  `asam` with rho 0.1 and 0.05, around `base` with `label_smoothing=0.1`.
  """
  del context
  check_nonnegative("sam", rho=rho)

  def perturb(params, grads):
    scale = rho / (optax.tree.norm(grads) + 1e-12)
    return jax.tree.map(lambda p, g: p + scale * g, params, grads)

  return gradient_at(method, perturb)


def asam(method: Method, context: Context, *, rho: float = 0.5, eta: float = 0.01) -> Method:
  """Adaptive SAM (Kwon et al., ICML 2021, arXiv:2102.11600).

      s = |theta| + eta;  eps = rho s^2 g / (||s g|| + 1e-12), elementwise

  Otherwise as `sam`. The paper's rho is 0.5 on CIFAR-10 and 1.0 on CIFAR-100; OKDPH's release
  has 0.1 and 0.05, and `eta=0.0`.
  """
  del context
  check_nonnegative("asam", rho=rho, eta=eta)

  def perturb(params, grads):
    scaled = jax.tree.map(lambda p, g: (jnp.abs(p) + eta) * g, params, grads)
    scale = rho / (optax.tree.norm(scaled) + 1e-12)
    return jax.tree.map(lambda p, g: p + scale * (jnp.abs(p) + eta) * g, params, scaled)

  return gradient_at(method, perturb)


def gradient_at(method: Method, perturb: Callable[[PyTree, PyTree], PyTree]) -> Method:
  """`method` with its gradient taken at `perturb(params, plain gradient)`."""
  if method.independent:
    perturb = jax.vmap(perturb)  # a norm per student

  def gradient(objective, params):
    grads, aux = plain_gradient(objective, params)  # statistics at the unperturbed weights
    return method.gradient(objective, perturb(params, grads))[0], aux

  return method._replace(gradient=gradient)
