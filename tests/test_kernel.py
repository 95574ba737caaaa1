"""A real kernel and the real stop button: the notebook's own cells, stopped where a reader may stop them."""

import copy
import os
import random
import signal
import sys
import threading
import time

import nbformat
import pytest
import torch
from conftest import DEFINITIONS, NOTEBOOK, ROOT, differences, files
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="interrupting a kernel is tested with POSIX signals")


class Reader:
    """Runs cells of the notebook in a kernel, as somebody at a keyboard does."""

    def __init__(self, output):
        self.notebook = copy.deepcopy(NOTEBOOK)
        self.client = NotebookClient(self.notebook, timeout=300, kernel_name="python3",
                                     resources={"metadata": {"path": str(ROOT)}})
        self.client.create_kernel_manager()
        self.client.start_new_kernel(env={**os.environ, "GAN_OUTPUT": str(output), "GAN_DEVICE": "cpu"})
        self.client.start_new_kernel_client()
        self.signal = lambda number: os.kill(self.client.km.provisioner.pid, number)
        self.output = output / "quick"
        self.cells = {cell.id: cell for cell in self.notebook.cells if cell.cell_type == "code"}

    def run(self, cell):
        """Execute a cell, by its name, or some code. Returns its error, or ''."""
        if cell not in self.cells:
            self.notebook.cells.append(nbformat.v4.new_code_cell(cell))
        cell = self.cells.get(cell) or self.notebook.cells[-1]
        try:
            self.client.execute_cell(cell, self.notebook.cells.index(cell))
            return ""
        except CellExecutionError as error:
            return f"{error.ename}: {error.evalue}"


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    reader = Reader(tmp_path_factory.mktemp("output"))
    needed = {*DEFINITIONS, "colab", "mode", "data", "quick", "after-epoch"}
    setup = "import os, sys\nsys.path.append('tests')\nfrom pressing import pressing"
    assert {reader.run(code) for code in [*(name for name in reader.cells if name in needed), setup]} == {""}
    yield reader
    reader.signal(signal.SIGKILL)


def test_the_kernel_has_no_network(reader):
    for call in ("urllib.request.urlopen('https://example.org')", "socket.create_connection(('192.0.2.1', 80))"):
        assert "the tests have no network" in reader.run(f"import socket, urllib.request\n{call}")  # as nbval's kernel


@pytest.mark.parametrize("cell, function, call", [
    ("data", "helpers.download_url", 2), ("data", "torch.frombuffer", 1), ("plane-default", "discriminator_step", 60)])
def test_stopped_while_data_loads_and_in_the_plane_and_run_again(reader, cell, function, call):
    before = files(ROOT / "data")
    assert reader.run(f"{function} = pressing({function}, {call})") == ""
    assert reader.run(cell).startswith("KeyboardInterrupt")
    assert reader.run(cell) == "" and files(ROOT / "data") == before


@pytest.mark.parametrize("function, call, written", [
    ("torch.export.save", 1, set()), ("os.fsync", 1, set()), ("os.fsync", 2, {"generator.pt2"})])
def test_stopped_while_exporting_and_run_again(reader, function, call, written):
    for path in reader.output.glob("*.pt2"):
        path.unlink()
    before = set(files(reader.output))
    assert reader.run("latent = draw_latent(10, settings.latent_dim)\n"
                      "mlp = dcgan = SimpleNamespace(ema_generator=fresh_players(settings)[0])\n"
                      "conditional = SimpleNamespace(ema_generator=ConditionalGenerator(settings.latent_dim, (8, 8, 8, 8)))\n"
                      f"{function} = pressing({function}, {call})") == ""
    assert reader.run("export").startswith("KeyboardInterrupt") and set(files(reader.output)) - before == written
    assert reader.run("export") == ""
    assert set(files(reader.output)) - before == {"generator.pt2", "generator_dcgan.pt2", "writer.pt2"}


def test_stopped_at_random_moments_of_training_and_resumed(reader):
    checkpoint, choose = reader.output / "mlp_checkpoint.pt", random.Random(1)

    def train(resume, press=""):
        """Run the training cell, which raises nothing; returns all that it printed."""
        assert reader.run(f"RESUME = {resume}\n{press}") == "" and reader.run("train-run") == ""
        return str(reader.cells["train-run"].outputs)

    reader.run("settings = replace(settings, epochs=4, train_images=1_280, keep_every=2)")  # 10 steps an epoch
    said = train(resume=False)
    assert said.count("/40 [") == said.count(" 40/40 [") == 1 and "\\r" not in said  # of the progress line, its end
    undisturbed = torch.load(checkpoint, weights_only=True)

    def press_from_outside():
        while not checkpoint.exists():  # until the run has saved its beginning
            time.sleep(0.01)
        reader.signal(signal.SIGINT)

    checkpoint.unlink()
    threading.Thread(target=press_from_outside, daemon=True).start()
    assert "4 of 4 epochs" not in train(resume=False)
    for _ in range(3):  # and from inside, in one of the epochs that are left
        function = choose.choice(["discriminator_step", "generator_step", "softplus", "update_average"])
        press = f"pressing({function}, {choose.randint(1, 6)}, seconds={choose.uniform(1e-6, 2e-3)})"
        assert "4 of 4 epochs" not in train(True, f"{function} = {press}")
    for resume in (True, False):
        assert "4 of 4 epochs" in train(resume)
        assert differences(undisturbed, torch.load(checkpoint, weights_only=True)) == []
    assert not [name for name in files(reader.output) if name.startswith(".")]


def test_after_a_stop_in_the_first_epoch_of_each_run_every_later_cell_runs(reader):
    reader.run("settings, RESUME = replace(settings, epochs=2, train_images=1_280, score_samples=500), False\n"
               "every, images = images, images[:5_000]")  # fewer, to search them for neighbours
    names, press, errors = list(reader.cells), "discriminator_step = pressing(discriminator_step, 2)", {}
    before = {"train-run": press, "conv-train": press + "\nimages = every", "conditional-train": press}
    for name in names[names.index("train-run"):]:
        errors[name] = reader.run(before.get(name, "")) + reader.run(name)
    stopped = reader.run("assert [(run.epoch, run.step) for run in (mlp, dcgan, conditional)] == 3 * [(0, 2)]")
    assert stopped == "" and len(errors) > 20 and {name: error for name, error in errors.items() if error} == {}
