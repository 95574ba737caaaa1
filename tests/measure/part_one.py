"""What Part I says and no cell prints: rows for results.md, of one seed, in half an hour on a core.

    python tests/measure/part_one.py 0

It runs the notebook's own cells up to the games of section 8, and those of section 10 that keep
the score.
"""

import os
import sys
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import torch
from torch import nn
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits, pad, relu

os.environ.update(GAN_SEED=sys.argv[1], GAN_OUTPUT=f"output/part_one_{sys.argv[1]}")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from notebook_code import SOURCES, new_names, run_cell  # noqa: E402
from rows import print_row, print_score  # noqa: E402

matplotlib.use("agg")
names = new_names()
cells = list(SOURCES)
for cell in cells[:cells.index("cures") + 1]:
    run_cell(cell, names)
for cell in ("judge", "confident", "frechet", "precision-recall", "score", "plane-told-players"):
    run_cell(cell, names, definitions_only=cell == "confident")
run_cell("plane-told", names)

story = SimpleNamespace(**names)
helpers, images, EPOCH, Game = story.helpers, story.images, story.EPOCH, story.Game
draw_from, draw_latent, take_turn = story.draw_from, story.draw_latent, story.take_turn
momentum, none, new_game, games = story.momentum, story.no_momentum, story.new_game, story.games


def print_score_of(name, generator):
    print_score(name, story.score(helpers.generate(generator, draw_latent(len(story.test_images)))))


def charge(game, real, r1_weight):
    return 0.5 * r1_weight * story.r1_penalty(game.discriminator, real) if r1_weight else 0.0


def play_on(game, turns, r1_weight=0.0):
    for _ in range(turns):
        real = draw_from(images, 128)
        take_turn(game, real, draw_latent(128), charge(game, real, r1_weight))
    return game.generator


def play_with_loss(betas, g_loss):
    """Two epochs in which G lowers g_loss(logits of its fakes, its numbers before tanh)."""
    game = new_game(betas, betas)
    for _ in range(2 * EPOCH):
        before_tanh = game.generator.layers[:-2](draw_latent(128))
        fake = game.generator.layers[-2:](before_tanh)
        story.discriminator_step(game.discriminator, game.d_optimizer, draw_from(images, 128), fake)
        loss = g_loss(game.discriminator(fake), before_tanh)
        game.g_optimizer.zero_grad()
        loss.backward(inputs=list(game.generator.parameters()))
        game.g_optimizer.step()
    return game.generator


def play_in_plane(betas, r1_weight=0.0):
    """Four epochs in the plane. Returns the points of G, and those of its average."""
    game = story.plane_game(*betas)
    average = deepcopy(game.generator)
    for turn in range(1, 4 * EPOCH + 1):
        real = story.real_points(128)
        take_turn(game, real, draw_latent(128, 16), charge(game, real, r1_weight))
        story.update_average(average, game.generator, turn)
    return game.generator(story.latents16), average(story.latents16)


def with_betas(game, betas):
    game = deepcopy(game)
    for optimizer in (game.g_optimizer, game.d_optimizer):
        optimizer.param_groups[0]["betas"] = betas
    return game


print("== section 7: whose momentum, and each cure")
for who in games:
    print_score_of(f"momentum: {who}", games[who].generator)
print_score_of("no momentum, and R1", story.game.generator)
print_score_of("no momentum, R1, and the average", story.average)
print_score_of("the tutorials' Adam", story.tutorials.generator)
for who in ("both", "only G", "only D"):
    print_score_of(f"momentum: {who}, and R1",
                   play_on(new_game(*story.whose[who]), 2 * EPOCH, r1_weight=1.0))
half = (0.5, 0.999)
print_score_of("momentum: 0.5 for both", play_on(new_game(half, half), 2 * EPOCH))
print_score_of("momentum: 0.5 for both, and R1", play_on(new_game(half, half), 2 * EPOCH, 1.0))
print_score_of("momentum: neither, a fifth of the rate",
               play_on(new_game(none, none, 2e-4), 2 * EPOCH))

