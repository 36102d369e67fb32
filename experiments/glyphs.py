"""Images of printed characters that are not digits, made to look like small pen strokes.

Every image repeats how the handwritten digits of scikit-learn were made: a binary bitmap
of 32x32, counted in blocks of 4x4 to 8x8 values of 0..16. The characters come from the
fonts that matplotlib bundles. Each is stored once per font as a signed distance field: a
threshold sets the width of the stroke, and sampling at moved points bends its shape.
"""

import functools
import pathlib
import unicodedata
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from pecft_jax.data.resizing import centre_square

BOX, LONG = 64, 48  # Side of a distance field, and longer side of the character in it.
FINE, COARSE = 32, 8  # Side of the binary bitmap, and of the image of block counts.

FONTS = (
  *(f'DejaVuSans{style}' for style in ('', '-Bold', '-Oblique', '-BoldOblique')),
  *(f'DejaVuSansMono{style}' for style in ('', '-Bold', '-Oblique', '-BoldOblique')),
  *(f'DejaVuSerif{style}' for style in ('', '-Bold', '-Italic', '-BoldItalic')),
  *(f'STIXGeneral{style}' for style in ('', 'Bol', 'Italic', 'BolIta')),
)
# These put signs of their own at most code points, so just their basic Latin letters are used.
LATIN_FONTS = ('cmr10', 'cmss10', 'cmti10', 'cmtt10', 'cmb10', 'cmmi10')

CATEGORIES = ('Lu', 'Ll', 'Lo')  # Upper case, lower case, and scripts without the two.
NUMBER_WORDS = frozenset(
  {'DIGIT', 'NUMBER', 'NUMERAL', 'FRACTION', 'ZERO', 'ONE', 'TWO', 'THREE', 'FOUR', 'FIVE'}
  | {'SIX', 'SEVEN', 'EIGHT', 'NINE', 'TEN'}
)
# Letters that a hand could have meant as 1, 2, 3, 5, 6 or 8, like the printed digit or not.
VARIANTS = frozenset('ǀƧƨꙄꙅϨϩƷʒƺʓȜȝӠӡᴣЗзҘҙЭэɝƼƽƻбδẟϬϭȢȣ')
DIGIT_LIKE = 0.9  # Cosine to a digit of the same font from which a character is left out.
SAME = 0.96  # Cosine from which two characters count as one (A, Alpha and Cyrillic A).


class Glyphs(NamedTuple):
  """The characters (the classes), and their shapes in every font that has them."""

  characters: tuple[str, ...]
  label: np.ndarray  # [G] int32, position in `characters`.
  field: np.ndarray  # [G, BOX, BOX] float16, signed distance to the outline, positive inside.
  size: np.ndarray  # [G, 2] float32, height and width of the character in the field.
  pen: np.ndarray  # [G] float32, half the width of its strokes in the field.


class Pen(NamedTuple):
  """How far drawings vary: uniform ranges, lengths in pixels of the 32x32 bitmap."""

  height: tuple[float, float] = (28.0, 32.0)
  stretch: tuple[float, float] = (-0.4, 0.2)  # Of the log of width over height.
  rotation: float = 0.15  # Radians, either way.
  shear: float = 0.25
  shift: float = 1.0
  bend: float = 2.0  # Standard deviation of the elastic displacement.
  half_width: tuple[float, float] = (1.7, 3.0)


def is_number(char: str) -> bool:
  """Whether a character is, contains or is named after a digit, in any script or form."""
  words = unicodedata.name(char, '').replace('-', ' ').split()
  return (
    any(unicodedata.category(c)[0] == 'N' for c in char + unicodedata.normalize('NFKD', char))
    or unicodedata.numeric(char, None) is not None
    or any(word in NUMBER_WORDS for word in words)
  )


def is_candidate(char: str) -> bool:
  """Whether a character may be a class: a letter without accents, and no number."""
  return (
    unicodedata.category(char) in CATEGORIES
    and unicodedata.normalize('NFKD', char) == char
    and char not in VARIANTS
    and not is_number(char)
  )


