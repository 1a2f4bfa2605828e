"""What libraries say of their own insides is not shown: warnings, and bars for the loading of weights.

Bars of downloads stay, and so do users' wishes. It has to be done before the libraries load what warns on being loaded,
so the rooms that load them import this module first.
"""

from __future__ import annotations

import os
import warnings

import diffusers
import huggingface_hub.utils
import transformers


def _hush() -> None:
    downloads = not huggingface_hub.utils.are_progress_bars_disabled()
    for name, logging in (("TRANSFORMERS", transformers.utils.logging), ("DIFFUSERS", diffusers.utils.logging)):
        if f"{name}_VERBOSITY" not in os.environ:
            logging.set_verbosity(logging.CRITICAL)  # of what is an error they also raise one
        logging.disable_progress_bar()
    if downloads:  # transformers turns them off with its own
        huggingface_hub.utils.enable_progress_bars()
    # torch, of norms whose weights and input differ in precision: diffusers' networks are made so.
    warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")


_hush()
