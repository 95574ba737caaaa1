"""The whole notebook on a pretended GPU: whether it keeps every tensor on the right device."""

import ast
import copy
import os
import sys
import traceback
from types import ModuleType, SimpleNamespace
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import NOTEBOOK, cell_sources, run_cell
from pretended_device import pretended_device
from torch.nn.functional import one_hot

CELLS = [cell.id for cell in NOTEBOOK.cells if cell.cell_type == "code"]

TWO_DEVICES = "Expected all tensors to be on the same device"
CPU_INDEXED = r"indices should be either on cpu or on the same device as the indexed tensor \(cpu\)"
NO_NUMPY = r"can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu\(\)"
WRONG_GENERATOR = "Expected a 'cuda' device type for generator but found 'cpu'"


# The notebook ---------------------------------------------------------------------------------

def first_failure(cells, names, sources):
    """Run these cells. None, or the first error and its path through the notebook's lines.

    The path goes from the cell that ran to the line, maybe in a function of an earlier cell, that
    failed: pairs of cell and line.
    """
    for name in cells:
        try:
            run_cell(name, names, sources)
        except Exception as error:  # noqa: BLE001
            path = []
            for frame in traceback.extract_tb(error.__traceback__):
                if frame.filename.startswith("notebook cell "):
                    cell = frame.filename.removeprefix("notebook cell ")
                    path.append((cell, sources[cell].splitlines()[frame.lineno - 1].strip()))
            return SimpleNamespace(error=error, path=path)
        finally:
            plt.close("all")
    return None


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The quick notebook, run up to its first error: its names and that error."""
    module = ModuleType("notebook_on_the_pretended_device")
    output = str(tmp_path_factory.mktemp("output"))
    sys.modules[module.__name__] = module  # dataclasses looks a class's module up there
    with (mock.patch.dict(os.environ, GAN_QUICK="1", GAN_OUTPUT=output),
          torch.random.fork_rng(devices=[]), pretended_device()):
        os.environ.pop("GAN_DEVICE", None)
        failure = first_failure(CELLS, module.__dict__, cell_sources())
        place = module.images.device
    return SimpleNamespace(names=module.__dict__, failure=failure, images_are_on=place)


def test_notebook_keeps_to_its_devices(run):
    if run.failure is not None:
        path = "".join(f"cell {cell}: {line}\n" for cell, line in run.failure.path)
        pytest.fail(path + repr(run.failure.error), pytrace=False)
    assert run.images_are_on == torch.device("cuda:0")  # so it was tried there


def with_line(source, line, function):
    """The cell with a line put in at its beginning, or at that of a function in it."""
    lines, number, indent = source.splitlines(), 0, 0
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            number, indent = node.body[0].lineno - 1, node.body[0].col_offset
    lines.insert(number, " " * indent + line)
    return "\n".join(lines)


@pytest.mark.parametrize(("cell", "function", "line", "message"), [
    ("data", None, "plt.imshow(images[0, 0])", NO_NUMPY),
    ("data", None, "images[:8] - torch.zeros(8, 1, 28, 28)", TWO_DEVICES),
    ("neighbours", None, "torch.rand(9)[images[:8, 0, 0, 0].argsort()]", CPU_INDEXED),
    ("neighbours", None, "torch.cat([images[:8], images[8:9].cpu()])", TWO_DEVICES),
    ("train", "train", "torch.zeros(2) + torch.ones(2, device=device)", TWO_DEVICES),
])
def test_wrong_line_is_found(run, cell, function, line, message):
    sources = cell_sources()
    sources[cell] = with_line(sources[cell], line, function)
    with torch.random.fork_rng(devices=[]), pretended_device():
        found = first_failure(CELLS[CELLS.index(cell):], dict(run.names), sources)
    assert found.path[-1] == (cell, line)
    with pytest.raises((RuntimeError, TypeError), match=message):
        raise found.error


# The rules --------------------------------------------------------------------------------------

@pytest.fixture
def names():
    """For the lines below: `cpu` and `gpu` have three numbers each, `index` and `mask` choose."""
    with torch.random.fork_rng(devices=[]), pretended_device() as device:
        cpu = torch.tensor([1.0, 2.0, 3.0])
        yield {"torch": torch, "nn": torch.nn, "np": np, "plt": plt, "copy": copy,
               "one_hot": one_hot, "device": device, "cpu": cpu, "gpu": cpu.to(device),
               "index": torch.tensor([0, 2]), "mask": torch.tensor([True, False, True])}
    plt.close("all")


@pytest.mark.parametrize("line", [
    "gpu + 1",
    "gpu * torch.tensor(2.0) + cpu[0]",  # one number may be on the CPU
    "torch.where(gpu > 2, gpu, torch.tensor(0.0))",
    "gpu.masked_fill(gpu > 2, torch.tensor(0.0))",
    "gpu[index]; gpu[mask]; gpu[mask.to(device)]",
    "gpu[index] = gpu[:2] * 2; gpu[mask] = torch.tensor(0.0)",
    "gpu[0] = cpu[0]; gpu[:2] = cpu[:2]; gpu.copy_(cpu); cpu.copy_(gpu)",
    "cpu[gpu.argmax()]",  # no dimension: Python takes it as a plain number
    "cpu[index.to(device).cpu()]",
    "gpu.tolist(); gpu[0].item(); bool(gpu[0] > 0); f'{gpu[0]:.1f}'; print(gpu)",
    "np.asarray(gpu.cpu()); gpu.to('cpu').numpy(); gpu.to(device='cpu').numpy()",
    "gpu.numpy(force=True); plt.plot(gpu.cpu())",
    "gpu.quantile(0.5) + one_hot(gpu.long(), 4).to(device).sum()",  # made of smaller operations
    "gpu + torch.zeros_like(gpu) + gpu.new_zeros(3) + torch.randn_like(gpu)",
    "gpu + torch.ones(3, device='cuda') + torch.randperm(3, device='cuda:0') + cpu.cuda()",
    "gpu + torch.asarray(gpu) + torch.tensor([1, 2, 3], device=device) + gpu.new_tensor([1, 2, 3])",
    "gpu + torch.as_tensor([1, 2, 3], device=device) + cpu.to(gpu) + cpu.to(device, torch.half)",
    "cpu + torch.zeros_like(gpu, device='cpu') + gpu.new_zeros(3, device='cpu') + gpu.to(cpu)",
    "torch.rand(3, device=device, generator=torch.Generator(device)) + gpu",
    "torch.rand(3, generator=torch.Generator().manual_seed(1)) + cpu",
    "nn.Linear(3, 2, device=device)(gpu); nn.Linear(3, 2).cuda()(gpu); nn.Linear(3, 2)(cpu)",
    "nn.BatchNorm1d(3).to(device)(gpu.expand(4, 3))",
    "copy.deepcopy(nn.Linear(3, 2).to(device))(gpu)",
    "torch.cdist(gpu[:, None], gpu[:, None]).min(dim=1).indices[gpu.long() - 1] + gpu",
    "torch.cuda.set_rng_state(torch.cuda.get_rng_state())",
])
def test_allowed(names, line):
    exec(line, names)  # noqa: S102


@pytest.mark.parametrize(("line", "message"), [
    ("gpu + cpu", TWO_DEVICES),
    ("cpu * gpu[0]", TWO_DEVICES),
    ("cpu += gpu", TWO_DEVICES),
    ("cpu[0] += gpu[0]", TWO_DEVICES),
    ("gpu.add_(cpu)", TWO_DEVICES),
    ("torch.cat([gpu, cpu])", TWO_DEVICES),
    ("torch.stack([gpu[0], cpu[0]])", TWO_DEVICES),
    ("torch.equal(gpu, cpu)", TWO_DEVICES),
    ("torch.where(mask, gpu, gpu)", TWO_DEVICES),
    ("gpu.index_select(0, index)", TWO_DEVICES),
    ("gpu[index] = cpu[:2]", TWO_DEVICES),
    ("nn.Linear(3, 2)(gpu)", TWO_DEVICES),
    ("nn.Linear(3, 2).to(device)(cpu)", TWO_DEVICES),
    ("gpu + torch.zeros_like(cpu)", TWO_DEVICES),
    ("gpu.view(3, 1)[:, 0] + cpu", TWO_DEVICES),
    ("cpu[index.to(device)]", CPU_INDEXED),
    ("cpu[gpu > 2]", CPU_INDEXED),
    ("cpu[gpu > 2] = cpu[:1]", CPU_INDEXED),
    ("cpu[index] = gpu[:2]", TWO_DEVICES),
    ("gpu.numpy()", NO_NUMPY),
    ("np.asarray(gpu)", NO_NUMPY),
    ("np.array([gpu[0]])", NO_NUMPY),
    ("plt.imshow(gpu[None])", NO_NUMPY),
    ("plt.plot(gpu)", NO_NUMPY),
    ("torch.rand(3, device=device, generator=torch.Generator())", WRONG_GENERATOR),
    ("gpu.to('cuda:1')", "invalid device ordinal"),
])
def test_refused(names, line, message):
    with pytest.raises((RuntimeError, TypeError), match=message):
        exec(line, names)  # noqa: S102


def places(tensors):
    return {tensor.device for tensor in tensors}


CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


def test_places(names):
    cpu, gpu = names["cpu"], names["gpu"]
    assert places([gpu, gpu.view(3, 1).T, torch.ones_like(gpu), copy.deepcopy(gpu)]) == {GPU}
    assert places([cpu, gpu.cpu(), torch.zeros(3), torch.from_numpy(np.ones(3))]) == {CPU}
    assert gpu.to("cuda") is gpu and cpu.cpu() is cpu
    gpu.zero_()
    assert cpu.tolist() == [1, 2, 3]  # a copy, and no view


def test_mark_ends_with_its_storage(names):
    for _ in range(1000):  # addresses are used again
        torch.zeros(10, device="cuda")
        assert torch.zeros(10).device == CPU


def test_gradient_comes_back(names):
    leaf = names["cpu"].clone().requires_grad_()
    gradient, = torch.autograd.grad(leaf.to("cuda").square().sum(), leaf, create_graph=True)
    assert gradient.device == CPU and gradient.tolist() == [2, 4, 6]
    gradient.square().sum().backward()
    assert leaf.grad.device == CPU and leaf.grad.tolist() == [8, 16, 24]


@pytest.fixture
def training(names):
    """A network on the pretended device, and a function that makes a step of its training."""
    nn = torch.nn
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).to("cuda")

    def step(optimizer):
        optimizer.zero_grad()
        network(torch.randn(8, 3, device="cuda")).square().mean().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    return SimpleNamespace(network=network, step=step)


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"foreach": False},
                                     {"capturable": True}])
def test_training_and_files(training, options, tmp_path):
    network, file = training.network, tmp_path / "state.pt"
    optimizer = torch.optim.Adam(network.parameters(), **options)
    training.step(optimizer)
    assert places(network.state_dict().values()) == {GPU}
    torch.save([network.state_dict(), optimizer.state_dict()], file)
    assert places(torch.load(file)[0].values()) == {GPU}
    weights, moments = torch.load(file, map_location="cpu")
    assert places(weights.values()) == {CPU}
    network.load_state_dict(weights)
    optimizer.load_state_dict(moments)
    assert places(network.state_dict().values()) == {GPU}
    training.step(optimizer)


def test_export(training):
    network = training.network.eval()
    on_cpu = copy.deepcopy(network).cpu()
    program = torch.export.export(on_cpu, (torch.zeros(2, 3),)).module()
    drawn = program(torch.ones(2, 3))
    torch.testing.assert_close(drawn, network(torch.ones(2, 3, device="cuda")).cpu())
    with pytest.raises(RuntimeError, match=TWO_DEVICES):
        program(torch.ones(2, 3, device="cuda"))
