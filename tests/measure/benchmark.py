"""Speed and memory of the loop, and the recipe that most tutorials copy, measured by hand:

    python tests/measure/benchmark.py speed

trains the notebook's MLP at its batch size, with its losses, penalty and average, in alternation:
through a plain DataLoader loop as most would write it, through the notebook's loop without its line
on float32 products, and as it is. Each run is a process of its own, on the CPU. Prints medians of
images a second, their ratios and peak memory; then what a row of scores costs.

    python tests/measure/benchmark.py textbook

trains the textbook's recipe for as many seconds as the notebook's MLP took here (exercises.py MLP),
through a plain DataLoader loop and through the notebook's loop, and prints the scores.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time

import torch
from exercises import Scorer, cells_of, machine, silent_train, story_with
from notebook_code import ROOT
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision import datasets, transforms

WARM_UP_TURNS = 30
VARIANTS = {"plain": "plain DataLoader loop",
            "highest": "this notebook's loop, products as they are", "ours": "this notebook's loop"}
TEXTBOOK = {"batch_size": 64, "turns_per_epoch": 937, "learning_rate": 2e-4, "beta1": 0.5,
            "beta2": 0.999, "decay_from": 1.0, "r1_weight": 0.0}


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


def plain_loop(story, game):
    """What a reader would otherwise run with these players; yields after every batch."""
    settings, generator, discriminator = game.settings, game.generator, game.discriminator
    look = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])
    digits = datasets.MNIST(str(ROOT / "data"), train=True, download=True, transform=look)
    loader = torch.utils.data.DataLoader(digits, batch_size=settings.batch_size, shuffle=True,
                                         drop_last=True)
    betas = settings.beta1, settings.beta2
    g_optimizer, d_optimizer = (
        torch.optim.Adam(player.parameters(), lr=settings.learning_rate, betas=betas)
        for player in (generator, discriminator))
    while True:
        for real, _ in loader:
            d_optimizer.zero_grad()
            fake = generator(torch.randn(len(real), settings.latent_dim))
            d_loss = cross_entropy(discriminator(real), 1.0)
            d_loss = d_loss + cross_entropy(discriminator(fake.detach()), 0.0)
            r1_weight = story.r1_weight_at(game.turn, settings)
            if r1_weight > 0:
                d_loss = d_loss + r1_weight / 2 * story.r1_penalty(discriminator, real)
            d_loss.backward()
            d_optimizer.step()
            g_optimizer.zero_grad()
            fake = generator(torch.randn(len(real), settings.latent_dim))
            g_loss = cross_entropy(discriminator(fake), 1.0)
            g_loss.backward()
            g_optimizer.step()
            game.turn += 1
            story.update_average(game.average, generator, game.turn)
            d_loss.item()  # as most loops print both
            g_loss.item()
            yield


def time_plain_loop(story, images, turns):
    loop = plain_loop(story, story.new_game(story.settings, images))
    for _ in range(WARM_UP_TURNS):
        next(loop)
    start = time.perf_counter()
    for _ in range(turns):
        next(loop)
    return time.perf_counter() - start


def time_our_loop(story, images, turns):
    for count in (WARM_UP_TURNS, turns):
        settings = dataclasses.replace(story.settings, turns_per_epoch=count)
        game = story.new_game(settings, images)
        silent_train(story, game, 1)
    return game.history[-1]["seconds"]


def peak_memory():
    """The most memory that this process has held, in bytes; NaN on Windows, which does not tell."""
    try:
        import resource
    except ImportError:
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure(variant, image_count):
    """One run in this process: a warm-up, then about `image_count` images."""
    story = story_with({})
    images, _ = story.helpers.load_mnist(train=True)
    turns = image_count // story.settings.batch_size
    if variant != "ours":
        torch.set_float32_matmul_precision("highest")
    if variant == "plain":
        torch.set_flush_denormal(False)
        seconds = time_plain_loop(story, images, turns)
    else:
        seconds = time_our_loop(story, images, turns)
    speed = turns * story.settings.batch_size / seconds
    print("RESULT" + json.dumps({"speed": speed, "memory": peak_memory()}))


def speed(rounds, image_count):
    results = {variant: [] for variant in VARIANTS}
    for variant in list(VARIANTS) * rounds:
        command = [sys.executable, __file__, "speed", "--variant", variant,
                   "--images", str(image_count)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode != 0:
            sys.exit(run.stderr)
        results[variant].append(json.loads(run.stdout.split("RESULT")[1]))

    def median(variant, key):
        return statistics.median(result[key] for result in results[variant])

    print(f"{machine()}; medians of {rounds} runs of {image_count:,} images\n")
    print("| loop | images/s | against plain | peak memory |\n|---|---|---|---|")
    for variant, name in VARIANTS.items():
        rate = median(variant, "speed")
        print(f"| {name} | {rate:,.0f} | {rate / median('plain', 'speed'):.1f}x | "
              f"{median(variant, 'memory') / 1e6:,.0f} MB |")
    story = story_with({})
    images, test_images = (story.helpers.load_mnist(train)[0] for train in (True, False))
    scorer = Scorer(story, test_images)
    start = time.perf_counter()
    scorer.score(images[:10_000])
    print(f"\nA row of scores of 10,000 images takes {time.perf_counter() - start:.1f} s")


def textbook(seconds):
    story = story_with({})
    images, test_images = (story.helpers.load_mnist(train)[0] for train in (True, False))
    settings = dataclasses.replace(story.settings, **TEXTBOOK)
    networks = textbook_generator, textbook_discriminator
    plain = story.new_game(settings, images, *networks)
    soon = dataclasses.replace(settings, turns_per_epoch=100)  # to stop within a second
    ours = story.new_game(soon, images, *networks)
    loop, start = plain_loop(story, plain), time.perf_counter()
    while time.perf_counter() - start < seconds:
        next(loop)

    def stop_in_time(game):
        if sum(means["seconds"] for means in game.history) >= seconds:
            raise KeyboardInterrupt  # as the stop button does

    silent_train(story, ours, 10_000, stop_in_time)
    scorer = Scorer(story, test_images)
    print(f"{machine()}\n\n| loop | epochs | training | Fréchet | precision | recall | coverage | "
          "confident | KL |\n|---|---|---|---|---|---|---|---|---|")
    for name, game in {"plain DataLoader loop": plain, "this notebook's loop": ours}.items():
        torch.manual_seed(1)
        row = scorer.score(story.helpers.generate(game.generator, game.draw_latent(10_000)))
        epochs = game.turn // settings.turns_per_epoch
        print(f"| {name} | {epochs} | {seconds:.0f} s | {cells_of(row)} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "textbook"])
    parser.add_argument("--images", type=int, default=25_600, help="images per run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=74)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["GAN_DEVICE"] = "cpu"
    if options.variant:
        measure(options.variant, options.images)
    elif options.what == "speed":
        speed(options.rounds, options.images)
    else:
        textbook(options.seconds)


if __name__ == "__main__":
    main()
