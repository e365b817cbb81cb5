"""Turn any picture of one digit into what MNIST would have made of it.

MNIST's own preparation, after Y. LeCun, C. Cortes and C. Burges, "The MNIST database of handwritten digits": the ink
is scaled, keeping its aspect ratio, into a 20x20 box, which leaves grey levels at its edges, and placed in a 28x28
field so that its centre of mass is at the field's centre. In the data set that centre is pixel (14, 14) (measured).
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate

from mnist_dist.data.idx import SIDE
from mnist_dist.utils.errors import UserError

BOX = 20
CENTRE = 14
WORKING_SIDE = 560
"""Larger pictures are first shrunk to this many pixels along their longer side."""
MIN_CONTRAST = 0.06
"""Least difference between ink and paper, of the range from black to white."""
FAINT = 0.2
"""Ink below this share of the darkest ink is paper: its texture, noise, a shadow."""
SPECK = 0.001
"""Share of all ink that may lie outside the box on each of its four sides, such as dust."""


def read_picture(path: str | os.PathLike[str]) -> Tensor:
    """A picture file of any format, size and polarity, prepared as MNIST's images are: uint8 (28, 28), white on black.

    A picture that is 28x28 and white on black already is taken as it is.

    Raises:
        UserError: no such file, not a picture, damaged, blank, or too large to be meant.
    """
    grey = read_grey(Path(path))
    border = torch.cat([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    paper = border.median()
    brighter, darker = grey.max() - paper, paper - grey.min()
    if max(brighter, darker) < MIN_CONTRAST:
        raise UserError(f"{path}: the picture is blank; give one of a single digit that stands out from its background")
    white_on_black = bool(brighter > darker)
    if white_on_black and grey.shape == (SIDE, SIDE):
        return (grey * 255).round().byte()
    ink = (grey - paper if white_on_black else paper - grey) / max(brighter, darker)
    field = centre(fit(crop(((ink - FAINT) / (1 - FAINT)).clamp(min=0))))
    return (field * 255).round().byte()


def read_grey(path: Path) -> Tensor:
    """The picture upright on white paper, at most WORKING_SIDE along its longer side: float (H, W) in [0, 1]."""
    if not path.is_file():
        raise UserError(f"{path}: {'is not a file' if path.exists() else 'no such file'}; name a picture file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return to_grey(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f"{path}: has more pixels than {Image.MAX_IMAGE_PIXELS}; shrink it first") from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: not a picture, or of an unknown format; PNG, JPEG and many others work") from None
    except Exception as error:  # each of Pillow's formats fails on damaged files in its own way
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: cannot be read as a picture ({said}); check the file") from None


def to_grey(image: Image.Image) -> Tensor:
    """A Pillow image on white paper, no larger than WORKING_SIDE: float (H, W) in [0, 1]."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # Pillow's conversion to L would clip these at 255
        image = image.convert("F")
        image.thumbnail((WORKING_SIDE, WORKING_SIDE))
        values = as_tensor(image, torch.float32).nan_to_num()
        return values / next((scale for scale in (1.0, 255.0, 65535.0) if values.max() <= scale), values.max())
    image = image.convert("RGBA")
    image.thumbnail((WORKING_SIDE, WORKING_SIDE))
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("L")
    return as_tensor(image, torch.uint8).float() / 255


def as_tensor(image: Image.Image, dtype: torch.dtype) -> Tensor:
    """The pixels of a one-channel image: (H, W)."""
    return torch.frombuffer(bytearray(image.tobytes()), dtype=dtype).view(image.height, image.width)


def crop(ink: Tensor) -> Tensor:
    """The part of (H, W) that holds the ink."""
    return ink[extent(ink.sum(1)), extent(ink.sum(0))]


def extent(amounts: Tensor) -> slice:
    """Where along one side the ink lies, given how much of it each row or column has."""
    share = amounts.double().cumsum(0) / amounts.double().sum()
    return slice(int((share <= SPECK).sum()), int((share < 1 - SPECK).sum()) + 1)


def fit(ink: Tensor) -> Tensor:
    """The ink scaled into BOX x BOX, keeping its aspect ratio, with its darkest point at 1."""
    height, width = ink.shape
    scale = BOX / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    scaled = interpolate(ink[None, None], size=size, mode="bilinear", antialias=True)[0, 0]
    return scaled / scaled.max()


def centre(ink: Tensor) -> Tensor:
    """The ink in a field of SIDE x SIDE, its centre of mass as near to the field's centre as whole pixels allow."""
    field = torch.zeros(SIDE, SIDE)
    top, left = start(ink.sum(1)), start(ink.sum(0))
    field[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return field


def start(amounts: Tensor) -> int:
    """Where along one side of the field the ink begins, given how much of it each row or column has."""
    mass = float((amounts * torch.arange(len(amounts))).sum() / amounts.sum())
    return min(max(round(CENTRE - mass), 0), SIDE - len(amounts))
