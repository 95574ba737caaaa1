"""A real kernel and the real stop button: the notebook's own cells, as a reader runs them."""

import copy
import os
import re
import signal
import sys
import threading
import time

import nbformat
import pytest
import torch
from conftest import differences, write_archives
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from notebook_code import CODE, NOTEBOOK, ROOT
from refresh_notebook import copy_project

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a kernel there has no SIGINT")


DATA = {"kinds": 26, "training": 200, "test": 60}
PRESS_STOP_ONCE = """
def stopped_turn(*arguments, turns=[1, 2, 3], original=take_turn):
    if not turns:
        globals()["take_turn"] = original
        raise KeyboardInterrupt
    turns.pop()
    return original(*arguments)
take_turn = stopped_turn"""


class Reader:
    """Runs cells of the notebook in a kernel, as somebody at a keyboard does."""

    def __init__(self, folder, output):
        self.output = output / "quick"
        self.notebook = copy.deepcopy(NOTEBOOK)
        self.cells = {cell.id: cell for cell in self.notebook.cells if cell.cell_type == "code"}
        options = {"kernel_name": "python3", "resources": {"metadata": {"path": str(folder)}}}
        self.client = NotebookClient(self.notebook, timeout=300, **options)
        self.client.create_kernel_manager()
        environment = {**os.environ, "GAN_OUTPUT": str(output), "GAN_DEVICE": "cpu"}
        environment["PYTHONPATH"] = environment["PYTHONPATH"].replace(str(ROOT), str(folder))
        self.client.start_new_kernel(env=environment)
        self.client.start_new_kernel_client()

    def run(self, *cells):
        """Execute cells, by their names, or code. An error is raised as CellExecutionError."""
        for name in cells:
            if name not in self.cells:
                self.notebook.cells.append(nbformat.v4.new_code_cell(name))
            cell = self.cells.get(name, self.notebook.cells[-1])
            self.client.execute_cell(cell, self.notebook.cells.index(cell))
            for output in cell.outputs:
                assert output.get("name") != "stderr", (name, output.text)

    def stop_once_there_is(self, path):
        """From another thread, as Jupyter does it."""
        while not path.exists():
            time.sleep(0.01)
        os.kill(self.client.km.provisioner.pid, signal.SIGINT)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """Of a copy of this folder whose data are letters, few of them, in MNIST's format."""
    folder = tmp_path_factory.mktemp("project")
    copy_project(folder)
    write_archives(folder / "data" / "MNIST" / "raw", **DATA)
    reader = Reader(folder, tmp_path_factory.mktemp("output"))
    yield reader
    os.kill(reader.client.km.provisioner.pid, signal.SIGKILL)


def test_letters_few_images_other_latents_a_stop_in_each_run_and_every_cell_twice(reader):
    """The judge knows none of the 26 kinds, and the latents of each network have another size."""
    for cell in CODE:
        if cell.id in ("train-run", "told-train", "conditional-train"):
            reader.run(PRESS_STOP_ONCE)
        reader.run(cell.id, cell.id)
        if cell.id == "quick":
            reader.run("settings = replace(settings, latent_dim=50, turns_per_epoch=5)")
        if cell.id == "conv-init":
            reader.run("dcgan_settings = replace(dcgan_settings, latent_dim=64)")
    reader.run("assert [game.turn for game in (mlp, told_mlp, told_dcgan)] == [10, 10, 20]",
               "assert told_dcgan.fixed_noise.shape == (32, 64 + 26)")
    told = "".join(output.get("text", "") for output in reader.cells["judge"].outputs)
    assert "data/README.md has the command that teaches another judge" in told


def test_the_stop_button_stops_training_and_resume_ends_as_if_nobody_had_pressed_it(reader):
    reader.run("EPOCHS, settings = 4, replace(Settings(), turns_per_epoch=10)", "train-run")
    line, = [output for output in reader.cells["train-run"].outputs
             if "image/png" not in output.get("data", {}) and output.output_type != "stream"]
    assert line.data["text/plain"].startswith("100%") and "| 40/40 [" in line.data["text/plain"]
    assert "D's loss" in line.data["text/plain"] and "\r" not in line.data["text/plain"]
    checkpoint = reader.output / "mlp_checkpoint.pt"
    undisturbed = torch.load(checkpoint, weights_only=True)
    assert checkpoint.stat().st_size < 45e6 and (reader.output / "mlp_epoch_04.png").exists()

    checkpoint.unlink()
    threading.Thread(target=reader.stop_once_there_is, args=[checkpoint], daemon=True).start()
    reader.run("train-run", "assert 10 <= mlp.turn < 40, mlp.turn")
    reader.run("RESUME = True", "train-run", "assert mlp.turn == 40")
    assert differences(torch.load(checkpoint, weights_only=True), undisturbed) == []


def test_the_code_of_the_exercises_runs(reader):
    """As a reader would paste it, below a notebook that has run, on images enough for all of it."""
    texts = [cell.source for cell in NOTEBOOK.cells if cell.id.startswith("exercise-")]
    blocks = [re.findall(r"```python\n(.*?)```", text, re.DOTALL) for text in texts]
    assert len(blocks) == 6 and all(blocks)
    reader.run("images, labels = images.repeat(11, 1, 1, 1), labels.repeat(11)",
               "RESUME, settings = False, replace(Settings(), turns_per_epoch=5)")
    *others, (choose_clusters, score_them) = blocks
    reader.run(*[block for exercise in others for block in exercise],
               choose_clusters, "told-train", score_them, "assert few.settings.name == 'exercise'")


def test_the_kernel_has_no_network(reader):
    with pytest.raises(CellExecutionError, match="the tests have no network"):
        reader.run("import socket; socket.create_connection(('192.0.2.1', 80))")
