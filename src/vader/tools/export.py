"""Takes a trained adapter out of the package: as a LoRA file, or merged into a whole model in its family's format.

What is written needs nothing of ours: `TextToVideoSDPipeline.from_pretrained(folder)` loads a merged ModelScope,
VideoCrafter's own code a merged VideoCrafter2.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import nn
from transformers import CLIPTokenizer

from vader.errors import UserError
from vader.files.atomic import atomic_folder, atomic_write
from vader.models.base import VideoModel
from vader.models.videocrafter.lora import SUFFIXES, import_lora
from vader.networks.adapter import FILE_NAME, adapter_file, load_adapter, merge_adapter, read_metadata

HEADROOM = 1.05  # settings and headers beside the weights


def export_merged(model: VideoModel, adapter: Path | str, out_dir: Path | str) -> Path:
    """Writes the whole model (see `VideoModel.exporter`) with the adapter's weights merged into the denoiser.

    Args:
        model: the base model, loaded in the precision that the export shall have (float32 keeps every digit).
            The adapter is merged into it in place: afterwards it is the exported model.
        adapter: the adapter's file or folder.
        out_dir: a folder that is missing or empty.

    Raises:
        UserError: no adapter or not of this model, a folder that is not empty or not writable, a full disk,
            or a family that has no format to export.
    """
    write = model.exporter()
    load_adapter(model.denoiser, adapter, model.denoiser_name)
    out = prepare_folder(out_dir, HEADROOM * sum(_size(network) for network in model.networks().values()))
    merge_adapter(model.denoiser)
    with atomic_folder(out) as temporary:
        write(temporary)
        if (temporary / "tokenizer").is_dir():  # image-to-video models have none
            _write_vocabulary(temporary / "tokenizer")
    return out


def export_adapter(adapter: Path | str, out_dir: Path | str) -> Path:
    """Copies an adapter (diffusers' LoRA format) into a folder that is missing or empty; returns the new file.

    Raises:
        UserError: no adapter, or a folder that is not empty or not writable, or a full disk.
    """
    read_metadata(adapter)  # an adapter indeed
    source = adapter_file(adapter)
    target = prepare_folder(out_dir, source.stat().st_size) / FILE_NAME
    if source.suffix in SUFFIXES:
        return import_lora(source, target)
    with atomic_write(target) as temporary:
        shutil.copyfile(source, temporary)
    return target


def prepare_folder(out_dir: Path | str, bytes_needed: float) -> Path:
    """Makes an empty folder on a disk that has the space.

    Raises:
        UserError: it is not empty, cannot be made or written, or the disk is too full.
    """
    out = Path(out_dir).expanduser()
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise UserError(f"folder {str(out)!r} is not empty: name a new one")
        (out / ".probe").touch()
        (out / ".probe").unlink()
    except OSError as error:
        raise UserError(f"cannot write to folder {str(out)!r}: {error.strerror}") from error
    free = shutil.disk_usage(out).free
    if free < bytes_needed:
        raise UserError(
            f"not enough disk for {str(out)!r}: {bytes_needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free"
        )
    return out


def _size(network: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in network.parameters())


def _write_vocabulary(folder: Path) -> None:
    """`vocab.json` and `merges.txt`, which transformers 4 reads, beside the `tokenizer.json` that 5 writes alone."""
    if not (folder / "vocab.json").exists():
        CLIPTokenizer.from_pretrained(folder).backend_tokenizer.model.save(str(folder))
