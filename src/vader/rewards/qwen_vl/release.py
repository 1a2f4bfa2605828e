"""Reads rewards that were trained on Qwen2-VL: one file with the networks under the names of transformers 4.45.

There the vision network is `visual.*`, the language network `model.*`, its head `lm_head`, the reward's own head
`rm_head.*`. A file that PEFT wrote has `base_model.model.` before each name, and LoRA beside what it was trained on
(`base_layer`, `lora_A.default`, `lora_B.default`): it is merged here, in float32. Every tensor is used exactly once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, Qwen2VLModel

from vader.errors import UserError
from vader.files.foreign import reading
from vader.files.hub import load_tokenizer
from vader.files.weights import fill, load_tensors
from vader.rewards.qwen_vl.network import QwenVL, qwen_config

PEFT = "base_model.model."
BASE, LORA_A, LORA_B = ".base_layer.", ".lora_A.default.", ".lora_B.default."
HEAD, LANGUAGE_HEAD = "rm_head.", "lm_head.weight"
EMBEDDING = "language_model.embed_tokens.weight"

Tensors = dict[str, Tensor]


def load_release(path: Path, base: str, words: Sequence[str], head: nn.Module, lora_scale: float) -> QwenVL:
    """The network of a released reward in float32, whose own `head` is filled too.

    Args:
        base: a folder or hub id of the Qwen2-VL that was trained, for settings and tokenizer alone.
        words: those that the reward added to the tokenizer, in order.
        head: on the meta device.
        lora_scale: alpha / rank.

    Raises:
        UserError: the file lacks a weight, has one that is unknown, or does not fit the base or its tokenizer.
    """
    label = repr(str(path))
    parts = split(merged(load_tensors(path), lora_scale, label), label)
    tokenizer = load_tokenizer(AutoTokenizer, base)
    tokenizer.add_tokens(list(words), special_tokens=True)
    network = build(qwen_config(base), parts["network"], label)
    if len(tokenizer) != (known := network.config.text_config.vocab_size):
        raise UserError(
            f"{label} knows {known} words, and the tokenizer of {base} with {', '.join(words)} has {len(tokenizer)}: "
            "set base to the Qwen2-VL that it was trained on"
        )
    fill(head, parts["head"], torch.float32, f"the head in {label}")
    return QwenVL(fill(network, parts["network"], torch.float32, label), tokenizer)


def merged(tensors: Tensors, scale: float, label: str) -> Tensors:
    """PEFT's names made plain, and W + scale * B A in place of its parts.

    Raises:
        UserError: a part of a LoRA has no partners.
    """
    plain = {name.removeprefix(PEFT): tensor for name, tensor in tensors.items()}
    found = {name.replace(BASE, "."): tensor for name, tensor in plain.items() if not is_lora(name)}
    for name in filter(is_lora, plain):
        up, down = name.replace(LORA_A, LORA_B), name.replace(LORA_B, LORA_A)
        weight = name.replace(LORA_A, ".").replace(LORA_B, ".")
        if missing := {up, down, weight.replace(".weight", f"{BASE}weight")} - plain.keys():
            raise UserError(f"{label} is not whole: {name} has no {min(missing)} beside it")
        if name == down:
            found[weight] = torch.addmm(found[weight].float(), plain[up].float(), plain[down].float(), alpha=scale)
    return found


def is_lora(name: str) -> bool:
    return LORA_A in name or LORA_B in name


def split(tensors: Tensors, label: str) -> dict[str, Tensors]:
    """The tensors of the network and of the reward's head, under their own names of today.

    Raises:
        UserError: one belongs to neither, or there are no words.
    """
    parts: dict[str, Tensors] = {"network": {}, "head": {}}
    for name, tensor in tensors.items():
        if name.startswith(HEAD):
            parts["head"][name.removeprefix(HEAD)] = tensor
        elif name.startswith("visual."):
            parts["network"][name] = tensor
        elif name.startswith("model."):
            parts["network"][f"language_model.{name.removeprefix('model.')}"] = tensor
        elif name != LANGUAGE_HEAD:  # it made words, and nothing here is written
            raise UserError(f"{label} is of another kind: it has an unknown weight {name}")
    if EMBEDDING not in parts["network"]:
        raise UserError(f"{label} is no reward on Qwen2-VL: it has no words (model.embed_tokens.weight)")
    return parts


def build(config: Any, tensors: Tensors, label: str) -> Any:
    """The network without weights, of as many words as the file has; what is computed from settings is there."""
    with reading(f"{label} does not fit its base"):
        config.text_config.vocab_size = len(tensors[EMBEDDING])
        with torch.device("meta"):
            network = Qwen2VLModel(config)
        visual, language = network.visual, network.language_model
        visual.rotary_pos_emb = type(visual.rotary_pos_emb)(config.vision_config)
        language.rotary_emb = type(language.rotary_emb)(config.text_config)
    return network
