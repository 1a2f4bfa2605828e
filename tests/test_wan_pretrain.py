"""The tiny world's Wan: its text encoder and its attention to short texts make what the release's classes make."""

from __future__ import annotations

import torch
from transformers import T5EncoderModel

from vader.files.hub import tiny_weights
from vader.models.wan import TOKENS
from vader.pretrain import wan
from vader.pretrain.loop import generator_for
from vader.pretrain.wan_vae import CHANNELS


@torch.no_grad()
def test_umt5_s_class_makes_what_t5_s_makes():
    encoder = T5EncoderModel.from_pretrained(tiny_weights("opensora") / "text_encoder", dtype=torch.float32).eval()
    tokens, mask = torch.randint(48, (2, 37), generator=generator_for(0, 0)), torch.ones(2, 37)
    mask[1, 20:] = 0
    expected = encoder(tokens, mask).last_hidden_state
    assert torch.equal(wan.as_umt5(encoder)(tokens, mask).last_hidden_state[mask > 0], expected[mask > 0])


@torch.no_grad()
def test_a_short_text_is_attended_as_one_filled_up_with_zeros():
    torch.manual_seed(0)
    network = wan.new_transformer().eval()
    torch.nn.init.normal_(network.proj_out.weight)
    latents, text = torch.randn(2, CHANNELS, 3, 4, 4), torch.randn(2, 9, wan.TEXT)
    text[0, 5:], text[1, 8:] = 0, 0
    full = torch.nn.functional.pad(text, (0, 0, 0, TOKENS - 9))
    expected = network(latents, torch.tensor([300.0, 900.0]), full, return_dict=False)[0]
    wan.shorten_text(network)
    found = network(latents, torch.tensor([300.0, 900.0]), text, return_dict=False)[0]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
