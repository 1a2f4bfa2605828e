"""Where a reward's weights lie: in the tiny world, in a local file or folder, or on the hub.

Recipes name them in one word: `tiny`, a path, `owner/repo` (a folder on the hub) or `owner/repo/file`
(one file there). Out comes what a loader takes; whatever is missing is one `UserError`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from torch import Tensor

from vader.errors import UserError
from vader.files.weights import read_weights
from vader.plugins import one_line
from vader.tinyworld import weights_path

TINY = "tiny"


def find_folder(source: str, tiny: str) -> str:
    """A local folder or a hub id, as `from_pretrained` takes it; `tiny` names the tiny world's own.

    Raises:
        UserError: it is a path, and nothing is there.
    """
    if source == TINY:
        return str(weights_path(tiny))
    path = Path(source).expanduser()
    if path.exists():
        return str(path)
    if _is_path(source) or len(path.parts) != 2:
        raise UserError(f"no model at {source!r}: give a folder that exists or a hub id like owner/name")
    return source


def find_file(source: str, tiny: str) -> Path:
    """A local weight file, downloaded if `source` is `owner/repo/file`; `tiny` names the tiny world's own.

    Raises:
        UserError: there is no such file here, nor on the hub.
    """
    if source == TINY:
        return weights_path(tiny)
    path = Path(source).expanduser()
    if path.is_file():
        return path
    parts = source.split("/", 2)
    if _is_path(source) or len(parts) < 3:
        raise UserError(f"no weight file at {source!r}: give a file that exists or a hub file like owner/repo/file")
    try:
        return Path(hf_hub_download("/".join(parts[:2]), parts[2]))
    except (OSError, ValueError) as error:
        raise UserError(f"{source!r} is no file here, and the hub did not give it: {one_line(error)}") from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a torch checkpoint (bare, or under `state_dict`), without `module.`.

    Raises:
        UserError: the file is neither.
    """
    content = read_weights(path)
    tensors = content.get("state_dict", content)
    return {name.removeprefix("module."): value for name, value in tensors.items() if isinstance(value, Tensor)}


def load_pretrained(cls: Any, source: str | None, what: str, label: str | None = None, **kwargs: Any) -> Any:
    """A transformers model in float32 of which every weight was found: a fresh random one would be a silent error.

    Args:
        cls: transformers' class.
        source: what its `from_pretrained` takes.
        what: the kind of model, and `label` its source if not that: for the errors.
        kwargs: more for `from_pretrained`.

    Raises:
        UserError: there is no such model, or its file lacks weights.
    """
    label = label or str(source)
    model, info = from_pretrained(cls, source, what, label, output_loading_info=True, **kwargs)
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"{label} is not the {what} its config says: it lacks {len(missing)} weights, as {missing[0]}")
    return model.float()


def from_pretrained(cls: Any, source: str | None, what: str, label: str | None = None, **kwargs: Any) -> Any:
    """`cls.from_pretrained(source)`, whose failures are one `UserError`."""
    try:
        return cls.from_pretrained(source, **kwargs)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"no {what} could be loaded from {label or source}: {one_line(error)}") from error


def _is_path(source: str) -> bool:
    return source.startswith((".", "/", "~"))
