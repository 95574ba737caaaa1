"""Experiments on better digits, made with the third edition's notebook (commit 72debf0), in whose
root this script runs:

    git worktree add /tmp/third 72debf0
    cp tests/measure/experiments.py /tmp/third && cd /tmp/third

The networks of that notebook with named changes, trained and scored; results.md has the rows.

    python experiments.py "conditional" "conditional inner gamma1 hard" --seeds 0 1 2
    python experiments.py "mlp kmeans20" --seeds 0
    python experiments.py --detective "conditional inner gamma1 hard" --seeds 0
    python experiments.py --rescore "conditional" --seeds 0   a trained one: BatchNorm's numbers
                                                              taken anew, longer latents
    python experiments.py --list                              every change

A name is a network (mlp or conditional) and changes from CHANGES, in any order. Each run appends
a line to results.jsonl and writes its averaged generator to runs/NAME-seedS.pt.
"""

import argparse
import copy
import dataclasses
import itertools
import json
import os
import re
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "measure")]
os.environ["GAN_DEVICE"] = "cpu"

import exercises  # noqa: E402  (found on the path above)

RESULTS, RUNS = ROOT / "results.jsonl", ROOT / "runs"

# Change: cell of the notebook -> old text, new text. "mlp:" or "conditional:" before a cell's name
# means that the cell is changed for that network only.
CHANGES = {
    "inner": {  # the penalty does not see the boxes, or the row with the code
        "conditional:r1": ("gradient.square()", "gradient[:, :, :30].square()"),
        "mlp:r1": ("gradient.square()", "gradient[:, :, :28].square()")},
    "hard": {"mlp:generator": ("nn.Tanh()", "nn.Hardtanh()"),
             "conditional:conv-generator": ("nn.Tanh()", "nn.Hardtanh()")},
    "stretch": {"mlp:generator": (
                    "self.layers(latent).", "self.layers(latent).mul(1.05).clamp(-1, 1)."),
                "conditional:conv-generator": (
                    "self.layers(latent)", "self.layers(latent).mul(1.05).clamp(-1, 1)")},
    "sub4": {"conditional:conv-generator": (  # each pixel is the mean of four
        "nn.ConvTranspose2d(channels[-1], 1, ", "nn.ConvTranspose2d(channels[-1], 4, ",
        "self.layers(latent)", "self.layers(latent).mean(dim=1, keepdim=True)")},
    "square": {  # D also sees 1 - x^2, which is large where a pixel is grey
        "mlp:discriminator": ("in zip((", "in zip((2 * ", "self.layers(images + 1)",
                              "self.layers(torch.cat([images + 1, 1 - images.square()], dim=1))"),
        "conditional:conv-discriminator": (
            "zip((1, *", "zip((2, *",
            "self.layers(images)", "self.layers(torch.cat([images, 1 - images.square()], dim=1))")},
    "d2": {"train": (  # D's rate doubled
        "set_rate([state.g_optimizer, state.d_optimizer], rate_at(state.step / total, settings))",
        "rate = rate_at(state.step / total, settings)\n"
        "                    set_rate([state.g_optimizer], rate)\n"
        "                    set_rate([state.d_optimizer], 2 * rate)")},
    "fine": {"conditional:conv-discriminator": (  # D's first layer looks at every pixel
        "layers = []", "layers = [nn.Conv2d(1, 16, 3, padding=1), nn.LeakyReLU(0.2, inplace=True)]",
        "zip((1, *", "zip((16, *")},
    "hands": {"tick": ("KINDS = 10", "KINDS = 30", "repeat_interleave(3, dim=1)",
                       "repeat_interleave(1, dim=1)")},
    "both": {  # boxes in the upper frame, too
        "tick": ("    ticked[:, 0, 30:, 1:31] =",
                 "    ticked[:, 0, :2, 1:31] = ticked[:, 0, 30:, 1:31] ="),
        "conditional:r1": ("gradient.square()", "gradient[:, :, 2:30].square()")},
    "loud": {"tick": ("(2.0 * one_hot(labels, KINDS) - 1)",  # not run: boxes of -3 and 3
                      "3 * (2.0 * one_hot(labels, KINDS) - 1)")},
    "deepd": {"conditional:conv-discriminator": (  # a hidden layer that sees all of the image
        "nn.Conv2d(channels[-1], 1, kernel_size=2),",
        "nn.Conv2d(channels[-1], 256, kernel_size=2), nn.LeakyReLU(0.2, inplace=True),\n"
        "                   nn.Conv2d(256, 1, kernel_size=1),")},
    "deepg": {"conditional:conv-generator": (  # a hidden layer before there is any picture
        "layers = [nn.Unflatten(1, (latent_dim, 1, 1)),",
        "layers = [nn.Unflatten(1, (latent_dim, 1, 1)),\n"
        "                  nn.ConvTranspose2d(latent_dim, 256, kernel_size=1, bias=False),\n"
        "                  nn.BatchNorm2d(256), nn.LeakyReLU(0.05, inplace=True),",
        "nn.ConvTranspose2d(latent_dim, channels[0],", "nn.ConvTranspose2d(256, channels[0],")},
    "wide": {},
}
SETTINGS = {"gamma": "r1_gamma", "ema": "ema_decay", "rate": "learning_rate", "batch": "batch_size",
            "epochs": "epochs", "interval": "r1_interval", "from": "decay_from",
            "latent": "latent_dim"}


