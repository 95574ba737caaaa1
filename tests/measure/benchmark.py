"""Speed of the notebook's loop, measured by hand: turns a second of the MLP and of the DCGAN.

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

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the notebook's first cell does
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from notebook_code import notebook_code, run_cell  # noqa: E402

NEIGHBOUR = "import torch\na = torch.randn(1000, 1000)\nwhile True: a @ a"


def speed(story, turns=150):
    networks = {"MLP": (story.settings, story.Generator, story.Discriminator),
                "DCGAN": (story.dcgan_settings, story.ConvGenerator, story.ConvDiscriminator)}
    for name, (settings, *players) in networks.items():
        images = story.images if name == "MLP" else story.frame(story.images)
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
