"""Measures the outcomes that section 15 of the notebook folds away, by hand (pytest runs it on tiny numbers only):

    python tests/exercises.py            all of them, about a minute each on 2 cores
    python tests/exercises.py "no 7s" conditional

Each exercise is the notebook's own code with the change that the exercise asks for, trained for 12 epochs.
"""

import argparse
import contextlib
import dataclasses
import io
import os
import sys
from pathlib import Path

import torch
from torch.nn.functional import one_hot

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
CONDITIONAL = '''        label = nn.functional.one_hot(latent[:, :10].argmax(dim=1), 10)
        image = self.layers(torch.cat([label, latent[:, 10:]], dim=1)).float().unflatten(1, (1, 28, 28)).clone()
        image[:, 0, 0, :10] = 2.0 * label - 1
        return image'''

# Name: settings to change, cell of the notebook -> (old text, new text), and which images to train on.
EXERCISES = {
    "the recipe": {},
    "latent of 2": dict(settings=dict(latent_dim=2)),
    "no penalty": dict(settings=dict(r1_gamma=0.0)),
    "beta1 0.9, no penalty": dict(settings=dict(r1_gamma=0.0, betas=(0.9, 0.999))),
    "penalty times 100": dict(settings=dict(r1_gamma=100.0)),
    "rate never falls": dict(settings=dict(decay_from=1.0)),
    "saturating loss": dict(cells={"generator-step": (
        "softplus(-discriminator(fake)).mean()", "logsigmoid(-discriminator(fake)).mean()")}),
    "BatchNorm in D": dict(cells={"discriminator": (
        "nn.Linear(fan_in, fan_out), nn.LeakyReLU", "nn.Linear(fan_in, fan_out), nn.BatchNorm1d(fan_out), nn.LeakyReLU")}),
    "no 7s": dict(choose=lambda images, labels: images[labels != 7]),
    "1,000 images": dict(settings=dict(train_images=1_000, epochs=720), choose=lambda images, labels: images[:1_000]),
    "conditional": dict(cells={"generator": (
        "        return self.layers(latent).float().unflatten(1, (1, 28, 28))", CONDITIONAL)},
        choose=lambda images, labels: painted(images, labels)),
}


def painted(images, labels):
    """The images with their label as ten pixels, black or white, at the left of the first row."""
    images = images.clone()
    images[:, 0, 0, :10] = 2.0 * one_hot(labels, 10) - 1
    return images


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
            exec(sources[cell], names)
    return argparse.Namespace(**names)


def run(exercise, images, labels, **shrink):
    """Train as the exercise asks; returns (story, the state at the end, the images it was trained on)."""
    story = story_with(exercise.get("cells", {}))
    chosen = exercise.get("choose", lambda images, labels: images)(images, labels)
    settings = dataclasses.replace(story.settings, **{
        "epochs": 6, "train_images": len(chosen), **exercise.get("settings", {}), **shrink})
    chosen = chosen[:settings.train_images]
    with contextlib.redirect_stdout(io.StringIO()):
        state = story.train(*story.fresh_players(settings), chosen, settings, lambda state: None)
    return story, state, chosen


def report(name, story, state, chosen, reference, test_images, samples=10_000):
    helpers, latent = story.helpers, torch.randn(samples, state.settings.latent_dim)
    draw = lambda latent: helpers.generate(state.ema_generator, latent)

    def row(name, images, more=""):
        score = helpers.score_images(reference, images)
        print(f"{name:20} Fréchet {score['frechet']:7.2f}  precision {score['precision']:.3f}  recall {score['recall']:.3f}"
              f"  KL {score['kl']:.3f}  D's loss {state.history[-1]['d_loss']:.2f}  digits {score['histogram']}{more}",
              flush=True)

    if name == "conditional":
        asked = latent[:, :10].argmax(dim=1)
        drawn = draw(latent)
        drawn[:, 0, 0, :10] = -1  # the judge must not see the label
        reads = helpers.judge_images(reference.judge, drawn).probabilities.argmax(dim=1)
        return row(name, drawn, f"  read as asked {(reads == asked).double().mean():.1%}")
    row(name, draw(latent))
    if name == "the recipe":
        for scale in (0.9, 0.7, 0.5):
            row(f"  latent times {scale}", draw(latent * scale))
    if name in ("the recipe", "rate never falls"):
        row("  without the average", helpers.generate(state.generator, latent))
    if name in ("the recipe", "1,000 images"):
        few = chosen[:1_000] if name == "1,000 images" else chosen
        distance = lambda images: helpers.nearest_images(images[:2_000], few)[0].median().item()
        print(f"{'':20} nearest training image at {distance(draw(latent)):.2f}, of test images "
              f"{distance(test_images):.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="which: " + ", ".join(EXERCISES))
    names = parser.parse_args().names or list(EXERCISES)
    unknown = set(names) - set(EXERCISES)
    if unknown:
        parser.error(f"{sorted(unknown)} unknown; there are: {', '.join(EXERCISES)}")
    import gan_helpers as helpers
    os.environ["GAN_DEVICE"] = "cpu"
    images, labels = helpers.load_mnist(train=True)
    test_images, _ = helpers.load_mnist(train=False)
    reference = helpers.make_reference(test_images)
    for name in names:
        report(name, *run(EXERCISES[name], images, labels), reference, test_images)


if __name__ == "__main__":
    main()