def parse(name):
    """'conditional inner gamma1' -> network, changes, settings, number of k-means islands."""
    network, *words = name.split()
    changes, settings, kinds = [], {}, 0
    for word in words:
        key, number = re.fullmatch(r"([a-z]+\d*?)((?:\d+\.)?\d*(?:e-\d+)?)", word).groups()
        if word in CHANGES:
            changes.append(word)
        elif key == "kmeans":
            kinds = int(number)
        elif key in SETTINGS:
            value = float(number)
            whole = SETTINGS[key] in ("batch_size", "epochs", "r1_interval", "latent_dim")
            settings[SETTINGS[key]] = int(value) if whole else value
        else:
            known = ", ".join([*CHANGES, *SETTINGS, "kmeans"])
            raise ValueError(f"{word!r} is no change; there are: {known}")
    if "wide" in changes:
        settings["discriminator_widths"] = (1024, 512)
    return network, changes, settings, kinds


def changed_cells(network, changes, kinds):
    cells = {}
    for change in changes:
        for cell, texts in CHANGES[change].items():
            only, _, cell = cell.rpartition(":")
            if only in ("", network):
                cells[cell] = cells.get(cell, ()) + texts
    if network == "mlp" and kinds:
        rows = -(-kinds // 28)
        cells["tick"] = ("KINDS = 10", f"KINDS = {kinds}")
        cells["discriminator"] = cells.get("discriminator", ()) + (
            "28 * 28, ", f"{28 + rows} * 28, ")
    return cells


def told_generator(story, kinds):
    """The MLP told its island: one-hot behind the latent, and drawn as more rows of pixels."""
    rows = -(-kinds // 28)

    class ToldGenerator(story.Generator):
        def __init__(self, latent_dim, widths):
            super().__init__(latent_dim + kinds, widths)

        def forward(self, latent):
            return with_code(super().forward(latent), latent[:, -kinds:], rows)

    return ToldGenerator


def with_code(images, code, rows):
    """Images (N, 1, 28, 28) with a one-hot code (N, K) as more rows of pixels, -1 and 1."""
    code = functional.pad(2.0 * code - 1, (0, 28 * rows - code.shape[1]), value=-1)
    return torch.cat([images, code.view(-1, 1, rows, 28)], dim=2)


def handwritings(images, labels, ways=3):
    """Islands 3 * digit + (0, 1 or 2): k-means within each digit."""
    island = torch.zeros_like(labels)
    for digit in range(10):
        mine = labels == digit
        island[mine] = ways * digit + exercises.clusters(images[mine], ways)
    return island


class Experiment:
    """A name made into what trains: settings, classes, images, and how to draw."""

    def __init__(self, name, images, labels):
        self.name = name
        self.network, changes, new_settings, kinds = parse(name)
        self.story = story = exercises.story_with(changed_cells(self.network, changes, kinds))
        self.island, self.digit_islands = None, None
        if self.network == "mlp":
            self.inner, self.settings = slice(0, 28), story.settings
            self.classes, self.images = (story.Generator, story.Discriminator), images
            if kinds:
                self.island = exercises.clusters(images, kinds)
                code = functional.one_hot(self.island, kinds)
                self.images = with_code(images, code, -(-kinds // 28))
                self.classes = (told_generator(story, kinds), story.Discriminator)
        else:
            self.inner, self.settings = slice(2, 30), story.conditional_settings
            padded = functional.pad(images, (2, 2, 2, 2), value=-1)
            self.island = handwritings(images, labels) if "hands" in changes else labels
            self.digit_islands = [self.island[labels == digit] for digit in range(10)]
            self.images = story.tick(padded, self.island)
            self.classes = (story.ConditionalGenerator, story.ConvDiscriminator)
        self.settings = dataclasses.replace(self.settings, **new_settings)

    def draw_latent(self, n, latent_dim):
        latent = self.story.draw_latent(n, latent_dim)
        if self.island is None:
            return latent
        return self.story.ask(self.island[torch.randint(len(self.island), (n,))], latent)

    def train(self, seed):
        settings = dataclasses.replace(self.settings, seed=seed)
        players = self.story.fresh_players(settings, *self.classes)
        return exercises.silent_train(self.story, *players, self.images, settings,
                                      lambda state: None, self.draw_latent)

    def fresh_generator(self):
        return self.classes[0](self.settings.latent_dim, self.settings.generator_widths)

    def load(self, seed):
        generator = self.fresh_generator()
        generator.load_state_dict(torch.load(RUNS / f"{self.name}-seed{seed}.pt"))
        return generator

    def latents(self, asked):
        """Latents for these digits (N,), of which only the conditional network takes notice."""
        if self.network == "mlp":
            return self.draw_latent(len(asked), self.settings.latent_dim)
        latent = self.story.draw_latent(len(asked), self.settings.latent_dim)
        island = asked.clone()
        for digit, islands in enumerate(self.digit_islands):
            mine = asked == digit
            island[mine] = islands[torch.randint(len(islands), (int(mine.sum()),))]
        return self.story.ask(island, latent)

    def draw(self, generator, latent):
        drawn = self.story.helpers.generate(generator, latent)
        return drawn[:, :, self.inner, self.inner].contiguous()


def score(experiment, generator, seed, test_images, test_labels, stretch=1.0, evaluator=None):
    """All scores of 10,000 drawings, as many of each digit where digits can be asked for."""
    evaluator = evaluator or exercises.evaluator_of(experiment.story, test_images)
    torch.manual_seed(seed + 1)
    asked = torch.arange(10_000) % 10
    latent = experiment.latents(asked)
    latent[:, :experiment.settings.latent_dim] *= stretch
    drawn = experiment.draw(generator, latent)
    scores = evaluator.scores(drawn)
    scores.pop("samples"), scores.pop("histogram")
    if experiment.network == "conditional":
        features, probabilities = experiment.story.helpers.judge_images(evaluator.judge, drawn)
        scores["read as asked"] = (probabilities.argmax(dim=1) == asked).float().mean().item()
        recalls = []
        for digit in range(10):
            real = evaluator.features[test_labels == digit]
            _, recall, _ = experiment.story.precision_recall_coverage(
                real, features[asked == digit], experiment.story.helpers.neighbour_radii(real))
            recalls.append(round(recall, 3))
        scores["recall of digits"] = recalls
    grey = drawn.add(1).mul(127.5).round()
    edges = (0, 0.5, 5.5, 64.5, 191.5, 249.5, 251.5, 254.5, 255.5)
    scores["greys"] = [round((((grey >= low) & (grey < high)).float().mean()).item(), 4)
                       for low, high in itertools.pairwise(edges)]
    return scores


def renewed(experiment, generator, batches=50):
    """The averaged generator with the numbers of its BatchNorm layers taken anew."""
    generator = copy.deepcopy(generator).train()
    for module in generator.modules():
        if hasattr(module, "running_mean"):
            module.reset_running_stats()
            module.momentum = None  # a plain mean over all batches
    with torch.no_grad():
        for _ in range(batches):
            generator(experiment.draw_latent(256, experiment.settings.latent_dim))
    return generator.eval()


LOOKS = {
    "as they are": lambda pictures: pictures,
    "plateaus clamped": lambda pictures: torch.where(
        pictures > 249.5 / 127.5 - 1, 1.0, torch.where(pictures < 5.5 / 127.5 - 1, -1.0, pictures)),
    "8 greys": lambda pictures: in_greys(pictures, 8),
    "4 greys": lambda pictures: in_greys(pictures, 4),
    "3 greys": lambda pictures: in_greys(pictures, 3),
    "black and white": lambda pictures: (pictures > 0) * 2.0 - 1,
    "blurred (3 x 3 mean)": lambda pictures: functional.avg_pool2d(
        functional.pad(pictures, (1, 1, 1, 1), value=-1), 3, stride=1),
}


def in_greys(pictures, greys):
    return ((pictures + 1) / 2 * (greys - 1)).round() / (greys - 1) * 2 - 1


def with_greys_of(pictures, real):
    """Histogram matching over the whole set: the n-th darkest pixel gets the n-th darkest real one.

    Ties (a Hardtanh's plain blacks) are broken at random, all of a set at once.
    """
    flat = (pictures + 1e-4 * torch.rand_like(pictures)).flatten()
    order = flat.argsort()
    matched = torch.empty_like(flat)
    greys = real.flatten().sort().values
    places = torch.linspace(0, len(greys) - 1, len(flat)).round().long()
    matched[order] = greys[places]
    return matched.view_as(pictures)


def detective(experiment, generator, images, test_images, test_labels, look, epochs):
    """Share of 20,000 unseen images, half of them forged, that a detective tells apart.

    Taught by 20,000 real and 20,000 forged ones, as in the notebook: train_judge with two classes.
    """
    helpers = experiment.story.helpers
    torch.manual_seed(12345)
    forged = [experiment.draw(generator, experiment.latents(asked))
              for asked in (torch.arange(20_000) % 10, test_labels)]
    forged = [((each + 1) * 127.5).round() / 127.5 - 1 for each in forged]
    real = [images[:20_000], test_images]
    if look == "greys of real ones":
        forged = [with_greys_of(each, real[0]) for each in forged]
    else:
        forged, real = ([LOOKS[look](each) for each in both] for both in (forged, real))
    answers = torch.arange(40_000) // 20_000
    judge = helpers.train_judge(torch.cat([real[0], forged[0]]), answers, epochs=epochs)
    says = [helpers.judge_images(judge, unseen)[1].argmax(dim=1).float()
            for _, unseen in (real, forged)]
    return (torch.cat([1 - says[0], says[1]])).mean().item()


def keep(**result):
    line = json.dumps(result)
    print(line, flush=True)
    with open(RESULTS, "a") as file:
        file.write(line + "\n")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--detective", action="store_true")
    parser.add_argument("--looks", nargs="+", default=[*LOOKS, "greys of real ones"])
    parser.add_argument("--lessons", type=int, nargs="+", default=[2], help="a detective's epochs")
    parser.add_argument("--rescore", action="store_true")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    if options.list:
        print(*CHANGES, *(f"{key}NUMBER" for key in [*SETTINGS, "kmeans"]), sep="\n")
    helpers = exercises.story_with({}).helpers
    (images, labels), tests = (helpers.load_mnist(train=train) for train in (True, False))
    for name in options.names:
        experiment = Experiment(name, images, labels)
        for seed in options.seeds:
            if options.detective:
                generator = experiment.load(seed)
                for look in options.looks:
                    for epochs in options.lessons:
                        found = detective(experiment, generator, images, *tests, look, epochs)
                        keep(kind="detective", name=name, seed=seed, look=look, lessons=epochs,
                             told_apart=found)
            elif options.rescore:
                generator = experiment.load(seed)
                again = {"renewed": (renewed(experiment, generator), 1.0)}
                again |= {f"latents x {by}": (generator, by) for by in (1.03, 1.05, 1.1)}
                for way, (network, stretch) in again.items():
                    keep(kind="rescore", name=name, seed=seed, way=way,
                         **score(experiment, network, seed, *tests, stretch=stretch))
            else:
                start = time.perf_counter()
                state = experiment.train(seed)
                seconds = sum(record["seconds"] for record in state.history)
                torch.save(state.ema_generator.state_dict(), RUNS / f"{name}-seed{seed}.pt")
                scores = score(experiment, state.ema_generator, seed, *tests)
                keep(kind="run", name=name, seed=seed, seconds=round(seconds), epochs=state.epoch,
                     d_loss=round(state.history[-1]["d_loss"], 3), **scores,
                     wall=round(time.perf_counter() - start))


if __name__ == "__main__":
    main()
