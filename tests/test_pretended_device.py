"""The whole notebook on a pretended GPU: whether it keeps every tensor on the right device.

Its data are of five kinds, in MNIST's format, and each cell has to close the figures that it shows.
"""

import contextlib
import gc
import os
import sys
from functools import partial
from types import ModuleType
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import write_archives
from notebook_code import CODE, cell_sources, run_cell
from pretended_device import PLACE, pretended_device

import gan_helpers as helpers

CELLS = [cell.id for cell in CODE]
TWO_DEVICES = "Expected all tensors to be on the same device"
CPU_INDEXED = r"indices should be either on cpu or on the same device as the indexed tensor \(cpu\)"
NO_NUMPY = r"can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu\(\)"


def run_from(first, names, sources):
    """Run the cells from this one on, until an error."""
    with torch.random.fork_rng(devices=[]), pretended_device():
        for name in CELLS[CELLS.index(first):]:
            run_cell(name, names, sources)
            assert plt.get_fignums() == [], f"cell {name} leaves figures open"


@pytest.fixture(scope="module")
def without_garbage_collection():
    """In torch 2.6 it takes the marks off tensors that are in use."""
    gc.disable()
    with mock.patch.object(gc, "collect"):  # which matplotlib calls
        yield
    gc.enable()


@pytest.fixture(scope="module")
def after_run(tmp_path_factory, without_garbage_collection):
    """The names of the quick notebook, once all of it has run there."""
    module = ModuleType("notebook_on_the_pretended_device")
    sys.modules[module.__name__] = module  # dataclasses looks a class's module up there
    output, data = (tmp_path_factory.mktemp(name) for name in ("output", "data"))
    write_archives(data, kinds=5, training=600, test=300)
    load = partial(helpers.load_mnist, folder=data)
    with (mock.patch.dict(os.environ, GAN_OUTPUT=str(output), GAN_DEVICE=""),
          mock.patch.object(helpers, "load_mnist", load)):
        run_from(CELLS[0], module.__dict__, cell_sources())
    return module.__dict__


def test_the_whole_notebook_keeps_to_its_devices(after_run):
    with pretended_device():
        assert after_run["images"].device == after_run["latent"].device == PLACE


@pytest.mark.parametrize("cell, right, wrong, message", [
    ("blur", "torch.stack(averages)", "helpers.np.asarray(averages[0])", NO_NUMPY),
    ("first-try", ".to(device))        # ", ".to(device) + torch.ones(100))  # ", TWO_DEVICES),
    ("pairs", "rows = ", "drawn = drawn.cpu()\nrows = ", CPU_INDEXED)])
def test_a_wrong_line_is_found_in_its_cell(after_run, cell, right, wrong, message):
    with pytest.raises((RuntimeError, TypeError), match=message) as error:
        run_from(cell, dict(after_run), cell_sources({cell: (right, wrong)}))
    places = [entry.frame.code.raw.co_filename for entry in error.traceback]
    assert [place for place in places if "notebook cell" in place][-1] == f"notebook cell {cell}"


@pytest.mark.parametrize("line, message", [
    ("gpu + cpu", TWO_DEVICES), ("cpu += gpu", TWO_DEVICES), ("cpu[0] += gpu[0]", TWO_DEVICES),
    ("torch.cat([gpu, cpu])", TWO_DEVICES), ("gpu[index] = cpu[:2]", TWO_DEVICES),
    ("nn.Linear(3, 2)(gpu)", TWO_DEVICES), ("gpu.view(3, 1)[:, 0] + cpu", TWO_DEVICES),
    ("cpu[index.to(device)]", CPU_INDEXED), ("np.asarray(gpu)", NO_NUMPY),
    ("plt.plot(gpu)", NO_NUMPY),
    # and what CUDA allows:
    ("gpu * torch.tensor(2.0) + cpu[0]", None),  # one number may be on the CPU
    ("gpu.masked_fill(gpu > 2, torch.tensor(0.0))", None),
    ("gpu[index]; gpu[index.to(device)] = 2 * gpu[:2]", None),
    ("gpu[0] = cpu[0]; gpu.copy_(cpu); cpu.copy_(gpu)", None),
    ("cpu[gpu.argmax()]", None),  # no dimension: Python takes it as a plain number
    ("gpu.tolist(); f'{gpu[0]:.1f}'; np.asarray(gpu.cpu())", None),
    ("gpu.quantile(0.5) + torch.zeros_like(gpu) + torch.rand(3, device=device)", None),
    ("cpu + torch.zeros_like(gpu, device='cpu') + gpu.to('cpu')", None),
    ("nn.Linear(3, 2).to(device)(gpu); nn.Linear(3, 2)(cpu)", None)])
def test_the_rules_are_cuda_s(line, message):
    refused = pytest.raises((RuntimeError, TypeError), match=message)
    with pretended_device() as device, refused if message else contextlib.nullcontext():
        cpu, index = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 2])
        exec(line, {"torch": torch, "nn": torch.nn, "np": np, "plt": plt, "device": device,
                    "cpu": cpu, "gpu": cpu.to(device), "index": index})
