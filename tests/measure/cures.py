"""Sections 5 and 7 of the notebook with three seeds: the naive game, each cure, and the recipe of
most tutorials. Two passes over the images, networks, batches and turns as in the notebook:

    python tests/measure/cures.py

Prints rows for results.md: about 20 s each on 2 cores.
"""

import copy
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from exercises import machine
from notebook_code import notebook_code

GAMES = {  # name: (the step of D, Adam's betas, the rate)
    "Adam's defaults": ("discriminator_step", (0.9, 0.999), 1e-3),
    "beta1 = 0": ("discriminator_step", (0.0, 0.999), 1e-3),
    "beta1 = 0 and R1": ("penalized_step", (0.0, 0.999), 1e-3),
    "the tutorials': beta1 = 0.5, a fifth of the rate": ("discriminator_step", (0.5, 0.999), 2e-4),
    "beta1 = 0.5 at the full rate": ("discriminator_step", (0.5, 0.999), 1e-3),
    "Adam's defaults at a fifth of the rate": ("discriminator_step", (0.9, 0.999), 2e-4),
}


def play(story, images, seed, d_step, betas, rate, turns):
    """The last G of a game, its average, and the mean of D's last 50 losses."""
    def draw_images(n):
        return images[torch.randint(len(images), (n,))]

    generator, discriminator = story.fresh_pair(seed)
    average, losses = copy.deepcopy(generator), []
    game = story.play(generator, discriminator, draw_images, getattr(story, d_step), betas, turns,
                      rate=rate)
    for turn, d_loss in game:
        story.update_average(average, generator, decay=min(0.999, turn / (10 + turn)))
        losses.append(d_loss.item())
    return generator, average, sum(losses[-50:]) / len(losses[-50:])


def main(turns=2 * 60_000 // 128, samples=10_000, seeds=(0, 1, 2)):
    names = notebook_code()
    story = SimpleNamespace(**names)
    names["judge"] = story.helpers.load_judge()  # the one that `score` asks
    images, _ = story.helpers.load_mnist(train=True)
    test_images, _ = story.helpers.load_mnist(train=False)
    real = story.helpers.judge_images(names["judge"], test_images[:samples])
    print(machine(), flush=True)
    print("\n| game | seed | Fréchet | precision | recall | confident | most read as one digit | "
          "D's loss |\n|---|---|---|---|---|---|---|---|")
    for name, (d_step, betas, rate) in GAMES.items():
        for seed in seeds:
            generator, average, loss = play(story, images, seed, d_step, betas, rate, turns)
            ends = {name: generator}
            if name == "beta1 = 0 and R1":
                ends[f"{name} and the average"] = average
            for end, network in ends.items():
                latent = torch.randn(samples, 100, generator=torch.Generator().manual_seed(2))
                row = story.score(real, story.helpers.generate(network, latent))
                most = max(row["histogram"]) / samples
                print(f"| {end} | {seed} | {row['frechet']:.1f} | {row['precision']:.3f} | "
                      f"{row['recall']:.3f} | {row['confident']:.1%} | {most:.1%} | {loss:.2f} |",
                      flush=True)


if __name__ == "__main__":
    main()