print("== section 7: who is late")
for who, (old_experts, old_fakes) in story.said.items():
    print_row(f"momentum: {who}", *(f"{verdict:.2f}" for verdict in old_experts + old_fakes[1:]))

print("== section 7: lateness without momentum")
for name, game in story.late.items():
    print_score_of(name.replace("\n", " "), game.generator)
print_score_of("both are ten turns late", story.play_late(10, 10).generator)
for turns in (1, 2, 5):
    print_score_of(f"D learns from fakes {turns} turns old", story.play_late(turns).generator)
other_latents = new_game(none, none)  # as in all late games, D and G see other latents in a turn
for _ in range(2 * EPOCH):
    fake = other_latents.generator(draw_latent(128)).detach()
    story.discriminator_step(other_latents.discriminator, other_latents.d_optimizer,
                             draw_from(images, 128), fake)
    story.generator_step(other_latents.generator, other_latents.discriminator,
                         other_latents.g_optimizer, other_latents.generator(draw_latent(128)))
print_score_of("nobody is late, other latents for G's move", other_latents.generator)

print("== section 7: momentum destroys, and without it nothing comes back")
print_score_of("writes, then momentum for an epoch",
               play_on(with_betas(games["neither"], momentum), EPOCH))
collapsed = games["both"]
print_score_of("collapsed, then no momentum for two",
               play_on(with_betas(collapsed, none), 2 * EPOCH))
for name, player in [("... and fresh Adams", deepcopy(collapsed.discriminator)),
                     ("... and a fresh D", story.Discriminator().to(story.device))]:
    again = Game(deepcopy(collapsed.generator), player, g_betas=none, d_betas=none)
    print_score_of(name, play_on(again, 2 * EPOCH))

print("== section 7: no momentum, and G lowers log(1 - D)")


def rejected_loss(logits, _):
    return -binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))


print_score_of("G lowers log(1 - D)", play_with_loss(none, rejected_loss))

print("== section 7: the flat ends of tanh, beyond 3 and -3; the share of them in the middle")


@torch.no_grad()
def share_in_flat_ends(generator):
    before_tanh = generator.layers[:-2](draw_latent(1000)).view(-1, 28, 28)[:, 7:21, 7:21]
    return f"{(before_tanh.abs() > 3).float().mean():.0%}"


def kept_out(logits, before_tanh):
    loss = binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
    return loss + relu(before_tanh.abs() - 3).square().mean()


outside = play_with_loss(momentum, kept_out)
print_score_of("momentum: both, G kept out of the flat ends", outside)
print_row("momentum: both, neither, kept out", *map(share_in_flat_ends, (
    collapsed.generator, games["neither"].generator, outside)))

print("== section 8: what R1 does (slope of D's logit at real images, at fakes, half-way; how far "
      "a drawing moves in twenty turns, as a share of the distance of two drawings)")


def slope(discriminator, pictures):
    pictures = pictures.detach().requires_grad_()
    gradient, = torch.autograd.grad(discriminator(pictures).sum(), pictures)
    return gradient.flatten(1).norm(dim=1).mean().item()


for name, game, r1_weight in [("no momentum", games["neither"], 0.0),
                              ("no momentum, and R1", story.game, 1.0)]:
    real, latent = draw_from(images, 1000), draw_latent(1000)
    fake = helpers.generate(game.generator, latent)
    slopes = [slope(game.discriminator, each) for each in (real, fake, (real + fake) / 2)]
    later = helpers.generate(play_on(deepcopy(game), 20, r1_weight), latent)
    moved = (later - fake).flatten(1).norm(dim=1).mean()
    apart = (fake - fake.roll(1, dims=0)).flatten(1).norm(dim=1).mean()
    print_row(name, *(f"{each:.2f}" for each in slopes), f"{moved / apart:.2f}")

print("== section 7: how varied drawings are (digits that are at least 1 % of 10,000; the median "
      "distance of 2,000 to the nearest other, by that of real images; D on real images, on fakes)")


