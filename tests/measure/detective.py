"""What gives the forgeries away: a detective looks at them in several ways, of one seed:

    python tests/measure/detective.py "told DCGAN" "told DCGAN, one tanh"

Trains the named network of exercises.py as the notebook does, then for each way of looking teaches
the judge's network on 20,000 real and 20,000 forged digits, and tests it on 10,000 unseen of each.
"""

import argparse

import torch
from exercises import machine, run, story_with
from torch.nn import functional

AS_THEY_ARE, OF_REAL_ONES = "as they are", "with the greys of real ones"


def clamped(pictures):
    """Greys up to 5 of 255 black, from 250 white."""
    darker = torch.where(pictures < 5.5 / 127.5 - 1, -1.0, pictures)
    return torch.where(pictures > 249.5 / 127.5 - 1, 1.0, darker)


def blurred(pictures):
    return functional.avg_pool2d(functional.pad(pictures, (1, 1, 1, 1), value=-1), 3, stride=1)


def with_greys_of(pictures, real):
    """The n-th darkest pixel of all gets the n-th darkest grey of real ones; ties at random."""
    flat = (pictures + 1e-4 * torch.rand_like(pictures)).flatten()
    greys = real.flatten().sort().values
    places = torch.linspace(0, len(greys) - 1, len(flat)).round().long()
    matched = torch.empty_like(flat)
    matched[flat.argsort()] = greys[places]
    return matched.view_as(pictures)


def look_at(story, pictures, way):
    if way == AS_THEY_ARE:
        return pictures
    if way == "plateaus clamped":
        return clamped(pictures)
    if way == "blurred by a pixel":
        return blurred(pictures)
    return story.in_greys(pictures, int(way.split()[0]))  # "3 greys"


def told_apart(helpers, real, forged, epochs):
    """`real` and `forged` are pairs, of lessons and of unseen ones: the share told apart."""
    lessons = torch.cat([real[0], forged[0]])
    is_forged = torch.arange(len(lessons), device=lessons.device) // len(real[0])  # 0, then 1
    detective = helpers.train_judge(lessons, is_forged, epochs=epochs)
    on_real = helpers.judge_images(detective, real[1])[1].argmax(dim=1) == 0
    on_forged = helpers.judge_images(detective, forged[1])[1].argmax(dim=1) == 1
    return torch.cat([on_real, on_forged]).float().mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["told DCGAN"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(machine(), "\n\n| network | looked at | lessons | told apart |\n|---|---|---|---|")
    ways = [(AS_THEY_ARE, 3), (AS_THEY_ARE, 8), ("2 greys", 3), ("2 greys", 8), ("4 greys", 3),
            ("plateaus clamped", 3), ("blurred by a pixel", 3), (OF_REAL_ONES, 3)]
    story = story_with({})
    helpers, device = story.helpers, story.device
    images, labels = helpers.load_mnist(train=True, device=device)
    test_images, test_labels = helpers.load_mnist(train=False, device=device)
    for name in options.names:
        story, game = run(name, images, labels, seed=options.seed)
        torch.manual_seed(options.seed)
        forged = []
        for digits in (torch.arange(20_000, device=device) % 10, test_labels):
            drawn = story.draw_digits(game.average, digits, story.draw_latent(len(digits), 100))
            forged.append(story.in_greys(drawn, 256))
        for way, epochs in ways:
            if way == OF_REAL_ONES:
                real = [images[:20_000], test_images]
                seen = [with_greys_of(each, images[:20_000]) for each in forged]
            else:
                real = [look_at(story, each, way) for each in (images[:20_000], test_images)]
                seen = [look_at(story, each, way) for each in forged]
            share = told_apart(helpers, real, seen, epochs)
            print(f"| {name} | {way} | {epochs} | {share:.1%} |", flush=True)


if __name__ == "__main__":
    main()
