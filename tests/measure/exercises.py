"""Scores of the notebook's networks, of section 14's exercises and of other changes to the recipe, measured by hand:

    python tests/measure/exercises.py                      all of them, about a minute each on 2 cores
    python tests/measure/exercises.py MLP DCGAN --seeds 0 1 2
    python tests/measure/exercises.py plane                section 3's games, always with seeds 0, 1 and 2

Each is the notebook's own code with the named change, trained as the notebook trains it, or for 6 epochs where the name
begins with a number or `6 epochs`. Prints rows for results.md. pytest runs all of them on tiny numbers.
"""

import argparse
import contextlib
import dataclasses
import functools
import io
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

SIX = {"epochs": 6}
BLACK_AT_MINUS_1 = {"discriminator": ("images + 1", "images")}
BATCHNORM_IN_D = {"discriminator": ("nn.Linear(fan_in, fan_out), nn.LeakyReLU",
                                    "nn.Linear(fan_in, fan_out), nn.BatchNorm1d(fan_out), nn.LeakyReLU")}
# Name: settings to change, cell of the notebook -> (old text, new text), and which images to train on.
EXERCISES = {
    "MLP": {},
    "DCGAN": {"network": "dcgan"},
    "conditional DCGAN": {"network": "conditional"},
    "conditional DCGAN, penalty 3": {"network": "conditional", "settings": {"r1_gamma": 3.0}},
    "6 epochs, the recipe": {"settings": SIX},
    "1 latent of 2": {"settings": {**SIX, "latent_dim": 2}},
    "2 no penalty": {"settings": {**SIX, "r1_gamma": 0.0}},
    "2 penalty times 100": {"settings": {**SIX, "r1_gamma": 100.0}},
    "3 Adam's defaults, no penalty": {"settings": {**SIX, "r1_gamma": 0.0, "betas": (0.9, 0.999)}},
    "4 rate never falls": {"settings": {**SIX, "decay_from": 1.0}},
    "5 saturating loss": {"settings": SIX, "cells": {"generator-step": (
        "softplus(-discriminator(fake)).mean()", "logsigmoid(-discriminator(fake)).mean()")}},
    "6 BatchNorm in D": {"settings": SIX, "cells": BATCHNORM_IN_D},
    "6 BatchNorm in D, two batches": {"settings": SIX, "cells": {**BATCHNORM_IN_D, "r1": (
        "discriminator(torch.cat([real, fake.detach()])).split([len(real), len(fake)])",
        "discriminator(real), discriminator(fake.detach())")}},
    "8 no 7s": {"settings": SIX, "choose": lambda images, labels: images[labels != 7]},
    "9 1,000 images": {"settings": {"train_images": 1_000, "epochs": 401},
                       "choose": lambda images, labels: images[:1_000]},
    "10 islands by k-means": {"settings": {"epochs": 5, "r1_gamma": 1.0}, "network": "conditional", "kinds": 20, "cells": {
        "tick": ("KINDS = 10", "KINDS = 20", "    return ticked",
                 "    ticked[:, 0, :2, 1:31] = boxes[:, None, 30:]\n    return ticked")}},
    "6 epochs, D sees black as -1": {"settings": SIX, "cells": BLACK_AT_MINUS_1},
    "6 epochs, penalty at every step": {"settings": {**SIX, "r1_interval": 1}},
    "6 epochs, beta1 0.5": {"settings": {**SIX, "betas": (0.5, 0.99)}},
    "6 epochs, no BatchNorm in G": {"settings": SIX, "cells": {
        "generator": (", bias=False), nn.BatchNorm1d(fan_out), ", "), ")}},
    "6 epochs, G of 512-512": {"settings": {**SIX, "generator_widths": (512, 512)}},
    "6 epochs, batches of 64": {"settings": {**SIX, "batch_size": 64}},
    "6 epochs, batches of 256": {"settings": {**SIX, "batch_size": 256}},
    "6 epochs, latent of 64": {"settings": {**SIX, "latent_dim": 64}},
    "DCGAN with ReLU in G": {"network": "dcgan", "cells": {"conv-generator": (
        "nn.Sequential(*layers, ",
        "nn.Sequential(*(nn.ReLU() if isinstance(layer, nn.LeakyReLU) else layer for layer in layers), ")}},
    "DCGAN, D sees black as 0": {"network": "dcgan", "cells": {
        "conv-discriminator": ("return self.layers(images)", "return self.layers(images + 1)")}},
    "DCGAN, beta2 0.99": {"network": "dcgan", "settings": {"betas": (0.0, 0.99)}},
    "DCGAN, penalty every 4th step": {"network": "dcgan", "settings": {"r1_interval": 4}},
}


