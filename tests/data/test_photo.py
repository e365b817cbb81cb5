"""Pictures of any kind become images like MNIST's."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from mnist_dist.data.photo import read_picture
from mnist_dist.utils.errors import UserError


def seven(size: tuple[int, int] = (200, 200), corner: tuple[int, int] = (60, 40), height: int = 100) -> Image.Image:
    """A grey picture of a 7, black on white, `height` pixels high with its corner there."""
    image = Image.new("L", size, 255)
    x, y = corner
    right, width = x + height // 2, max(2, height // 10)
    ImageDraw.Draw(image).line([(x, y), (right, y), (x + height // 6, y + height)], fill=0, width=width, joint="curve")
    return image


def saved(tmp_path: Path, image: Image.Image, name: str = "picture.png", **options: object) -> Tensor:
    image.save(tmp_path / name, **options)
    return read_picture(tmp_path / name)


def bounding_box(image: Tensor) -> tuple[int, int]:
    rows, columns = (image > 0).any(1).nonzero(), (image > 0).any(0).nonzero()
    return int(rows[-1] - rows[0] + 1), int(columns[-1] - columns[0] + 1)


def centre_of_mass(image: Tensor) -> tuple[float, float]:
    mass, along = image.double() / image.sum(), torch.arange(28.0, dtype=torch.float64)
    return float((mass.sum(1) * along).sum()), float((mass.sum(0) * along).sum())


def difference(first: Tensor, second: Tensor) -> float:
    """Mean absolute difference of grey levels, 0 to 255."""
    return float((first.float() - second.float()).abs().mean())


@pytest.fixture
def reference(tmp_path: Path) -> Tensor:
    return saved(tmp_path, seven())


def test_size_and_centre_are_those_of_mnist(reference: Tensor) -> None:
    assert reference.shape == (28, 28)
    assert reference.dtype == torch.uint8
    assert reference.max() == 255
    assert reference[0].max() == 0
    assert max(bounding_box(reference)) == 20
    assert all(abs(position - 14) <= 0.5 for position in centre_of_mass(reference))


def coloured(image: Image.Image) -> Image.Image:
    return ImageOps.colorize(image, (30, 30, 120), (240, 235, 200))


def transparent(image: Image.Image) -> Image.Image:
    picture = Image.new("RGBA", image.size, (0, 0, 0, 0))
    picture.putalpha(ImageOps.invert(image))
    return picture


def white_on_transparent(image: Image.Image, level: int) -> Image.Image:
    picture = Image.new("RGBA", image.size, (level, level, level, 0))
    picture.putalpha(ImageOps.invert(image))
    return picture


def sixteen_bits(image: Image.Image) -> Image.Image:
    levels = [40000 + 50 * value for value in image.tobytes()]
    return Image.frombytes("I;16", image.size, struct.pack(f"<{len(levels)}H", *levels))


KINDS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "white on black": ImageOps.invert,
    "faint": lambda image: image.point(lambda value: 180 + value // 10),
    "coloured": coloured,
    "transparent": transparent,
    "white on transparent": lambda image: white_on_transparent(image, 255),
    "nearly white on transparent": lambda image: white_on_transparent(image, 250),
    "one bit": lambda image: image.convert("1"),
    "a palette": lambda image: coloured(image).convert("P"),
    "grey with alpha": lambda image: image.convert("LA"),
    "CMYK": lambda image: image.convert("CMYK"),
    "16 bits": sixteen_bits,
    "floating point": lambda image: image.convert("F"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kind_and_polarity_do_not_matter(tmp_path: Path, reference: Tensor, kind: str) -> None:
    assert difference(saved(tmp_path, KINDS[kind](seven()), "picture.tiff"), reference) < 1


@pytest.mark.parametrize("name", ["a.jpg", "a.bmp", "a.gif", "a.webp", "a.ppm", "a.ico", "a.png.txt"])
def test_format_does_not_matter(tmp_path: Path, reference: Tensor, name: str) -> None:
    assert difference(saved(tmp_path, seven(), name, format="PNG" if name.endswith("txt") else None), reference) < 3


@pytest.mark.parametrize(
    ("size", "corner", "height"), [((700, 90), (600, 10), 70), ((2000, 3000), (100, 2000), 700), ((64, 60), (9, 9), 40)]
)
def test_size_and_place_do_not_matter(
    tmp_path: Path, reference: Tensor, size: tuple[int, int], corner: tuple[int, int], height: int
) -> None:
    assert difference(saved(tmp_path, seven(size, corner, height)), reference) < 8


def test_dust_and_noise_do_not_matter(tmp_path: Path, reference: Tensor) -> None:
    image = seven()
    image.putpixel((3, 3), 0)
    image.putpixel((190, 195), 0)
    noise = Image.effect_noise(image.size, 20).point(lambda value: 150 + value // 2)
    noisy = Image.composite(Image.new("L", image.size, 0), noise, ImageOps.invert(image))
    assert difference(saved(tmp_path, noisy), reference) < 5


def test_turned_by_the_camera(tmp_path: Path, reference: Tensor) -> None:
    exif = Image.Exif()
    exif[274] = 6  # the camera was held so that the picture is to be turned by 270 degrees
    turned = seven().transpose(Image.Transpose.ROTATE_90)
    assert difference(saved(tmp_path, turned, "a.jpg", exif=exif), reference) < 3
    assert difference(saved(tmp_path, turned, "b.jpg"), reference) > 10


def test_mnist_images_are_not_changed(tmp_path: Path) -> None:
    image = torch.zeros(28, 28, dtype=torch.uint8)
    image[2:9, 3:5] = torch.arange(14, dtype=torch.uint8).view(7, 2) * 15
    picture = Image.frombytes("L", (28, 28), bytes(image.flatten().tolist()))
    assert saved(tmp_path, picture).equal(image)
    assert not saved(tmp_path, ImageOps.invert(picture)).equal(image)


def test_a_line_keeps_its_aspect(tmp_path: Path) -> None:
    image = Image.new("1", (30, 400), 1)
    ImageDraw.Draw(image).line([(15, 10), (15, 390)], fill=0, width=3)
    assert bounding_box(saved(tmp_path, image)) == (20, 1)
    assert bounding_box(saved(tmp_path, image.rotate(90, expand=True))) == (1, 20)


def test_one_pixel_is_enough_ink(tmp_path: Path) -> None:
    image = Image.new("L", (40, 40), 255)
    image.putpixel((7, 30), 0)
    assert bounding_box(saved(tmp_path, image)) == (20, 20)


def notes_on(tmp_path: Path, image: Image.Image, name: str = "picture.png", **options: object) -> list[str]:
    notes: list[str] = []
    image.save(tmp_path / name, **options)
    read_picture(tmp_path / name, notes.append)
    return notes


@pytest.mark.parametrize("name", ["a.tiff", "a.gif", "a.webp", "a.png"])
def test_of_several_pages_the_first_is_taken_with_a_note(tmp_path: Path, reference: Tensor, name: str) -> None:
    blank = Image.new("L", (200, 200), 255)
    notes = notes_on(tmp_path, seven(), name, save_all=True, append_images=[blank])
    assert notes == ["the file has several pages or frames; this is the first"]
    assert difference(read_picture(tmp_path / name), reference) < 3
    assert notes_on(tmp_path, seven(), name) == []


def test_several_digits_and_none_are_noted(tmp_path: Path) -> None:
    beside, below = Image.new("L", (400, 200), 255), Image.new("L", (200, 400), 255)
    for picture, place in ((beside, (170, 0)), (below, (0, 180))):
        picture.paste(seven(), (0, 0))
        picture.paste(seven(), place)
        assert notes_on(tmp_path, picture) == ["this may be more than one digit; crop the picture to one"]
    blob = Image.new("L", (200, 200), 255)
    ImageDraw.Draw(blob).rectangle([30, 40, 170, 150], fill=0)
    assert notes_on(tmp_path, blob) == ["this may be no digit: most of the picture is ink"]
    dusty = seven()
    dusty.putpixel((3, 3), 0)
    assert notes_on(tmp_path, dusty) == []


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent": (lambda path: None, "no such file"),
    "folder": (Path.mkdir, "is not a file"),
    "blank": (lambda path: Image.new("RGB", (90, 90), "white").save(path, "PNG"), "blank"),
    "nearly blank": (lambda path: seven().point(lambda v: 250 + v // 85).save(path, "PNG"), "blank"),
    "wholly transparent": (lambda path: Image.new("RGBA", (9, 9), (0, 0, 0, 0)).save(path, "PNG"), "blank"),
    "text": (lambda path: path.write_text("7"), "not a picture"),
    "empty": (Path.touch, "not a picture"),
    "bomb": (lambda path: Image.new("1", (10_000, 9_000)).save(path, "PNG"), "more pixels than"),
    "larger bomb": (lambda path: Image.new("1", (20_000, 9_000)).save(path, "PNG"), "more pixels than"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_pictures_cost_one_line(tmp_path: Path, what: str) -> None:
    make, message = BAD[what]
    path = tmp_path / "picture"
    make(path)
    with pytest.raises(UserError, match=message) as caught:
        read_picture(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    path = tmp_path_factory.mktemp("encoded") / "picture"
    contents = []
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "PPM"):
        seven((40, 40), (10, 10), 20).save(path, kind)
        contents.append(path.read_bytes())
    return contents


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_pictures_give_a_digit_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, encoded: list[bytes], data: st.DataObject
) -> None:
    content = bytearray(data.draw(st.sampled_from(encoded)))
    for position, value in data.draw(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4)):
        content[min(position, len(content) - 1)] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    assert is_digit_or_one_line(path)


def is_digit_or_one_line(path: Path) -> bool:
    try:
        image = read_picture(path)
    except UserError as error:
        return "\n" not in str(error)
    return image.shape == (28, 28) and image.dtype == torch.uint8 and bool(image.max() > 0)
