"""Base models: the contract (`base`), one module a family, and the registry that loads them by name."""

from vader.files import quiet as _quiet  # noqa: F401 (before a family loads what warns on being loaded)
from vader.models.adapters import load_adapter, load_into
from vader.models.base import VideoModel
from vader.models.hunyuan_lora import NAMES as _hunyuan_names  # noqa: F401 (registers its files wherever adapters are)
from vader.models.ltx2_lora import NAMES as _ltx2_names  # noqa: F401 (registers its files wherever adapters are loaded)
from vader.models.ltx_lora import NAMES as _ltx_names  # noqa: F401 (the same)
from vader.models.registry import load_model, model_names
from vader.models.videocrafter import lora as _lora  # noqa: F401 (the same)
from vader.models.wan_lora import NAMES as _wan_names  # noqa: F401 (the same)

__all__ = ["VideoModel", "load_adapter", "load_into", "load_model", "model_names"]
