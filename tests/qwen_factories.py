"""Tiny random Qwen-VLs in transformers' layout, and rewards on Qwen2-VL in the layout of their releases."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLModel,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from vader.rewards import hpsv3, videoreward

MARKS = (  # in the order of the releases
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip
TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 4096, "head_dim": 16,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
}  # fmt: skip
VISION = {
    "depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3,
}  # fmt: skip
LINEAR = re.compile(r"(layers\.\d+\.(?:self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj))\.(weight|bias)")
RANK = 2


def write_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE that knows the words of the templates, with Qwen-VL's marks at its end."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1200, initial_alphabet=letters, show_progress=False)
    bpe.train_from_iterator([videoreward.TEMPLATE, hpsv3.TEMPLATE, "Yes No"], trainer)
    bpe.add_special_tokens(list(MARKS))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token=MARKS[0], eos_token=MARKS[2])
    tokenizer.save_pretrained(folder)
    return tokenizer


def qwen2_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2VLConfig:
    return Qwen2VLConfig(
        text_config=TEXT | {"vocab_size": len(tokenizer) + 5},  # more rows than words, as the base has
        vision_config=VISION | {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2},
        **token_ids(tokenizer),
    )


def token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    names = {"vision_start": MARKS[3], "vision_end": MARKS[4], "image": MARKS[5], "video": MARKS[6]}
    return {f"{name}_token_id": tokenizer.convert_tokens_to_ids(mark) for name, mark in names.items()}


def make_base(folder: Path) -> tuple[Qwen2VLConfig, PreTrainedTokenizerFast]:
    """A Qwen2-VL's folder without weights, which a released reward does not need."""
    folder.mkdir(parents=True)
    tokenizer = write_tokenizer(folder)
    config = qwen2_config(tokenizer)
    config.save_pretrained(folder)
    return config, tokenizer


def livelier(network: nn.Module) -> nn.Module:
    """Weights so large that everything that is seen or read shows in the output."""
    for parameter in network.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return network.eval().requires_grad_(False)


def make_network(config: Qwen2VLConfig, words: int) -> Qwen2VLModel:
    """The network of a reward that added so many words to the tokenizer of the base."""
    config.text_config.vocab_size += words - 5
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return livelier(Qwen2VLModel(config))


def old_names(network: Qwen2VLModel) -> dict[str, Tensor]:
    """As transformers 4.45 named them."""
    return {
        re.sub(r"^language_model\.", "model.", name): tensor for name, tensor in network.state_dict().items()
    } | {"lm_head.weight": torch.zeros(3, 32)}  # fmt: skip


def make_videoreward(path: Path, base: Path) -> tuple[dict[str, Tensor], Tensor]:
    """`model.pth` as PEFT wrote it. Returns the merged network's tensors and the head's."""
    network = make_network(Qwen2VLConfig.from_pretrained(base), words=3)
    generator = torch.Generator().manual_seed(1)
    found, merged = {"rm_head.weight": torch.randn(1, 32, generator=generator)}, {}
    for name, tensor in old_names(network).items():
        if not (linear := LINEAR.search(name)):
            found[name] = merged[name] = tensor
            continue
        layer = name[: linear.end(1)]
        found[f"{layer}.base_layer.{linear[2]}"], merged[name] = tensor, tensor
        if linear[2] == "weight":
            up, down = (
                torch.randn(shape, generator=generator) * 0.1
                for shape in ((len(tensor), RANK), (RANK, tensor.shape[1]))
            )
            found |= {f"{layer}.lora_B.default.weight": up, f"{layer}.lora_A.default.weight": down}
            merged[name] = tensor + 2.0 * up @ down
    torch.save({f"base_model.model.{name}": tensor for name, tensor in found.items()}, path)
    return merged, found["rm_head.weight"]


def make_hpsv3(path: Path, base: Path) -> dict[str, Tensor]:
    """`HPSv3.safetensors`, without LoRA; a head of the released widths."""
    network = make_network(Qwen2VLConfig.from_pretrained(base), words=1)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        head = {f"rm_head.{name}": tensor.data for name, tensor in hpsv3.make_head(32).named_parameters()}
    tensors = old_names(network) | head
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return tensors


def make_vlm(folder: Path, kind: str) -> Path:
    """A whole Qwen-VL in transformers' layout: `qwen2_vl`, `qwen2_5_vl` or `qwen3_vl`."""
    folder.mkdir(parents=True)
    tokenizer = write_tokenizer(folder)
    text, ids = TEXT | {"vocab_size": len(tokenizer)}, token_ids(tokenizer)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        more = {"hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32}
        if kind == "qwen2_vl":
            more = {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}
            config, network = Qwen2VLConfig, Qwen2VLForConditionalGeneration
        elif kind == "qwen2_5_vl":
            more |= {"window_size": 16, "fullatt_block_indexes": [1], "tokens_per_second": 2}
            config, network = Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
        else:
            more |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
            config, network = Qwen3VLConfig, Qwen3VLForConditionalGeneration
        whole = network(config(text_config=text, vision_config=VISION | more, **ids))
        livelier(whole).save_pretrained(folder)
    return folder
