"""From prompts to what T5 is given: suffixes, and the cleaning of DeepFloyd's captions."""

from __future__ import annotations

from typing import Any

from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import PixArtAlphaPipeline


def prepared(prompt: str) -> str:
    """A prompt as the release feeds it to T5: with its default suffix, cleaned."""
    return cleaned(with_scores(prompt, aesthetic=6.5))


def with_scores(
    prompt: str, aesthetic: float | None = None, motion: float | None = None, camera: str | None = None
) -> str:
    """Appends what the model was trained to find at a caption's end, each unless the prompt has its own."""
    suffixes = {
        "aesthetic score:": None if aesthetic is None else f"{aesthetic:.1f}",
        "motion score:": None if motion is None else f"{motion:.1f}",
        "camera motion:": camera,
    }
    for name, value in suffixes.items():
        if value is not None and name not in prompt:
            prompt = f"{prompt} {name} {value}."
    return prompt


def cleaned(prompt: str) -> str:
    """Lower case, without markup, addresses, file names and the like: the cleaning of DeepFloyd's captions, twice.

    diffusers has it in its PixArt pipeline, as a method that uses the class's constants and no pipeline.
    """
    pipeline: Any = PixArtAlphaPipeline
    for _ in range(2):
        prompt = pipeline._clean_caption(pipeline, prompt)
    return prompt
