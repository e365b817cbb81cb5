"""`mnist-dist explain`: the figures, the attributions they show, and the map of features."""

from __future__ import annotations

import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from idx_sets import draw_set
from kept_run import copy_kept_run
from torch import Tensor, nn

from mnist_dist.__main__ import main
from mnist_dist.checkpoint.load_model import load_model, read_config
from mnist_dist.data.idx import read_pair
from mnist_dist.models import create_model
from mnist_dist.models.attribution import integrated_gradients, occlusion
from mnist_dist.models.embedding import penultimate_features, principal_components
from mnist_dist.utils.errors import EXIT_DONE, EXIT_USER

needs_matplotlib = pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs the extra `report`")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(copy_kept_run(tmp_path))
    return tmp_path


@needs_matplotlib
def test_one_figure_shows_every_layer(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "run", "--index", "3"]) == EXIT_DONE
    out = capsys.readouterr().out
    assert out.startswith("test image 3: 3 (")
    assert out.splitlines()[-1] == "written: explanation.svg"
    text = (work / "explanation.svg").read_text()
    assert f"<!-- {out.splitlines()[0]} -->" in text  # the title
    for name, shape in (("body.0", "10 x 24 x 24"), ("body.3", "20 x 8 x 8"), ("head", "10")):
        assert f"<!-- {name}  " in text
        assert f": {shape} -->" in text


@needs_matplotlib
def test_a_picture_and_a_map_of_features(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image, ImageDraw

    picture = Image.new("L", (100, 100), 255)
    ImageDraw.Draw(picture).line([(50, 20), (50, 80)], fill=0, width=10)
    picture.save("one.png")
    assert main(["explain", "run", "--image", "one.png", "--out", "one.pdf"]) == EXIT_DONE
    assert (work / "one.pdf").read_bytes().startswith(b"%PDF")
    assert main(["explain", "run", "--embedding", "pca"]) == EXIT_DONE
    assert "50 images, 50 right" in capsys.readouterr().out
    assert (work / "embedding.png").read_bytes().startswith(b"\x89PNG")
    shutil.rmtree("digits")
    assert main(["explain", "run", "--embedding", "pca"]) == EXIT_USER


@needs_matplotlib
def test_a_mistake_and_what_it_is_are_in_the_title(work: Path) -> None:
    from mnist_dist.commands.explain_figures import explanation_figure

    image = read_pair(work / "digits" / "t10k-images-idx3-ubyte", work / "digits" / "t10k-labels-idx1-ubyte")[0][3]
    figure, title = explanation_figure(load_model("run"), image, "test image 3", truth=8)
    assert title.endswith(", wrong: 8")
    assert figure.get_suptitle() == title
    assert explanation_figure(load_model("run"), image, "photo.png", truth=None)[1].endswith(" %)")


@needs_matplotlib
def test_a_map_of_few_classes_has_a_legend_and_one_of_many_names_them_in_place(work: Path) -> None:
    from mnist_dist.commands.explain_figures import MAX_LEGEND, embedding_figure

    images, labels = draw_set(MAX_LEGEND + 10, 100)
    for count in (MAX_LEGEND, MAX_LEGEND + 1):
        loaded = load_model("run")
        settings = loaded.config.to_dict()
        settings["data"] |= {"name": "idx", "classes": [f"class {label}" for label in range(count)]}
        model = create_model("basic", count).eval()
        loaded = replace(loaded, config=read_config(settings, "settings"), model=model)
        figure, _ = embedding_figure(loaded, images, labels.clamp(max=count - 1), "pca")
        named = [text.get_text() for text in figure.axes[0].texts]
        assert named == (list(settings["data"]["classes"]) if count > MAX_LEGEND else [])
        assert len(figure.legends) == (count <= MAX_LEGEND)


@needs_matplotlib
@pytest.mark.skipif(find_spec("umap") is None, reason="needs the extra `umap`")
def test_a_map_by_umap(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "run", "--embedding", "umap", "--out", "map.png"]) == EXIT_DONE
    assert "50 images, 50 right" in capsys.readouterr().out
    assert (work / "map.png").read_bytes().startswith(b"\x89PNG")


@needs_matplotlib
@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ([], "give one of --index I, --image FILE and --embedding pca, none is given"),
        (["--index", "1", "--embedding", "pca"], "not --index and --embedding"),
        (["--index", "50"], "the test split has images 0 to 49"),
        (["--index", "1", "--out", "x.gif"], "must end in .svg, .png, .pdf"),
        (["--index", "1", "--out", "run/config.yaml/x.svg"], "cannot be written"),
        (["--image", "none.png"], "no such file"),
    ],
)
def test_wrong_arguments_are_one_line(
    work: Path, arguments: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "run", *arguments]) == EXIT_USER
    (line,) = capsys.readouterr().err.splitlines()
    assert what in line


class Linear(nn.Module):
    """A model whose attributions are known: logit 0 is the sum of weighted pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(784.0).view(1, 28, 28) / 784)

    def forward(self, images: Tensor) -> Tensor:
        return (images * self.weight).sum((1, 2, 3))[:, None]


def test_attributions_of_a_linear_model_are_exact() -> None:
    model, image = Linear(), torch.rand(1, 28, 28, generator=torch.Generator().manual_seed(0))
    share = integrated_gradients(model, image, -0.5, 0)
    torch.testing.assert_close(share, ((image + 0.5) * model.weight.detach())[0])
    hidden = occlusion(model, image, -0.5, 0)
    for row, column in ((0, 0), (10, 20), (27, 27)):
        square = share[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3]
        assert float(hidden[row, column]) == pytest.approx(float(square.sum()), abs=1e-3)


def test_integrated_gradients_add_up_to_the_difference_of_the_logits() -> None:
    torch.manual_seed(0)
    model, image = create_model("unshuffle").eval(), torch.rand(1, 28, 28)
    shares = integrated_gradients(model, image, -0.4, 3, steps=512)
    with torch.no_grad():
        difference = model(image[None])[0, 3] - model(torch.full((1, 1, 28, 28), -0.4))[0, 3]
    assert float(shares.sum()) == pytest.approx(float(difference), abs=1e-3)


def test_features_are_what_the_last_linear_layer_is_given() -> None:
    model = create_model("unshuffle").eval()
    logits, features = penultimate_features(model, torch.rand(3, 1, 28, 28))
    assert features.shape == (3, 128)
    torch.testing.assert_close(model.head[2](features), logits)  # type: ignore[index]
    assert penultimate_features(Linear(), torch.rand(3, 1, 28, 28))[1].shape == (3, 1)


def test_principal_components_are_those_of_the_singular_values() -> None:
    data = torch.randn(40, 7, generator=torch.Generator().manual_seed(0))
    points, fractions = principal_components(data)
    centred = data.double() - data.double().mean(0)
    values = torch.linalg.svdvals(centred)
    torch.testing.assert_close(points.norm(dim=0), values[:2])
    torch.testing.assert_close(fractions, values[:2] ** 2 / (values**2).sum())
    assert torch.equal(principal_components(data)[0], points)
