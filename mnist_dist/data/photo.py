"""Turn a picture of one digit, such as a photo or a scan, into an image like MNIST's.

The steps are MNIST's own, after Y. LeCun, C. Cortes and C. Burges, "The MNIST database of handwritten digits": the ink
is scaled into a 20x20 box, keeping its aspect ratio, which leaves grey levels at its edges, and placed in a 28x28 image
so that its centre of mass is at the image's centre. In the data set that centre is pixel (14, 14) (measured).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate

from mnist_dist.data.idx import SIDE
from mnist_dist.utils.errors import UserError

BOX = 20
"""Side, in pixels, of the box that the ink is scaled into."""
CENTRE = 14
"""Row and column of the ink's centre of mass."""
MAX_SIDE = 560
"""Larger pictures are first shrunk to this many pixels along their longer side."""
MIN_CONTRAST = 0.06
"""Smallest difference between ink and background, as a fraction of that between black and white."""
MIN_INK = 0.2
"""Ink fainter than this fraction of the darkest ink is background: paper texture, noise, a shadow."""
SPECK = 0.001
"""Fraction of all ink that may be cropped off on each of the four sides, such as dust."""

GAP = 0.02
"""Rows or columns with less ink than this fraction of the average one separate two pieces of ink."""
PIECE = 0.15
"""Smallest fraction of all ink that counts as a digit. 18 of MNIST's 10,000 test images have two such pieces."""
MAX_MEAN = 0.36
"""Largest mean grey level, 0 to 1, of an image that may be a digit; those of MNIST reach 0.33."""


def read_picture(path: str | os.PathLike[str], note: Callable[[str], None] = lambda text: None) -> Tensor:
    """A picture file of any format, size and polarity as an image like MNIST's: uint8 (28, 28), white on black.

    A picture that is 28x28 and white on black already is not changed.

    Args:
        note: is told in a few words why the image may not be the one digit that was meant: the file has several
            pages, or does not look like one digit.

    Raises:
        UserError: the file is missing, not a picture, damaged, blank, or has too many pixels.
    """
    return grey_to_image(read_grey(Path(path), note), path, note)


def grey_to_image(
    grey: Tensor, name: str | os.PathLike[str] = "drawing", note: Callable[[str], None] = lambda text: None
) -> Tensor:
    """A picture in grey levels as an image like MNIST's: uint8 (28, 28), white on black.

    Args:
        grey: float (H, W) in [0, 1].
        name: of the picture, for errors.
        note: as in `read_picture`.

    Raises:
        UserError: the picture is blank.
    """
    border = torch.cat([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    background = border.median()
    brighter, darker = grey.max() - background, background - grey.min()
    if max(brighter, darker) < MIN_CONTRAST:
        raise UserError(f"{name}: the picture is blank; give one of a single digit that stands out from its background")
    white_on_black = bool(brighter > darker)
    ink = (grey - background if white_on_black else background - grey) / max(brighter, darker)
    ink = crop_to_ink(((ink - MIN_INK) / (1 - MIN_INK)).clamp(min=0))
    is_mnist_like = white_on_black and grey.shape == (SIDE, SIDE)
    image = grey if is_mnist_like else centre(scale_to_box(ink))
    if count_pieces(ink.sum(0)) > 1 or count_pieces(ink.sum(1)) > 1:
        note("this may be more than one digit; crop the picture to one")
    elif image.mean() > MAX_MEAN:
        note("this may be no digit: most of the picture is ink")
    return (image * 255).round().byte()


def read_grey(path: Path, note: Callable[[str], None]) -> Tensor:
    """The picture as its EXIF data orient it, in grey levels: float (H, W) in [0, 1], at most MAX_SIDE a side.

    Of several pages or frames it is the first; `note` is told so.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'is not a file' if path.exists() else 'no such file'}; name a picture file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.format != "MPO" and getattr(image, "is_animated", False):  # MPO: a photo with its previews
                    note("the file has several pages or frames; this is the first")
                    image.seek(0)
                return to_grey(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f"{path}: has more pixels than {Image.MAX_IMAGE_PIXELS}; shrink it first") from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: not a picture, or of an unknown format; PNG, JPEG and many others work") from None
    except Exception as error:  # each of Pillow's decoders raises its own exceptions for a damaged file
        message = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: cannot be read as a picture ({message}); check the file") from None


def to_grey(image: Image.Image) -> Tensor:
    """A Pillow image, as float (H, W) in [0, 1], at most MAX_SIDE a side.

    It is put on white where it is transparent, or on black if white shows nothing: a white digit without background.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # Pillow's conversion to L would clip these at 255
        image = image.convert("F")
        image.thumbnail((MAX_SIDE, MAX_SIDE))
        values = as_tensor(image, torch.float32).nan_to_num()
        return values / next((scale for scale in (1.0, 255.0, 65535.0) if values.max() <= scale), values.max())
    image = image.convert("RGBA")
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    on_white = as_tensor(on_background(image, "white"), torch.uint8).float() / 255
    if on_white.max() - on_white.min() >= MIN_CONTRAST:
        return on_white
    return as_tensor(on_background(image, "black"), torch.uint8).float() / 255


def on_background(image: Image.Image, colour: str) -> Image.Image:
    """An RGBA image in grey levels, on a colour where it is transparent."""
    return Image.alpha_composite(Image.new("RGBA", image.size, colour), image).convert("L")


def as_tensor(image: Image.Image, dtype: torch.dtype) -> Tensor:
    """The pixels of a one-channel image: (H, W)."""
    return torch.frombuffer(bytearray(image.tobytes()), dtype=dtype).view(image.height, image.width)


def crop_to_ink(ink: Tensor) -> Tensor:
    """The smallest rectangle of (H, W) with nearly all of the ink."""
    return ink[ink_extent(ink.sum(1)), ink_extent(ink.sum(0))]


def ink_extent(amounts: Tensor) -> slice:
    """The rows (or columns) with nearly all of the ink, given the ink of each row (or column): float (N,)."""
    share = amounts.double().cumsum(0) / amounts.double().sum()
    return slice(int((share <= SPECK).sum()), int((share < 1 - SPECK).sum()) + 1)


def count_pieces(amounts: Tensor) -> int:
    """Number of large pieces of ink that blank rows (or columns) separate, given the ink of each: float (N,)."""
    blank = amounts < GAP * amounts.mean()
    piece_of = blank.cumsum(0)
    shares = torch.zeros(len(amounts) + 1).index_add(0, piece_of, amounts / amounts.sum())
    return int((shares >= PIECE).sum())


def scale_to_box(ink: Tensor) -> Tensor:
    """The ink scaled to BOX pixels along its longer side, keeping its aspect ratio, with a maximum of 1."""
    height, width = ink.shape
    scale = BOX / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    scaled = interpolate(ink[None, None], size=size, mode="bilinear", antialias=True)[0, 0]
    return scaled / scaled.max()


def centre(ink: Tensor) -> Tensor:
    """The ink in an image (SIDE, SIDE), its centre of mass as near to CENTRE as whole pixels allow."""
    image = torch.zeros(SIDE, SIDE)
    top, left = centred_start(ink.sum(1)), centred_start(ink.sum(0))
    image[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return image


def centred_start(amounts: Tensor) -> int:
    """The first row (or column) to place the ink at, given the ink of each of its rows (or columns): float (N,)."""
    mass = float((amounts * torch.arange(len(amounts))).sum() / amounts.sum())
    return min(max(round(CENTRE - mass), 0), SIDE - len(amounts))
