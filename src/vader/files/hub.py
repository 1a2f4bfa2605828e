"""Where weights lie, and transformers' and diffusers' own networks from there.

In comes what a recipe names in one word: `tiny` (the tiny world's own), a folder, a file, a hub id `owner/repo`, or one
file there, `owner/repo/file`. Out come paths, settings and whole networks, frozen and in eval mode, or one `UserError`
that says which part is missing. A checkpoint in diffusers' layout is a folder with a subfolder for each component.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import torch
import transformers
from diffusers.models import ModelMixin
from huggingface_hub import hf_hub_download, model_info, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError

from vader.errors import UserError, nearest
from vader.files import quiet as _quiet  # noqa: F401 (the libraries speak less)
from vader.files.paths import user_path
from vader.plugins import one_line

TINY = "tiny"
TINY_WEIGHTS = Path(__file__).parents[1] / "tinyworld" / "weights"
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
DTYPE = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"  # transformers' word for it
PATIENCE = 5  # seconds that the hub has for an answer
Result = TypeVar("Result")


# ---- where ----


def tiny_weights(name: str) -> Path:
    """Where the package keeps the tiny world's weights `name`: "modelscope", "clip", "aesthetic_head.safetensors".

    Raises:
        UserError: there are no such weights.
    """
    path = TINY_WEIGHTS / name
    if not path.exists():
        known = [entry.name for entry in TINY_WEIGHTS.glob("*")]
        raise UserError(f"the tiny world has no weights {name!r}: {nearest(name, known)}")
    return path


def _is_tiny(source: str, name: str) -> bool:
    return source in (TINY, f"{TINY}/{name}") or source.startswith(f"{TINY}/{name}-")


def resolve(checkpoint: str, tiny: str) -> str:
    """The folder or hub id behind what the user wrote.

    Args:
        tiny: the tiny world's weights that `tiny` and `tiny/<name>` stand for; `tiny/<name>-<variant>` is another set.

    Raises:
        UserError: it is neither a folder nor a hub id that is cached here or that the hub has.
    """
    if _is_tiny(checkpoint, tiny):
        return str(tiny_weights(tiny if checkpoint == TINY else checkpoint.removeprefix(f"{TINY}/")))
    path = user_path(checkpoint, "checkpoint")
    if path.is_dir():
        return str(path)
    if path.exists():
        raise UserError(f"checkpoint {checkpoint!r} is a file: name the folder that it is in, or a hub id")
    if not HUB_ID.fullmatch(checkpoint):
        raise UserError(
            f"checkpoint {checkpoint!r} is no folder here and no hub id: use 'tiny', a folder or 'owner/name'"
        )
    return _on_hub(checkpoint)


def find_file(source: str, tiny: str) -> Path:
    """A single weight file, downloaded if `source` is `owner/repo/file`; `tiny` names the tiny world's own.

    Raises:
        UserError: there is no such file here, nor on the hub.
    """
    if _is_tiny(source, tiny):
        return tiny_weights(tiny)
    path = user_path(source, "weight file")
    if path.is_file():
        return path
    owner_and_repo, file = "/".join(source.split("/")[:2]), "/".join(source.split("/")[2:])
    if not file or not HUB_ID.fullmatch(owner_and_repo):
        raise UserError(f"no weight file at {source!r}: give a file that exists or a hub file like owner/repo/file")
    try:
        return Path(hf_hub_download(owner_and_repo, file, local_files_only=True))
    except LocalEntryNotFoundError:
        return _downloaded(source, owner_and_repo, file)


def _downloaded(source: str, repo: str, file: str) -> Path:
    """A file of a repository that the hub has: asked once, where a download would retry for half a minute."""
    try:
        model_info(repo, timeout=PATIENCE)
        return Path(hf_hub_download(repo, file))
    except Exception as error:  # the hub's library changes its HTTP client, and so the class, between versions
        raise Missing([source], one_line(error)) from error


def find_component(source: str, subfolder: str, file: str) -> Path:
    """A component's file, downloaded from a hub id; the subfolder of a checkpoint that is one component is "".

    Raises:
        UserError: the hub does not give it.
    """
    name = PurePosixPath(subfolder, file).as_posix()
    if Path(source).is_dir():
        return Path(source, name)
    return _translated(lambda: Path(hf_hub_download(source, name)), source, name)


def check_components(source: str, components: dict[str, str]) -> None:
    """Before anything is loaded: a folder has every component (subfolder -> a file that must be in it).

    Raises:
        UserError: naming all that are missing.
    """
    folder = Path(source)
    named = [f"{subfolder}/{file}" for subfolder, file in components.items()]
    missing = [name for name in named if folder.is_dir() and not (folder / name).is_file()]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(f"checkpoint {source!r} is not whole: {', '.join(missing)} {verb} missing")


@cache
def _on_hub(hub_id: str) -> str:
    """A hub id that the hub has; where it cannot be asked, the folder in which it is cached, so that nobody asks again.

    The hub is asked once: downloads would retry for half a minute, each file anew.
    """
    try:
        model_info(hub_id, timeout=PATIENCE)
    except Exception as error:  # the hub's library changes its HTTP client, and so the class, between versions
        try:
            return snapshot_download(hub_id, local_files_only=True)
        except LocalEntryNotFoundError:
            raise Missing([hub_id], one_line(error)) from error
    return hub_id


class Missing(UserError):
    """Repositories or files that are neither here nor to be had from the hub."""

    def __init__(self, sources: Sequence[str], reason: str) -> None:
        """
        Args:
            sources: each `owner/repo` or `owner/repo/file`.
            reason: why the hub does not give them.
        """
        self.sources, self.reason = list(dict.fromkeys(sources)), reason
        one = len(self.sources) == 1
        download = _download_command(self.sources[0]) if one else "hf download OWNER/REPO [FILE] --local-dir FOLDER"
        super().__init__(
            f"{', '.join(map(repr, self.sources))} {'is' if one else 'are'} not here and not to be had from the hub "
            f"({reason}): where there is a network, '{download}'{'' if one else ' for each'}, and name what is in "
            f"FOLDER in {'its' if one else 'their'} place"
        )


def _download_command(source: str) -> str:
    owner, repo, *file = source.split("/")
    return " ".join(["hf download", f"{owner}/{repo}", *(["/".join(file)] if file else []), "--local-dir FOLDER"])


def together(*finds: Callable[[], Any]) -> list[Any]:
    """What each of these gives. Raises `Missing` of all that are missing, not of the first alone."""
    found, missing = [], []
    for find in finds:
        try:
            found.append(find())
        except Missing as error:
            missing.append(error)
    if missing:
        raise Missing([source for error in missing for source in error.sources], missing[0].reason)
    return found


# ---- what ----


def load_config(source: str, subfolder: str, file: str = "config.json") -> dict[str, Any]:
    """A component's JSON settings."""
    path = find_component(source, subfolder, file)
    return _translated(lambda: json.loads(path.read_text()), source, f"{subfolder}/{file}".lstrip("/"))


