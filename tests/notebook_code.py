"""The notebook's own code, for the tests and for tests/measure: its cells and their definitions."""

import dataclasses
import os
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock

import nbformat
import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for gan_helpers

NOTEBOOK = nbformat.read(ROOT / "HandwrittenNumberGAN.ipynb", as_version=4)
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
DEFINITIONS = [cell.id for cell in CODE if "definition" in cell.metadata.get("tags", [])]


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
    module.KINDS = 10  # the cell that reads the data counts them
    return module.__dict__


def some_images(n, size=28, seed=1):
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def tiny_settings(story, **changes):
    """Settings of a game of a fraction of a second."""
    small = {"turns_per_epoch": 6, "batch_size": 8, "latent_dim": 8}
    return dataclasses.replace(story.Settings(), **{**small, **changes})


def tiny_generator(latent_dim):
    return nn.Sequential(nn.Linear(latent_dim, 16), nn.BatchNorm1d(16), nn.Linear(16, 28 * 28),
                         nn.Tanh(), nn.Unflatten(1, (1, 28, 28)))


def tiny_discriminator():
    return nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1),
                         nn.Flatten(0))


def tiny_game(story, images=None, **changes):
    """A new game of two tiny players on 50 random images."""
    images = some_images(50) if images is None else images
    return story.new_game(tiny_settings(story, **changes), images, tiny_generator,
                          tiny_discriminator)
