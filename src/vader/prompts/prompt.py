"""A prompt: a text that may carry what it is a prompt of, so that a list of prompts is all a run needs to know."""

from __future__ import annotations

from pathlib import Path


class Prompt(str):
    """A text with two optional companions; compares, hashes and pickles as the text does, companions included.

    Attributes:
        label: the class an action reward looks for ("playing piano"), if the prompt set says so.
        image: the picture an image-to-video model starts from, if the prompt set has one.
    """

    negative = ""
    label: str | None
    image: Path | None

    def __new__(cls, text: str, label: str | None = None, image: Path | None = None) -> Prompt:
        prompt = super().__new__(cls, text)
        prompt.label, prompt.image = label, image
        return prompt

    def __reduce__(self) -> tuple[type[Prompt], tuple[str, str | None, Path | None]]:
        return Prompt, (str(self), self.label, self.image)
