"""Sections 5 and 7 of the notebook with three seeds: the naive game, each cure, and the recipe of
most tutorials. Two epochs, networks, batches and turns as in the notebook:

    python tests/measure/cures.py

Prints rows for results.md: about 20 s each on 2 cores.
"""

import torch
from exercises import Scorer, machine, story_with

GAMES = {  # name: (Adam's betas, the rate, the weight of R1)
    "Adam's defaults": ((0.9, 0.999), 1e-3, 0.0),
    "beta1 = 0": ((0.0, 0.999), 1e-3, 0.0),
    "beta1 = 0 and R1": ((0.0, 0.999), 1e-3, 1.0),
    "the tutorials': beta1 = 0.5, a fifth of the rate": ((0.5, 0.999), 2e-4, 0.0),
    "beta1 = 0.5 at the full rate": ((0.5, 0.999), 1e-3, 0.0),
    "Adam's defaults at a fifth of the rate": ((0.9, 0.999), 2e-4, 0.0),
}


def play(story, images, seed, betas, rate, r1_weight, turns):
    """The game at its end, and the mean of D's last 50 losses."""
    torch.manual_seed(seed)
    players = story.Generator().to(story.device), story.Discriminator().to(story.device)
    game, losses = story.Game(*players, rate, betas), []
    for turn in range(1, turns + 1):
        real = story.draw_from(images, 128)
        losses.append(story.take_turn(game, real, story.draw_latent(128), r1_weight)[0])
        story.update_average(game.average, game.generator, turn)
    return game, torch.stack(losses[-50:]).mean().item()


def main(turns=2 * 468, samples=10_000, seeds=(0, 1, 2)):
    story = story_with({})
    images, _ = story.helpers.load_mnist(train=True, device=story.device)
    test_images, _ = story.helpers.load_mnist(train=False, device=story.device)
    scorer = Scorer(story, test_images[:samples])
    print(machine(), flush=True)
    print("\n| game | seed | Fréchet | precision | recall | confident | most read as one digit | "
          "D's loss |\n|---|---|---|---|---|---|---|---|")
    latent = torch.randn(samples, 100, generator=torch.Generator().manual_seed(2)).to(story.device)
    for name, (betas, rate, r1_weight) in GAMES.items():
        for seed in seeds:
            game, loss = play(story, images, seed, betas, rate, r1_weight, turns)
            ends = {name: game.generator}
            if name == "beta1 = 0 and R1":
                ends[f"{name} and the average"] = game.average
            for end, network in ends.items():
                row = scorer.score(story.helpers.generate(network, latent))
                print(f"| {end} | {seed} | {row['frechet']:.1f} | {row['precision']:.3f} | "
                      f"{row['recall']:.3f} | {row['confident']:.1%} | {max(row['shares']):.1%} | "
                      f"{loss:.2f} |", flush=True)


if __name__ == "__main__":
    main()