def load_network(network: type[Any], source: str, subfolder: str, dtype: torch.dtype, **options: Any) -> Any:
    """One network of a checkpoint of a base model, of exactly that class.

    Args:
        options: as in `load_pretrained`.

    Raises:
        UserError: as `load_pretrained`, or it is of another class.
    """
    config, part = load_config(source, subfolder), subfolder or "network"
    classes = config.get("architectures") or [config.get("_class_name")]
    if network.__name__ not in classes:
        raise UserError(f"checkpoint {source!r} is of another family: its {part} is no {network.__name__}")
    return load_pretrained(network, source, part, dtype=dtype, subfolder=subfolder, **options)


def load_pretrained(
    network: type[Any], source: str | None, part: str, *, dtype: torch.dtype = torch.float32, **options: Any
) -> Any:
    """A network of transformers or diffusers: frozen, in eval mode, every weight found (random ones say nothing).

    Its weights are in `dtype`, but for those that its class keeps in float32.

    Args:
        source: a folder or hub id; None: the options have `config` and `state_dict`.
        part: what it is, for errors: "unet", "CLIP"; without a source also where it is from.
        options: more for the library's `from_pretrained`.

    Raises:
        UserError: it cannot be read, or lacks weights.
    """
    options["torch_dtype" if issubclass(network, ModelMixin) else DTYPE] = dtype
    loaded, report = from_pretrained(network, source, part, output_loading_info=True, **options)
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{_named(part, source)} is not whole: it lacks {len(missing)} weights ({missing[0]} ...)")
    return loaded.eval().requires_grad_(False)


def load_tokenizer(tokenizer: type[Any], source: str, subfolder: str = "") -> Any:
    return from_pretrained(tokenizer, source, subfolder or "tokenizer", subfolder=subfolder)


def from_pretrained(cls: type[Any], source: str | None, part: str, **options: Any) -> Any:
    """`cls.from_pretrained(source)`, whose failures are one `UserError`."""
    return _translated(lambda: cls.from_pretrained(source, **options), source, part)


def _translated(load: Callable[[], Result], source: str | None, part: str) -> Result:
    """Calls a library's loader; its long errors become one line that names the component."""
    try:
        return load()
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"cannot load {_named(part, source)}: {one_line(error)}") from error


def _named(part: str, source: str | None) -> str:
    return part if source is None else f"{part} of checkpoint {source!r}"
