"""Scores of the notebook's networks, of its exercises and of other changes, measured by hand:

    python tests/measure/exercises.py                      all, about a minute each on 2 cores
    python tests/measure/exercises.py MLP DCGAN --seeds 0 1 2

Each is the notebook's own code with the named change, trained as the notebook trains it, or for 6
epochs where the name begins with a number or `6 epochs`. Prints rows for results.md. Runs on the
CPU, or on the device that GAN_DEVICE names. pytest runs all of them on tiny numbers.
"""

import argparse
import contextlib
import dataclasses
import io
import math
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from notebook_code import NOTEBOOK, cell_sources, notebook_code, run_cell  # noqa: E402

SIX = {"epochs": 6}
SATURATING = {"generator_step": ("softplus(-discriminator(fake)).mean()",
                                 "logsigmoid(-discriminator(fake)).mean()")}
BLACK_AT_MINUS_1 = {"Discriminator": ("images + 1", "images")}
NO_BATCHNORM_IN_G = {"Generator": (", bias=False), nn.BatchNorm1d(fan_out),", "),")}
A_29TH_ROW = {"Discriminator": ("zip((28 * 28, *widths)", "zip((29 * 28, *widths)")}
TWO_MORE_ROWS = {"Discriminator": ("zip((28 * 28, *widths)", "zip((30 * 28, *widths)")}
ONE_TANH = {"ConvGenerator": (  # the output of the editions before, in place of four clipped ones
    "nn.ConvTranspose2d(channels[-1], 4, **doubling), nn.Hardtanh()",
    "nn.ConvTranspose2d(channels[-1], 1, **doubling), nn.Tanh()")}
STRETCHED_TANH = {"ConvGenerator": (
    "nn.ConvTranspose2d(channels[-1], 4, **doubling), nn.Hardtanh()",
    "nn.ConvTranspose2d(channels[-1], 1, **doubling), nn.Tanh()",
    "self.layers(latent).mean(dim=1, keepdim=True)", "self.layers(latent).mul(1.05).clamp(-1, 1)")}
D_TWICE_AS_FAST = {"set_rate": (
    "    for optimizer in (state.g_optimizer, state.d_optimizer):\n"
    "        optimizer.param_groups[0][\"lr\"] = rate",
    "    state.g_optimizer.param_groups[0][\"lr\"] = rate\n"
    "    state.d_optimizer.param_groups[0][\"lr\"] = 2 * rate")}
QUICK_FALL = {"epochs": 3, "learning_rate": 2e-3, "decay_from": 0.5}
CHARGED_BOXES = {"TickReader": ("images[:, :, 30:].detach()", "images[:, :, 30:]")}


def without_sevens(images, labels):
    return images[labels != 7]


def first_thousand(images, labels):
    return images[:1_000]


# Name: `settings` to change; `code`, the name of a function or class -> (old text, new text, ...)
# in its cell; `network`, if not the MLP; `choose`, which images to train on; `islands`, how many of
# k-means, or "labels".
EXERCISES = {
    "MLP": {},
    "DCGAN": {"network": "dcgan"},
    "conditional DCGAN": {"network": "conditional"},
    "conditional DCGAN, one tanh": {"network": "conditional", "code": ONE_TANH},
    "conditional DCGAN, boxes charged": {"network": "conditional", "code": CHARGED_BOXES},
    "conditional DCGAN, penalty 0.3": {"network": "conditional", "settings": {"r1_gamma": 0.3}},
    "conditional DCGAN, penalty 1": {"network": "conditional", "settings": {"r1_gamma": 1.0}},
    "conditional DCGAN, 1.05 tanh, clamped": {"network": "conditional", "code": STRETCHED_TANH},
    "MLP told 50 islands": {"islands": 50, "code": TWO_MORE_ROWS},
    "MLP told the label": {"islands": "labels", "code": A_29TH_ROW},
    "MLP, D's rate doubled": {"code": D_TWICE_AS_FAST},
    "MLP, D of 1024-512": {"settings": {"discriminator_widths": (1024, 512)}},
    "3 epochs, the recipe": {"settings": {"epochs": 3}},
    "3 epochs, rate 2e-3 from half falling": {"settings": QUICK_FALL},
    "3 epochs, the same, told 20 islands": {"settings": QUICK_FALL, "islands": 20,
                                            "code": A_29TH_ROW},
    "6 epochs, the recipe": {"settings": SIX},
    "1 latent of 2": {"settings": {**SIX, "latent_dim": 2}},
    "2 no penalty": {"settings": {**SIX, "r1_gamma": 0.0}},
    "2 penalty times 100": {"settings": {**SIX, "r1_gamma": 100.0}},
    "3 rate never falls": {"settings": {**SIX, "decay_from": 1.0}},
    "4 saturating loss": {"settings": SIX, "code": SATURATING},
    "5 no 7s": {"settings": SIX, "choose": without_sevens},
    "6 1,000 images": {"settings": {"train_images": 1_000, "epochs": 401},
                       "choose": first_thousand},
    "8 MLP told islands": {"islands": 20, "code": A_29TH_ROW},
    "6 epochs, D sees black as -1": {"settings": SIX, "code": BLACK_AT_MINUS_1},
    "6 epochs, penalty at every step": {"settings": {**SIX, "r1_interval": 1}},
    "6 epochs, beta1 0.5": {"settings": {**SIX, "betas": (0.5, 0.99)}},
    "6 epochs, no BatchNorm in G": {"settings": SIX, "code": NO_BATCHNORM_IN_G},
    "6 epochs, G of 512-512": {"settings": {**SIX, "generator_widths": (512, 512)}},
    "6 epochs, batches of 64": {"settings": {**SIX, "batch_size": 64}},
    "6 epochs, batches of 256": {"settings": {**SIX, "batch_size": 256}},
    "6 epochs, latent of 64": {"settings": {**SIX, "latent_dim": 64}},
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


def with_code(images, island, islands):
    """Images (N, 1, 28, 28) with a 29th row, or more, for their island: its pixel 1, others -1."""
    rows = torch.full((len(images), 1, math.ceil(islands / 28), 28), -1.0, device=images.device)
    rows.flatten(1)[:, :islands] = 2.0 * torch.nn.functional.one_hot(island, islands) - 1
    return torch.cat([images, rows], dim=2)


def told_mlp(story, islands):
    """The MLP's generator, told an island: latents with a one-hot code -> (N, 1, 29, 28)."""
    class ToldMlp(story.Generator):
        def __init__(self, latent_dim, widths):
            super().__init__(latent_dim + islands, widths)

        def forward(self, latent):
            return with_code(super().forward(latent), latent[:, -islands:].argmax(dim=1), islands)

    return ToldMlp


def prepare(exercise, images, labels):
    """The story, settings, two classes, images and draw_latent of an exercise."""
    story, network = story_with(exercise.get("code", {})), exercise.get("network")
    if "choose" in exercise:
        images = exercise["choose"](images, labels)
    if "islands" in exercise:
        islands, island = 10, labels
        if exercise["islands"] != "labels":
            islands = exercise["islands"]
            island = clusters(images, islands)

        def draw_told(n, latent_dim):
            chosen = island[torch.randint(len(island), (n,), device=island.device)]
            code = torch.nn.functional.one_hot(chosen, islands)
            return torch.cat([story.draw_latent(n, latent_dim), code], dim=1)

        classes = told_mlp(story, islands), story.Discriminator
        return story, story.settings, classes, with_code(images, island, islands), draw_told
    if network is None:
        classes = story.Generator, story.Discriminator
        return story, story.settings, classes, images, story.draw_latent
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2), value=-1)
    if network == "dcgan":
        classes = story.ConvGenerator, story.ConvDiscriminator
        return story, story.dcgan_settings, classes, padded, story.draw_latent
    story.train.__globals__["labels"] = labels  # whose frequencies ask_for_any draws from
    classes, ticked = (story.ConditionalGenerator, story.TickReader), story.tick(padded, labels)
    return story, story.conditional_settings, classes, ticked, story.ask_for_any


