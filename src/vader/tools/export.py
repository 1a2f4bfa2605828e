"""Takes a trained adapter out of the package: as a LoRA file, or merged into a whole model in its family's format.

What is written needs nothing of ours: `TextToVideoSDPipeline.from_pretrained(folder)` loads a merged ModelScope,
VideoCrafter's own code a merged VideoCrafter2, Open-Sora's own code a merged transformer.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from transformers import CLIPTokenizer

from vader.errors import UserError
from vader.files.lock import new_folder
from vader.files.paths import user_path
from vader.files.weights import save_tensors
from vader.models.base import VideoModel
from vader.models.registry import FAMILIES, model_class
from vader.networks.adapter import merge_adapters
from vader.networks.adapter_files import (
    FILE_NAME,
    AdapterFile,
    Content,
    file_name,
    is_foreign,
    key_prefix,
    load_adapters,
    read_adapters,
)
from vader.networks.measure import weight_bytes
from vader.networks.original_names import names_of, original_file, to_original

FORMS = ("diffusers", "comfyui")
HEADROOM = 1.05  # settings and headers beside the weights


def export_merged(model: VideoModel, adapter: Path | str, out_dir: Path | str) -> Path:
    """Writes the whole model (see `VideoModel.exporter`) with the adapter's weights merged into its denoisers.

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
    load_adapters(model.denoisers, adapter, model.family)
    out, size = user_path(out_dir, "--out"), sum(weight_bytes(network) for network in model.networks().values())
    with new_folder(out) as temporary:
        _check_room(out, HEADROOM * size)
        merge_adapters(model.denoisers)
        write(temporary)
        _write_vocabulary(temporary / "tokenizer")
    return out


def export_adapter(adapter: Path | str, out_dir: Path | str, form: str = "diffusers") -> list[Path]:
    """Writes an adapter into a folder that is missing or empty: in diffusers' LoRA format, or under the names of its
    model's original code, which ComfyUI reads.

    Returns:
        The new files, one a denoiser.

    Raises:
        UserError: no adapter, a folder that is not empty or not writable, a full disk, layers without such names, or
            no such form.
    """
    if form not in FORMS:
        raise UserError(f"--format {form!r} is none: {' or '.join(FORMS)}")
    files, out = read_adapters(adapter), user_path(out_dir, "--out")
    renamed = original_files(files) if form == "comfyui" else {}
    with new_folder(out) as temporary:
        _check_room(out, sum(file.path.stat().st_size for file in files))
        for name, (weights, header) in renamed.items():
            save_tensors(weights, temporary / name, header)
        return [out / name for name in renamed or [_copy(file, temporary).name for file in files]]


def original_files(files: Sequence[AdapterFile]) -> dict[str, Content]:
    """Adapters under the names of their model's original code, with nothing in the header that diffusers reads.

    Returns:
        Weights and header by the new file's name: `lora.safetensors`, and for experts what part of the noise it is for.

    Raises:
        UserError: a layer, or the whole family, has no names that loaders know.
    """
    found = {}
    for file in files:
        names, (component,) = names_of(file.ours.get("family")), file.components
        expert = len(files) > 1 or component != key_prefix(component)
        name = original_file(names.experts[component] if expert and names.experts else None)
        found[name] = to_original(_folded(file, component), names), {"format": "pt", "vader": json.dumps(file.ours)}
    return found


def _folded(file: AdapterFile, component: str) -> dict[str, Tensor]:
    """A file's weights by layer, all of their scale in B."""
    state = file.state(component)
    rank = len(next(weight for name, weight in state.items() if name.endswith("lora_A.weight")))
    scale = file.alpha(component, rank) / rank
    return {name: weight * (scale if name.endswith("lora_B.weight") else 1.0) for name, weight in state.items()}


def loading_lines(written: Sequence[Path]) -> list[str]:
    """What to write in Python to use an exported adapter: by this package, and where diffusers knows how, without it.

    Of some built-in families' networks no loader of diffusers knows any (as of 0.42).
    """
    files = [file for path in written for file in read_adapters(path)]
    where, family = json.dumps(str(written[0].parent), ensure_ascii=False), files[0].ours.get("family")
    cls = model_class(family) if family in FAMILIES else None
    if cls and cls.lora_pipeline:
        return [_pipeline_line(file, where, cls.lora_pipeline) for file in files]
    target = files[0].components[0] if len(files) == 1 else "pipe"
    ours = f"into any network: vader.load_into({target}, {where})"
    known = "one of diffusers" if cls is None else cls.lora_network and f"diffusers' {cls.lora_network}"
    return [*(f"into {known}: {_diffusers_line(file, where)}" for file in files if known), ours]


def _pipeline_line(file: AdapterFile, where: str, pipeline: str) -> str:
    """Files are told by name: a folder may hold several. Experts after the first have to be asked for."""
    (component,) = file.components
    expert = "" if component == key_prefix(component) else f", load_into_{component}=True"
    name = json.dumps(file.path.name)
    return f"into diffusers' {pipeline}: pipe.load_lora_weights({where}, weight_name={name}{expert})"


def _diffusers_line(file: AdapterFile, where: str) -> str:
    """A network is not told the file's name by its folder, as a pipeline is; its keys may begin with another word."""
    component = file.components[0]
    prefix = key_prefix(component)
    told = "" if prefix == "transformer" else f", prefix={json.dumps(prefix)}"  # diffusers' default
    return f"{component}.load_lora_adapter({where}, weight_name={json.dumps(file.path.name)}{told})"


def _copy(file: AdapterFile, folder: Path) -> Path:
    target = folder / (file.path.name if file.path.match(file_name("*")) else FILE_NAME)
    if is_foreign(file.path):
        save_tensors(file.weights, target, file.header)
    else:
        shutil.copyfile(file.path, target)
    return target


def _check_room(out: Path, needed: float) -> None:
    """Raises `UserError` unless the disk of a folder's parent has so many bytes left."""
    free = shutil.disk_usage(out.absolute().parent).free
    if free < needed:
        raise UserError(f"not enough disk for {str(out)!r}: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free")


def _write_vocabulary(folder: Path) -> None:
    """`vocab.json` and `merges.txt`, which transformers 4 reads, beside the `tokenizer.json` that 5 writes alone."""
    if _is_clip_tokenizer(folder) and not (folder / "vocab.json").exists():
        CLIPTokenizer.from_pretrained(folder).backend_tokenizer.model.save(str(folder))


def _is_clip_tokenizer(folder: Path) -> bool:
    settings = folder / "tokenizer_config.json"
    return settings.is_file() and json.loads(settings.read_text())["tokenizer_class"].startswith("CLIP")
