"""The whole notebook on a pretended GPU: whether it keeps every tensor on the right device."""

import contextlib
import gc
import itertools
import os
import re
from functools import partial
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import python, write_archives
from notebook_code import ROOT, SOURCES, new_names, run_cell
from pretended_device import PLACE, pretended_device

import gan_helpers as helpers

TWO_DEVICES = "Expected all tensors to be on the same device"
CPU_INDEXED = r"indices should be either on cpu or on the same device as the indexed tensor \(cpu\)"
NO_NUMPY = r"can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu\(\)"


@pytest.fixture(scope="module")
def without_garbage_collection():
    """In torch 2.6 it takes the marks off tensors that are in use."""
    gc.disable()
    with mock.patch.object(gc, "collect"):  # which matplotlib calls
        yield
    gc.enable()


@pytest.fixture(scope="module")
def after_run(tmp_path_factory, without_garbage_collection):
    """The names of the notebook, once all of it has run there on few images of ten kinds."""
    names = new_names()
    output, data = (tmp_path_factory.mktemp(name) for name in ("output", "data"))
    write_archives(data, kinds=10, training=6_400, test=6_000)
    with (mock.patch.dict(os.environ, GAN_OUTPUT=str(output), GAN_DEVICE=""),
          mock.patch.object(helpers, "load_mnist", partial(helpers.load_mnist, folder=data)),
          torch.random.fork_rng(devices=[]), pretended_device()):
        for cell in SOURCES:
            run_cell(cell, names)
            if cell == "settings":
                names["settings"] = names["replace"](names["settings"], epochs=2)  # to save time
    return names


def test_the_whole_notebook_keeps_to_its_devices(after_run):
    with pretended_device():
        assert after_run["images"].device == after_run["latents"].device == PLACE


def test_readme_example_runs_with_pytorch_and_torchvision_alone_and_any_batch(after_run):
    readme, output = (ROOT / "README.md").read_text(encoding="utf-8"), after_run["output"]
    example = re.search(r"```python\n(.*?)```", readme, re.DOTALL)[1]
    forbidden = "import sys; sys.modules.update(gan_helpers=None, matplotlib=None, IPython=None)\n"
    run = python("-c", forbidden + example.replace("output/", f"{output}/"), cwd=output)
    assert run.returncode == 0 and (output / "2026.png").exists(), run.stderr
    writer = torch.export.load(output / "writer.pt2").module()
    for n in (1, 1000):
        latent, digits = torch.randn(n, 100), torch.arange(n) % 10
        with pretended_device() as device:
            drawn = after_run["draw"](after_run["told_dcgan"], digits.to(device), latent.to(device))
            drawn = drawn.cpu()
        torch.testing.assert_close(writer(latent, digits), drawn)


def stop_resume_and_show_the_film(names):
    """Stop the MLP in the middle, go on from its checkpoint, and run the film of section 9."""
    names["settings"] = names["replace"](names["settings"], epochs=4)  # of one turn each
    turns, take_turn = itertools.count(1), names["take_turn"]

    def stopped_turn(*arguments):
        if next(turns) == 3:
            raise KeyboardInterrupt
        return take_turn(*arguments)

    with torch.random.fork_rng(devices=[]), pretended_device():
        run_cell("train-run", names | {"take_turn": stopped_turn})
        names["mlp"] = names["LongGame"](names["settings"])
        names["train"](names["mlp"], names["images"], look_from=names["look_from"], resume=True)
        run_cell("film", names)


def test_the_film_of_a_stopped_and_resumed_game_shows_all_its_epochs(after_run, monkeypatch):
    names = dict(after_run)
    stop_resume_and_show_the_film(names)
    assert list(names["mlp"].drawings) == [0, 1, 2, 3, 4]
    load = helpers.Training.load

    def load_to_the_device(training):
        load(training)
        drawings = training.game.drawings
        training.game.drawings = {epoch: drawings[epoch].to("cuda") for epoch in drawings}

    monkeypatch.setattr(helpers.Training, "load", load_to_the_device)
    with pytest.raises((RuntimeError, TypeError), match=f"{TWO_DEVICES}|{NO_NUMPY}"):
        stop_resume_and_show_the_film(dict(after_run))


@pytest.mark.parametrize("line, message", [
    ("gpu + cpu", TWO_DEVICES), ("cpu += gpu", TWO_DEVICES), ("torch.cat([gpu, cpu])", TWO_DEVICES),
    ("nn.Linear(3, 2)(gpu)", TWO_DEVICES), ("gpu.view(3, 1)[:, 0] + cpu", TWO_DEVICES),
    ("cpu[index.to(device)]", CPU_INDEXED), ("plt.plot(gpu)", NO_NUMPY),
    # and what CUDA allows:
    ("gpu * torch.tensor(2.0) + cpu[0]", None),  # one number may be on the CPU
    ("gpu[index]; gpu[index.to(device)] = 2 * gpu[:2]", None),
    ("gpu.tolist(); f'{gpu[0]:.1f}'; np.asarray(gpu.cpu())", None),
    ("cpu + torch.zeros_like(gpu, device='cpu') + gpu.to('cpu')", None)])
def test_the_rules_are_cuda_s(line, message):
    refused = pytest.raises((RuntimeError, TypeError), match=message)
    with pretended_device() as device, refused if message else contextlib.nullcontext():
        cpu, index = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 2])
        exec(line, {"torch": torch, "nn": torch.nn, "np": np, "plt": plt, "device": device,
                    "cpu": cpu, "gpu": cpu.to(device), "index": index})
    plt.close("all")
