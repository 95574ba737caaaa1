"""Scores of the notebook's networks, of its exercises and of other changes, measured by hand:

    python tests/measure/exercises.py                      all, a minute or two each on 2 cores
    python tests/measure/exercises.py MLP DCGAN --seeds 0 1 2

Each is the notebook's own code with the named change, trained as the notebook trains it, or for 6
epochs where the name begins with a number. Prints rows for results.md. Runs on the CPU, or on the
device that GAN_DEVICE names. pytest runs all of them on tiny numbers.
"""

import argparse
import contextlib
import dataclasses
import io
import os
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.nn.functional import one_hot, pad

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from notebook_code import NOTEBOOK, cell_sources, notebook_code, run_cell  # noqa: E402

SATURATING = {"generator_step": ("loss = binary_cross_entropy_with_logits(logits, ones)",
                                 "loss = logsigmoid(-logits).mean()")}
BLACK_AT_MINUS_1 = {"Discriminator": ("images + 1", "images")}
A_29TH_ROW = {"Discriminator": ("nn.Linear(28 * 28, 512)", "nn.Linear(29 * 28, 512)")}
ONE_TANH = {"ConvGenerator": (  # in place of four drawings, each clipped
    "nn.ConvTranspose2d(16, 4, 4, stride=2, padding=1)",
    "nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1)", "nn.Hardtanh()", "nn.Tanh()")}


def without_sevens(images, labels):
    return images[labels != 7]


def first_thousand(images, labels):
    return images[:1_000]


# Name: `network`, if not the MLP; `settings` to change; `code`, the name of a function or class ->
# (old text, new text, ...) in its cell; `choose`, which images to train on; `islands`, how many of
# k-means, or "labels". EPOCHS are the notebook's, by network, unless the name begins with a number.
EXERCISES = {
    "MLP": {},
    "DCGAN": {"network": "dcgan"},
    "conditional DCGAN": {"network": "conditional"},
    "conditional DCGAN, one tanh": {"network": "conditional", "code": ONE_TANH},
    "MLP told the label": {"islands": "labels", "code": A_29TH_ROW},
    "6 epochs": {},
    "6 epochs, D sees black as -1": {"code": BLACK_AT_MINUS_1},
    "1 latent of 2": {"settings": {"latent_dim": 2}},
    "2 no penalty": {"settings": {"r1_weight": 0.0}},
    "2 penalty times 100": {"settings": {"r1_weight": 100.0}},
    "3 rate never falls": {"settings": {"decay_from": 1.0}},
    "4 saturating loss": {"code": SATURATING},
    "5 no 7s": {"choose": without_sevens},
    "6 1,000 images": {"choose": first_thousand},
    "MLP told 20 islands": {"islands": 20, "code": A_29TH_ROW},  # exercise 8
}
EPOCHS = {"mlp": 16, "dcgan": 5, "conditional": 6}


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
    names["settings"] = names["Settings"]()
    for cell in ("conv-init", "conditional-settings"):
        run_cell(cell, names, sources)
    return SimpleNamespace(**names)


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


def with_row(images, codes):
    """Images (N, 1, 28, 28) with a 29th row that begins with the codes (N, kinds), 1 as white."""
    row = torch.full((len(images), 1, 1, 28), -1.0, device=images.device)
    row.flatten(1)[:, :codes.shape[1]] = 2.0 * codes - 1
    return torch.cat([images, row], dim=2)


def told_mlp(story, islands):
    """The MLP's generator, told an island: latents with a one-hot code -> (N, 1, 29, 28)."""
    class ToldMlp(story.Generator):
        def __init__(self, latent_dim):
            super().__init__(latent_dim + islands)

        def forward(self, latent):
            return with_row(super().forward(latent), latent[:, -islands:])

    return ToldMlp


def told_game(story, settings, images, labels, islands):
    """A game of the told MLP; `islands` is "labels", or how many of k-means."""
    kinds = 10 if islands == "labels" else islands
    island = labels if islands == "labels" else clusters(images, kinds)

    def draw_told(n, latent_dim):
        code = one_hot(island[torch.randint(len(island), (n,))], kinds)
        return torch.cat([story.draw_latent(n, latent_dim), code], dim=1)

    told_images = with_row(images, one_hot(island, kinds))
    return story.new_game(settings, told_images, told_mlp(story, kinds), draw_latent=draw_told)


def game_of(story, exercise, images, labels, **changes):
    """A new game of an exercise, on these images; `changes` to its settings."""
    network = exercise.get("network", "mlp")
    settings = {"mlp": story.settings, "dcgan": story.dcgan_settings,
                "conditional": story.conditional_settings}[network]
    settings = dataclasses.replace(settings, **{**exercise.get("settings", {}), **changes})
    if "islands" in exercise:
        return told_game(story, settings, images, labels, exercise["islands"])
    if network == "mlp":
        return story.new_game(settings, images)
    padded = pad(images, (2, 2, 2, 2), value=-1)
    if network == "dcgan":
        return story.new_game(settings, padded, story.ConvGenerator, story.ConvDiscriminator)
    ticked = story.tick(padded, one_hot(labels, story.KINDS))
    return story.new_game(settings, ticked, story.ConditionalGenerator, story.TickReader,
                          partial(story.ask_for_any, labels=labels))


