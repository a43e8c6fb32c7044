import io

import numpy as np
import pytest
from PIL import Image

from okdph_jax.data import pictures


@pytest.fixture
def image():
  ramp = np.linspace(0, 255, 60 * 40 * 3).reshape(40, 60, 3).astype(np.uint8)
  return Image.fromarray(ramp)


def test_random_boxes_have_the_paper_s_distribution():
  generator = np.random.default_rng(0)
  boxes = np.array([pictures.random_box(generator, 500, 375) for _ in range(4_000)])
  left, top, right, bottom = boxes.T
  assert left.min() >= 0 and top.min() >= 0 and right.max() <= 500 and bottom.max() <= 375
  area = (right - left) * (bottom - top) / (500 * 375)
  ratio = (right - left) / (bottom - top)
  assert 0.079 < area.min() and ratio.min() > 0.74 and ratio.max() < 1.35
  small = area[area < 0.5]  # boxes that always fit: uniform in area, log-uniform in ratio
  assert abs(np.mean(small) - 0.29) < 0.01
  assert abs(np.mean(np.log(ratio[area < 0.5]))) < 0.01
  assert abs(np.std(np.log(ratio[area < 0.5])) - np.log(16 / 9) / np.sqrt(12)) < 0.01


def test_what_never_fits_falls_back_to_the_centre():
  assert pictures.random_box(np.random.default_rng(0), 1_000, 10) == (493, 0, 506, 10)
  assert pictures.random_box(np.random.default_rng(0), 10, 1_000) == (0, 493, 10, 506)


def test_a_random_crop_is_cut_first_and_then_resized(image):
  crop = pictures.random_resized_crop(np.random.default_rng(3), image, 16)
  box = pictures.random_box(np.random.default_rng(3), 60, 40)
  alone = Image.fromarray(np.asarray(image)[box[1] : box[3], box[0] : box[2]])
  np.testing.assert_array_equal(crop, alone.resize((16, 16), Image.BILINEAR))


def test_evaluation_resizes_to_256_and_crops_224():
  size = pictures.evaluation_crop(Image.new("RGB", (500, 375)), 224).size
  assert size == (224, 224)
  wide = Image.new("RGB", (512, 256))
  wide.paste((255, 255, 255), (144, 16, 368, 240))  # the central 224 of what needs no resizing
  assert np.asarray(pictures.evaluation_crop(wide, 224)).min() == 255


def test_files_are_decoded_to_the_channels_asked_for(image):
  file = io.BytesIO()
  image.save(file, "PNG")
  np.testing.assert_array_equal(pictures.decode("x", file.getvalue(), 3), image)
  grey = pictures.pixels(pictures.decode("x", file.getvalue(), 1))
  assert grey.shape == (40, 60, 1)
  with pytest.raises(ValueError, match="^x.png is not a readable image .*; replace or delete"):
    pictures.decode("x.png", file.getvalue()[:-60], 3)
  with pytest.raises(ValueError, match=r"^x.png is not a readable image \(unknown format\)"):
    pictures.decode("x.png", b"no image", 3)


def saved(image, kind="PNG", **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def test_photographs_stand_upright_by_their_exif_orientation(image):
  exif = Image.Exif()
  exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to see it upright
  turned = pictures.decode("x", saved(image, exif=exif), 3)
  np.testing.assert_array_equal(turned, image.transpose(Image.Transpose.ROTATE_270))
  exif = b"Exif\x00\x00broken"
  np.testing.assert_array_equal(pictures.decode("x", saved(image, exif=exif), 3), image)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_to_eight(kind):
  values = np.array([[0, 257, 1000], [32768, 65407, 65535]], np.uint16)
  encoded = saved(Image.fromarray(values), kind)
  grey = pictures.pixels(pictures.decode("x", encoded, 1))[..., 0]
  np.testing.assert_array_equal(grey, [[0, 1, 4], [128, 255, 255]])
  assert np.asarray(pictures.decode("x", encoded, 3)).shape == (2, 3, 3)


def test_other_numbers_than_eight_or_sixteen_bits_are_refused():
  for values in (np.ones((2, 2), np.float32), np.full((2, 2), -1, np.int32)):
    with pytest.raises(ValueError, match="x is not a readable image .*8 or 16 bits"):
      pictures.decode("x", saved(Image.fromarray(values), "TIFF"), 1)


def test_transparent_pixels_are_white_whatever_colour_they_hide():
  rgba = np.full((2, 3, 4), 60, np.uint8)
  rgba[..., 3] = [[0, 255, 255], [255, 255, 0]]
  for channels in (1, 3):
    seen = pictures.pixels(pictures.decode("x", saved(Image.fromarray(rgba)), channels))
    np.testing.assert_array_equal(seen[..., 0], [[255, 60, 60], [60, 60, 255]])
  grey = Image.fromarray(rgba[..., 2:], "LA")
  seen = pictures.pixels(pictures.decode("x", saved(grey), 1))
  np.testing.assert_array_equal(seen[..., 0], [[255, 60, 60], [60, 60, 255]])
  palette = Image.new("P", (2, 1), 0)
  palette.putpalette([9, 9, 9, 80, 80, 80])
  palette.putpixel((1, 0), 1)
  seen = pictures.pixels(pictures.decode("x", saved(palette, transparency=0), 3))
  np.testing.assert_array_equal(seen[0], [[255] * 3, [80] * 3])


def test_a_format_that_would_start_another_program_is_not_read():
  encoded = saved(Image.new("RGB", (4, 4)), "EPS")
  with pytest.raises(ValueError, match="unknown format"):
    pictures.decode("x.png", encoded, 3)
  assert {".png", ".jpeg", ".webp", ".bmp", ".tif"} < pictures.suffixes()
  assert not {".eps", ".txt"} & pictures.suffixes()
