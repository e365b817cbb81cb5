"""A trained model in the format of the Hugging Face Hub: `HubModel.from_pretrained(FOLDER or "user/name")`."""

from __future__ import annotations

from typing import Any

from huggingface_hub import PyTorchModelHubMixin

from mnist_dist.checkpoint.load_model import LoadedModel, read_config
from mnist_dist.checkpoint.tensors import weights_sha256
from mnist_dist.checkpoint.trained_model import TrainedModel
from mnist_dist.models import create_model


class HubModel(TrainedModel, PyTorchModelHubMixin, library_name="mnist_dist", tags=["image-classification"]):
    """A trained model that the Hub's mixin saves and loads, as config.json and model.safetensors: no code, no pickle.

    Args:
        settings: the run's settings by section, as `Config.to_dict` gives them.
        step: optimizer steps of the checkpoint.

    Raises:
        UserError: the settings are not those of this version.

    >>> from mnist_dist import HubModel
    >>> model = HubModel.from_pretrained("digits")  # doctest: +SKIP
    """

    def __init__(self, settings: dict[str, dict[str, Any]], step: int) -> None:
        config = read_config(settings, "config.json")
        model = create_model(config.model.name, len(config.data.class_names), config.model.args)
        super().__init__(LoadedModel(config, model.eval(), step, {}))

    @classmethod
    def _from_pretrained(cls, **options: Any) -> HubModel:
        """What the mixin calls; then the digest of the weights is that of the loaded ones."""
        model: HubModel = super()._from_pretrained(**options)
        model.weights_sha256 = weights_sha256(model.model)
        return model.eval()
