"""A tiny run of the notebook's own training, whole and killed ten times; test_keep.py starts it:

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
from conftest import DEFINITIONS, notebook_code  # noqa: E402


def run(names, folder, resume):
    names.update(output=folder, RESUME=resume)
    settings = names["settings"]
    torch.manual_seed(settings.seed)
    players = (names["Generator"](settings.latent_dim, settings.generator_widths, settings.generator_batch_norm),
               names["Discriminator"](settings.discriminator_widths))
    names["train"](*players, names["images"], settings, names["after_epoch"])


def start(*arguments):
    child = os.fork()
    if child == 0:
        try:
            run(*arguments)
            os._exit(0)
        finally:
            os._exit(1)
    return child


def main(folder):
    torch.set_num_threads(1)
    names = notebook_code(DEFINITIONS)
    names["settings"] = names["Settings"](epochs=12, train_images=128, batch_size=16, latent_dim=8, picture_every=3,
                                          generator_widths=(32, 16), discriminator_widths=(32, 16), score_samples=500)
    names["images"] = torch.rand(128, 1, 28, 28, generator=torch.Generator().manual_seed(1)) * 2 - 1
    helpers = names["helpers"]
    names["reference"] = helpers.make_reference(helpers.load_mnist(train=False)[0][:500])
    names["output"] = folder  # for the definition of after_epoch
    from conftest import cell_sources
    exec(cell_sources()["after-epoch"], names)
    names["plt"].show = lambda: names["plt"].close("all")
    for name in ("whole", "killed"):
        (folder / name).mkdir()

    began = time.monotonic()
    child = start(names, folder / "whole", False)
    if os.waitpid(child, 0)[1]:
        sys.exit("the whole run failed")
    seconds = time.monotonic() - began
    for _ in range(10):
        child = start(names, folder / "killed", True)
        time.sleep(random.uniform(0, seconds / 4))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        checkpoint = folder / "killed" / "mlp_checkpoint.pt"
        print("killed after epoch", torch.load(checkpoint)["epoch"] if checkpoint.exists() else None, flush=True)
    if os.waitpid(start(names, folder / "killed", True), 0)[1]:
        sys.exit("the resumed run failed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
