"""Scores of the notebook's networks, of its exercises and of other changes, measured by hand:

    python tests/measure/exercises.py                      all, about a minute each on 2 cores
    python tests/measure/exercises.py MLP DCGAN --seeds 0 1 2
    python tests/measure/exercises.py plane                the games in the plane, of three seeds

Each is the notebook's own code with the named change, trained as the notebook trains it, or for 6
epochs where the name begins with a number or `6 epochs`. Prints rows for results.md. Runs on the
CPU, or on the device that GAN_DEVICE names. pytest runs all of them on tiny numbers.
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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from notebook_code import NOTEBOOK, cell_sources, notebook_code, run_cell  # noqa: E402

SIX = {"epochs": 6}
BLACK_AT_MINUS_1 = {"Discriminator": ("images + 1", "images")}
BATCHNORM_IN_D = {"Discriminator": (
    "nn.Linear(fan_in, fan_out), nn.LeakyReLU",
    "nn.Linear(fan_in, fan_out), nn.BatchNorm1d(fan_out), nn.LeakyReLU")}
TWO_BATCHES = {"penalized_step": (
    "    logits = discriminator(torch.cat([real, fake.detach()]))\n", "",
    "logits.split([len(real), len(fake)])", "discriminator(real), discriminator(fake.detach())")}
SATURATING = {"generator_step": ("softplus(-discriminator(fake)).mean()",
                                 "logsigmoid(-discriminator(fake)).mean()")}
NO_BATCHNORM_IN_G = {"Generator": (", bias=False), nn.BatchNorm1d(fan_out),", "),")}
RELU_IN_G = {"ConvGenerator": (
    "nn.Sequential(*layers)",
    "nn.Sequential(*(nn.ReLU() if isinstance(layer, nn.LeakyReLU) else layer"
    " for layer in layers))")}
TWENTY_KINDS = {"tick": ("KINDS = 10", "KINDS = 20", "    return ticked",
                         "    ticked[:, 0, :2, 1:31] = boxes[:, None, 30:]\n    return ticked")}


def without_sevens(images, labels):
    return images[labels != 7]


def first_thousand(images, labels):
    return images[:1_000]


# Name: `settings` to change; `code`, the name of a function or class -> (old text, new text, ...)
# in its cell; `network`, if not the MLP; `choose`, which images to train on; `kinds` of islands.
EXERCISES = {
    "MLP": {},
    "DCGAN": {"network": "dcgan"},
    "conditional DCGAN": {"network": "conditional"},
    "conditional DCGAN, penalty 3": {"network": "conditional", "settings": {"r1_gamma": 3.0}},
    "6 epochs, the recipe": {"settings": SIX},
    "1 latent of 2": {"settings": {**SIX, "latent_dim": 2}},
    "2 no penalty": {"settings": {**SIX, "r1_gamma": 0.0}},
    "2 penalty times 100": {"settings": {**SIX, "r1_gamma": 100.0}},
    "3 Adam's defaults, no penalty": {
        "settings": {**SIX, "r1_gamma": 0.0, "betas": (0.9, 0.999)}},
    "4 rate never falls": {"settings": {**SIX, "decay_from": 1.0}},
    "5 saturating loss": {"settings": SIX, "code": SATURATING},
    "6 BatchNorm in D": {"settings": SIX, "code": BATCHNORM_IN_D},
    "6 BatchNorm in D, two batches": {"settings": SIX, "code": {**BATCHNORM_IN_D, **TWO_BATCHES}},
    "8 no 7s": {"settings": SIX, "choose": without_sevens},
    "9 1,000 images": {"settings": {"train_images": 1_000, "epochs": 401},
                       "choose": first_thousand},
    "10 islands by k-means": {"network": "conditional", "kinds": 20, "code": TWENTY_KINDS,
                              "settings": {"epochs": 5, "r1_gamma": 1.0}},
    "6 epochs, D sees black as -1": {"settings": SIX, "code": BLACK_AT_MINUS_1},
    "6 epochs, penalty at every step": {"settings": {**SIX, "r1_interval": 1}},
    "6 epochs, beta1 0.5": {"settings": {**SIX, "betas": (0.5, 0.99)}},
    "6 epochs, no BatchNorm in G": {"settings": SIX, "code": NO_BATCHNORM_IN_G},
    "6 epochs, G of 512-512": {"settings": {**SIX, "generator_widths": (512, 512)}},
    "6 epochs, batches of 64": {"settings": {**SIX, "batch_size": 64}},
    "6 epochs, batches of 256": {"settings": {**SIX, "batch_size": 256}},
    "6 epochs, latent of 64": {"settings": {**SIX, "latent_dim": 64}},
    "DCGAN with ReLU in G": {"network": "dcgan", "code": RELU_IN_G},
    "DCGAN, D sees black as 0": {"network": "dcgan", "code": {
        "ConvDiscriminator": ("return self.layers(images)", "return self.layers(images + 1)")}},
    "DCGAN, beta2 0.99": {"network": "dcgan", "settings": {"betas": (0.0, 0.99)}},
    "DCGAN, penalty every 4th step": {"network": "dcgan", "settings": {"r1_interval": 4}},
}


# The notebook's code, changed ---------------------------------------------------------------------

def cell_of(name):
    """The id of the cell that defines a function or class of this name."""
    found = [cell.id for cell in NOTEBOOK.cells if cell.cell_type == "code"
             and any(line.startswith((f"def {name}(", f"class {name}("))
                     for line in cell.source.splitlines())]
    if len(found) != 1:
        raise ValueError(f"{name} is defined in {len(found)} cells: {found}")
    return found[0]


def story_with(code):
    """The notebook's definitions and settings of a full run, with the code changed as asked."""
    changes = {}
    for name, texts in code.items():
        changes[cell_of(name)] = changes.get(cell_of(name), ()) + texts
    sources = cell_sources(changes)
    with contextlib.redirect_stdout(io.StringIO()):
        names = notebook_code(sources, device=os.environ.get("GAN_DEVICE", "cpu"))
        names["QUICK"] = False
        for cell in ("quick", "conv-init", "conditional-settings"):
            run_cell(cell, names, sources)
    return SimpleNamespace(**names)


