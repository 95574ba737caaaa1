"""The notebook's own training cell on tiny settings, whole and killed again and again; test_keep.py starts it:

    python tests/killed_run.py FOLDER

Leaves FOLDER/whole and FOLDER/killed, each with the checkpoint at the end of the run. Every run is a process of its
own, forked from this one to spare the imports; one thread, since threads do not survive a fork.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

os.environ["GAN_DEVICE"] = "cpu"
from conftest import tiny_story

EPOCHS = 12


def start(play, *arguments):
    child = os.fork()
    if child == 0:
        try:
            play(*arguments)
            os._exit(0)
        finally:
            os._exit(1)
    return child


def epoch_of(checkpoint):
    return torch.load(checkpoint, weights_only=True)["epoch"] if checkpoint.exists() else -1


def main(folder):
    torch.set_num_threads(1)
    play = tiny_story(epochs=EPOCHS, picture_every=3)
    for name in ("whole", "killed"):
        (folder / name).mkdir()

    began = time.monotonic()
    if os.waitpid(start(play, folder / "whole", False), 0)[1]:
        sys.exit("the whole run failed")
    seconds = time.monotonic() - began

    # Each kill waits until the run has reached an epoch further on, then for a moment chosen by a seeded draw.
    checkpoint, choose = folder / "killed" / "mlp_checkpoint.pt", random.Random(0)
    for epoch in range(0, EPOCHS - 2, 2):
        child = start(play, folder / "killed", True)
        while epoch_of(checkpoint) < epoch:
            time.sleep(0.001)
        time.sleep(choose.uniform(0, seconds / EPOCHS))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        print("killed after epoch", epoch_of(checkpoint), flush=True)
    if os.waitpid(start(play, folder / "killed", True), 0)[1]:
        sys.exit("the resumed run failed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