def _trace(char: str, font: ImageFont.FreeTypeFont) -> tuple | None:
  """Distance field, size and pen of one character, or None if it is blank, flat or tall."""
  image = Image.new('L', (6 * LONG, 6 * LONG))
  ImageDraw.Draw(image).text((2 * LONG, 2 * LONG), char, font=font, fill=255)
  box = image.getbbox()
  if box is None:
    return None
  image = image.crop(box)
  width, height = image.size
  if not 1 / 6 < width / height < 2.5:
    return None
  scale = LONG / max(width, height)
  width, height = round(width * scale), round(height * scale)
  ink = np.zeros((BOX, BOX), bool)
  top, left = (BOX - height) // 2, (BOX - width) // 2
  resized = np.asarray(image.resize((width, height), Image.Resampling.BOX))
  ink[top : top + height, left : left + width] = resized > 127
  if not ink.any():
    return None
  inside: Any = ndimage.distance_transform_edt(ink)
  ridge = ink & (inside == ndimage.maximum_filter(inside, 3))
  outside: Any = ndimage.distance_transform_edt(~ink)
  field = inside - outside
  return field.astype(np.float16), (height, width), np.median(inside[ridge])


def _outlines(vectors: np.ndarray) -> np.ndarray:
  """Unit vectors whose dot product compares shapes: [G, 8, 8] drawings -> [G, 64]."""
  blurred = ndimage.gaussian_filter(vectors.astype(np.float32), (0, 0.5, 0.5))
  flat = blurred.reshape(len(vectors), -1)
  flat = flat - flat.mean(1, keepdims=True)
  return flat / np.linalg.norm(flat, axis=1, keepdims=True)


@functools.cache
def load_glyphs(fonts: int = 8, among: str | None = None) -> Glyphs:
  """Draws every character that at least so many of the Unicode fonts have.

  A character is left out if it is a number in any form or could be a handwritten one, if
  it looks like a digit of the same font (`DIGIT_LIKE`: O, o, l, I, B, D, g and more), or if
  an earlier one looks the same (`SAME`). Digits are drawn for this comparison alone.

  Args:
    fonts: how many fonts must have a character.
    among: the characters to choose from; all by default.
  """
  root = pathlib.Path(matplotlib.get_data_path()) / 'fonts' / 'ttf'
  paths = {name: str(root / f'{name}.ttf') for name in FONTS + LATIN_FONTS}
  has = {name: {chr(code) for code in FT2Font(paths[name]).get_charmap()} for name in FONTS}
  choices = set().union(*has.values()) if among is None else set(among)
  known = sorted(filter(is_candidate, choices))
  known = [char for char in known if sum(char in chars for chars in has.values()) >= fonts]
  latin = {char for char in known if char.isascii() and char.isalpha()}
  shapes, chars, homes = [], [], []
  for name, path in paths.items():
    font = ImageFont.truetype(path, 2 * LONG)
    for char in '0123456789' + ''.join(c for c in known if c in has.get(name, latin)):
      if (shape := _trace(char, font)) is not None:
        shapes.append(shape)
        chars.append(char)
        homes.append(name)
  field, size, pen = (np.stack(part) for part in zip(*shapes, strict=True))
  size, pen = size.astype(np.float32), pen.astype(np.float32)
  everything = Glyphs((), np.zeros(len(chars), np.int32), field, size, pen)
  characters = _distinct(chars, homes, _outlines(render(None, everything, np.arange(len(chars)))))
  place = {char: i for i, char in enumerate(characters)}
  rows = np.asarray([i for i, char in enumerate(chars) if char in place])
  label = np.asarray([place[chars[i]] for i in rows], np.int32)
  return Glyphs(characters, label, *(part[rows] for part in everything[2:]))


def _distinct(chars: list[str], homes: list[str], shapes: np.ndarray) -> tuple[str, ...]:
  """The characters that look like no digit of their font and like no earlier character."""
  digits = {h: [] for h in homes}
  for char, home, shape in zip(chars, homes, shapes, strict=True):
    if char.isdigit():
      digits[home].append(shape)
  barred, first = set('0123456789'), {}
  for char, home, shape in zip(chars, homes, shapes, strict=True):
    first.setdefault(char, shape)
    # The digits of cmmi10 are old-style figures, unlike any handwriting of today.
    if home != 'cmmi10' and max(np.stack(digits[home]) @ shape) >= DIGIT_LIKE:
      barred.add(char)
  kept: list[str] = []
  for char in sorted(set(first) - barred):
    if not kept or max(np.stack([first[k] for k in kept]) @ first[char]) < SAME:
      kept.append(char)
  return tuple(kept)