def do_nothing(state):
    pass


def silent_train(story, *arguments):
    """The notebook's loop without its progress line, which would run through what is printed."""
    with contextlib.redirect_stdout(io.StringIO()):
        return story.train(*arguments)


def clusters(images, kinds, rounds=25):
    """k-means on the raw pixels (Lloyd, 1957): the number of each image's cluster, (N,)."""
    pixels = images.flatten(1)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    centres = pixels[order[:kinds].to(pixels.device)]
    for _ in range(rounds):
        nearest = torch.cat([torch.cdist(chunk, centres).argmin(dim=1)
                             for chunk in pixels.split(10_000)])
        sums = torch.zeros_like(centres).index_add_(0, nearest, pixels)
        centres = sums / nearest.bincount(minlength=kinds).clamp(min=1)[:, None]
    return nearest


def run(exercise, images, labels, **shrink):
    """Train as the exercise asks.

    Returns the story, the state at the end, the images that it was trained on, and the functions
    `draw_latent(n, latent_dim)` and `draw(generator, latent)`, all as attributes.
    """
    story, network = story_with(exercise.get("code", {})), exercise.get("network")
    settings, classes, draw_latent, inner = story.settings, (), story.draw_latent, slice(0, 28)
    chosen = images
    if "choose" in exercise:
        chosen = exercise["choose"](images, labels)
    if network:
        settings, inner = story.dcgan_settings, slice(2, 30)
        classes = (story.ConvGenerator, story.ConvDiscriminator)
        chosen = torch.nn.functional.pad(chosen, (2, 2, 2, 2), value=-1)
    if network == "conditional":
        settings = story.conditional_settings
        classes = (story.ConditionalGenerator, story.ConvDiscriminator)
        if "kinds" in exercise:
            labels = clusters(chosen, exercise["kinds"])
        chosen = story.tick(chosen, labels)
        story.train.__globals__["labels"] = labels  # whose frequencies ask_for_any draws from
        draw_latent = story.ask_for_any
    changes = {"train_images": len(chosen), **exercise.get("settings", {}), **shrink}
    settings = dataclasses.replace(settings, **changes)
    chosen = chosen[:settings.train_images]
    state = story.fresh_state(settings, *classes, draw_latent=draw_latent)
    silent_train(story, state, chosen, do_nothing, draw_latent)

    def draw(generator, latent):
        return story.helpers.generate(generator, latent)[:, :, inner, inner]

    return SimpleNamespace(story=story, state=state, chosen=chosen[:, :, inner, inner],
                           draw_latent=draw_latent, draw=draw)


# Scores -------------------------------------------------------------------------------------------

def score_against(story, test_images, pictures):
    """A row of the notebook's scores of 10,000 pictures."""
    judge = story.helpers.load_judge().to(story.device)
    story.score.__globals__["judge"] = judge
    return story.score(story.helpers.judge_images(judge, test_images), pictures)


def cells_of(row):
    """The columns of a row of scores, as results.md has them."""
    return (f"{row['frechet']:.2f} | {row['precision']:.3f} | {row['recall']:.3f} | "
            f"{row['coverage']:.3f} | {row['confident']:.1%} | {row['kl']:.3f}")


def read_as_asked(end, latent):
    """The share of drawings of a conditional run that read as the digit that was asked for."""
    helpers, device = end.story.helpers, end.story.device
    judge = helpers.load_judge().to(device)
    drawn = end.draw(end.state.ema_generator, latent)
    read = helpers.judge_images(judge, drawn)[1].argmax(dim=1)
    return (read == latent[:, -10:].argmax(dim=1)).double().mean().item()


