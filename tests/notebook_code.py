"""The notebook's own code, for the tests: its cells, its definitions, and tiny players for them."""

import ast
import dataclasses
import os
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock

import matplotlib.pyplot as plt
import nbformat
import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for gan_helpers

NOTEBOOK = nbformat.read(ROOT / "HandwrittenNumberGAN.ipynb", as_version=4)
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
MAGIC = "%matplotlib inline"  # all of Jupyter's own language that there is
SOURCES = {cell.id: cell.source.replace(MAGIC, "") for cell in CODE}
DEFINITIONS = {cell.id for cell in CODE if "definition" in cell.metadata.get("tags", [])}
DEFINES = ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom


def run_cell(cell, names, definitions_only=False):
    """Run one cell of the notebook with these names; its pictures are closed, as in Jupyter."""
    tree = ast.parse(SOURCES[cell])
    if definitions_only:
        tree.body = [statement for statement in tree.body if isinstance(statement, DEFINES)]
    exec(compile(tree, f"notebook cell {cell}", "exec"), names)
    plt.close("all")


def new_names(**given):
    """The names of a module that Python knows, as dataclasses need it."""
    module = sys.modules["names_of_the_notebook"] = ModuleType("names_of_the_notebook")
    vars(module).update(given)
    return vars(module)


def notebook_code(kinds=10):
    """The names that the notebook defines: its cells of definitions run, and of the other cells
    the functions and classes. The images are 50 random ones of so many kinds."""
    names = new_names(SEED=0, EPOCH=6, KINDS=kinds, images=some_images(50),
                      labels=torch.arange(50) % kinds)
    with mock.patch.dict(os.environ, GAN_DEVICE="cpu"):
        for cell in SOURCES:
            run_cell(cell, names, definitions_only=cell not in DEFINITIONS)
    return names


def some_images(n, size=28, seed=1):
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def tiny_generator(latent_dim):
    return nn.Sequential(nn.Linear(latent_dim, 16), nn.BatchNorm1d(16), nn.Linear(16, 28 * 28),
                         nn.Tanh(), nn.Unflatten(1, (1, 28, 28)))


def tiny_discriminator():
    return nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1),
                         nn.Flatten(0))


def tiny_game(names, **changes):
    """A new game of two tiny players, 3 epochs of 6 turns, which takes a fraction of a second."""
    small = {"epochs": 3, "turns_per_epoch": 6, "batch_size": 8, "latent_dim": 8}
    settings = dataclasses.replace(names["settings"], **{**small, **changes})
    return names["LongGame"](settings, tiny_generator, tiny_discriminator)
