"""Networks side by side, such as the generations of a self-distillation run.

For the experiments of "Revisiting Self-Distillation" (arXiv:2206.08491): flatness by
generation, and what three published explanations of its gain predict; those tests are of our
own design.
docs/flatness.md has the commands that train what is compared here.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from okdph_jax.analysis import figures, hessian, sharpness
from okdph_jax.analysis.finding import Finding
from okdph_jax.analysis.points import (
  compiled,
  measure,
  network_loss,
  once_per_network,
)
from okdph_jax.analysis.progress import Progress
from okdph_jax.analysis.replicates import merged
from okdph_jax.analysis.subject import Target
from okdph_jax.nn.students import run


def margins(logits: Float[Array, "*B K"], label: Int[Array, "*B"]) -> Float[Array, "*B"]:
  """The label's logit minus the largest other."""
  own = jnp.take_along_axis(logits, label[..., None], -1)[..., 0]
  others = jnp.where(jax.nn.one_hot(label, logits.shape[-1], dtype=bool), -jnp.inf, logits)
  return own - others.max(-1)


def entropy(logits: Float[Array, "*B K"]) -> Float[Array, "*B"]:
  """Of the softmax, in nats."""
  log_p = jax.nn.log_softmax(logits)
  return -(jnp.exp(log_p) * log_p).sum(-1)


@once_per_network
def _all_logits(net):
  @compiled()
  def logits(variables, images):
    return jax.lax.map(lambda image: run(net, variables, image)[0], images.image)

  return logits


@once_per_network
def _measured(net):
  @compiled()
  def measured(variables, images):
    return measure(net, variables, images)

  return measured


def analyse(
  targets: Sequence[Target], *, images: int = 1000, seed: int = 0, batch: int = 250
) -> Finding:
  """Accuracy, loss, norm, margins, entropy and flatness of every network: `Finding`.

  Margins and entropies are medians over training images; agreement is with the network before,
  on test images.
  """
  rows, numbers, before = [], {}, None
  with Progress("ablation", len(targets), "network") as bar:
    for target in targets:
      train = target.subject.images(images, split="train", seed=seed, batch=batch)
      test = target.subject.images(images, split="test", seed=seed, batch=batch)
      variables, net, key = target.variables, target.net, jax.random.key(seed)
      logits = {
        "train": _all_logits(net)(variables, train),
        "test": _all_logits(net)(variables, test),
      }
      answers = np.asarray(logits["test"].argmax(-1))
      loss, params = network_loss(net, variables["batch_stats"]), variables["params"]
      top = hessian.top_eigenvalues(loss, params, 1, key=key, batches=train)
      expected = sharpness.expected_sharpness(loss, params, 0.1, key=key, batches=train)
      found = {
        "test_accuracy": target.test_accuracy,
        "train_accuracy": float(_measured(net)(variables, train)["accuracy"]),
        "train_loss": float(_measured(net)(variables, train)["loss"]),
        "test_loss": float(_measured(net)(variables, test)["loss"]),
        "weight_norm": float(optax.tree.norm(params)),
        "train_margin": float(jnp.median(margins(logits["train"], train.label))),
        "test_margin": float(jnp.median(margins(logits["test"], test.label))),
        "train_entropy": float(jnp.median(entropy(logits["train"]))),
        "agreement": float((answers == before).mean()) if before is not None else None,
        "largest_eigenvalue": float(top.values[0]),
        "expected_sharpness": expected.mean,
      }
      before = answers
      numbers[target.name] = found | {"images": train.label.size}
      rows.append((target.name, *found.values()))
      bar.update()
  headers = ("network", *(name.replace("_", " ") for name in found))
  panels = {
    "test_accuracy": ("test accuracy", False),
    "weight_norm": ("weight norm", False),
    "train_margin": ("median margin, training", False),
    "train_entropy": ("median entropy, training [nats]", True),
    "largest_eigenvalue": ("largest eigenvalue", True),
    "expected_sharpness": ("expected sharpness [nats]", True),
  }
  scalars = {
    name: {m: x for m, x in row.items() if m not in ("images", "agreement")}
    for name, row in numbers.items()
  }
  figure = figures.dots(panels, merged(scalars))
  notes = (f"{bar.speed()}, {top.products} Hessian-vector products for the last",)
  return Finding(headers, rows, numbers, figure, notes, scalars)