def run(exercise, images, labels, **shrink):
    """Train as the exercise asks.

    Returns the story, the state at the end, the images that it was trained on, and the functions
    `draw_latent(n, latent_dim)` and `draw(generator, latent)`, all as attributes.
    """
    story, settings, classes, chosen, draw_latent = prepare(exercise, images, labels)
    changes = {"train_images": len(chosen), **exercise.get("settings", {}), **shrink}
    settings = dataclasses.replace(settings, **changes)
    chosen = chosen[:settings.train_images]
    state = story.fresh_state(settings, *classes, draw_latent=draw_latent)
    silent_train(story, state, chosen, do_nothing, draw_latent)
    inner = slice(2, 30) if "network" in exercise else slice(0, 28)

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
    if name in ("MLP", "6 epochs, the recipe", "3 rate never falls"):
        print_row(f"{name}, not averaged", end.draw(state.generator, latent))
    if name == "5 no 7s":
        print(f"  digits that the judge reads: {row['histogram']}", flush=True)
    if name in ("6 epochs, the recipe", "6 1,000 images"):
        print(f"  nearest training image at {nearest(end, drawn):.2f}, "
              f"of test images at {nearest(end, test_images):.2f}", flush=True)
    if name == "6 epochs, the recipe":
        print_row("7 kept by e^l", kept_by_d(end))


def kept_by_d(end, steps=468, drawn=40_000, kept=10_000):
    """Exercise 7: train D alone against the average, then keep drawings in proportion to e^l."""
    story, state, n = end.story, end.state, end.state.settings.batch_size
    story.set_rate(state, 1e-4)
    for _ in range(steps):
        batch = torch.randint(len(end.chosen), (n,), device=story.device)
        latent = end.draw_latent(n, state.settings.latent_dim)
        fake = story.helpers.generate(state.ema_generator, latent)
        story.discriminator_step(state.discriminator, state.d_optimizer, end.chosen[batch], fake)
    latent = end.draw_latent(drawn, state.settings.latent_dim)
    drawings = story.helpers.generate(state.ema_generator, latent)
    with torch.no_grad():
        logits = torch.cat([state.discriminator(chunk) for chunk in drawings.split(1000)])
    return drawings[torch.multinomial(logits.exp(), kept)]


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
    every = list(EXERCISES)
    parser.add_argument("names", nargs="*", default=every, help=f"which: {', '.join(every)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(every))
    if unknown:
        parser.error(f"{unknown} unknown; there are: {', '.join(every)}")
    print(machine(), flush=True)
    story = story_with({})
    images, labels = story.helpers.load_mnist(train=True, device=story.device)
    test_images, _ = story.helpers.load_mnist(train=False, device=story.device)
    print("\n| network | seed | epochs | training | Fréchet | precision | recall | coverage | "
          "confident | KL | D's loss |\n|---|---|---|---|---|---|---|---|---|---|---|")
    for name in options.names:
        for seed in options.seeds:
            end = run(EXERCISES[name], images, labels, seed=seed)
            report(name, seed, end, test_images)


if __name__ == "__main__":
    main()
