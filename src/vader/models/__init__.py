"""Base models: the contract (`base`), one module a family, and the registry that loads them by name."""

from vader.models.base import VideoModel
from vader.models.registry import load_model, model_names

__all__ = ["VideoModel", "load_model", "model_names"]