def clusters(images, kinds, rounds=25):
    """k-means on the raw pixels (Lloyd, 1957): the number of each image's cluster, (N,)."""
    pixels = images.flatten(1)
    centres = pixels[torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))[:kinds]]
    for _ in range(rounds):
        nearest = torch.cat([torch.addmm(centres.square().sum(dim=1), chunk, centres.T, alpha=-2).argmin(dim=1)
                             for chunk in pixels.split(10_000)])
        sums = torch.zeros_like(centres).index_add_(0, nearest, pixels)
        centres = sums / nearest.bincount(minlength=kinds).clamp(min=1)[:, None]
    return nearest


def story_with(cells):
    """The notebook's definitions and settings of a full run, after a change to the source of some cells."""
    import conftest
    sources = conftest.cell_sources()
    for name, texts in cells.items():
        for old, new in zip(texts[::2], texts[1::2]):
            if sources[name].count(old) != 1:
                raise ValueError(f"cell {name} does not hold {old!r} once")
            sources[name] = sources[name].replace(old, new)
    with contextlib.redirect_stdout(io.StringIO()):
        names = conftest.notebook_code(sources=sources)
        names["QUICK"] = False
        for cell in ("quick", "conv-init", "conditional-settings"):
            conftest.run_cell(cell, names, sources)
    return SimpleNamespace(**names)


def silent_train(story, *arguments):
    """The notebook's loop without its progress line, which would run through what is printed here."""
    with contextlib.redirect_stdout(io.StringIO()):
        return story.train(*arguments)


def run(exercise, images, labels, **shrink):
    """Train as the exercise asks; returns (story, the state at the end, the images it was trained on, draw)."""
    story, network = story_with(exercise.get("cells", {})), exercise.get("network")
    chosen = exercise.get("choose", lambda images, labels: images)(images, labels)
    settings, classes, draw_latent, inner = story.settings, (), story.draw_latent, slice(0, 28)
    if network:
        settings, classes, inner = story.dcgan_settings, (story.ConvGenerator, story.ConvDiscriminator), slice(2, 30)
        chosen = torch.nn.functional.pad(chosen, (2, 2, 2, 2), value=-1)
    if network == "conditional":
        settings, classes = story.conditional_settings, (story.ConditionalGenerator, story.ConvDiscriminator)
        if "kinds" in exercise:
            labels = clusters(chosen, exercise["kinds"])
        chosen = story.tick(chosen, labels)
        draw_latent = lambda n, latent_dim: story.ask(labels[torch.randint(len(labels), (n,))],
                                                      story.draw_latent(n, latent_dim))
    settings = dataclasses.replace(settings, **{"train_images": len(chosen), **exercise.get("settings", {}), **shrink})
    chosen = chosen[:settings.train_images]
    players = story.fresh_players(settings, *classes)
    state = silent_train(story, *players, chosen, settings, lambda state: None, draw_latent)

    def draw(generator, n=None, latent=None):
        latent = draw_latent(n, settings.latent_dim) if latent is None else latent
        return story.helpers.generate(generator, latent)[:, :, inner, inner]

    return story, state, chosen[:, :, inner, inner], draw


def evaluator_of(story, test_images):
    return story.helpers.Evaluator(test_images, story.frechet_distance, story.precision_recall_coverage)


