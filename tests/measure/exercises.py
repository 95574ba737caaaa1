"""Measures the outcomes that section 14 of the notebook folds away, by hand (pytest runs it on tiny numbers only):

    python tests/exercises.py            all of them, about a minute each on 2 cores
    python tests/exercises.py "8 no 7s" plane

Each exercise is the notebook's own code with the change that the exercise asks for, trained for 6 epochs where it
says nothing else, the DCGAN for as many as in the notebook. `plane` plays section 3's games with three seeds.
"""

import argparse
import contextlib
import dataclasses
import io
import os
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
PAPER = {"discriminator": ("images + 1", "images")}  # as most tutorials have it: D sees paper as -1
# Name: settings to change, cell of the notebook -> (old text, new text), and which images to train on.
EXERCISES = {
    "the recipe": {},
    "1 latent of 2": {"settings": {"latent_dim": 2}},
    "2 no penalty": {"settings": {"r1_gamma": 0.0}},
    "2 penalty times 100": {"settings": {"r1_gamma": 100.0}},
    "3 Adam's defaults, no penalty": {"settings": {"r1_gamma": 0.0, "betas": (0.9, 0.999)}},
    "4 rate never falls": {"settings": {"decay_from": 1.0}},
    "5 saturating loss": {"cells": {"generator-step": (
        "softplus(-discriminator(fake)).mean()", "logsigmoid(-discriminator(fake)).mean()")}},
    "6 BatchNorm in D": {"cells": {"discriminator": (
        "nn.Linear(fan_in, fan_out), nn.LeakyReLU", "nn.Linear(fan_in, fan_out), nn.BatchNorm1d(fan_out), nn.LeakyReLU")}},
    "6 BatchNorm in D, two batches": {"cells": {
        "discriminator": ("nn.Linear(fan_in, fan_out), nn.LeakyReLU",
                          "nn.Linear(fan_in, fan_out), nn.BatchNorm1d(fan_out), nn.LeakyReLU"),
        "discriminator-step": ("discriminator(torch.cat([real, fake.detach()])).split([len(real), len(fake)])",
                               "discriminator(real), discriminator(fake.detach())")}},
    "8 no 7s": {"choose": lambda images, labels: images[labels != 7]},
    "9 1,000 images": {"settings": {"train_images": 1_000, "epochs": 352}, "choose": lambda images, labels: images[:1_000]},
    "10 islands by k-means": {"settings": {"epochs": 12}, "kinds": 50},
    "10 the recipe, 12 epochs": {"settings": {"epochs": 12}},
    "D sees paper as -1, 12 epochs": {"settings": {"epochs": 12}, "cells": PAPER},
    "the DCGAN": {"convolutions": True},
    "DCGAN with ReLU in G": {"convolutions": True, "cells": {"conv-generator": (
        "nn.Sequential(*layers, ",
        "nn.Sequential(*(nn.ReLU() if isinstance(layer, nn.LeakyReLU) else layer for layer in layers), ")}},
    "DCGAN, beta2 0.99": {"convolutions": True, "settings": {"betas": (0.0, 0.99)}},
    "DCGAN, penalty every 4th step": {"convolutions": True, "settings": {"r1_interval": 4}},
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
    """The notebook's definitions and settings, after a change to the source of some cells."""
    import conftest
    sources = conftest.cell_sources()
    for name, (old, new) in cells.items():
        if sources[name].count(old) != 1:
            raise ValueError(f"cell {name} does not hold {old!r} once")
        sources[name] = sources[name].replace(old, new)
    with contextlib.redirect_stdout(io.StringIO()):
        names = conftest.notebook_code(sources=sources)
        names["QUICK"] = False  # the settings measured are those of a full run
        for cell in ("quick", "conv-init"):
            exec(sources[cell], names)  # noqa: S102
    return argparse.Namespace(**names)


def silent_train(story, *arguments):
    """The notebook's loop without its progress line, which would run through what is printed here; Ctrl-C ends it all."""
    with contextlib.redirect_stdout(io.StringIO()):
        state = story.train(*arguments)
    if state.epoch < state.settings.epochs:  # Ctrl-C, which `train` takes for the stop button
        raise KeyboardInterrupt
    return state


def run(exercise, images, labels, **shrink):
    """Train as the exercise asks; returns (story, the state at the end, the images it was trained on, draw)."""
    story = story_with(exercise.get("cells", {}))
    chosen = exercise.get("choose", lambda images, labels: images)(images, labels)
    settings, classes, draw_latent = dataclasses.replace(story.settings, epochs=6), (), story.draw_latent
    inner = slice(0, 28)
    if "convolutions" in exercise:
        inner = slice(2, 30)
        settings, classes = story.dcgan_settings, (story.ConvGenerator, story.ConvDiscriminator)
        chosen = torch.nn.functional.pad(chosen, (2, 2, 2, 2), value=-1)
    settings = dataclasses.replace(settings, **{"train_images": len(chosen), **exercise.get("settings", {}), **shrink})
    chosen = chosen[:settings.train_images]
    if "kinds" in exercise:
        story.tick.__globals__["KINDS"] = exercise["kinds"]
        codes = clusters(chosen, exercise["kinds"])
        chosen, classes = story.tick(chosen, codes), (story.ConditionalGenerator, story.ConditionalDiscriminator)
        draw_latent = lambda n, latent_dim: story.ask(codes[torch.randint(len(codes), (n,))], story.draw_latent(n, latent_dim))
    state = silent_train(story, *story.fresh_players(settings, *classes), chosen, settings, lambda state: None, draw_latent)

    def draw(generator, n=None, latent=None):
        latent = draw_latent(n, settings.latent_dim) if latent is None else latent
        return story.helpers.generate(generator, latent)[:, :, inner, inner]

    return story, state, chosen[:, :, inner, inner], draw


def report(name, story, state, chosen, draw, reference, test_images, samples=10_000):
    helpers = story.helpers

    def row(name, images):
        score = helpers.score_images(reference, images)
        print(f"{name:30} Fréchet {score['frechet']:7.2f}  precision {score['precision']:.3f}  recall {score['recall']:.3f}"
              f"  coverage {score['coverage']:.3f}  confident {score['confident']:.1%}  KL {score['kl']:.3f}"
              f"  D's loss {state.history[-1]['d_loss']:.2f}  digits {score['histogram']}", flush=True)

    helpers.seed_everything(1)
    seconds = sum(record["seconds"] for record in state.history)
    drawn = draw(state.ema_generator, samples)
    row(f"{name} ({seconds:.0f} s)", drawn)
    if name in ("the recipe", "4 rate never falls"):
        row("  without the average", draw(state.generator, samples))
    if name == "the recipe":
        latent = torch.randn(samples, state.settings.latent_dim)
        for scale in (0.9, 0.7, 0.5):
            row(f"  7 latent times {scale}", draw(state.ema_generator, latent=latent * scale))
        for limit in (2.0, 1.2, 0.8):
            cut = torch.nn.init.trunc_normal_(torch.empty_like(latent), a=-limit, b=limit)
            row(f"  7 entries beyond {limit} redrawn", draw(state.ema_generator, latent=cut))
    if name in ("the recipe", "9 1,000 images"):
        distance = lambda images: helpers.nearest_images(images[:2_000], chosen)[0].median().item()
        print(f"{'':30} nearest training image at {distance(drawn):.2f}, of test images "
              f"{distance(test_images):.2f}", flush=True)


def plane(steps=2000, seeds=(0, 1, 2)):
    """Clusters reached and share of points on one, at the end of each game of section 3."""
    story = story_with({})
    for name, recipe in [("Adam's default betas", {"betas": (0.9, 0.999)}), ("beta1 0", {"betas": (0.0, 0.99)}),
                         ("and R1", {"betas": (0.0, 0.99), "penalty_weight": 0.1}),
                         ("and the average", {"betas": (0.0, 0.99), "penalty_weight": 0.1, "ema_decay": 0.995})]:
        ends = [story.plane_score(story.play_in_the_plane(**recipe, steps=steps, seed=seed)[-1].points) for seed in seeds]
        print(f"plane: {name:22}", ", ".join(f"{reached} of 8 ({on:.0%} on one)" for reached, on in ends), flush=True)
    ends = [story.plane_score(story.play_told(steps * 2 // 5, seed).points) for seed in seeds]
    print(f"plane: {'told, 2/5 of the steps':22}", ", ".join(f"{reached} of 8 ({on:.1%} on one)" for reached, on in ends))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="which: plane, " + ", ".join(EXERCISES))
    parser.add_argument("--seed", type=int, default=0, help="of the exercises; the plane always takes three")
    options = parser.parse_args()
    names = options.names or ["plane", *EXERCISES]
    unknown = set(names) - {"plane", *EXERCISES}
    if unknown:
        parser.error(f"{sorted(unknown)} unknown; there are: {', '.join(EXERCISES)}")
    import gan_helpers as helpers
    os.environ["GAN_DEVICE"] = "cpu"
    images, labels = helpers.load_mnist(train=True)
    test_images, _ = helpers.load_mnist(train=False)
    reference = helpers.make_reference(test_images)
    for name in names:
        if name == "plane":
            plane()
            continue
        report(name, *run(EXERCISES[name], images, labels, seed=options.seed), reference, test_images)


if __name__ == "__main__":
    main()
