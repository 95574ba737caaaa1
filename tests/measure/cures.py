"""Sections 5 and 7 of the notebook with three seeds: whose momentum, each cure with and without it,
and the recipe of most tutorials. Two epochs, networks, batches and turns as in the notebook:

    python tests/measure/cures.py          the digits, 15 to 25 s a game on 2 cores
    python tests/measure/cures.py lag      what D says of fakes that are some turns old
    python tests/measure/cures.py plane    the four games of section 7 in the plane, and those of
                                           section 12: told by whom?

Prints rows for results.md. D(x), D(G(z)) and D's loss are means of the last 50 turns.
"""

import sys

import torch
from exercises import Scorer, machine, story_with

MOMENTUM, NONE, HALF = (0.9, 0.999), (0.0, 0.999), (0.5, 0.999)  # Adam's betas
WHOSE = {"both": (MOMENTUM, MOMENTUM), "only G": (MOMENTUM, NONE), "only D": (NONE, MOMENTUM),
         "nobody": (NONE, NONE)}
GAMES = {  # name: (Adam's betas of G and of D, the rate, the weight of R1)
    **{f"momentum: {who}": (betas, 1e-3, 0.0) for who, betas in WHOSE.items()},
    **{f"momentum: {who}; R1 1": (betas, 1e-3, 1.0) for who, betas in WHOSE.items()},
    "momentum: both; R1 10": (WHOSE["both"], 1e-3, 10.0),
    "the tutorials': beta1 = 0.5, a fifth of the rate": ((HALF, HALF), 2e-4, 0.0),
    "beta1 = 0.5 at the full rate": ((HALF, HALF), 1e-3, 0.0),
    "Adam's defaults at a fifth of the rate": (WHOSE["both"], 2e-4, 0.0),
}
WITH_ITS_AVERAGE = ("momentum: nobody; R1 1", "momentum: both; R1 1",
                    "the tutorials': beta1 = 0.5, a fifth of the rate")
AGES = (0, 5, 10, 20, 40)  # turns


def play(story, images, seed, betas, rate, r1_weight, turns):
    """The game at its end, and the means of D's loss, D(x) and D(G(z)) over its last 50 turns."""
    torch.manual_seed(seed)
    players = story.Generator().to(story.device), story.Discriminator().to(story.device)
    game, measured = story.Game(*players, rate, *betas), []
    for turn in range(1, turns + 1):
        real = story.draw_from(images, 128)
        measured.append(story.take_turn(game, real, story.draw_latent(128), r1_weight))
        story.update_average(game.average, game.generator, turn)
    loss, _, d_real, d_fake = torch.stack(measured[-50:]).mean(dim=0).tolist()
    return game, (loss, d_real, d_fake)


@torch.no_grad()
def verdicts_on_older_fakes(story, game, images, turns=100):
    """While a game goes on, before each of its turns: D's mean verdict on real images, and on what
    G drew so many turns ago from the same latents, for each of AGES."""
    latent, drawn, verdicts = story.draw_latent(128), [], []
    for _ in range(max(AGES) + turns):
        drawn.append(game.generator(latent))
        if len(drawn) > max(AGES):
            seen = [story.draw_from(images, 128), *(drawn[-1 - age] for age in AGES)]
            verdicts.append(torch.stack([game.discriminator(each).sigmoid().mean()
                                         for each in seen]))
        with torch.enable_grad():
            story.take_turn(game, story.draw_from(images, 128), story.draw_latent(128))
    return torch.stack(verdicts).mean(dim=0).tolist()


def on_digits(turns=2 * 468, samples=10_000, seeds=(0, 1, 2)):
    story = story_with({})
    images, _ = story.helpers.load_mnist(train=True, device=story.device)
    test_images, _ = story.helpers.load_mnist(train=False, device=story.device)
    scorer = Scorer(story, test_images[:samples])
    print("\n| game | seed | Fréchet | precision | recall | confident | most read as one digit | "
          "D's loss | D(x) | D(G(z)) |\n|---|---|---|---|---|---|---|---|---|---|")
    latent = torch.randn(samples, 100, generator=torch.Generator().manual_seed(2)).to(story.device)
    for name, (betas, rate, r1_weight) in GAMES.items():
        for seed in seeds:
            game, (loss, d_real, d_fake) = play(story, images, seed, betas, rate, r1_weight, turns)
            ends = {name: game.generator}
            if name in WITH_ITS_AVERAGE:
                ends[f"{name}, its average"] = game.average
            for end, network in ends.items():
                row = scorer.score(story.helpers.generate(network, latent))
                print(f"| {end} | {seed} | {row['frechet']:.1f} | {row['precision']:.3f} | "
                      f"{row['recall']:.3f} | {row['confident']:.1%} | {max(row['shares']):.1%} | "
                      f"{loss:.2f} | {d_real:.2f} | {d_fake:.2f} |", flush=True)


def on_older_fakes(turns=2 * 468, seeds=(0, 1, 2)):
    story = story_with({})
    images, _ = story.helpers.load_mnist(train=True, device=story.device)
    columns = " | ".join(f"{age} turns old" for age in AGES)
    print(f"\n| game | seed | real images | {columns} |\n|---|---|---|{'---|' * len(AGES)}")
    for name in ("momentum: only D", "momentum: nobody"):
        for seed in seeds:
            game, _ = play(story, images, seed, *GAMES[name], turns)
            verdicts = verdicts_on_older_fakes(story, game, images)
            columns = " | ".join(f"{verdict:.2f}" for verdict in verdicts)
            print(f"| {name} | {seed} | {columns} |", flush=True)


def in_the_plane(turns=2000, seeds=(0, 1, 2)):
    story = story_with({})
    print("\n| game in the plane | seed | points in a ring | rings visited | D's loss |"
          "\n|---|---|---|---|---|")
    games = {f"momentum: {who}": (betas, 0, 0) for who, betas in WHOSE.items()}
    games |= {"told: nobody": (WHOSE["both"], 0, 0), "told: only G": (WHOSE["both"], 1, 0),
              "told: only D": (WHOSE["both"], 0, 1), "told: both": (WHOSE["both"], 1, 1)}
    for name, (betas, tell_g, tell_d) in games.items():
        for seed in seeds:
            if name.startswith("told"):
                game = story.told_points_game(tell_g, tell_d, seed)
                draw_real = story.real_told
            else:
                game = story.Game(*story.points_pair(seed=seed), 1e-3, *betas)
                draw_real = story.real_points
            measured = []
            for _ in range(turns):
                real = draw_real(128, tell_d) if name.startswith("told") else draw_real(128)
                measured.append(story.take_turn(game, real, story.draw_latent(128, 16)))
            with torch.no_grad():
                points = game.generator(story.draw_latent(2000, 16))[:, :2]
            share, visited = story.helpers.hits(points, story.RINGS)
            loss = torch.stack(measured[-50:]).mean(dim=0)[0]
            print(f"| {name} | {seed} | {share:.0%} | {visited} | {loss:.2f} |", flush=True)


if __name__ == "__main__":
    print(machine(), flush=True)
    {"": on_digits, "lag": on_older_fakes, "plane": in_the_plane}["".join(sys.argv[1:])]()
