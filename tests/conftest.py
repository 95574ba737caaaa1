"""Set-up for `pytest --nbval HandwrittenNumberGAN.ipynb tests`: quick mode, the import path, the notebook's own code."""

import dataclasses
import os
import signal
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import matplotlib
import nbformat
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

# nbval starts the notebook's kernel with this environment.
os.environ["GAN_QUICK"] = "1"
os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
sys.path.insert(0, str(ROOT))
matplotlib.use("agg")  # here only: in the kernel pictures go to the notebook
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts its background jobs with SIGINT ignored


def read_notebook():
    return nbformat.read(ROOT / "HandwrittenNumberGAN.ipynb", as_version=4)


def cell_sources(notebook=None):
    """Cell id -> source."""
    return {cell["id"]: cell["source"] for cell in (notebook or read_notebook()).cells}


def definitions(notebook=None):
    """The ids of the cells tagged `definition`: what the story defines, without what it runs."""
    return [cell["id"] for cell in (notebook or read_notebook()).cells if "definition" in cell.metadata.get("tags", [])]


def notebook_code(ids=None, sources=None):
    """Run some of the notebook's code cells (all definitions, or of these sources); return the names they define."""
    sources = sources or cell_sources()
    module = ModuleType("story_of_the_notebook")
    sys.modules[module.__name__] = module  # dataclasses looks a class's module up there
    for name in definitions() if ids is None else ids:
        exec(compile(sources[name], f"notebook cell {name}", "exec"), module.__dict__)  # noqa: S102
    return module.__dict__


@pytest.fixture(scope="session")
def story():
    """The notebook's definitions as attributes."""
    return SimpleNamespace(**notebook_code())


def tiny(story, **changes):
    """Settings for a run of a fraction of a second."""
    return dataclasses.replace(story.Settings(), **{
        "epochs": 2, "train_images": 200, "batch_size": 32, "latent_dim": 8, "generator_widths": (32, 16),
        "discriminator_widths": (32, 16), **changes})


def some_images(n, size=28, seed=1):
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def tiny_story(**changes):
    """The notebook up to the cell that trains, with tiny settings and images made up; `play` runs that cell itself."""
    names = notebook_code()
    names["settings"] = tiny(SimpleNamespace(**names), **{
        "epochs": 3, "train_images": 128, "batch_size": 16, "picture_every": 2, "score_samples": 500, **changes})
    names["images"], names["output"] = some_images(128), ROOT / "output"  # where nothing is written before `play`
    sources = cell_sources()
    exec(sources["after-epoch"], names)  # noqa: S102
    names["plt"].show = lambda: names["plt"].close("all")

    def play(folder, resume=False):
        names.update(output=folder, RESUME=resume)
        exec(sources["train-run"], names)  # noqa: S102
        return names["mlp"]

    return play


# ---------------------------------------------------------------------------------------------------------------------
# Comparing states and folders


def flat(state):
    """Everything in a training state or a checkpoint, but for times, as one flat dict of values to compare."""
    found = {}

    def walk(name, value):
        value = value.state_dict() if hasattr(value, "state_dict") else value
        value = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
        if isinstance(value, dict):
            return [walk(f"{name}.{key}", entry) for key, entry in value.items() if key != "seconds"]
        if isinstance(value, (list, tuple)):
            return [walk(f"{name}.{index}", entry) for index, entry in enumerate(value)]
        found[name] = value.clone() if isinstance(value, torch.Tensor) else value

    walk("", state if isinstance(state, dict) else vars(state))
    return found


def differences(one, other):
    """The names under which two states, or what `flat` made of them earlier, differ."""
    one, other = ({key: value for key, value in flat(state).items()} for state in (one, other))
    same = lambda a, b: torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return sorted(one.keys() ^ other.keys()) + [name for name in one.keys() & other.keys() if not same(one[name], other[name])]


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
