"""The plane, the line and the sweep over their points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.decomposition import PCA

from okdph_jax.analysis import barrier, landscape, points
from okdph_jax.nn.students import start
from tests.methods import tiny


def snapshots(count=6):
  rng = np.random.default_rng(0)
  params = {"a": rng.normal(size=(count, 3, 2)), "b": rng.normal(size=(count, 5))}
  return {"params": params, "batch_stats": {"norm": {"var": rng.uniform(size=(count, 4))}}}


def test_pca_is_scikit_learns():
  stack = snapshots()
  plane = landscape.pca_plane(stack)
  rows = np.concatenate([leaf.reshape(6, -1) for leaf in stack["params"].values()], 1)
  want = PCA(2).fit(rows)
  np.testing.assert_allclose(plane.explained, want.explained_variance_ratio_, rtol=1e-9)
  scores = want.transform(rows)
  signs = np.sign(scores[np.abs(scores).argmax(0), [0, 1]])
  np.testing.assert_allclose(plane.scores, scores * signs, atol=1e-9)
  flat = np.concatenate([d.reshape(2, -1) for d in plane.directions["params"].values()], 1)
  np.testing.assert_allclose(flat, want.components_ * signs[:, None], atol=1e-9)
  np.testing.assert_allclose(flat @ flat.T, np.eye(2), atol=1e-9)


def test_three_snapshots_lie_in_their_plane_with_their_batch_statistics():
  stack = snapshots(3)
  plane = landscape.pca_plane(stack)
  for i in range(3):
    there = landscape.at(plane.origin, plane.directions, plane.scores[i].astype(np.float32))
    want = jax.tree.map(lambda leaf: leaf[i], stack)  # noqa: B023
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), there, want)


def test_snapshots_on_a_line_have_no_plane():
  line = np.linspace(0, 1, 4)[:, None] * np.ones(3)
  with pytest.raises(ValueError, match="lie on a line"):
    landscape.pca_plane({"params": {"w": line}, "batch_stats": {}})
  with pytest.raises(ValueError, match="1 snapshots lie on a line or a point"):
    landscape.pca_plane({"params": {"w": line[:1]}, "batch_stats": {}})


def test_random_directions_have_the_norm_of_the_networks_filters():
  variables = tiny.trained()
  _, directions = tiny.jit(lambda v: landscape.random_plane(jax.random.key(0), v)[:2])(
    variables
  )
  for own, pair in zip(
    jax.tree.leaves(variables["params"]),
    jax.tree.leaves(directions["params"]),
    strict=True,
  ):
    for direction in pair:
      if own.ndim < 2:
        assert not direction.any()
      else:
        got, want = (
          jnp.linalg.norm(x.reshape(-1, x.shape[-1]), axis=0) for x in (direction, own)
        )
        np.testing.assert_allclose(got, want, rtol=1e-5)
        assert not np.allclose(*pair)


def test_the_grid_lies_around_all_scores():
  x, y = landscape.grid(np.array([[0.0, 0.0], [10.0, 2.0]]), 5, margin=0.1)
  np.testing.assert_allclose(x, [-1, 2, 5, 8, 11])
  np.testing.assert_allclose(y, [-1, 0, 1, 2, 3])


def test_the_height_of_a_barrier():
  assert barrier.height([1.0, 1.0, 1.0]) == 0
  assert barrier.height([1.0, 5.0, 3.0]) == 3
  assert barrier.height([1.0, 2.0, 3.0]) == 0  # no bump between unequal ends


def images(batches=3):
  batch = tiny.batch(4 * batches)
  return points.Images(
    jnp.asarray(batch.image.reshape(batches, 4, 8, 8, 1)),
    jnp.asarray(batch.label.reshape(batches, 4)),
  )


def square(context, point):
  return {"value": (context["scale"] * point**2).sum()}


def test_a_sweep_is_the_function_at_every_point_however_many_the_devices():
  coordinates = np.arange(14, dtype=np.float32).reshape(7, 2)
  values, speed = points.sweep(square, {"scale": jnp.float32(2)}, coordinates, per_device=2)
  np.testing.assert_allclose(values["value"], 2 * (coordinates**2).sum(1))
  assert speed > 0


def test_an_interrupted_sweep_goes_on(tmp_path, monkeypatch):
  """Wrong values in the partial file show that its points are not evaluated again."""
  monkeypatch.setattr(points, "SAVE_EVERY", 0.0)
  coordinates, context = np.ones((12, 2), np.float32), {"scale": jnp.float32(2)}

  class Stopped(Exception):
    pass

  def stop(path, *rest):
    write(path, *rest)
    raise Stopped

  write = points._write_partial
  monkeypatch.setattr(points, "_write_partial", stop)
  with pytest.raises(Stopped):
    points.sweep(square, context, coordinates, per_device=2, partial_dir=tmp_path)
  monkeypatch.setattr(points, "_write_partial", write)
  (file,) = tmp_path.iterdir()
  with np.load(file) as kept:
    assert len(kept["value"]) == 4
  np.savez(file, value=np.full(4, -1.0))

  other = {"scale": jnp.float32(3)}
  values, _ = points.sweep(square, other, coordinates, partial_dir=tmp_path)
  np.testing.assert_allclose(values["value"], 6)  # the file of another sweep stays and counts
  for _ in range(2):  # nothing, and the second time all points are there
    values, _ = points.sweep(square, context, coordinates, per_device=2, partial_dir=tmp_path)
    np.testing.assert_allclose(values["value"], [-1] * 4 + [4] * 8)

  file.write_bytes(file.read_bytes()[:-50])  # torn by a power cut
  values, _ = points.sweep(square, context, coordinates, partial_dir=tmp_path)
  np.testing.assert_allclose(values["value"], 4)


def test_measure_and_reestimated_statistics_of_a_network():
  net, pictures = tiny.net(), images()
  variables = start(net, jax.random.key(1), pictures.image[0])
  moved = tiny.jit(lambda v: points.reestimate(net, v, pictures.image))(variables)
  flat = pictures.image.reshape(-1, 8, 8, 1)
  _, after = net.apply(variables, flat, True, mutable=["batch_stats"])
  momentum = 0.9
  want = jax.tree.map(
    lambda new, old: (new - momentum * old) / (1 - momentum),
    after["batch_stats"]["stem"],
    variables["batch_stats"]["stem"],
  )
  # The stem's means over batches are those over all images; deeper layers see batches.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
    moved["batch_stats"]["stem"]["BatchNorm_0"]["mean"],
    want["BatchNorm_0"]["mean"],
  )
  found = tiny.jit(lambda v: points.measure(net, v, pictures))(moved)
  logits = net.apply(moved, flat, False)
  log_p = jax.nn.log_softmax(logits)
  label = pictures.label.reshape(-1)
  np.testing.assert_allclose(found["loss"], -log_p[np.arange(12), label].mean(), rtol=1e-5)
  np.testing.assert_allclose(found["accuracy"], (logits.argmax(-1) == label).mean())


def test_two_copies_of_a_student_have_no_barrier():
  net, variables = tiny.net(), tiny.trained()
  other = start(net, jax.random.key(5), images().image[0])
  networks = jax.tree.map(lambda a, b: np.stack([a, a, b]), variables, other)
  values, _ = barrier.between(net, networks, [(0, 1), (0, 2)], images(), points=5)
  for mode in ("mixed", "reestimated"):
    same, different = values[f"{mode}_loss"]
    assert barrier.height(same) == pytest.approx(0, abs=1e-6)
    assert np.ptp(different) > 1e-3
  assert barrier.distance(variables, variables) == 0
