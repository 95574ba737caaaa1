"""The notebook's own training cell on tiny settings, whole and killed again and again; test_keep.py starts it:

    python tests/killed_run.py FOLDER

Leaves FOLDER/whole and FOLDER/killed, each with the checkpoint at the end of the run. Every run is a process of its
own, forked from this one to spare the imports; one thread, since threads do not survive a fork.
"""

import os
import signal
import sys
from pathlib import Path

import torch
from conftest import tiny_story
from pressing import pressing

import gan_helpers as helpers

EPOCHS = 9
# After which call of what the process kills itself: in a step, between steps, while a file is written.
KILLS = [("generator_step", 13), ("update_average", 1), ("fsync", 2), ("replace", 3), ("save_checkpoint", 3),
         ("generate", 1)]


def run(play, folder, resume, kill=None):
    """The exit status of a run in a process of its own, which may kill itself."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        if kill:
            name, call = kill
            owner = next(owner for owner in (vars(os), vars(helpers), play.names) if name in owner)
            owner[name] = pressing(owner[name], call, signal_sent=signal.SIGKILL)
        play(folder, resume)
        os._exit(0)
    finally:
        os._exit(1)


def main(folder):
    torch.set_num_threads(1)
    play = tiny_story(epochs=EPOCHS, keep_every=3)
    for name in ("whole", "killed"):
        (folder / name).mkdir()
    if run(play, folder / "whole", False):
        sys.exit("the whole run failed")
    for kill in KILLS:
        if run(play, folder / "killed", True, kill) != signal.SIGKILL:
            sys.exit(f"the run was not killed: {kill}")
        print("killed after epoch", torch.load(folder / "killed" / "mlp_checkpoint.pt")["epoch"], flush=True)
    if run(play, folder / "killed", True):
        sys.exit("the resumed run failed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
