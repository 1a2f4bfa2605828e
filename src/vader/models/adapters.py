"""The public ways to attach an adapter: to a whole model, to one network of it, or to a diffusers pipeline.

In go what carries it and where its files lie; out comes the same object, changed in place.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from torch import nn

from vader.errors import UserError
from vader.models.base import VideoModel
from vader.networks import adapter_files

Target = TypeVar("Target")
Network = TypeVar("Network", nn.Module, VideoModel)


def load_adapter(target: Network, path: Path | str, component: str | None = None) -> Network:
    """Attaches an adapter to a `VideoModel` or to one network, in place, or sets the weights of one that is there.

    Args:
        target: the model or network that it was trained on, or a fine-tune of the same architecture.
        path: the file, or the folder that holds it: `runs/x/adapter`.
        component: of a network, whose weights to take ("unet"); None where there are only one's. A model's denoisers
            each get their own.

    Raises:
        UserError: no such file, no adapter, or the adapter of another model.
    """
    if isinstance(target, VideoModel):
        if component is not None:
            raise UserError("a model's denoisers each get their own weights: leave the component out")
        return load_into(target, path)
    if not isinstance(target, nn.Module):
        raise _nothing_to_adapt(target)
    adapter_files.load_adapter(target, path, component)
    return target


def load_into(target: Target, path: Path | str) -> Target:
    """Attaches an adapter to a `VideoModel`, a diffusers pipeline or a network: `load_into(pipe, "runs/x/adapter")`.

    Raises:
        UserError: as `load_adapter`.
    """
    if isinstance(target, VideoModel):
        adapter_files.load_adapters(target.denoisers, path, target.family)
        return target
    if isinstance(target, nn.Module):
        adapter_files.load_adapter(target, path)
        return target
    networks = {name: part for name, part in getattr(target, "__dict__", {}).items() if isinstance(part, nn.Module)}
    if not networks:
        raise _nothing_to_adapt(target)
    adapter_files.load_adapters(networks, path)
    return target


def _nothing_to_adapt(target: object) -> UserError:
    kind = type(target).__name__
    return UserError(f"a {kind} carries no adapter: give a model of vader.load_model, a network, or a pipeline")