def report(name, seed, story, state, chosen, draw, evaluator, test_images, samples=10_000):
    seconds = sum(record["seconds"] for record in state.history)

    def row(name, images):
        score = evaluator.scores(images)
        print(f"| {name} | {seed} | {state.epoch} | {seconds:.0f} s | {score['frechet']:.2f} | {score['precision']:.3f} | "
              f"{score['recall']:.3f} | {score['coverage']:.3f} | {score['confident']:.1%} | {score['kl']:.3f} | "
              f"{state.history[-1]['d_loss']:.2f} |", flush=True)
        return score["histogram"]

    torch.manual_seed(seed + 1)
    if name.startswith("conditional DCGAN"):  # as in the notebook, as many of each digit
        asked = torch.arange(samples) % 10
        drawn = draw(state.ema_generator, latent=story.ask(asked, torch.randn(samples, state.settings.latent_dim)))
        read = story.helpers.judge_images(evaluator.judge, drawn)[1].argmax(dim=1)
        print(f"  {(read == asked).double().mean():.1%} read as asked:", flush=True)
    else:
        drawn = draw(state.ema_generator, samples)
    histogram = row(name, drawn)
    if name in ("MLP", "6 epochs, the recipe", "4 rate never falls"):
        row(f"{name}, not averaged", draw(state.generator, samples))
    if name == "6 epochs, the recipe":
        latent = torch.randn(samples, state.settings.latent_dim)
        row("7 latents times 0.7", draw(state.ema_generator, latent=latent * 0.7))
    if name in ("3 Adam's defaults, no penalty", "8 no 7s"):
        print(f"  digits that the judge reads: {histogram}", flush=True)
    if name in ("6 epochs, the recipe", "9 1,000 images"):
        apart = lambda images: torch.cdist(images[:2_000].flatten(1), chosen.flatten(1)).amin(dim=1).median().item()
        print(f"  nearest training image at {apart(drawn):.2f}, of test images at {apart(test_images):.2f}", flush=True)


def plane(steps=2000, seeds=(0, 1, 2)):
    """The ends of section 3's games: clusters reached, share of points on one, D's mean steepness at G's points."""
    story = story_with({})
    bare, penalized = story.discriminator_step, functools.partial(story.discriminator_step, penalty_weight=0.1)
    play = lambda d_step, beta1, seed: story.play_in_the_plane(d_step, (beta1, 0.999), steps, seed)
    games = {"Adam's defaults": lambda seed: play(bare, 0.9, seed), "$\\beta_1 = 0$": lambda seed: play(bare, 0.0, seed),
             "and R1": lambda seed: play(penalized, 0.0, seed),
             "and the average": lambda seed: story.averaged(play(penalized, 0.0, seed)),
             "told the cluster, $\\beta_1 = 0$": lambda seed: story.play_told(steps * 2 // 5, seed)}
    for name, game in games.items():
        ends = [story.watch(game(seed))[-1] for seed in seeds]
        reached, on = zip(*(story.plane_score(end["points"]) for end in ends))
        print(f"| {name} | {', '.join(map(str, reached))} | {', '.join(f'{share:.0%}' for share in on)} | "
              f"{', '.join(format(end['slopes'].norm(dim=1).mean().item(), '.1f') for end in ends)} |", flush=True)


def matrix_rate(precision):
    """The best rate of square matrix products at this float32 precision of torch, in operations a second."""
    before, best = torch.get_float32_matmul_precision(), 0
    torch.set_float32_matmul_precision(precision)
    for n in (512, 1024, 2048):
        a, b = torch.randn(2, n, n)
        for _ in range(4):
            start, products = time.perf_counter(), max(1, 4096 // n)
            for _ in range(products):
                a @ b
            best = max(best, products * 2 * n**3 / (time.perf_counter() - start))
    torch.set_float32_matmul_precision(before)
    return best


def machine():
    """A line on the machine, by which times of two of them compare."""
    return (f"torch {torch.__version__}, {torch.get_num_threads()} threads, square matrix products at "
            f"{matrix_rate('highest') / 1e9:.0f} GFLOP/s, with precision medium {matrix_rate('medium') / 1e9:.0f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="which: plane, " + ", ".join(EXERCISES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    names = options.names or ["plane", *EXERCISES]
    unknown = set(names) - {"plane", *EXERCISES}
    if unknown:
        parser.error(f"{sorted(unknown)} unknown; there are: {', '.join(EXERCISES)}")
    os.environ["GAN_DEVICE"] = "cpu"
    print(machine(), flush=True)
    if "plane" in names:
        plane()
    story = story_with({})
    images, labels = story.helpers.load_mnist(train=True)
    test_images, _ = story.helpers.load_mnist(train=False)
    evaluator = evaluator_of(story, test_images)
    print("\n| network | seed | epochs | training | Fréchet | precision | recall | coverage | confident | KL | D's loss |"
          "\n|---|---|---|---|---|---|---|---|---|---|---|")
    for name in names:
        for seed in options.seeds if name != "plane" else []:
            report(name, seed, *run(EXERCISES[name], images, labels, seed=seed), evaluator, test_images)


if __name__ == "__main__":
    main()
