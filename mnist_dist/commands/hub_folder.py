"""The folder that `mnist-dist export --to hub` writes: weights, settings, and a model card."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

import mnist_dist
from mnist_dist.checkpoint.hub_model import HubModel
from mnist_dist.checkpoint.load_model import LoadedModel
from mnist_dist.commands.export_formats import BATCH, shared_settings
from mnist_dist.commands.nearest_recipe import nearest_recipe
from mnist_dist.config.schema import flat
from mnist_dist.data.identity import content_digest
from mnist_dist.data.sets import DATA_SETS
from mnist_dist.models.summary import count_parameters
from mnist_dist.utils.confusion import most_frequent_mistakes

MNIST_TEST_SHA256 = "8a81f5807248c1455645cd2253e437775c7cbaf8dcbae23ba1e0bc5544d240af"
"""`content_digest` of MNIST's test set. With data.name=mnist any ten classes may have been read."""
ON_THE_HUB = {
    "mnist": "ylecun/mnist",
    "fashion": "zalando-datasets/fashion_mnist",
}
"""Data sets of the Hub, by data.name."""
OWN = "idx"
"""data.name of a set that is none of the known ones."""
LIKE_MNIST = ("mnist", "qmnist", "emnist")
"""Beginnings of the names of sets whose images are scaled and centred as MNIST's are."""


def write_hub_folder(
    folder: Path, loaded: LoadedModel, facts: dict[str, Any], reference: Tensor, images: Tensor, labels: Tensor
) -> Tensor:
    """Write the folder, and read it back by `from_pretrained`; the logits (N, K) of what was read.

    Args:
        facts: as from `export_formats.facts_of`.
        reference: logits float32 (N, K) of the run's model.
        images: the test set, uint8 (N, 28, 28).
        labels: (N,) of any integer type.
    """
    settings = shared_settings(loaded.config)
    model = HubModel(settings, loaded.step)
    model.model.load_state_dict(loaded.model.state_dict())
    model.save_pretrained(folder)
    name = name_of_data(loaded.config.data.name, images, labels)
    text = card(loaded, facts, settings, name, reference.argmax(1), labels)
    (folder / "README.md").write_text(text, encoding="utf-8")
    with contextlib.redirect_stdout(io.StringIO()):  # the mixin says where it reads
        read = HubModel.from_pretrained(str(folder))
    with torch.inference_mode():
        return torch.cat([read(part) for part in images.split(BATCH)])


def card(
    loaded: LoadedModel,
    facts: dict[str, Any],
    settings: dict[str, dict[str, Any]],
    name: str,
    predicted: Tensor,
    labels: Tensor,
) -> str:
    """The model card: metadata for the Hub in YAML, then text for people.

    Args:
        facts: as from `export_formats.facts_of`.
        settings: those to show.
        name: as from `name_of_data`.
        predicted: (N,), of the test set.
        labels: (N,) of any integer type.
    """
    config, classes = loaded.config, loaded.config.data.class_names
    right, count = int((predicted == labels).sum()), len(labels)
    confusion = torch.zeros(len(classes), len(classes), dtype=torch.int64)
    confusion.index_put_((labels.long(), predicted), torch.ones(count, dtype=torch.int64), accumulate=True)
    title = "a set of its own" if name == OWN else DATA_SETS[name].title
    metadata = {
        "library_name": "mnist_dist",
        "license": "mit",
        "pipeline_tag": "image-classification",
        "tags": [*([name] if name != OWN else []), "image-classification", "pytorch", "safetensors"],
        **({"datasets": [ON_THE_HUB[name]]} if name in ON_THE_HUB else {}),
        "metrics": ["accuracy"],
        "model-index": [
            {
                "name": f"mnist_dist {config.model.name}",
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": {"name": title, "type": name, "split": "test"},
                        "metrics": [{"type": "accuracy", "value": right / count, "verified": False}],
                    }
                ],
            }
        ],
    }
    return CARD.format(
        metadata=yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True),
        model=config.model.name,
        data=title,
        recipe=nearest_recipe(flat(config)),
        start="\n\nThe first weights were those of another run." if config.model.init_from else "",
        preparation=LIKE_MNIST_PREPARATION if name.startswith(LIKE_MNIST) else "as those were.",
        parameters=f"{count_parameters(loaded.model):,}",
        classes=", ".join(classes),
        step=loaded.step,
        seed=config.run.seed,
        accuracy=f"{100 * right / count:.2f} % ({right} of {count})",
        validation=f"{config.data.val_size} images held out by the seed" if config.data.val_size else "none",
        digests="\n".join(f"- {key[5:-7]}: `{value}`" for key, value in facts.items() if key.startswith("data.")),
        weights=facts["weights_sha256"],
        confusion=confusion_rows(confusion.tolist(), classes),
        settings=yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100),
        version=mnist_dist.__version__,
    )


def name_of_data(name: str, images: Tensor, labels: Tensor) -> str:
    """The name of the data set, one of DATA_SETS: `idx` instead of `mnist` where the test set is not MNIST's.

    Args:
        name: data.name.
        images: the test set, uint8 (N, 28, 28).
        labels: (N,) of any integer type.
    """
    is_other = name == "mnist" and content_digest(images, labels) != MNIST_TEST_SHA256
    return OWN if is_other else name


def confusion_rows(confusion: Sequence[Sequence[int]], classes: Sequence[str], most: int = 12) -> str:
    """The confusion matrix as a Markdown table; with more classes than `most`, the most frequent mistakes."""
    if len(classes) <= most:
        head = f"| true \\ predicted | {' | '.join(classes)} |\n|---|{'---:|' * len(classes)}\n"
        return head + "\n".join(
            f"| {name} | {' | '.join(map(str, row))} |" for name, row in zip(classes, confusion, strict=True)
        )
    head = "| true | predicted | images |\n|---|---|---:|\n"
    rows = most_frequent_mistakes(confusion, most)
    return head + "\n".join(f"| {classes[label]} | {classes[guess]} | {images} |" for images, label, guess in rows)


CARD = """---
{metadata}---

# mnist_dist {model}

A network of {parameters} parameters, trained on {data}. It classifies grey images of 28x28 pixels, white on black,
as one of: {classes}.

| | |
|---|---|
| accuracy on the test set, in float32 | {accuracy} |
| data | {data} |
| recipe | {recipe} |
| steps of training | {step} |
| seed | {seed} |
| validation set | {validation} |

## How to load it

```python
from mnist_dist import HubModel

model = HubModel.from_pretrained("FOLDER or user/name")
labels = model.predict(images)  # uint8, or float from 0 to 1: (B, 28, 28) or (B, 1, 28, 28)
```

Normalisation is part of the model. The files hold no code: weights are safetensors, settings are JSON.

## Training

Trained by mnist_dist {version} with the settings below. The same settings, versions and hardware give the same weights,
bit for bit: their SHA-256 is `{weights}`.{start}

<details><summary>settings</summary>

```yaml
{settings}```

</details>

SHA-256 of images and labels:

{digests}

## Results

Confusion on the test set:

{confusion}

## Limits

The images of the training set were prepared in one way, so other images must be prepared {preparation}
The network gives an answer for any image, also for one that shows none of the classes. Its probabilities are not
calibrated.
"""
LIKE_MNIST_PREPARATION = """as those were:
white on black, scaled into a box of 20x20 pixels, and centred by their mass in 28x28."""
