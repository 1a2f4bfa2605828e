"""Where weights lie, and transformers' and diffusers' own networks from there.

In comes what a recipe names in one word: `tiny` (the tiny world's own), a folder, a file, a hub id `owner/repo`, or one
file there, `owner/repo/file`. Out come paths, settings and whole networks, frozen and in eval mode, or one `UserError`
that says which part is missing. A checkpoint in diffusers' layout is a folder with a subfolder for each component.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import transformers
from diffusers.models import ModelMixin
from huggingface_hub import file_exists, hf_hub_download, model_info, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import Tensor

from vader.errors import UserError, nearest
from vader.files import quiet as _quiet  # noqa: F401 (the libraries speak less)
from vader.files.foreign import WEIGHTS, reading, require_regular, require_regular_files
from vader.files.paths import user_path
from vader.files.weights import check_numbers, load_tensors
from vader.plugins import one_line

TINY = "tiny"
TINY_WEIGHTS = Path(__file__).parents[1] / "tinyworld" / "weights"
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
DTYPE = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"  # transformers' word for it
PATIENCE = 5  # seconds that the hub has for an answer
TOKENIZER_CONFIG = "tokenizer_config.json"
SETTINGS = {  # of components that are neither networks nor tokenizers
    "scheduler": "scheduler_config.json",
    "guider": "guider_config.json",
    "feature_extractor": "preprocessor_config.json",
    "image_processor": "preprocessor_config.json",
}
VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model")  # what a tokenizer's folder has of words, by the library
BYTES = 256  # as many words have tokenizers that need no vocabulary
# Of counts in settings, by the end of their names: beyond any network's, and making so many would not end.
MOST = {"layers": 1000, "depth": 1000, "blocks": 1000, "per_block": 1000, "extra_ids": 100_000}
STEMS = ("model", "diffusion_pytorch_model", "pytorch_model")  # of weight files, transformers' and diffusers'
ENDINGS = ("safetensors", "bin", "safetensors.index.json", "bin.index.json")
VARIANT = re.compile(rf"(?:{'|'.join(STEMS)})(?:\.(?:safetensors|bin)\.index)?\.(\w+)\.(?:safetensors|bin|json)")


# ---- where ----


def tiny_weights(name: str) -> Path:
    """Where the package keeps the tiny world's weights `name`: "modelscope", "clip", "aesthetic_head.safetensors".

    Raises:
        UserError: there are no such weights; `NoTwin` if there is nothing of the kind.
    """
    path = TINY_WEIGHTS / name
    if path.exists():
        return path
    if kin := [entry.name for entry in TINY_WEIGHTS.glob(f"{name.partition('-')[0]}*")]:
        raise UserError(f"the tiny world has no weights {name!r}: {nearest(name, kin)}")
    raise NoTwin(name)


class NoTwin(UserError):
    """Of something that the tiny world has no weights of; `instead` says what to do."""

    def __init__(self, name: str) -> None:
        """
        Args:
            name: what its weights would be called.
        """
        forms = "a file or a hub file 'owner/repo/file'" if Path(name).suffix else "a folder or a hub id 'owner/name'"
        self.instead = f"name {forms}"
        super().__init__(f"the tiny world has no {Path(name).stem!r}: {self.instead}")


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
    with reading(f"cannot load {_named(name, source)}"):
        return Path(hf_hub_download(source, name))


def has_file(source: str, name: str) -> bool:
    """Whether a folder or a hub id has a file of that name.

    Raises:
        UserError: the hub does not say.
    """
    if Path(source).is_dir():
        return Path(source, name).is_file()
    if isinstance(try_to_load_from_cache(source, name), str):
        return True
    with reading(f"cannot look for {_named(name, source)}"):
        return file_exists(source, name)


def settings_file(component: str) -> str:
    """The file that a component (subfolder) of a checkpoint in diffusers' layout has its settings in."""
    return TOKENIZER_CONFIG if component.startswith("tokenizer") else SETTINGS.get(component, "config.json")


