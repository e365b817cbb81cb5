"""The figures of `mnist-dist explain`, by matplotlib."""

from __future__ import annotations

import math
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import Tensor, nn

from mnist_dist.checkpoint.load_model import LoadedModel
from mnist_dist.console.formatting import format_percent
from mnist_dist.data.loader import normalize
from mnist_dist.models import classifier
from mnist_dist.models.attribution import integrated_gradients, occlusion
from mnist_dist.models.classifier import without_shifts
from mnist_dist.models.embedding import penultimate_features, principal_components
from mnist_dist.models.feature_maps import montage
from mnist_dist.models.summary import describe_layer

WIDTH = 10.0  # inches
MAPS_ACROSS = 16
BATCH = 1000
MAX_LEGEND = 30
"""Classes that a legend names by their colours; of more, each is named where its points are."""
HALO = (withStroke(linewidth=1, foreground="white"),)
"""Makes a name readable on points."""
Layer = tuple[str, str, Tensor]
"""A layer's name, its kind in words, and its output for one image without the batch dimension."""


def explanation_figure(loaded: LoadedModel, image: Tensor, name: str, truth: int | None) -> tuple[Figure, str]:
    """How the model sees an image: the image, the pixels that decided, and the output of every layer.

    Args:
        image: uint8 (28, 28).
        name: of the image, for the title.
        truth: the label, if it is known.

    Returns:
        The figure, and its title: the prediction in one line.
    """
    model, config = loaded.model, loaded.config.data
    pixels = normalize(image[None, None], config)[0]
    logits, layers = run_layers(model, pixels)
    probabilities = classifier.probabilities(model, logits)[0]
    predicted = int(probabilities.argmax())
    background = (0.0 - config.mean) / config.std

    heights = [2.2, *(row_height(output) for _, _, output in layers)]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.35 * len(heights)), layout="constrained")
    classes = config.class_names
    verdict = "" if truth is None else ", right" if truth == predicted else f", wrong: {classes[truth]}"
    title = f"{name}: {classes[predicted]} ({format_percent(float(probabilities[predicted]))}){verdict}"
    figure.suptitle(title)
    rows = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    draw_input(
        rows[0],
        image,
        occlusion(model, pixels, background, predicted),
        integrated_gradients(model, pixels, background, predicted),
        probabilities,
        classes,
    )
    for row, layer in zip(rows[1:], layers, strict=True):
        draw_layer(row, *layer)
    return figure, title


