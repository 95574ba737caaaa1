"""Speed of the loop, and the recipe that most tutorials copy, measured by hand:

    python tests/measure/benchmark.py speed              turns a second of MLP and DCGAN
    python tests/measure/benchmark.py speed --neighbour  while another process computes
    python tests/measure/benchmark.py textbook 100       the recipe, trained for 100 s

Times vary from hour to hour: compare what runs in alternation, such as

    for i in 1 2 3; do for n in 1000 300000; do
        GOMP_SPINCOUNT=$n python tests/measure/benchmark.py speed; done; done
"""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the notebook's first cell does
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import torch  # noqa: E402
from notebook_code import ROOT, notebook_code, run_cell  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.functional import binary_cross_entropy_with_logits  # noqa: E402
from torchvision import datasets, transforms  # noqa: E402

NEIGHBOUR = "import torch\na = torch.randn(1000, 1000)\nwhile True: a @ a"
TEXTBOOK = {"name": "textbook", "epochs": 1000, "batch_size": 64, "turns_per_epoch": 100,
            "learning_rate": 2e-4, "beta1": 0.5, "beta2": 0.999, "decay": 1e-9, "r1_weight": 0.0}


def textbook_generator(latent_dim):
    layers, widths = [], (latent_dim, 128, 256, 512, 1024)
    for fan_in, fan_out in zip(widths, widths[1:]):
        layers += [nn.Linear(fan_in, fan_out), nn.BatchNorm1d(fan_out), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Linear(1024, 784), nn.Tanh(), nn.Unflatten(1, (1, 28, 28)))


def textbook_discriminator():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 512), nn.LeakyReLU(0.2), nn.Linear(512, 256),
                         nn.LeakyReLU(0.2), nn.Linear(256, 1), nn.Flatten(0))


def cross_entropy(logits, label):
    return binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))


def plain_loop(settings, seconds):
    """What a reader would otherwise run: a DataLoader, four passes, two .item() a turn."""
    torch.manual_seed(settings.seed)
    generator, discriminator = textbook_generator(settings.latent_dim), textbook_discriminator()
    look = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])
    digits = datasets.MNIST(str(ROOT / "data"), train=True, download=True, transform=look)
    loader = torch.utils.data.DataLoader(digits, settings.batch_size, shuffle=True, drop_last=True)
    g_optimizer, d_optimizer = (
        torch.optim.Adam(player.parameters(), settings.learning_rate, (settings.beta1, 0.999))
        for player in (generator, discriminator))
    start, turns = time.perf_counter(), 0
    while True:
        for real, _ in loader:
            fake = generator(torch.randn(len(real), settings.latent_dim))
            d_loss = cross_entropy(discriminator(real), 1.0)
            d_loss = d_loss + cross_entropy(discriminator(fake.detach()), 0.0)
            d_optimizer.zero_grad()
            d_loss.backward()
            d_optimizer.step()
            g_loss = cross_entropy(discriminator(fake), 1.0)
            g_optimizer.zero_grad()
            g_loss.backward()
            g_optimizer.step()
            d_loss.item()  # as most loops print both
            g_loss.item()
            turns += 1
            if time.perf_counter() - start > seconds:
                return generator, turns


def our_loop(story, settings, seconds):
    """The same recipe through the notebook's loop, stopped as the stop button does it."""
    game, take_turn, start = None, story.take_turn, time.perf_counter()

    def stop_in_time(*arguments):
        if time.perf_counter() - start > seconds:
            raise KeyboardInterrupt
        return take_turn(*arguments)

    story.train.__globals__["take_turn"] = stop_in_time
    game = story.LongGame(settings, textbook_generator, textbook_discriminator)
    story.train(game, story.images)
    return game.generator, game.turn


def textbook(story, seconds):
    for name in ("judge", "confident", "score"):
        run_cell(name, vars(story))
    settings = replace(story.settings, **TEXTBOOK)
    print("| loop | epochs | seconds | Fr\u00e9chet | precision | recall | confident |")
    for name, (generator, turns) in [("plain DataLoader loop", plain_loop(settings, seconds)),
                                     ("this notebook's loop", our_loop(story, settings, seconds))]:
        row = story.score(story.helpers.generate(generator, torch.randn(10_000, 100)))
        print(f"| {name} | {turns / 937:.1f} | {seconds:.0f} | {row['frechet']:.2f} | "
              f"{row['precision']:.3f} | {row['recall']:.3f} | {row['confident']:.1%} |")


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
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "textbook"])
    parser.add_argument("seconds", type=float, nargs="?", default=100)
    parser.add_argument("--neighbour", action="store_true")
    options = parser.parse_args()
    story = SimpleNamespace(**notebook_code())
    run_cell("data", vars(story))
    neighbour = subprocess.Popen([sys.executable, "-c", NEIGHBOUR]) if options.neighbour else None
    try:
        if options.what == "speed":
            speed(story)
        else:
            textbook(story, options.seconds)
    finally:
        if neighbour:
            neighbour.kill()


if __name__ == "__main__":
    main()
