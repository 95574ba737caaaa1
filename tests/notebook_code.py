"""The notebook's own code, for the tests and for tests/measure: its cells and their definitions."""

import dataclasses
import itertools
import os
import signal
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import matplotlib.pyplot as plt
import nbformat
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for gan_helpers

NOTEBOOK = nbformat.read(ROOT / "HandwrittenNumberGAN.ipynb", as_version=4)
DEFINITIONS = [cell.id for cell in NOTEBOOK.cells if "definition" in cell.metadata.get("tags", [])]


def cell_sources(changes=None):
    """Cell id -> source; `changes`: cell id -> (old text, new text, and so on), each there once."""
    sources = {cell.id: cell.source for cell in NOTEBOOK.cells}
    for name, texts in (changes or {}).items():
        for old, new in zip(texts[::2], texts[1::2]):
            if sources[name].count(old) != 1:
                raise ValueError(f"cell {name} does not hold {old!r} once")
            sources[name] = sources[name].replace(old, new)
    return sources


def run_cell(name, names, sources=None):
    """Run one cell of the notebook (or of these sources) with these names, and return them."""
    source = (sources or cell_sources())[name]
    exec(compile(source, f"notebook cell {name}", "exec"), names)
    return names


def notebook_code(sources=None, device="cpu"):
    """Run the notebook's definitions (or those of these sources); return the names they define."""
    module = ModuleType("story_of_the_notebook")
    sys.modules[module.__name__] = module  # dataclasses looks a class's module up there
    with mock.patch.dict(os.environ, GAN_DEVICE=device):
        for name in DEFINITIONS:
            run_cell(name, module.__dict__, sources)
    module.plt = SimpleNamespace(show=partial(plt.close, "all"))
    return module.__dict__


def tiny(story, **changes):
    """Settings for a run of a fraction of a second: 2 epochs of 6 steps."""
    small = {"epochs": 2, "train_images": 200, "batch_size": 32, "latent_dim": 8,
             "generator_widths": (32, 16), "discriminator_widths": (32, 16)}
    return dataclasses.replace(story.Settings(), **{**small, **changes})


def some_images(n, size=28, seed=1):
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def pressing(function, call):
    """The function, which presses the stop button at the end of its n-th call."""
    calls = itertools.count(1)

    def pressed(*arguments):
        result = function(*arguments)
        if next(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return result

    return pressed
