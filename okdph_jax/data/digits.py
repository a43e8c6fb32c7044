"""scikit-learn's handwritten digits as a TFDS dataset: real images that need no network.

This file is imported only where TensorFlow Datasets is (`sources` does so inside a
function); importing it registers the builder under the name "digits".
"""

import numpy as np
import tensorflow_datasets as tfds

EVERY = 5  # of each class every fifth image tests


class Digits(tfds.core.GeneratorBasedBuilder):
  """1,797 digits of 13 writers, uint8 [8, 8, 1], from `sklearn.datasets.load_digits`.

  Of each class every fifth image, in scikit-learn's order, is for testing (355 images), the
  others for training (1,442), so the writers are the same. Ink of 0 to 16 becomes 0 to 255.

  Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998 (its
  test half).
  """

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    return self.dataset_info_from_configs(
      description="Handwritten digits, 8x8, bundled with scikit-learn.",
      features=tfds.features.FeaturesDict(
        {
          "id": tfds.features.Text(),
          "image": tfds.features.Image(shape=(8, 8, 1)),
          "label": tfds.features.ClassLabel(num_classes=10),
        }
      ),
      supervised_keys=("image", "label"),
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # nothing to download
    return {split: self._generate_examples(split) for split in ("train", "test")}

  def _generate_examples(self, split):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images[..., None] * (255 / 16)).astype(np.uint8)
    for i in members(bunch.target, split):
      name = f"{split}_{i:05d}"
      yield name, {"id": name, "image": images[i], "label": int(bunch.target[i])}


def members(labels, split):
  """Indices of the images of one split, ascending."""
  fifth = np.zeros(len(labels), bool)
  for label in np.unique(labels):
    fifth[np.flatnonzero(labels == label)[EVERY - 1 :: EVERY]] = True
  return np.flatnonzero(fifth == (split == "test"))
