"""Set-up for `pytest --nbval HandwrittenNumberGAN.ipynb tests`: quick mode, no network, the notebook's own code."""

import dataclasses
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
NO_NETWORK = ROOT / "tests" / "no_network"

# Every kernel and every other process of the tests starts with this environment, nbval's too.
os.environ["GAN_QUICK"] = "1"
os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(NO_NETWORK), str(ROOT), os.environ.get("PYTHONPATH")]))
runpy.run_path(str(NO_NETWORK / "sitecustomize.py"))  # for this process, which has started already
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "measure")]
matplotlib.use("agg")  # here only: in the kernel pictures go to the notebook
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts its background jobs with SIGINT ignored


NOTEBOOK = nbformat.read(ROOT / "HandwrittenNumberGAN.ipynb", as_version=4)
DEFINITIONS = [cell.id for cell in NOTEBOOK.cells if "definition" in cell.metadata.get("tags", [])]


def cell_sources():
    """Cell id -> source."""
    return {cell.id: cell.source for cell in NOTEBOOK.cells}


def run_cell(name, names, sources=None):
    """Run one cell of the notebook (or of these sources) with these names, and return them."""
    exec(compile((sources or cell_sources())[name], f"notebook cell {name}", "exec"), names)  # noqa: S102
    return names


@mock.patch.dict(os.environ, GAN_DEVICE="cpu")  # where the images of the tests are
def notebook_code(sources=None):
    """Run the notebook's definitions (of these sources); return the names that they define."""
    module = ModuleType("story_of_the_notebook")
    sys.modules[module.__name__] = module  # dataclasses looks a class's module up there
    for name in DEFINITIONS:
        run_cell(name, module.__dict__, sources)
    module.plt = SimpleNamespace(show=lambda: plt.close("all"))
    return module.__dict__


@pytest.fixture(scope="session")
def story():
    """The notebook's definitions as attributes."""
    return SimpleNamespace(**notebook_code())


def tiny(story, **changes):
    """Settings for a run of a fraction of a second: 2 epochs of 6 steps."""
    small = {"epochs": 2, "train_images": 200, "batch_size": 32, "latent_dim": 8, "generator_widths": (32, 16)}
    return dataclasses.replace(story.Settings(), **small | {"discriminator_widths": (32, 16)} | changes)


def some_images(n, size=28, seed=1):
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def tiny_story(**changes):
    """play(folder, resume) runs the cell that trains, for 3 epochs of 8 steps on made-up images, in play.names."""
    names = notebook_code()
    small = {"epochs": 3, "train_images": 128, "batch_size": 16, "keep_every": 2}
    names.update(settings=tiny(SimpleNamespace(**names), **(small | changes)), images=some_images(128))
    run_cell("after-epoch", names)

    def play(folder, resume=False):
        names.update(output=folder, RESUME=resume)
        return run_cell("train-run", names)["mlp"]

    play.names = names
    return play


def flat(value, name=""):
    """Everything in a training state or a checkpoint, but for times, as one flat dict of values to compare."""
    value = value.state_dict() if hasattr(value, "state_dict") else value
    if dataclasses.is_dataclass(value) or isinstance(value, SimpleNamespace):
        value = vars(value)
    elif isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {name: value.clone() if isinstance(value, torch.Tensor) else value}
    inner = [flat(entry, f"{name}.{key}") for key, entry in value.items() if key != "seconds"]
    return {name: entry for entries in inner for name, entry in entries.items()}


def differences(one, other):
    """The names under which two states, or what `flat` made of them earlier, differ."""
    one, other = flat(one), flat(other)
    same = lambda a, b: torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return [name for name in sorted(one.keys() | other.keys())
            if name not in one or name not in other or not same(one[name], other[name])]


def python(*arguments, **options):
    """Run Python in a process of its own, to whatever end."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, **options)


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
