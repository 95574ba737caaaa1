"""A real kernel and the real stop button: the notebook's own cells, as a reader runs them."""

import copy
import os
import signal
import sys
import threading
import time

import nbformat
import pytest
import torch
from conftest import DEFINITIONS, NOTEBOOK, ROOT, differences
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a kernel there has no SIGINT")
RUNS = ("train-run", "conv-train", "conditional-train")
PRESS = "train_step = pressing(train_step, 2)"


class Reader:
    """Runs cells of the notebook in a kernel, as somebody at a keyboard does."""

    def __init__(self, output):
        self.output = output / "quick"
        self.notebook = copy.deepcopy(NOTEBOOK)
        self.cells = {cell.id: cell for cell in self.notebook.cells if cell.cell_type == "code"}
        options = {"kernel_name": "python3", "resources": {"metadata": {"path": str(ROOT)}}}
        self.client = NotebookClient(self.notebook, timeout=300, **options)
        self.client.create_kernel_manager()
        environment = {**os.environ, "GAN_OUTPUT": str(output), "GAN_DEVICE": "cpu"}
        self.client.start_new_kernel(env=environment)
        self.client.start_new_kernel_client()
        self.run("import sys; sys.path.append('tests')\nfrom notebook_code import pressing")

    def run(self, *cells):
        """Execute cells, by their names, or code. An error is raised as CellExecutionError."""
        for name in cells:
            if name not in self.cells:
                self.notebook.cells.append(nbformat.v4.new_code_cell(name))
            cell = self.cells.get(name, self.notebook.cells[-1])
            self.client.execute_cell(cell, self.notebook.cells.index(cell))

    def run_all(self, times):
        """Every cell, each so many times; a run is stopped in its first epoch."""
        for name in self.cells:
            self.run(*times * ([PRESS, name] if name in RUNS else [name]))

    def stop_once_there_is(self, path):
        """From another thread, as Jupyter does it."""
        while not path.exists():
            time.sleep(0.01)
        os.kill(self.client.km.provisioner.pid, signal.SIGINT)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    reader = Reader(tmp_path_factory.mktemp("output"))
    yield reader
    os.kill(reader.client.km.provisioner.pid, signal.SIGKILL)


def test_the_stop_button_stops_training_and_resume_ends_as_if_nobody_had_pressed_it(reader):
    reader.run("colab", *DEFINITIONS, "data", "quick")
    reader.run("settings = replace(settings, epochs=4, train_images=1_280)", "train-run")
    checkpoint = reader.output / "mlp_checkpoint.pt"
    undisturbed = torch.load(checkpoint, weights_only=True)
    checkpoint.unlink()
    threading.Thread(target=reader.stop_once_there_is, args=[checkpoint], daemon=True).start()
    reader.run("train-run", "assert 1 <= mlp.epoch < 4")
    reader.run("RESUME = True", "train-run", "assert mlp.epoch == 4")
    assert differences(torch.load(checkpoint, weights_only=True), undisturbed) == []


def test_the_kernel_has_no_network(reader):
    with pytest.raises(CellExecutionError, match="the tests have no network"):
        reader.run("import socket; socket.create_connection(('192.0.2.1', 80))")


def test_after_a_stop_in_each_run_every_cell_runs_then_again_and_twice_at_once(reader):
    reader.run_all(times=1)
    reader.run("assert [run.step for run in (mlp, dcgan, conditional)] == [2, 2, 2]")
    reader.run_all(times=2)