def render(
  rng: np.random.Generator | None, glyphs: Glyphs, index: np.ndarray, pen: Pen | None = None
) -> np.ndarray:
  """Draws glyphs, each in its own hand.

  Args:
    rng: consumed; None draws every glyph upright, unbent and with its own stroke.
    glyphs: the shapes.
    index: [B] rows of `glyphs.field`.
    pen: how far drawings vary.

  Returns:
    uint8 [B, 8, 8], values 0..16 as in scikit-learn's digits.
  """
  pen = Pen() if pen is None else pen
  n = len(index)
  if rng is None:
    uniform = lambda low, high: np.full(n, (low + high) / 2, np.float32)
    bend = np.zeros((n, 2, FINE, FINE), np.float32)
  else:
    uniform = lambda low, high: rng.uniform(low, high, n).astype(np.float32)
    bend = _smooth_noise(rng, n) * np.float32(pen.bend)
  height = uniform(*pen.height)
  aspect = glyphs.size[index, 1] / glyphs.size[index, 0]
  width = np.clip(height * aspect * np.exp(uniform(*pen.stretch)), 4, 22)
  turn = uniform(-pen.rotation, pen.rotation)
  shear = uniform(-pen.shear, pen.shear)
  half_width = uniform(*pen.half_width)

  # Where each pixel of the bitmap lies in the distance field: moved, turned, sheared, scaled.
  y, x = np.mgrid[:FINE, :FINE].astype(np.float32) - (FINE - 1) / 2
  wide = lambda v: v[:, None, None]
  y = y + bend[:, 0] + wide(uniform(-pen.shift, pen.shift))
  x = x + bend[:, 1] + wide(uniform(-pen.shift, pen.shift))
  cos, sin = wide(np.cos(turn)), wide(np.sin(turn))
  y, x = cos * y - sin * x, sin * y + cos * x
  x = x + wide(shear) * y
  y = y * wide(glyphs.size[index, 0] / height)
  x = x * wide(glyphs.size[index, 1] / width)
  distance = _sample(glyphs.field, index, y + (BOX - 1) / 2, x + (BOX - 1) / 2)

  scale = height / glyphs.size[index, 0]
  own = glyphs.pen[index] * scale
  # Thinning stops early: it would break the hairlines of fonts with contrast.
  grow = np.clip(half_width - own, -0.4 * own, 2.0) if rng is not None else 0 * own
  ink = distance * wide(scale) + wide(grow) > 0
  block = FINE // COARSE
  return ink.reshape(n, COARSE, block, COARSE, block).sum((2, 4), dtype=np.uint8)


def _sample(field: np.ndarray, index: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
  """Bilinear look-up at [B, H, W] positions, which are clipped to the field."""
  y, x = np.clip(y, 0, BOX - 1.001), np.clip(x, 0, BOX - 1.001)
  top, left = y.astype(np.int32), x.astype(np.int32)
  y, x = y - top, x - left
  flat = field.reshape(-1)
  at = index[:, None, None].astype(np.int64) * BOX * BOX + top * BOX + left
  upper = flat[at] * (1 - x) + flat[at + 1] * x
  lower = flat[at + BOX] * (1 - x) + flat[at + BOX + 1] * x
  return upper * (1 - y) + lower * y


def _smooth_noise(rng: np.random.Generator, n: int, knots: int = 5) -> np.ndarray:
  """Displacements [n, 2, FINE, FINE] of about unit size, smooth over about a quarter image."""
  at = np.linspace(0, knots - 1, FINE)
  weights = np.exp(-((at[:, None] - np.arange(knots)) ** 2))
  weights = (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype(np.float32)
  noise = rng.standard_normal((n, 2, knots, knots), dtype=np.float32)
  return weights @ noise @ weights.T


def enlarge(drawings: np.ndarray, size: int = 16) -> np.ndarray:
  """Values 0..16 [B, 8, 8] -> uint8 [B, size, size, 1], as `pecft_jax.data.bundled` does it."""
  grey = np.round(drawings[..., None] * (255 / 16)).astype(np.uint8)
  return np.stack([centre_square(image, size) for image in grey])
