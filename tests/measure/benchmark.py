"""Speed of the notebook's loop, measured by hand: turns a second of the MLP, the DCGAN, and the
pair of section 15, in colour, with layers of three widths.

    python tests/measure/benchmark.py
    python tests/measure/benchmark.py --neighbour    while another process computes

Times vary from hour to hour: compare what runs in alternation, such as

    for i in 1 2 3; do for n in 1000 300000; do
        GOMP_SPINCOUNT=$n python tests/measure/benchmark.py; done; done
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the notebook's first cell does
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from notebook_code import notebook_code, run_cell  # noqa: E402

NEIGHBOUR = "import torch\na = torch.randn(1000, 1000)\nwhile True: a @ a"


def speed(story, turns=150):
    networks = {"MLP": (story.settings, story.Generator, story.Discriminator),
                "DCGAN": (story.dcgan_settings, story.ConvGenerator, story.ConvDiscriminator)}
    for width in (8, 16, 32):
        networks[f"64 x 64, width {width}"] = (
            replace(story.dcgan_settings, batch_size=32, r1_weight=10.0),
            lambda latent_dim, width=width: story.Generator64(latent_dim, width=width),
            lambda width=width: story.Discriminator64(width=width))
    pictures = torch.rand(500, 3, 64, 64) * 2 - 1
    for name, (settings, *players) in networks.items():
        images = {"MLP": story.images, "DCGAN": story.frame(story.images)}.get(name, pictures)
        game = story.LongGame(replace(settings, name="benchmark", epochs=2, turns_per_epoch=turns),
                              *players)
        story.train(game, images)
        rate = turns / game.history[1]["seconds"]  # the first epoch warms up
        print(f"{name}: {rate:.1f} turns/s, GOMP_SPINCOUNT={os.environ['GOMP_SPINCOUNT']}")


def main():
    story = SimpleNamespace(**notebook_code())
    run_cell("data", vars(story))
    if sys.argv[1:] == ["--neighbour"]:
        neighbour = subprocess.Popen([sys.executable, "-c", NEIGHBOUR])
        try:
            speed(story)
        finally:
            neighbour.kill()
    else:
        speed(story)


if __name__ == "__main__":
    main()
