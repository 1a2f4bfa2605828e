"""A checkpoint in diffusers' pipeline layout, in a folder or on the hub: one subfolder a component.

In comes what a recipe names (`tiny`, a folder, a hub id); out come single components, frozen and in eval
mode, or a `UserError` that says which part is missing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import torch
import transformers
from diffusers.models import ModelMixin
from huggingface_hub import hf_hub_download, model_info, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vader import tinyworld
from vader.errors import UserError
from vader.plugins import one_line

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
DTYPE = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"  # transformers' word for it
Result = TypeVar("Result")
Network = TypeVar("Network", bound=nn.Module)


def resolve(checkpoint: str, family: str) -> str:
    """The folder or hub id behind what the user wrote; `tiny` and `tiny/<family>` are the tiny world's own weights,
    `tiny/<family>-<variant>` another set of them.

    Raises:
        UserError: it is neither a folder nor could it be a hub id.
    """
    if checkpoint in ("tiny", f"tiny/{family}") or checkpoint.startswith(f"tiny/{family}-"):
        return str(tinyworld.weights_path(family if checkpoint == "tiny" else checkpoint.removeprefix("tiny/")))
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        return str(path)
    if path.exists():
        raise UserError(
            f"checkpoint {checkpoint!r} is a file: name the folder that holds its components (unet/, vae/ ...)"
        )
    if not HUB_ID.fullmatch(checkpoint):
        raise UserError(
            f"checkpoint {checkpoint!r} is no folder here and no hub id: use 'tiny', a folder or 'user/name'"
        )
    _check_hub(checkpoint)
    return checkpoint


def _check_hub(hub_id: str) -> None:
    """A hub id is cached here, or the hub has it: asked once, where a download would retry for half a minute."""
    try:
        snapshot_download(hub_id, local_files_only=True)
    except LocalEntryNotFoundError:
        try:
            model_info(hub_id, timeout=15)
        except Exception as error:  # the hub's library changes its HTTP client, and so the class, between versions
            reason = one_line(error)
            raise UserError(
                f"checkpoint {hub_id!r} is no folder here and not to be had from the hub: {reason}"
            ) from error


def check_components(source: str, components: dict[str, str]) -> None:
    """Before anything is loaded: a folder has every component (subfolder -> a file that must be in it).

    Raises:
        UserError: naming the first missing file.
    """
    folder = Path(source)
    for subfolder, file in components.items():
        if folder.is_dir() and not (folder / subfolder / file).is_file():
            raise UserError(f"checkpoint {source!r} is not whole: {subfolder}/{file} is missing")


def find_file(source: str, subfolder: str, file: str) -> Path:
    """A component's file, downloaded from a hub id; the subfolder of a checkpoint that is one component is "".

    Raises:
        UserError: the hub does not give it.
    """
    name = PurePosixPath(subfolder, file).as_posix()
    if Path(source).is_dir():
        return Path(source, name)
    return _translated(lambda: Path(hf_hub_download(source, name)), source, name)


def load_config(source: str, subfolder: str, file: str = "config.json") -> dict[str, Any]:
    """A component's JSON settings."""
    path = find_file(source, subfolder, file)
    return _translated(lambda: json.loads(path.read_text()), source, f"{subfolder}/{file}".lstrip("/"))


def load_tensors(source: str, subfolder: str, file: str = "model.safetensors") -> dict[str, Tensor]:
    """The tensors of a component's weight file."""
    path = find_file(source, subfolder, file)
    return _translated(lambda: load_file(path), source, f"{subfolder}/{file}".lstrip("/"))


def fill(
    network: Network, weights: Mapping[str, Tensor], dtype: torch.dtype, label: str, keep: Collection[str] = ()
) -> Network:
    """Gives a network of our own, built on the meta device, its weights: frozen, in eval mode, in `dtype`.

    Args:
        weights: exactly the network's state dict, by name and shape.
        label: what they are, for the error: "transformer of checkpoint 'x'".
        keep: names of those that stay in their own precision.

    Raises:
        UserError: naming the first weight that is missing, unknown or of another shape.
    """
    expected = network.state_dict()
    if missing := sorted(expected.keys() - weights.keys()):
        raise UserError(f"{label} is not whole: it lacks {len(missing)} weights ({missing[0]} ...)")
    if unknown := sorted(weights.keys() - expected.keys()):
        raise UserError(f"{label} is of another kind: it has {len(unknown)} unknown weights ({unknown[0]} ...)")
    for name, weight in weights.items():
        if weight.shape != expected[name].shape:
            shapes = f"{list(weight.shape)}, should be {list(expected[name].shape)}"
            raise UserError(f"{label} does not fit its config.json: {name} is {shapes}")
    cast = {name: weight if name in keep else weight.to(dtype) for name, weight in weights.items()}
    network.load_state_dict(cast, assign=True)
    return network.eval().requires_grad_(False)


def load_network(network: type[Any], source: str, subfolder: str, dtype: torch.dtype, **options: Any) -> Any:
    """One network of the checkpoint: frozen, in eval mode, floating-point weights in `dtype`.

    Args:
        options: of the library's `from_pretrained`, beside `dtype`.

    Raises:
        UserError: it cannot be read, is of another class, or lacks weights.
    """
    config, part = load_config(source, subfolder), subfolder or "network"
    classes = config.get("architectures") or [config.get("_class_name")]
    if network.__name__ not in classes:
        raise UserError(f"checkpoint {source!r} is of another family: its {part} is no {network.__name__}")
    options["torch_dtype" if issubclass(network, ModelMixin) else DTYPE] = dtype
    loaded, report = _translated(
        lambda: network.from_pretrained(source, subfolder=subfolder, output_loading_info=True, **options),
        source,
        part,
    )
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"checkpoint {source!r} is not whole: {part} lacks {len(missing)} weights ({missing[0]} ...)")
    quantized = "quantization_config" in options  # it has its types, and refuses others
    return (loaded if quantized else loaded.to(dtype)).eval().requires_grad_(False)


def load_tokenizer(tokenizer: type[Any], source: str, subfolder: str) -> Any:
    return _translated(lambda: tokenizer.from_pretrained(source, subfolder=subfolder), source, subfolder or "tokenizer")


def _translated(load: Callable[[], Result], source: str, part: str) -> Result:
    """Calls a library's loader; its long errors become one line that names the component."""
    try:
        return load()
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"cannot load {part} of checkpoint {source!r}: {one_line(error)}") from error
