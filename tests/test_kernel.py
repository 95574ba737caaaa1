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

    def run_all(self, times):
        """Every cell, each so many times; a run is stopped in its first epoch. Cell -> errors."""
        errors = {}
        for name in self.cells:
            press = "train_step = pressing(train_step, 2)" if name in RUNS else ""
            said = [self.run(press) + self.run(name) for _ in range(times)]
            if any(said):
                errors[name] = said
        return errors

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


@pytest.fixture(scope="module")
def after_stops(reader):
    """The errors of all cells, by name, when they first run."""
    assert reader.run("import sys\nsys.path.append('tests')\nfrom pressing import pressing") == ""
    return reader.run_all(times=1)


def test_the_kernel_has_no_network(reader):
    for call in ("urllib.request.urlopen('https://example.org')",
                 "socket.create_connection(('192.0.2.1', 80))"):
        said = reader.run(f"import socket, urllib.request\n{call}")
        assert "the tests have no network" in said


def test_the_stop_button_stops_training_and_resume_ends_as_if_nobody_had_pressed_it(reader):
    for name in ["colab", *DEFINITIONS, "data", "quick"]:
        assert reader.run(name) == ""
    reader.run("settings = replace(settings, epochs=4, train_images=1_280)")
    checkpoint = reader.output / "mlp_checkpoint.pt"
    assert reader.run("train-run") == ""
    undisturbed = torch.load(checkpoint, weights_only=True)
    checkpoint.unlink()
    threading.Thread(target=reader.stop_once_there_is, args=[checkpoint], daemon=True).start()
    assert reader.run("train-run") == reader.run("assert 1 <= mlp.epoch < 4") == ""
    reader.run("RESUME = True")
    assert reader.run("train-run") == reader.run("assert mlp.epoch == 4") == ""
    assert differences(torch.load(checkpoint, weights_only=True), undisturbed) == []


def test_after_a_stop_in_the_first_epoch_of_each_run_every_later_cell_runs(reader, after_stops):
    assert after_stops == {}
    assert reader.run("assert [run.step for run in (mlp, dcgan, conditional)] == [2, 2, 2]") == ""


def test_every_cell_runs_again_after_all_others_and_twice_at_once(reader, after_stops):
    assert reader.run_all(times=2) == {}
