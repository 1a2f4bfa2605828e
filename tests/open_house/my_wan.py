"""Wan 2.2, text to video: two experts, the first for high noise and the second for low."""

import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline, UniPCMultistepScheduler, WanTransformer3DModel
from transformers import AutoTokenizer, UMT5EncoderModel

from vader import Condition, UserError, VideoModel

TOKENS = 512


class Wan(VideoModel):
    """Latents are `[B, C, f, h, w]`, normalised; of 4n + 1 frames they have n + 1."""

    family = "wan"

    def __init__(self, networks, tokenizer, scheduler, boundary):
        self.denoisers = {name: networks[name] for name in ("transformer", "transformer_2")}
        self.vae, self.text_encoder = networks["vae"], networks["text_encoder"]
        self.tokenizer, self.scheduler, self.boundary = tokenizer, scheduler, boundary

    @classmethod
    def load(cls, checkpoint, *, dtype=torch.float32):
        classes = {
            "transformer": WanTransformer3DModel,
            "transformer_2": WanTransformer3DModel,
            "vae": AutoencoderKLWan,
            "text_encoder": UMT5EncoderModel,
        }
        networks = {
            name: one.from_pretrained(checkpoint, subfolder=name, torch_dtype=dtype).eval().requires_grad_(False)
            for name, one in classes.items()
        }
        scheduler = dict(UniPCMultistepScheduler.load_config(checkpoint, subfolder="scheduler"))
        boundary = DiffusionPipeline.load_config(checkpoint)["boundary_ratio"] * scheduler["num_train_timesteps"]
        return cls(networks, AutoTokenizer.from_pretrained(checkpoint, subfolder="tokenizer"), scheduler, boundary)

    def networks(self):
        return {**self.denoisers, "vae": self.vae, "text_encoder": self.text_encoder}

    def expert(self, time):
        return "transformer" if time >= self.boundary else "transformer_2"

    @torch.no_grad()
    def encode(self, prompts, size, images=None):
        texts = [[prompt.text for prompt in prompts], [prompt.negative for prompt in prompts]]
        cond, uncond = map(self.embed, texts)
        return Condition({"text": cond}, {"text": uncond})

    def embed(self, texts):
        tokens = self.tokenizer(texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
        tokens = tokens.to(self.device)
        hidden = self.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        return hidden * tokens.attention_mask[..., None]

    def noise_shape(self, size):
        time, space = self.vae.config.scale_factor_temporal, 2 * self.vae.config.scale_factor_spatial
        if (size.frames - 1) % time or size.height % space or size.width % space:
            raise UserError(f"Wan makes {time}n + 1 frames, height and width multiples of {space}: set video")
        frames = (size.frames - 1) // time + 1
        return self.vae.config.z_dim, frames, 2 * size.height // space, 2 * size.width // space

    def denoise(self, latents, time, inputs):
        network = self.denoisers[self.expert(float(time))]
        predicted = network(
            latents.to(network.dtype),
            time.to(latents).expand(len(latents)),
            inputs["text"].to(network.dtype),
            return_dict=False,
        )[0]
        return predicted.to(latents.dtype)

    def windows(self, size):
        return [range(size.frames)]  # the VAE is causal: a frame needs all before it

    def decode_unclamped(self, latents, frames=None):
        mean, std = (
            torch.tensor(x).to(latents).view(-1, 1, 1, 1)
            for x in (self.vae.config.latents_mean, self.vae.config.latents_std)
        )
        pixels = self.vae.decode((latents * std + mean).to(self.vae.dtype), return_dict=False)[0].to(latents.dtype)
        video = pixels.movedim(2, 1) / 2 + 0.5
        if frames is None:
            return video
        return video[torch.arange(len(video), device=video.device)[:, None], frames.to(video.device)]
