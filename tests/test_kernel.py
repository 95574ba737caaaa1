"""A real kernel and the real stop button: the notebook's own cells, as a reader runs them."""

import asyncio
import copy
import os
import re
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

WAIT_TO_BE_STOPPED = """import time
def take_turn(game, *arguments, original=take_turn, waiting=output / "waiting"):
    if game.turn == 25 and not waiting.exists():
        waiting.touch()
        time.sleep(200)
    return original(game, *arguments)"""


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
        return cell.outputs

    def stop_once_there_is(self, path):
        """Press the button, from another thread."""
        while not path.exists():
            time.sleep(0.05)
        asyncio.run(self.client.km.interrupt_kernel())


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """Of a copy of this folder whose data are letters, few of them, in MNIST's format."""
    folder = tmp_path_factory.mktemp("project")
    copy_project(folder)
    write_archives(folder / "data" / "MNIST" / "raw", kinds=26, training=10_000, test=6_000)
    reader = Reader(folder, tmp_path_factory.mktemp("output"))
    yield reader
    asyncio.run(reader.client.km.shutdown_kernel(now=True))


def test_every_cell_works_with_letters_few_images_and_two_latents(reader):
    """The judge knows none of the 26 kinds, and there are fewer latents than directions."""
    for cell in CODE:
        reader.run(cell.id)
        if cell.id == "settings":
            reader.run("settings = replace(settings, latent_dim=2, epochs=2)")
    reader.run("assert (len(images), KINDS, settings.latent_dim) == (200, 26, 2)",
               "assert list(ways) == ['direction 1', 'direction 2', 'at random']")
    told = "".join(output.get("text", "") for output in reader.cells["judge"].outputs)
    assert "data/README.md has the command that teaches another judge" in told


def test_the_code_of_the_exercises_runs(reader):
    """As a reader would paste it, below a notebook that has run, on images enough for all of it."""
    texts = [cell.source for cell in NOTEBOOK.cells if cell.id.startswith("exercise-")]
    blocks = [re.findall(r"```python\n(.*?)```", text, re.DOTALL) for text in texts]
    assert len(blocks) == 6 and all(blocks)
    reader.run("images, labels = images.repeat(6, 1, 1, 1), labels.repeat(6)")
    *others, (choose_clusters, score_them) = blocks
    reader.run(*[block for exercise in others for block in exercise],
               choose_clusters, "told-train", score_them, "assert few.settings.name == 'exercise'")


def test_the_stop_button_stops_training_and_resume_ends_as_if_nobody_had_pressed_it(reader):
    reader.run("settings = replace(Settings(), epochs=3, turns_per_epoch=10)")
    line, = [output.data["text/plain"] for output in reader.run("train-run")
             if output.output_type == "display_data" and "image/png" not in output.data]
    assert line.startswith("100%") and "| 30/30 [" in line and "D's loss" in line
    assert "\r" not in line
    checkpoint = reader.output / "mlp_checkpoint.pt"
    undisturbed = torch.load(checkpoint, weights_only=True)
    assert checkpoint.stat().st_size < 45e6 and (reader.output / "mlp_epoch_03.png").exists()

    reader.run(WAIT_TO_BE_STOPPED)
    button = threading.Thread(target=reader.stop_once_there_is, args=[reader.output / "waiting"],
                              daemon=True)
    button.start()
    printed = "".join(output.get("text", "") for output in reader.run("train-run"))
    button.join()
    assert "Stopped after 25 of 30 turns" in printed
    assert torch.load(checkpoint, weights_only=True)["turn"] == 20
    reader.run(reader.cells["train-run"].source.replace("resume=False", "resume=True"))
    assert differences(torch.load(checkpoint, weights_only=True), undisturbed) == []


def test_the_kernel_has_no_network(reader):
    with pytest.raises(CellExecutionError, match="the tests have no network"):
        reader.run("import socket; socket.create_connection(('192.0.2.1', 80))")
