"""The models. Importing this package registers all of them: see `registry`."""

from mnist_dist.models import compact, deep_head, plain, unshuffle  # noqa: F401
from mnist_dist.models.classifier import ImageClassifier
from mnist_dist.models.registry import create_model, describe_model, list_models, register_model

__all__ = ["ImageClassifier", "create_model", "describe_model", "list_models", "register_model"]
