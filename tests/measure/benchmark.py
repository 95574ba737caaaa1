"""Speed and memory of the loop, and the recipe that most tutorials copy, measured by hand:

    python tests/measure/benchmark.py speed

trains the notebook's MLP at its batch size, with its losses, penalty and average, in alternation:
through a plain DataLoader loop as most would write it, through the notebook's loop without its line
on float32 products, and as it is. Each run is a process of its own, on the CPU. Prints medians of
images a second, their ratios and peak memory; then what a row of scores costs.

    python tests/measure/benchmark.py textbook --seconds 85

trains the textbook's recipe for as many seconds as the notebook's takes (exercises.py MLP), through
a plain DataLoader loop and through the notebook's loop, and prints the scores.
"""

import argparse
import copy
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time

import torch
from exercises import (
    BLACK_AT_MINUS_1,
    cells_of,
    do_nothing,
    machine,
    score_against,
    silent_train,
    story_with,
)
from notebook_code import ROOT
from torch.nn.functional import softplus
from torchvision import datasets, transforms

WARM_UP_BATCHES = 30
VARIANTS = {"plain": "plain DataLoader loop",
            "highest": "this notebook's loop, products as they are", "ours": "this notebook's loop"}
TEXTBOOK = {"generator_widths": (128, 256, 512, 1024), "discriminator_widths": (512, 256),
            "batch_size": 64, "learning_rate": 2e-4, "betas": (0.5, 0.999), "decay_from": 1.0,
            "r1_gamma": 0.0, "ema_decay": 0.0}


def plain_loop(story, settings):
    """What a reader would otherwise run; yields the generator after every batch."""
    look = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])
    digits = datasets.MNIST(str(ROOT / "data"), train=True, download=True, transform=look)
    loader = torch.utils.data.DataLoader(digits, batch_size=settings.batch_size, shuffle=True,
                                         drop_last=True)
    state = story.fresh_state(settings)
    generator, discriminator = state.generator, state.discriminator
    average, step = copy.deepcopy(generator), 0
    g_optimizer, d_optimizer = (
        torch.optim.Adam(player.parameters(), lr=settings.learning_rate, betas=settings.betas)
        for player in (generator, discriminator))
    while True:
        for real, _ in loader:
            d_optimizer.zero_grad()
            fake = generator(torch.randn(len(real), settings.latent_dim))
            d_loss = softplus(-discriminator(real)).mean()
            d_loss = d_loss + softplus(discriminator(fake.detach())).mean()
            if settings.r1_gamma > 0 and step % settings.r1_interval == 0:
                weight = settings.r1_gamma * settings.r1_interval
                d_loss = d_loss + weight / 2 * story.r1_penalty(discriminator, real)
            d_loss.backward()
            d_optimizer.step()
            g_optimizer.zero_grad()
            fake = generator(torch.randn(len(real), settings.latent_dim))
            g_loss = softplus(-discriminator(fake)).mean()
            g_loss.backward()
            g_optimizer.step()
            if settings.ema_decay > 0:
                decay = min(settings.ema_decay, (1 + step) / (10 + step))
                story.update_average(average, generator, decay)
            d_loss.item()  # as most loops print both
            g_loss.item()
            step += 1
            yield generator


def time_plain_loop(story, settings, batches):
    loop = plain_loop(story, settings)
    for _ in range(WARM_UP_BATCHES):
        next(loop)
    start = time.perf_counter()
    for _ in range(batches):
        next(loop)
    return time.perf_counter() - start


def time_our_loop(story, settings, batches):
    images, _ = story.helpers.load_mnist(train=True)
    for count in (WARM_UP_BATCHES, batches):
        amount = count * settings.batch_size
        one = dataclasses.replace(settings, epochs=1, train_images=amount)
        state = silent_train(story, story.fresh_state(one), images[:amount], do_nothing)
    return state.history[-1]["seconds"]


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
    settings = story.Settings()
    batches = image_count // settings.batch_size
    if variant != "ours":
        torch.set_float32_matmul_precision("highest")
    if variant == "plain":
        torch.set_flush_denormal(False)
        seconds = time_plain_loop(story, settings, batches)
    else:
        seconds = time_our_loop(story, settings, batches)
    speed = batches * settings.batch_size / seconds
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
    start = time.perf_counter()
    score_against(story, test_images, images[:10_000])
    print(f"\nA row of scores of 10,000 images takes {time.perf_counter() - start:.1f} s")


class TimeIsUp(Exception):
    """Ends the notebook's loop after so many seconds."""


def train_for(story, settings, images, seconds):
    """The notebook's loop on its own until whole epochs have taken so long; returns the state."""
    state = story.fresh_state(settings)

    def until(state):
        if sum(record["seconds"] for record in state.history) >= seconds:
            raise TimeIsUp

    try:
        silent_train(story, state, images, until)
    except TimeIsUp:
        return state
    raise RuntimeError(f"{settings.epochs} epochs took less than {seconds} s")


def textbook(seconds):
    story = story_with(BLACK_AT_MINUS_1)
    images, test_images = (story.helpers.load_mnist(train)[0] for train in (True, False))
    settings = dataclasses.replace(story.Settings(), **TEXTBOOK, epochs=10_000)
    loop, start, steps = plain_loop(story, settings), time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        generator, steps = next(loop), steps + 1
    state = train_for(story, settings, images, seconds)
    ends = {"plain DataLoader loop": (generator, steps * settings.batch_size // len(images)),
            "this notebook's loop": (state.generator, state.epoch)}
    print(f"{machine()}\n\n| loop | epochs | training | Fréchet | precision | recall | coverage | "
          "confident | KL |\n|---|---|---|---|---|---|---|---|---|")
    for name, (generator, epochs) in ends.items():
        torch.manual_seed(1)
        pictures = story.helpers.generate(generator, story.draw_latent(10_000, settings.latent_dim))
        row = score_against(story, test_images, pictures)
        print(f"| {name} | {epochs} | {seconds:.0f} s | {cells_of(row)} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "textbook"])
    parser.add_argument("--images", type=int, default=25_600, help="images per run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=85)
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
