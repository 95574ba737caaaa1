"""How a plain script ends, in a folder of its own: killed while it writes, on a full disk, by Ctrl-C.

test_gan_helpers.py starts it, and reads what it prints:  python tests/hard_ends.py
"""

import dataclasses
import os
import resource
import signal
from pathlib import Path
from types import SimpleNamespace

import torch

import gan_helpers as helpers

Named = dataclasses.make_dataclass("Named", ["name"])
state = SimpleNamespace(settings=Named("x"), fixed_noise=torch.randn(100_000))
images = torch.rand(400, 1, 28, 28)
generator = torch.nn.Sequential(torch.nn.Linear(64, 784), torch.nn.Tanh(), torch.nn.Unflatten(1, (1, 28, 28)))
WRITERS = {
    "checkpoint.pt": lambda path: helpers.save_checkpoint(state, path),
    "grid.png": lambda path: helpers.save_grid(images, path, columns=20),
    "film.gif": lambda path: helpers.film([helpers.plot_grid(images, 20), helpers.plot_grid(-images, 20)], path=path),
    "scores.json": lambda path: helpers.write_whole(path, bytes(100_000)),
    "generator.pt2": lambda path: helpers.export_generator(generator, path, 64),
}
for name in WRITERS:
    Path(name).write_text("the last good file")

child = os.fork()
if child == 0:
    os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
    WRITERS["scores.json"]("scores.json")
print("killed", os.waitpid(child, 0)[1] == signal.SIGKILL, Path("scores.json").read_text())
for name in set(os.listdir()) - set(WRITERS):  # what the killed one had not renamed yet
    os.remove(name)

resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # the disk is full after 10 kB
for name, write in WRITERS.items():
    try:
        write(name)
    except OSError as error:
        print(error)

with helpers.stop_button() as stop:
    for step in range(1, 9):
        if step == 3:
            signal.raise_signal(signal.SIGINT)
        print("step", step, flush=True)
        if stop():
            break
print("the next section", flush=True)