def nearest(end, pictures):
    """The median distance of 2,000 pictures to the nearest image that was trained on."""
    return end.story.nearest_images(pictures[:2_000], end.chosen)[0].median().item()


def report(name, seed, end, test_images):
    """Print the rows of a run, and what else results.md says of it."""
    state, latent_dim, samples = end.state, end.state.settings.latent_dim, len(test_images)
    seconds = sum(record["seconds"] for record in state.history)

    def print_row(name, pictures):
        row = score_against(end.story, test_images, pictures)
        print(f"| {name} | {seed} | {state.epoch} | {seconds:.0f} s | {cells_of(row)} | "
              f"{state.history[-1]['d_loss']:.2f} |", flush=True)
        return row

    torch.manual_seed(seed + 1)
    latent = end.draw_latent(samples, latent_dim)
    if name.startswith("conditional DCGAN"):  # as in the notebook, as many of each digit
        asked = torch.arange(samples, device=end.story.device) % 10
        latent = end.story.ask(asked, end.story.draw_latent(samples, latent_dim))
        print(f"  {read_as_asked(end, latent):.1%} read as asked:", flush=True)
    drawn = end.draw(state.ema_generator, latent)
    row = print_row(name, drawn)
    if name in ("MLP", "6 epochs, the recipe", "4 rate never falls"):
        print_row(f"{name}, not averaged", end.draw(state.generator, latent))
    if name == "6 epochs, the recipe":
        print_row("7 latents times 0.7", end.draw(state.ema_generator, latent * 0.7))
    if name in ("3 Adam's defaults, no penalty", "8 no 7s"):
        print(f"  digits that the judge reads: {row['histogram']}", flush=True)
    if name in ("6 epochs, the recipe", "9 1,000 images"):
        print(f"  nearest training image at {nearest(end, drawn):.2f}, "
              f"of test images at {nearest(end, test_images):.2f}", flush=True)


def plane(steps=2000, seeds=(0, 1, 2)):
    """The ends of the games in the plane: clusters, share on one, D's mean steepness."""
    story = story_with({})
    step = functools.partial(story.penalized_step, weight=0.1)

    def play(d_step, beta1, seed):
        return story.play_in_the_plane(d_step, (beta1, 0.999), steps, seed)

    games = {
        "Adam's defaults": functools.partial(play, story.discriminator_step, 0.9),
        "$\\beta_1 = 0$": functools.partial(play, story.discriminator_step, 0.0),
        "and R1": functools.partial(play, step, 0.0),
        "and the average": lambda seed: story.averaged(play(step, 0.0, seed)),
        "told the cluster": functools.partial(story.play_told, steps * 2 // 5),
    }
    for name, game in games.items():
        ends = [story.watch(game(seed))[-1] for seed in seeds]
        scores = [story.plane_score(end["points"]) for end in ends]
        reached = ", ".join(str(clusters) for clusters, _ in scores)
        on = ", ".join(f"{share:.0%}" for _, share in scores)
        steep = ", ".join(f"{end['slopes'].norm(dim=1).mean():.1f}" for end in ends)
        print(f"| {name} | {reached} | {on} | {steep} |", flush=True)


def matrix_rate(precision, n=2048):
    """The best rate of products of n x n matrices at this precision of torch, in FLOP/s."""
    before, best = torch.get_float32_matmul_precision(), 0
    torch.set_float32_matmul_precision(precision)
    a, b = torch.randn(2, n, n)
    for _ in range(8):
        start = time.perf_counter()
        a @ b
        best = max(best, 2 * n**3 / (time.perf_counter() - start))
    torch.set_float32_matmul_precision(before)
    return best


def machine():
    """A line on the machine's processor, by which times of two of them compare."""
    as_they_are, medium = matrix_rate("highest") / 1e9, matrix_rate("medium") / 1e9
    return (f"torch {torch.__version__}, {torch.get_num_threads()} threads, square matrix products "
            f"at {as_they_are:.0f} GFLOP/s, with precision medium {medium:.0f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    every = ["plane", *EXERCISES]
    parser.add_argument("names", nargs="*", default=every, help=f"which: {', '.join(every)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(every))
    if unknown:
        parser.error(f"{unknown} unknown; there are: {', '.join(every)}")
    print(machine(), flush=True)
    if "plane" in options.names:
        plane()
    story = story_with({})
    images, labels = story.helpers.load_mnist(train=True, device=story.device)
    test_images, _ = story.helpers.load_mnist(train=False, device=story.device)
    print("\n| network | seed | epochs | training | Fréchet | precision | recall | coverage | "
          "confident | KL | D's loss |\n|---|---|---|---|---|---|---|---|---|---|---|")
    for name in options.names:
        for seed in options.seeds if name != "plane" else []:
            end = run(EXERCISES[name], images, labels, seed=seed)
            report(name, seed, end, test_images)


if __name__ == "__main__":
    main()
