"""Decodes images and crops them to squares."""

import contextlib
import functools
import io
import math
import pathlib
from collections.abc import Iterable, Sequence
from concurrent import futures
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from okdph_jax.errors import one_line
from okdph_jax.runtime import host

GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "F")  # modes of one channel
UNREAD = ("EPS", "WMF", "MPEG", "BUFR", "GRIB", "HDF5")  # need other programs, or lack pixels
BILINEAR = Image.Resampling.BILINEAR  # with antialiasing, as Pillow always does


@functools.cache
def formats() -> tuple[str, ...]:
  """Pillow's names of the supported formats."""
  Image.init()
  return tuple(name for name in Image.ID if name not in UNREAD)


@functools.cache
def suffixes() -> frozenset[str]:
  """The file extensions of these formats, in lower case with the dot."""
  known = formats()
  return frozenset(end for end, name in Image.registered_extensions().items() if name in known)


def decode(name: str, encoded: bytes | pathlib.Path, channels: int) -> Image.Image:
  """Decodes an image, given as bytes or a path, to 1 or 3 channels of 8 bits.

  It is rotated by its EXIF orientation and pasted on white if it is transparent; 16 bits are
  scaled to 8; of several frames the first is taken. Raises ValueError, with `name`, for a
  corrupt image.
  """
  try:
    content = encoded.read_bytes() if isinstance(encoded, pathlib.Path) else encoded
    with Image.open(io.BytesIO(content), formats=formats()) as image:
      image.load()
      with contextlib.suppress(Exception):  # the EXIF data are corrupt, the pixels are not
        ImageOps.exif_transpose(image, in_place=True)
      return _opaque(_eight_bits(image)).convert("L" if channels == 1 else "RGB")
  except Exception as error:  # Pillow's decoders raise anything
    # For an unknown format the message contains a memory address, which differs in every run.
    unknown = isinstance(error, UnidentifiedImageError)
    reason = "unknown format" if unknown else one_line(error)
    raise ValueError(
      f"{name} is not a readable image ({reason}); replace or delete it"
    ) from None


def _eight_bits(image):
  if not image.mode.startswith(("I", "F")):
    return image
  values = np.asarray(image)
  if image.mode == "F" or values.min() < 0 or values.max() > 65535:
    raise ValueError("its pixels are not whole numbers of 8 or 16 bits")
  return Image.fromarray(np.rint(values / 257).astype(np.uint8))


def _opaque(image):
  if not image.has_transparency_data:
    return image
  image = image.convert("RGBA")
  return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def is_grey(path: pathlib.Path) -> bool:
  """Whether a file has one channel; True if it cannot be read, which `decode` reports later."""
  try:
    with Image.open(path, formats=formats()) as image:
      return image.mode in GREY
  except Exception:
    return True


def stacked(
  names: Sequence[Any],
  encoded: Iterable[Any],
  labels: Int32[np.ndarray, " N"],
  size: int | None,
  channels: int,
  skip_corrupt: bool = False,
) -> tuple[UInt8[np.ndarray, "n H W C"], Int32[np.ndarray, " n"]]:
  """(decoded images, their labels). encoded: bytes or paths.

  size: the side of the `square` that each image becomes; without it all must have the same
  size. A corrupt image raises ValueError, or with `skip_corrupt` is left out and printed.
  """

  def picture(name, data):
    try:
      image = decode(name, data, channels)
    except ValueError as error:
      if not skip_corrupt:
        raise
      print(f"skipped: {error}", flush=True)
      return None
    return pixels(square(image, size) if size else image)

  with futures.ThreadPoolExecutor(host.cores()) as pool:
    images = list(pool.map(picture, names, encoded))
  read = {i: image for i, image in enumerate(images) if image is not None}
  if not read:
    raise ValueError(f"all {len(images)} images are corrupt, beginning with {names[0]}")
  first = next(iter(read))
  for i, image in read.items():
    if image.shape != read[first].shape:
      sizes = ["x".join(map(str, read[j].shape[1::-1])) for j in (i, first)]
      raise ValueError(
        f"images differ in size: {names[i]} is {sizes[0]}, {names[first]} is {sizes[1]}; set "
        "data.image_size, e.g. to 64"
      )
  if len(read) < len(images):
    print(f"corrupt images left out: {len(images) - len(read)} of {len(images)}", flush=True)
  return np.stack(list(read.values())), np.asarray(labels)[list(read)]


def resized(
  images: UInt8[np.ndarray, "N H W C"], size: int | None
) -> UInt8[np.ndarray, "N h w C"]:
  """The images as `square`s of side `size`; unchanged if that is None."""
  if size is None or images.shape[1:3] == (size, size):
    return images
  images = images[..., 0] if images.shape[-1] == 1 else images  # as Pillow expects them
  with futures.ThreadPoolExecutor(host.cores()) as pool:
    return np.stack(list(pool.map(lambda x: pixels(square(Image.fromarray(x), size)), images)))


def pixels(image: Image.Image) -> UInt8[np.ndarray, "H W C"]:
  """A Pillow image as an array."""
  array = np.asarray(image)
  return array if array.ndim == 3 else array[..., None]


def square(image: Image.Image, size: int) -> Image.Image:
  """Resizes the shorter side to `size` and crops the central square."""
  return ImageOps.fit(image, (size, size), BILINEAR)


def evaluation_side(size: int) -> int:
  """The shorter side of an image of which the central square of `size` is evaluated."""
  return round(size * 256 / 224)


def evaluation_crop(image: Image.Image, size: int) -> Image.Image:
  """Resizes the shorter side to `evaluation_side` and crops the central square of `size`."""
  width, height = image.size
  scale = evaluation_side(size) / min(width, height)
  image = image.resize((round(width * scale), round(height * scale)), BILINEAR)
  left, top = round((image.width - size) / 2), round((image.height - size) / 2)
  return image.crop((left, top, left + size, top + size))


def random_resized_crop(
  generator: np.random.Generator, image: Image.Image, size: int
) -> Image.Image:
  """A random part of the image, resized to a square of `size`, as in torchvision.

  Szegedy et al., CVPR 2015, arXiv:1409.4842.
  """
  return image.crop(random_box(generator, *image.size)).resize((size, size), BILINEAR)


def random_box(
  generator: np.random.Generator, width: int, height: int
) -> tuple[int, int, int, int]:
  """(left, top, right, bottom): area U(0.08, 1), aspect ratio log-uniform in [3/4, 4/3].

  After 10 boxes that do not fit, the largest central box with such a ratio.
  """
  low, high = 3 / 4, 4 / 3
  for _ in range(10):
    area = width * height * generator.uniform(0.08, 1)
    ratio = math.exp(generator.uniform(math.log(low), math.log(high)))
    w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    if 0 < w <= width and 0 < h <= height:
      left, top = generator.integers(width - w + 1), generator.integers(height - h + 1)
      return int(left), int(top), int(left) + w, int(top) + h
  w, h = min(width, round(height * high)), min(height, round(width / low))
  left, top = (width - w) // 2, (height - h) // 2
  return left, top, left + w, top + h
