"""OKDPH in a training loop of your own.

Two small ResNets learn scikit-learn's handwritten digits together, in plain JAX and optax. Of
this package, the loop uses `dirichlet`, `hybridize`, `fuse` and the losses, which are the
paper's idea, `nn.students`, which runs a stack of networks, and `views`, which augments images.
The stack can be of any Linen module, and `tx` any optax optimizer.

    python examples/own_loop.py

prints the accuracy of both students and of their hybrid, above 97 % after 20 epochs (half a
minute on two cores).
"""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from okdph_jax import models, views
from okdph_jax.hybridization import dirichlet, fuse, hybridize
from okdph_jax.losses import accuracy, cross_entropy, kl
from okdph_jax.nn.students import each, run, stack

EPOCHS, BATCH, STUDENTS = 20, 64, 2
OMEGA, BETA, GAMMA, TEMPERATURE = 0.8, 0.8, 0.5, 4.0  # the paper's names

digits = load_digits()
images = (digits.images[..., None] * 255 / 16).astype("uint8")  # [1797, 8, 8, 1]
labels = jnp.asarray(digits.target)
train, test = slice(0, 1437), slice(1437, None)  # the last fifth tests

mean, std = (0.3,), (0.37,)
augment = views.make(("crop(1)", "crop(1)|rotate(15)", "crop(1)|cutout(3)"), mean, std)
plain = views.make(("plain",), mean, std)

net = models.build("resnet8", classes=10)
start = jnp.stack([jax.random.key(0)] * STUDENTS)  # equal keys: all students start as one
students = jax.jit(stack, static_argnums=0)(net, start, jnp.zeros((1, 8, 8, 1)))  # [N, ...]
tx = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9))
opt_state = tx.init(students["params"])


def loss(params, stats, x, y, r, key):
  """x [N + 1, B, H, W, C]: a view of the batch for each student, the last for the hybrid."""
  students = {"params": params, "batch_stats": stats}
  hybrid = hybridize(students, r)  # student m receives r_m of its gradient
  z, stats = each(net, students, x[:STUDENTS], key, train=True)  # [N, B, K]
  z_hybrid, _ = run(net, hybrid, x[STUDENTS], key, train=True)  # [B, K]
  teacher = jax.lax.stop_gradient((z.sum(0) + z_hybrid) / (STUDENTS + 1))
  task = OMEGA * cross_entropy(z, y).sum() + (1 - OMEGA) * cross_entropy(z_hybrid, y)
  return task + BETA * kl(z, teacher, TEMPERATURE).sum(), stats


@jax.jit
def step(students, opt_state, image, y, key, r):
  key_views, key_dropout = jax.random.split(key)
  x = augment(key_views, image)
  params, stats = students["params"], students["batch_stats"]
  grads, stats = jax.grad(loss, has_aux=True)(params, stats, x, y, r, key_dropout)
  updates, opt_state = tx.update(grads, opt_state, params)
  return {"params": optax.apply_updates(params, updates), "batch_stats": stats}, opt_state


key = jax.random.key(42)
for epoch in range(EPOCHS):
  order = jax.random.permutation(jax.random.fold_in(key, epoch), train.stop)
  for at in range(0, train.stop - BATCH + 1, BATCH):
    batch = order[at : at + BATCH]
    key, key_step, key_weights = jax.random.split(key, 3)
    r = dirichlet(key_weights, STUDENTS)  # new weights for every batch
    students, opt_state = step(students, opt_state, images[batch], labels[batch], key_step, r)
  students = fuse(students, hybridize(students, r), GAMMA)  # once an epoch

x = plain(key, images[test])[0]
networks = {f"student {m}": jax.tree.map(lambda leaf, m=m: leaf[m], students) for m in range(2)}
networks["hybrid"] = hybridize(students, r)
predict = jax.jit(lambda variables: run(net, variables, x)[0])
for name, variables in networks.items():
  right = accuracy(predict(variables), labels[test])
  print(f"{name}: {right:.4f} of the test images, after the last epoch")
