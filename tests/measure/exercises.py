"""Scores of the notebook's networks, of its exercises and of other changes, measured by hand:

    python tests/measure/exercises.py                      all, a minute or two each on 2 cores
    python tests/measure/exercises.py MLP "told MLP" --seeds 0 1 2

Each is the notebook's own code with the named change, trained as the notebook trains it, or for 6
epochs where the name begins with a number. Prints rows for results.md; networks that are told a
label draw from stretched latents, too. Runs on the CPU, or on the device that GAN_DEVICE names.
pytest runs all of them on tiny numbers.
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

BLACK_AT_MINUS_1 = {"Discriminator": ("images + 1", "images")}
LABEL_NOT_HIDDEN = {"LabelReader": ("images[:, :, 30:].detach()", "images[:, :, 30:]")}
ONE_TANH = {"ConvGenerator": (  # in place of four drawings, each clipped
    "nn.ConvTranspose2d(16, 4, 4, stride=2, padding=1)",
    "nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1)", "nn.Hardtanh()", "nn.Tanh()")}


def first_thousand(images):
    return images[:1_000]


# Name: `network`, if not the MLP; `settings` to change; `code`, the name of a function or class ->
# (old text, new text, ...) in its cell; `choose`, which images to train on; `islands`, how many of
# k-means are told in place of labels; `stretch`, of latents. EPOCHS are the notebook's, by network,
# unless the name begins with a number.
EXERCISES = {
    "MLP": {"stretch": (0.8, 0.9, 1.1)},
    "told MLP": {"network": "told_mlp", "stretch": (0.7, 1.1, 1.2, 1.3, 1.6)},
    "told MLP, R1 0.3": {"network": "told_mlp", "settings": {"r1_weight": 0.3},
                         "stretch": (1.1, 1.2, 1.3)},
    "told DCGAN": {"network": "told_dcgan", "stretch": (1.05, 1.1)},
    "told DCGAN, R1 3.0": {"network": "told_dcgan", "settings": {"r1_weight": 3.0}},
    "told DCGAN, label not hidden from R1": {"network": "told_dcgan", "code": LABEL_NOT_HIDDEN},
    "told DCGAN, one tanh": {"network": "told_dcgan", "code": ONE_TANH},
    "DCGAN": {"network": "dcgan", "settings": {"r1_weight": 3.0}},
    "6 epochs": {},
    "6 epochs, D sees black as -1": {"code": BLACK_AT_MINUS_1},
    "6 epochs, no penalty": {"settings": {"r1_weight": 0.0}},
    "6 epochs, penalty times 100": {"settings": {"r1_weight": 100.0}},
    "6 epochs, 1,000 images": {"choose": first_thousand},
    "6 epochs, latent of 2": {"settings": {"latent_dim": 2}},
    "MLP told 20 islands": {"network": "told_mlp", "islands": 20},
}
EPOCHS = {"mlp": 16, "told_mlp": 16, "dcgan": 5, "told_dcgan": 6}


# The notebook's code, changed ---------------------------------------------------------------------

def cell_of(name):
    """The id of the cell that defines a function or class of this name."""
    found = [cell.id for cell in NOTEBOOK.cells if cell.cell_type == "code"
             and any(line.startswith((f"def {name}(", f"class {name}("))
                     for line in cell.source.splitlines())]
    if len(found) != 1:
        raise ValueError(f"{name} is defined in {len(found)} cells: {found}")
    return found[0]


def story_with(code, kinds=10):
    """The notebook's definitions and settings of a full run, with the code changed as asked."""
    changes = {}
    for name, texts in code.items():
        changes[cell_of(name)] = changes.get(cell_of(name), ()) + texts
    sources = cell_sources(changes)
    with contextlib.redirect_stdout(io.StringIO()):
        names = notebook_code(sources, device=os.environ.get("GAN_DEVICE", "cpu"))
    names.update(settings=names["Settings"](), KINDS=kinds)
    run_cell("conv-init", names, sources)
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


def game_of(story, exercise, images, labels, **changes):
    """A new game of an exercise, on these images; `changes` to its settings."""
    network = exercise.get("network", "mlp")
    settings = story.dcgan_settings if "dcgan" in network else story.settings
    settings = dataclasses.replace(settings, **{**exercise.get("settings", {}), **changes})
    if network == "mlp":
        return story.new_game(settings, images)
    if network == "dcgan":
        framed = pad(images, (2, 2, 2, 2), value=-1)
        return story.new_game(settings, framed, story.ConvGenerator, story.ConvDiscriminator)
    codes, draw_any = one_hot(labels, story.KINDS), partial(story.ask_for_any, labels=labels)
    if network == "told_mlp":
        labelled = story.write_label(pad(images, (0, 0, 0, 1), value=-1), codes, rows=1)
        return story.new_game(settings, labelled, story.told_mlp_generator,
                              story.told_mlp_discriminator, draw_any)
    labelled = story.write_label(pad(images, (2, 2, 2, 2), value=-1), codes, rows=2)
    return story.new_game(settings, labelled, story.told_conv_generator, story.LabelReader,
                          draw_any)


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
    story = story_with(exercise.get("code", {}), exercise.get("islands", 10))
    if "choose" in exercise:
        images = exercise["choose"](images)
    if "islands" in exercise:
        labels = clusters(images, exercise["islands"])
    game = game_of(story, exercise, images, labels, **changes)
    full = 6 if name[0].isdigit() else EPOCHS[exercise.get("network", "mlp")]
    silent_train(story, game, epochs or full)
    return story, game


