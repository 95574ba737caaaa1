"""A tiny run of the notebook; started as a program, it is killed while it writes:

    python tests/killed_run.py FOLDER
"""

import signal
import sys
from pathlib import Path
from types import SimpleNamespace

from conftest import notebook_code, run_cell, some_images, tiny


def tiny_run(**changes):
    """The notebook's names, ready for its training cell: 3 epochs of 6 steps, made-up images."""
    names = notebook_code()
    settings = tiny(SimpleNamespace(**names), **{"epochs": 3, **changes})
    names.update(settings=settings, images=some_images(200))
    return names


def play(names, folder, resume=False):
    """Run the cell that trains; returns the state in the end."""
    names.update(output=folder, RESUME=resume)
    return run_cell("train-run", names)["mlp"]


def write_half(path, content):
    """In place of Path.write_bytes: half of it, and the end of this process."""
    with open(path, "wb") as file:
        file.write(content[:len(content) // 2])
    signal.raise_signal(signal.SIGKILL)


def main(folder):
    play(tiny_run(epochs=1), folder)
    Path.write_bytes = write_half
    play(tiny_run(), folder, resume=True)  # until it saves the second epoch


if __name__ == "__main__":
    main(Path(sys.argv[1]))
