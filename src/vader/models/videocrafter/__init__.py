"""VideoCrafter2 (arXiv:2401.09047): the released single file, its networks as diffusers' and transformers' own.

`names` maps the release's names to theirs, `networks` builds each network from tensors alone and gives it back,
`release` reads and writes the file, `model` is the base model, and `lora` reads the adapters that VADER's authors
published for it.
"""
