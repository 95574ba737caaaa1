"""Set-up for `pytest --nbval HandwrittenNumberGAN.ipynb tests`: quick mode, the import path, the notebook's own code."""

import os
import sys
from pathlib import Path

import matplotlib
import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent

# nbval starts the notebook's kernel with this environment.
os.environ["GAN_QUICK"] = "1"
os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
sys.path.insert(0, str(ROOT))
matplotlib.use("agg")  # here only: in the kernel pictures go to the notebook

# What the story defines, without what it runs: enough to train with the notebook's own networks, steps and loop.
DEFINITIONS = ["imports", "device", "settings", "generator", "discriminator", "r1", "discriminator-step",
               "generator-step", "ema", "schedule", "state", "train", "train-loop", "report"]


def read_notebook():
    return nbformat.read(ROOT / "HandwrittenNumberGAN.ipynb", as_version=4)


def cell_sources(notebook=None):
    """Cell id -> source."""
    return {cell["id"]: cell["source"] for cell in (notebook or read_notebook()).cells}


def notebook_code(ids=DEFINITIONS, sources=None):
    """Run some of the notebook's code cells (or of these sources), and return the names they define."""
    sources, names = sources or cell_sources(), {"__name__": "notebook"}
    sys.modules["notebook"] = type(sys)("notebook")  # dataclasses looks its module up there
    for name in ids:
        exec(compile(sources[name], f"notebook cell {name}", "exec"), names)
    return names


@pytest.fixture(scope="session")
def story():
    """The notebook's definitions as attributes."""
    import types
    return types.SimpleNamespace(**notebook_code())