def inner(images):
    """The digits themselves, without a frame of 2 pixels or a 29th row: (N, 1, 28, 28)."""
    edge = 2 if images.shape[3] == 32 else 0
    return images[:, :, edge:edge + 28, edge:edge + 28]


def silent_train(story, *arguments):
    """The notebook's loop without its progress line, which would run through what is printed."""
    with contextlib.redirect_stdout(io.StringIO()):
        story.train(*arguments)


def run(name, images, labels, epochs=None, **changes):
    """Train as the exercise asks. Returns the story and its game."""
    exercise = EXERCISES[name]
    story = story_with(exercise.get("code", {}))
    if "choose" in exercise:
        images = exercise["choose"](images, labels)
    game = game_of(story, exercise, images, labels, **changes)
    full = 6 if name[0].isdigit() else EPOCHS[exercise.get("network", "mlp")]
    silent_train(story, game, epochs or full)
    return story, game


# Scores -------------------------------------------------------------------------------------------

def cells_of(row):
    """The columns of a row of scores, as results.md has them."""
    return (f"{row['frechet']:.2f} | {row['precision']:.3f} | {row['recall']:.3f} | "
            f"{row['coverage']:.3f} | {row['confident']:.1%} | {row['kl']:.3f}")


class Scorer:
    """The notebook's scores against the test images, whose side is taken once."""

    def __init__(self, story, test_images):
        self.judge = story.helpers.load_judge().to(test_images.device)
        self.story, self.test_images = story, test_images
        self.real = self.side_of(test_images)

    def side_of(self, images):
        return self.story.side_of(*self.story.helpers.judge_images(self.judge, inner(images)))

    def score(self, images):
        return self.story.score(self.real, self.side_of(images))

    def read(self, images):
        """What digit the judge reads in each image, (N,)."""
        return self.story.helpers.judge_images(self.judge, inner(images))[1].argmax(dim=1)


def latents_of(name, story, game, samples):
    """As in the notebook: any latents, and as many of each digit where the network is told it."""
    if name.startswith("conditional"):
        digits = torch.arange(samples, device=story.device) % story.KINDS
        return story.ask(digits, story.draw_latent(samples, game.settings.latent_dim))
    return game.draw_latent(samples)


def report(name, seed, story, game, scorer, images):
    """Print the rows of a run, and what else results.md says of it."""
    seconds = sum(means["seconds"] for means in game.history)

    def print_row(name, drawn):
        row = scorer.score(drawn)
        print(f"| {name} | {seed} | {len(game.history)} | {seconds:.0f} s | {cells_of(row)} | "
              f"{game.history[-1][story.MEASURED[0]]:.2f} |", flush=True)
        return row

    torch.manual_seed(seed + 1)
    latent = latents_of(name, story, game, len(scorer.test_images))
    drawn = story.helpers.generate(game.average, latent)
    row = print_row(name, drawn)
    if name in ("MLP", "6 epochs", "3 rate never falls"):
        print_row(f"{name}, not averaged", story.helpers.generate(game.generator, latent))
    if name.startswith("conditional"):
        asked = latent[:, -story.KINDS:].argmax(dim=1)
        print(f"  {(scorer.read(drawn) == asked).float().mean():.1%} read as asked", flush=True)
    if name == "5 no 7s":
        print(f"  {row['shares'][7]:.2%} of the drawings read as 7", flush=True)
    if name in ("6 epochs", "6 1,000 images"):
        chosen = images[:1_000] if name == "6 1,000 images" else images
        for what, pictures in [("drawings", drawn), ("test images", scorer.test_images)]:
            distances, _ = story.nearest_images(pictures[:2_000], chosen)
            print(f"  {what} lie at {distances.median():.2f} from the nearest", flush=True)
    if name == "6 epochs":
        print_row("7 kept by e^l", kept_by_d(story, game))


def kept_by_d(story, game, turns=468, drawn=40_000, kept=10_000):
    """Exercise 7: train D alone against the average, then keep drawings in proportion to e^l."""
    story.set_rate(game, 1e-4)
    for _ in range(turns):
        fake = story.helpers.generate(game.average, game.draw_latent(128))
        story.discriminator_step(game.discriminator, game.d_optimizer, game.draw_real(128), fake)
    drawings = story.helpers.generate(game.average, game.draw_latent(drawn))
    with torch.no_grad():
        logits = torch.cat([game.discriminator(chunk) for chunk in drawings.split(1000)])
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
    scorer = Scorer(story, story.helpers.load_mnist(train=False, device=story.device)[0])
    print("\n| network | seed | epochs | training | Fréchet | precision | recall | coverage | "
          "confident | KL | D's loss |\n|---|---|---|---|---|---|---|---|---|---|---|")
    for name in options.names:
        for seed in options.seeds:
            report(name, seed, *run(name, images, labels, seed=seed), scorer, images)


if __name__ == "__main__":
    main()