def check_components(source: str, components: Iterable[str]) -> None:
    """Before anything is loaded: a folder has every component, a subfolder with settings.

    Raises:
        UserError: naming all that are missing.
    """
    folder = Path(source)
    named = [f"{component}/{settings_file(component)}" for component in components]
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


def load_config(source: str, subfolder: str, file: str | None = None) -> dict[str, Any]:
    """A component's JSON settings.

    Args:
        file: None is `settings_file`.

    Raises:
        UserError: it is missing, cannot be read, or holds no settings.
    """
    file = file or settings_file(subfolder)
    path = find_component(source, subfolder, file)
    label = _named(f"{subfolder}/{file}".lstrip("/"), source)
    require_regular(path, label)
    with reading(f"cannot load {label}"):
        config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise UserError(f"cannot load {label}: it is no JSON object of settings")
    _check_counts(config, label)
    return config


def _check_counts(config: Any, label: str) -> None:
    """Raises `UserError` if settings, however deep, ask for more of something than any network has."""
    for key, value in config.items():
        most = next((most for end, most in MOST.items() if key.endswith(end)), math.inf)
        if isinstance(value, dict):
            _check_counts(value, label)
        elif isinstance(value, int) and value > most:
            raise UserError(f"cannot load {label}: its {key} is {value}, and no network has more than {most}")


def load_network(network: type[Any], source: str, subfolder: str, dtype: torch.dtype, **options: Any) -> Any:
    """One network of a checkpoint of a base model, of exactly that class.

    Args:
        options: as in `load_pretrained`.

    Raises:
        UserError: as `load_pretrained`, or it is of another class.
    """
    config, part = load_config(source, subfolder), subfolder or "network"
    classes = config.get("architectures") or [config.get("_class_name")]
    if not isinstance(classes, list) or network.__name__ not in classes:
        raise UserError(f"checkpoint {source!r} is of another family: its {part} is no {network.__name__}")
    return load_pretrained(network, source, part, dtype=dtype, subfolder=subfolder, **options)


def load_pretrained(
    network: type[Any], source: str | None, part: str, *, dtype: torch.dtype = torch.float32, **options: Any
) -> Any:
    """A network of transformers or diffusers: frozen, in eval mode, every weight found (random ones say nothing).

    Its weights are in `dtype`, but for those that its class keeps in float32. A folder may hold its weights in a
    variant alone (`model.fp16.safetensors`).

    Args:
        source: a folder or hub id; None: the options have `config` and `state_dict`.
        part: what it is, for errors: "unet", "CLIP"; without a source also where it is from.
        options: more for the library's `from_pretrained`.

    Raises:
        UserError: it cannot be read, lacks weights, or holds some that are no numbers.
    """
    if issubclass(network, ModelMixin):
        options["torch_dtype"] = dtype
    else:  # transformers names no weight in its error, so its report has to
        options |= {DTYPE: dtype, "ignore_mismatched_sizes": True}
    if source is not None:
        _check_weights(Path(source, options.get("subfolder", "")), _named(part, source))
    if variant := source and weight_variant(Path(source, options.get("subfolder", ""))):
        options["variant"] = variant
    loaded, report = from_pretrained(network, source, part, output_loading_info=True, **options)
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{_named(part, source)} is not whole: it lacks {len(missing)} weights ({missing[0]} ...)")
    for name, given, expected in sorted(report["mismatched_keys"]):
        shapes = f"{name} is {list(given)}, should be {list(expected)}"
        raise UserError(f"{_named(part, source)} is of another architecture: {shapes}")
    check_numbers(loaded.state_dict(), _named(part, source))
    return loaded.eval().requires_grad_(False)


def _check_weights(folder: Path, label: str) -> None:
    """Raises `UserError` if a network's folder holds no file of weights."""
    if (folder / "config.json").is_file() and not any(file.suffix in WEIGHTS for file in folder.iterdir()):
        raise UserError(f"{label} is not whole: it has no weight file")