@torch.no_grad()
def run_layers(model: nn.Module, pixels: Tensor) -> tuple[Tensor, list[Layer]]:
    """Logits (1, K) of a normalised image (1, H, W), and the output of each layer in the order of computation."""
    layers: list[Layer] = []
    names = {module: name for name, module in model.named_modules() if not list(module.children())}

    def record(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            layers.append(
                (names[module], describe_layer(module), output[0].float().clone())
            )  # a later layer may overwrite it

    handles = [module.register_forward_hook(record) for module in names]
    try:
        without_shifts(model)(pixels[None])
    finally:
        for handle in handles:
            handle.remove()
    return model(pixels[None]), layers


def row_height(output: Tensor) -> float:
    """Height of a layer's row in inches: as its maps need, or that of one strip."""
    if output.ndim != 3:
        return 0.35
    across = min(MAPS_ACROSS, len(output))
    return max(WIDTH / MAPS_ACROSS * math.ceil(len(output) / across), 0.5)


def draw_input(
    row: Any, image: Tensor, hidden: Tensor, shares: Tensor, probabilities: Tensor, classes: tuple[str, ...]
) -> None:
    """The image, the two maps of the pixels that decided, and the probabilities of the likeliest classes."""
    picture, by_occlusion, by_gradients, bars = row.subplots(1, 4)
    picture.imshow(image.numpy(), cmap="gray", vmin=0, vmax=255)
    picture.set_title("image", fontsize=9)
    for axes, values, title in (
        (by_occlusion, hidden, "occlusion: what hiding\n5x5 pixels costs"),
        (by_gradients, shares, "integrated gradients:\neach pixel's share"),
    ):
        largest = max(float(values.abs().max()), 1e-12)
        axes.imshow(image.numpy(), cmap="gray_r", vmin=0, vmax=700)
        axes.imshow(values.numpy(), cmap="RdBu_r", vmin=-largest, vmax=largest, alpha=0.8)
        axes.set_title(title, fontsize=9)
    for axes in (picture, by_occlusion, by_gradients):
        axes.set_axis_off()
    chosen = probabilities.argsort(descending=True)[:10].sort().values.tolist()
    bars.barh([classes[label] for label in chosen], [100 * float(probabilities[label]) for label in chosen])
    bars.set_xlim(0, 100)
    bars.invert_yaxis()
    bars.tick_params(labelsize=8)
    bars.set_title("probability (%)", fontsize=9)


def draw_layer(row: Any, name: str, kind: str, output: Tensor) -> None:
    """The output of one layer: its maps, each from its minimum (black) to its maximum (white), or a strip of values."""
    axes = row.subplots()
    shape = " x ".join(map(str, output.shape))
    axes.set_title(f"{name}  {kind}: {shape}", fontsize=9, loc="left")
    axes.set_axis_off()
    if output.ndim == 3:
        side = output.shape[-1] + 1
        across = min(MAPS_ACROSS, len(output))
        maps = montage(output, width=across * side, rows=math.ceil(len(output) / across))
        axes.imshow(maps.numpy(), cmap="gray", interpolation="nearest")
        axes.set_anchor("W")
    else:
        axes.imshow(output.flatten()[None].numpy(), cmap="gray", aspect="auto", interpolation="nearest")


def embedding_figure(loaded: LoadedModel, images: Tensor, labels: Tensor, method: str) -> tuple[Figure, int]:
    """The features of images in two dimensions, coloured by class; mistakes are crosses in the colour of the truth.

    Args:
        images: uint8 (N, 28, 28).
        labels: (N,) of any integer type.
        method: `pca` or `umap`.

    Returns:
        The figure, and the number of right predictions.
    """
    import matplotlib as mpl

    config = loaded.config.data
    parts = [penultimate_features(loaded.model, normalize(part[:, None], config)) for part in images.split(BATCH)]
    logits, features = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    right = logits.argmax(1) == labels
    if method == "umap":
        import umap

        points = torch.from_numpy(umap.UMAP(random_state=0, n_jobs=1).fit_transform(features.numpy())).double()
        names = ["UMAP 1", "UMAP 2"]
    else:
        points, fractions = principal_components(features)
        names = [f"component {i + 1} ({100 * fraction:.0f} % of the variance)" for i, fraction in enumerate(fractions)]
    figure = Figure(figsize=(9, 7), layout="constrained")
    axes = figure.subplots()
    count = len(config.class_names)
    colours = mpl.colormaps["tab10" if count <= 10 else "turbo"]
    for label, name in enumerate(config.class_names):
        colour = colours(label if count <= 10 else label / (count - 1))
        ours = labels == label
        x, y = points[ours & right].T.numpy()
        axes.scatter(x, y, s=4, color=colour, alpha=0.5, linewidths=0, label=name, rasterized=True)
        x, y = points[ours & ~right].T.numpy()
        axes.scatter(x, y, s=40, color=colour, marker="x", linewidths=1.5, rasterized=True)
        if ours.any() and count > MAX_LEGEND:  # nobody tells so many colours apart
            x, y = points[ours].median(dim=0).values.tolist()
            axes.annotate(name, (x, y), (0, 5), textcoords="offset points", fontsize=7, ha="center", path_effects=HALO)
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
    mistakes = int((~right).sum())
    axes.set_title(f"features of {len(images)} images; {mistakes} mistakes{' are crosses' * bool(mistakes)}")
    if count <= MAX_LEGEND:  # beside the points, which may be anywhere
        figure.legend(title="class", markerscale=3, fontsize=8, loc="outside right upper")
    return figure, int(right.sum())