# Scores -------------------------------------------------------------------------------------------

def cells_of(row):
    """The columns of a row of scores, as results.md has them."""
    return (f"{row['frechet']:.2f} | {row['precision']:.3f} | {row['recall']:.3f} | "
            f"{row['coverage']:.3f} | {row['confident']:.1%} | {row['kl']:.3f}")


def shares_of_digits(probabilities):
    """The share of the images that the judge reads as each digit, (kinds,)."""
    count = probabilities.argmax(dim=1).bincount(minlength=probabilities.shape[1])
    return count / len(probabilities)


def kl(drawn, wanted):
    """The Kullback-Leibler divergence of two lists of shares, in nats."""
    return (torch.xlogy(drawn, drawn) - torch.xlogy(drawn, wanted)).sum().item()


def covered(story, real, fake):
    """Coverage: the share of real images with a drawing in their own ball (Naeem et al., 2020)."""
    with story.helpers.exact_products():
        distances = torch.cdist(fake.features, real.features)
    return (distances <= real.radii).any(dim=0).float().mean().item()


class Scorer:
    """The notebook's scores against the test images, whose side is taken once; and coverage, and
    the shares of digits that the judge reads and their divergence from those of real images."""

    def __init__(self, story, test_images):
        self.judge = story.helpers.load_judge().to(test_images.device)
        self.story, self.test_images = story, test_images
        self.real = self.side_of(test_images)

    def side_of(self, images):
        return self.story.side_of(*self.story.helpers.judge_images(self.judge, inner(images)))

    def score(self, images):
        fake = self.side_of(images)
        shares = shares_of_digits(fake.probabilities)
        return self.story.score(self.real, fake) | {
            "coverage": covered(self.story, self.real, fake), "shares": shares.tolist(),
            "kl": kl(shares, shares_of_digits(self.real.probabilities))}

    def read(self, images):
        """What digit the judge reads in each image, (N,)."""
        return self.story.helpers.judge_images(self.judge, inner(images))[1].argmax(dim=1)


def latents_of(story, game, digits_are_told, samples):
    """As in the notebook: any latents, and as many of each digit where the network is told it."""
    if not digits_are_told:
        return game.draw_latent(samples)
    labels = torch.arange(samples, device=story.device) % story.KINDS
    return story.ask(labels, story.draw_latent(samples, game.settings.latent_dim))


def report(name, seed, story, game, scorer, images):
    """Print the rows of a run, and what else results.md says of it."""
    exercise, size = EXERCISES[name], game.settings.latent_dim
    seconds = sum(means["seconds"] for means in game.history)

    def print_row(name, drawn):
        print(f"| {name} | {seed} | {len(game.history)} | {seconds:.0f} s | "
              f"{cells_of(scorer.score(drawn))} | {game.history[-1][story.MEASURED[0]]:.2f} |",
              flush=True)

    torch.manual_seed(seed + 1)
    told = exercise.get("network", "mlp").startswith("told")
    digits_are_told = told and "islands" not in exercise
    latent = latents_of(story, game, digits_are_told, len(scorer.test_images))
    drawn = story.helpers.generate(game.average, latent)
    print_row(name, drawn)
    if not told:
        print_row(f"{name}, not averaged", story.helpers.generate(game.generator, latent))
    for stretch in exercise.get("stretch", ()):
        stretched = torch.cat([stretch * latent[:, :size], latent[:, size:]], dim=1)
        print_row(f"{name}, latents x {stretch}", story.helpers.generate(game.average, stretched))
    if digits_are_told:
        asked = latent[:, size:].argmax(dim=1)
        print(f"  {(scorer.read(drawn) == asked).float().mean():.1%} read as asked", flush=True)
    if name == "6 epochs, 1,000 images":
        few, others = images[:1_000], images[1_000:2_000]
        for what, pictures in [("drawings", drawn), ("test images", scorer.test_images)]:
            to_few, to_others = (story.nearest_images(pictures[:2_000], known)[0].median().item()
                                 for known in (few, others))
            print(f"  {what} lie at {to_few:.2f} from the nearest of the thousand, at "
                  f"{to_others:.2f} from the nearest of another thousand", flush=True)


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
