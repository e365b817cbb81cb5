"""The models. Importing this package registers all of its own: see `registry`; `builder` finds those and others."""

from mnist_dist.models import allconv, compact, deep_head, plain, tiny, unshuffle  # noqa: F401
from mnist_dist.models.builder import ModelBuilder, create_model, describe_model, find_builder
from mnist_dist.models.classifier import ImageClassifier
from mnist_dist.models.registry import list_models, register_model

__all__ = [
    "ImageClassifier",
    "ModelBuilder",
    "create_model",
    "describe_model",
    "find_builder",
    "list_models",
    "register_model",
]