def weight_variant(folder: Path) -> str | None:
    """The variant ("fp16", "bf16") of a folder's weight files; None where a plain one is, or none at all."""
    names = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    if any(f"{stem}.{ending}" in names for stem in STEMS for ending in ENDINGS):
        return None
    return next((found[1] for name in names if (found := VARIANT.fullmatch(name))), None)


def load_weights(source: str, subfolder: str) -> dict[str, Tensor]:
    """The tensors of a network whose class is in no library: of one file, plain or a variant, or of several shards.

    Raises:
        UserError: there is none, or one cannot be read.
    """
    variant = weight_variant(Path(source, subfolder))
    for stem in STEMS:
        for ending in ("safetensors", "bin"):
            file = f"{stem}.{variant}.{ending}" if variant else f"{stem}.{ending}"
            if has_file(source, PurePosixPath(subfolder, file).as_posix()):
                return load_tensors(find_component(source, subfolder, file))
            index = f"{stem}.{ending}.index.{variant}.json" if variant else f"{stem}.{ending}.index.json"
            if has_file(source, PurePosixPath(subfolder, index).as_posix()):
                return _load_shards(source, subfolder, index)
    raise UserError(f"{_named(subfolder or 'network', source)} is not whole: it has no weight file")


def _load_shards(source: str, subfolder: str, index: str) -> dict[str, Tensor]:
    listed = load_config(source, subfolder, index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise UserError(f"{_named(f'{subfolder}/{index}', source)} lists no weights")
    shards = [load_tensors(find_component(source, subfolder, name)) for name in sorted(set(listed.values()))]
    return {name: tensor for shard in shards for name, tensor in shard.items()}


def load_tokenizer(tokenizer: type[Any], source: str, subfolder: str = "") -> Any:
    """A tokenizer of transformers; code that it brings is never run.

    Raises:
        UserError: there is none, it cannot be read, or counts in its settings are beyond any tokenizer's.
    """
    folder = Path(source, subfolder)
    if (folder / TOKENIZER_CONFIG).is_file():
        load_config(source, subfolder, TOKENIZER_CONFIG)
    wordless = Path(source).is_dir() and not any(path for name in VOCABULARIES for path in folder.glob(name))
    none = UserError(f"checkpoint {source!r} has no tokenizer{f' (folder {subfolder!r})' if subfolder else ''}")
    try:
        found = _read_by(tokenizer, source, subfolder or "tokenizer", subfolder=subfolder, trust_remote_code=False)
    except UserError as error:
        if wordless:
            raise none from error
        raise
    if wordless and len(found) < BYTES:  # some classes make one without a vocabulary, which takes all words for unknown
        raise none
    return found


def from_pretrained(cls: type[Any], source: str | None, part: str, **options: Any) -> Any:
    """`cls.from_pretrained(source)` of a network or its settings.

    Raises:
        UserError: the folder is no model's, or whatever the library fails with.
    """
    where = options.get("subfolder", "")
    if source is not None and Path(source).is_dir():
        if not Path(source, where, "config.json").is_file():
            raise UserError(
                f"checkpoint {source!r} holds no {part}: there is no {PurePosixPath(where, 'config.json')} in it"
            )
        if cls is transformers.AutoConfig and "model_type" not in load_config(source, where):
            raise UserError(f"checkpoint {source!r} holds no {part}: its config.json has no model_type")
    return _read_by(cls, source, part, **options)


def _read_by(cls: type[Any], source: str | None, part: str, **options: Any) -> Any:
    """`cls.from_pretrained(source)`, whose failures are one `UserError`."""
    if source is not None:
        subfolder = options.get("subfolder", "")
        require_regular_files(Path(source, subfolder), _named(part, source))
        if Path(source, subfolder, "config.json").is_file():
            load_config(source, subfolder)
    with reading(f"cannot load {_named(part, source)}"):
        return cls.from_pretrained(source, **options)


def _named(part: str, source: str | None) -> str:
    return part if source is None else f"{part} of checkpoint {source!r}"
