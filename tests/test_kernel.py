"""A real kernel and the real stop button: the notebook in quick mode, interrupted where chance will have it."""

import os
import random
import signal
import sys
import threading

import nbformat
import pytest
import torch
from conftest import ROOT, differences, read_notebook
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="interrupting a kernel is tested with POSIX signals")


class Reader:
    """Runs cells of the notebook in a kernel of its own, as somebody at a keyboard does."""

    def __init__(self, output):
        self.notebook = read_notebook()
        self.client = NotebookClient(self.notebook, timeout=300, kernel_name="python3",
                                     resources={"metadata": {"path": str(ROOT)}})
        environment = {**os.environ, "GAN_QUICK": "1", "GAN_OUTPUT": str(output), "GAN_DEVICE": "cpu"}
        self.client.create_kernel_manager()
        self.client.start_new_kernel(env=environment)
        self.client.start_new_kernel_client()
        self.checkpoint = output / "quick" / "mlp_checkpoint.pt"
        self.code = [cell for cell in self.notebook.cells if cell.cell_type == "code"]
        self.train = next(index for index, cell in enumerate(self.code) if cell.id == "train-run")

    def run(self, cell, stop_after=None):
        """Execute a cell (or a line of code); press stop after so many seconds. Returns its error, or ''."""
        if isinstance(cell, str):
            self.notebook.cells.append(nbformat.v4.new_code_cell(cell))
            cell = self.notebook.cells[-1]
        press = lambda: os.kill(self.client.km.provisioner.pid, signal.SIGINT)  # what the stop button sends
        timer = threading.Timer(stop_after, press) if stop_after else None
        if timer:
            timer.start()
        try:
            self.client.execute_cell(cell, self.notebook.cells.index(cell))
            return ""
        except CellExecutionError as error:
            return f"{error.ename}: {error.evalue}"
        finally:
            if timer:
                timer.cancel()
                timer.join()

    def close(self):
        os.kill(self.client.km.provisioner.pid, signal.SIGKILL)


@pytest.fixture
def reader(tmp_path):
    reader = Reader(tmp_path)
    for cell in reader.code[:reader.train]:
        assert reader.run(cell) == "", cell.source
    yield reader
    reader.close()


def test_stopped_at_random_moments_in_a_real_kernel_and_resumed(reader):
    train, choose = reader.code[reader.train], random.Random(1)
    assert reader.run(train) == ""
    seconds = sum(record["seconds"] for record in torch.load(reader.checkpoint, weights_only=True)["history"])
    undisturbed = torch.load(reader.checkpoint, weights_only=True)
    reader.run(train, stop_after=choose.uniform(0.2, 0.8) * seconds)  # RESUME is False: a fresh run, stopped
    stops = int("Stopped. Finished epochs" in str(train.outputs))
    for _ in range(4):
        reader.run("RESUME = True")
        reader.run(train, stop_after=choose.uniform(0.05, 0.4) * seconds)
        stops += "Stopped. Finished epochs" in str(train.outputs)
    assert stops >= 2  # it was really pressed while training ran
    assert reader.run(train) == ""
    assert differences(undisturbed, torch.load(reader.checkpoint, weights_only=True)) == []
    reader.run("RESUME = False")
    assert reader.run(train) == ""
    assert differences(undisturbed, torch.load(reader.checkpoint, weights_only=True)) == []


def test_after_a_stop_in_the_first_epoch_every_later_cell_runs_or_says_what_is_missing(reader):
    reader.run("real_step = discriminator_step")
    reader.run("def discriminator_step(*a):\n    raise KeyboardInterrupt")
    assert reader.run(reader.code[reader.train]) == ""
    reader.run("discriminator_step = real_step")
    errors = {cell.id: reader.run(cell) for cell in reader.code[reader.train + 1:]}
    for name, error in errors.items():
        assert error == "" or "before the first epoch has ended" in error, f"{name}: {error}"
    assert sum(map(bool, errors.values())) < 10  # most of what follows works with the young generator
