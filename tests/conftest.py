"""Set-up for `pytest --nbval HandwrittenNumberGAN.ipynb tests`: quick mode, and no network."""

import gzip
import os
import runpy
import signal
import struct
import subprocess
import sys
import tempfile
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from notebook_code import ROOT, notebook_code

# Every kernel and every other process of the tests starts with this environment, nbval's too.
NO_NETWORK = ROOT / "tests" / "no_network"
OUTPUT = tempfile.TemporaryDirectory()  # removed when the tests end
paths = [str(NO_NETWORK), str(ROOT), os.environ.get("PYTHONPATH", "")]
os.environ |= {"PYTHONPATH": os.pathsep.join(path for path in paths if path), "GAN_QUICK": "1",
               "GAN_SEED": "0", "GAN_OUTPUT": OUTPUT.name, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
runpy.run_path(str(NO_NETWORK / "sitecustomize.py"))  # for this process, which has started already
sys.path.insert(0, str(ROOT / "tests" / "measure"))
matplotlib.use("agg")  # here only: in the kernel pictures go to the notebook
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores SIGINT


@pytest.fixture(scope="session")
def story():
    """The notebook's definitions as attributes."""
    return SimpleNamespace(**notebook_code())


def flat(value, name=""):
    """All that networks or a checkpoint hold, but for times: one dict, path -> value."""
    if hasattr(value, "state_dict"):
        value = value.state_dict()
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {name: value.clone() if isinstance(value, torch.Tensor) else value}
    entries = {}
    for key in value.keys() - {"seconds"}:
        entries |= flat(value[key], f"{name}.{key}")
    return entries


def same(one, other):
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def differences(one, other):
    """The paths at which two states differ, or what `flat` made of both."""
    one, other = flat(one), flat(other)
    alike = {path for path in one.keys() & other.keys() if same(one[path], other[path])}
    return sorted((one.keys() | other.keys()) - alike)


def python(*arguments, **options):
    """Run Python in a process of its own, to whatever end."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def write_archives(folder, kinds, training, test):
    """Four archives in MNIST's format: pictures of so many kinds, of as many images as said."""
    for stem, count in [("train", training), ("t10k", test)]:
        labels = np.arange(count) // 50 % kinds  # so that every 50th has another one, too
        images = np.random.default_rng(count).integers(0, 100, (count, 28, 28))
        images[np.arange(count), labels] = 255  # one white row, by its kind
        for name, array in [("images-idx3", images), ("labels-idx1", labels)]:
            header = struct.pack(f">{1 + array.ndim}i", 0x800 + array.ndim, *array.shape)
            content = gzip.compress(header + array.astype(np.uint8).tobytes(), compresslevel=1)
            (folder / f"{stem}-{name}-ubyte.gz").write_bytes(content)