def variety(pictures):
    counts = story.read(pictures).bincount(minlength=10)
    some = pictures[:2000].flatten(1)
    nearest = torch.cdist(some, some).fill_diagonal_(torch.inf).amin(dim=1)
    return (counts >= 0.01 * len(pictures)).sum().item(), nearest.median().item()


_, of_real = variety(images[:10_000])
players = {f"momentum: {who}": game for who, game in games.items()}
players |= {name.replace("\n", " "): game for name, game in story.late.items()}
for name, game in players.items():
    drawings = helpers.generate(game.generator, draw_latent(10_000))
    kinds, distance = variety(drawings)
    d_real, d_fake = (game.discriminator(each).sigmoid().mean()
                      for each in (images[:1000], drawings))
    print_row(name, kinds, f"{distance / of_real:.2f}", f"{d_real:.2f}", f"{d_fake:.2f}")
untrained = story.Generator().to(story.device)
kinds, distance = variety(helpers.generate(untrained, draw_latent(10_000)))
print_row("untrained", kinds, f"{distance / of_real:.2f}", "", "")

print("== the plane: told by whom, whose momentum, each cure")
hit = {title: points for title, (points, _) in story.told.items()}
for who, betas in story.whose.items():
    hit[f"momentum: {who}"], of_average = play_in_plane(betas)
hit["momentum: neither, and the average"] = of_average  # "neither" was the last
hit["momentum: neither, and R1 (0.1)"], _ = play_in_plane(story.whose["neither"], r1_weight=0.1)
for title, points in hit.items():
    share, reached = helpers.hits(points, *story.RINGS)
    print_row(title, f"{share:.0%}", reached)

print("== the plane, both told: how wide a code's points are in its ring, by a cluster's width")
for name, betas in {"Adam's momentum": momentum, "no momentum": none}.items():
    torch.manual_seed(story.SEED)
    told = Game(story.ToldPoints(1, 1), story.small_network(2 + 25, 1, nn.Flatten(0)),
                g_betas=betas, d_betas=betas)
    for _ in range(4 * EPOCH):
        take_turn(told, story.real_told(128, 1), draw_latent(128, 16))
    with torch.no_grad():
        points, code = told.generator(draw_latent(25_000, 16)).split([2, 25], dim=1)
    share, reached = helpers.hits(points, *story.RINGS)
    kind = code.argmax(dim=1)
    inside = (points - story.CENTRES[kind]).norm(dim=1) < 0.24
    widths = [points[inside & (kind == each)].std(dim=0).mean() / 0.08 for each in range(25)]
    print_row(name, f"{share:.0%}", reached, f"{torch.stack(widths).nanmean():.2f}")

if story.SEED == 0:  # nothing here depends on it
    print("== section 10: what the scores say of real images")
    judge, test = story.judge, story.test_images

    def compare(name, real, fake):
        (one, _), (other, probabilities) = (helpers.judge_images(judge, each)
                                            for each in (real, fake))
        print_row(name, f"{story.frechet_distance(one, other):.2f}",
                  f"{story.share_in_balls(other, one, story.neighbour_radii(one)):.3f}",
                  f"{story.share_in_balls(one, other, story.neighbour_radii(other)):.3f}",
                  f"{story.confident(probabilities):.1%}")

    one_half, other_half = torch.randperm(
        len(test), generator=torch.Generator().manual_seed(0)).chunk(2)
    compare("half of the test images, and the other half", test[one_half], test[other_half])
    compare("half of the test images, and as many training images", test[one_half],
            images[:len(one_half)])
    specked = {}
    for number in (3, 10):
        specked[number] = images[:10_000].clone()
        for _ in range(number):
            place = torch.randint(784, (len(specked[number]),))
            specked[number].flatten(1)[range(len(place)), place] = 1.0
        compare(f"training images with {number} white pixels each", test, specked[number])
    blurred = avg_pool2d(pad(images[:10_000], (1, 1, 1, 1), value=-1.0), 3, stride=1)
    compare("training images, blurred by 3 x 3", test, blurred)
