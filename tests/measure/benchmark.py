"""Speed of the training loop, measured by hand (pytest never runs this):

    python tests/benchmark.py

Trains the notebook's networks with its losses, penalty and average, at its batch size, four ways in alternation: through
a plain DataLoader + ToTensor + Normalize loop in float32, through the notebook's loop in float32 without and with what
`tune_cpu` does about memory, and at the precision it chooses here. Each run is a process of its own. Prints the median images
a second of each, the ratios, the peak memory, and what fraction of this machine's matrix-multiply peak each reaches;
then what the scores cost.

    python tests/benchmark.py --quality

Trains the notebook's recipe with three seeds, and for as many seconds the textbook recipe, through a plain DataLoader
loop and through the notebook's loop. Prints their scores and the time each took to reach the textbook's final one.
With --ours, the notebook's recipe alone.

    python tests/benchmark.py --dcgan

Trains the DCGAN of the notebook with three seeds.

    python tests/benchmark.py --ablation 5

Trains the notebook's recipe for 5 epochs with three seeds, and with one ingredient changed at a time for as many whole
epochs as fit into the same time, by a trial of both in alternation.

All obey GAN_PRECISION=float32, print the machine's rate of square matrix products, by which times of two machines compare,
and take `--seeds 0 1 2`.
"""

import argparse
import contextlib
import copy
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from exercises import PAPER, silent_train, story_with

WARM_UP_BATCHES = 30


def matmul_flops_per_image(latent_dim, generator_widths, discriminator_widths, r1_interval, shared_fakes=True):
    """Floating-point operations of the matrix products that one training image costs, counted from the layer sizes.

    A product of (n, a) with (a, b) costs 2 n a b. A linear layer has three: its output, the gradient of its weights,
    the gradient of its input (which the first layer of a network that learns from its input does not need).
    r1_interval 0 means no penalty; shared_fakes, the notebook's steps (one batch of fakes for both players, and G's step
    asks for G's gradients only) and not those of the plain loop.
    """
    products = lambda sizes: [2 * a * b for a, b in itertools.pairwise(sizes)]
    g = products([latent_dim, *generator_widths, 784])
    d = products([784, *discriminator_widths, 1])
    d_step = 2 * (2 * sum(d) + sum(d[1:])) + (0 if shared_fakes else sum(g))  # real and fake through D, forwards and backwards
    g_step = sum(g) + sum(d) + sum(d) + 2 * sum(g) - g[0]  # forwards through both, back through D's inputs and all of G
    g_step += 0 if shared_fakes else sum(d)  # a plain backward() computes the gradients of D's weights, too
    # The penalty: forwards, back to the pixels, and for each of the latter's products two of the second derivative.
    penalty = 4 * sum(d) / r1_interval if r1_interval else 0
    return d_step + g_step + penalty


def matmul_peak(dtype):
    """The best rate of square matrix products at this precision, in operations a second."""
    import torch
    best = 0
    for n in (512, 1024, 2048):
        a, b = torch.randn(2, n, n).to(dtype)
        for repeat in range(4):
            start = time.perf_counter()
            for _ in range(max(1, 4096 // n)):
                a @ b
            best = max(best, 2 * n**3 * max(1, 4096 // n) / (time.perf_counter() - start))
    return best


def plain_loop(story, settings):
    """What a reader would otherwise run; yields the generator after every batch."""
    import torch
    from torch.nn.functional import softplus
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])
    loader = DataLoader(datasets.MNIST(str(ROOT / "data"), train=True, download=True, transform=transform),
                        batch_size=settings.batch_size, shuffle=True, drop_last=True)
    generator, discriminator = story.fresh_players(settings)
    adam = lambda network: torch.optim.Adam(network.parameters(), lr=settings.learning_rate, betas=settings.betas)
    g_optimizer, d_optimizer = adam(generator), adam(discriminator)
    average = copy.deepcopy(generator)
    step = 0
    while True:
        for real, _ in loader:
            d_optimizer.zero_grad()
            fake = generator(torch.randn(len(real), settings.latent_dim))
            d_loss = softplus(-discriminator(real)).mean() + softplus(discriminator(fake.detach())).mean()
            if settings.r1_gamma and step % settings.r1_interval == 0:
                d_loss = d_loss + settings.r1_gamma * settings.r1_interval / 2 * story.r1_penalty(discriminator, real)
            d_loss.backward()
            d_optimizer.step()
            g_optimizer.zero_grad()
            g_loss = softplus(-discriminator(generator(torch.randn(len(real), settings.latent_dim)))).mean()
            g_loss.backward()
            g_optimizer.step()
            if settings.ema_decay:
                story.update_average(average, generator, min(settings.ema_decay, (1 + step) / (10 + step)))
            d_loss.item(), g_loss.item()
            step += 1
            yield generator


def peak_memory():
    """The most resident memory that this process has held, in bytes; not a number on Windows, which does not tell."""
    try:
        import resource
    except ImportError:
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure_scores():
    """One row of the scoreboard, and the search for nearest training images, on 10,000 images each."""
    import gan_helpers as helpers
    test_images, images = helpers.load_mnist(train=False)[0], helpers.load_mnist(train=True)[0]
    reference = helpers.make_reference(test_images)
    start = time.perf_counter()
    helpers.score_images(reference, images[:10_000])
    row = time.perf_counter() - start
    helpers.nearest_images(test_images, images)
    nearest = time.perf_counter() - start - row
    print(f"\nScores of 10,000 images: {row:.1f} s for the scoreboard's row, {nearest:.1f} s for the nearest training "
          f"images, peak memory {peak_memory() / 1e6:,.0f} MB")


def measure(variant, image_count):
    """One run in this process: a warm-up, then about `image_count` images."""
    if variant == "scores":
        return measure_scores()
    import torch

    import gan_helpers
    if variant in ("plain", "untuned"):
        gan_helpers.tune_cpu = lambda: torch.set_flush_denormal(variant == "untuned")
    from conftest import notebook_code
    story = argparse.Namespace(**notebook_code())
    settings = story.Settings()
    batches = image_count // settings.batch_size
    if variant == "plain":
        loop = plain_loop(story, settings)
        for _ in range(WARM_UP_BATCHES):
            next(loop)
        start = time.perf_counter()
        for _ in range(batches):
            next(loop)
        seconds = time.perf_counter() - start
    else:
        images, _ = story.helpers.load_mnist(train=True)
        for count in (WARM_UP_BATCHES, batches):
            count *= settings.batch_size
            one = dataclasses.replace(settings, epochs=1, train_images=count)
            state = silent_train(story, *story.fresh_players(one), images[:count], one, lambda state: None)
        seconds = state.history[-1]["seconds"]
    flops = matmul_flops_per_image(settings.latent_dim, settings.generator_widths, settings.discriminator_widths,
                                   settings.r1_interval if settings.r1_gamma else 0, shared_fakes=variant != "plain")
    speed = batches * settings.batch_size / seconds
    dtype = torch.float32 if variant == "plain" else story.precision
    memory = peak_memory()
    print("RESULT" + json.dumps({"speed": speed, "memory": memory, "peak_share": speed * flops / matmul_peak(dtype),
                                 "machine": describe(story)}))


def describe(story):
    """The machine and its rate of square matrix products, for the head of every table."""
    import torch
    rates = f"{matmul_peak(torch.float32) / 1e9:.0f} GFLOP/s in float32"
    if story.precision != torch.float32:
        rates += f", {matmul_peak(story.precision) / 1e9:.0f} in {str(story.precision).removeprefix('torch.')}"
    return f"{story.helpers.describe_device(story.device, story.precision)}; square matrix products: {rates}"


# What most tutorials copy.
TEXTBOOK = {"latent_dim": 100, "generator_widths": (128, 256, 512, 1024), "discriminator_widths": (512, 256),
            "batch_size": 64, "learning_rate": 2e-4, "betas": (0.5, 0.999), "decay_from": 1.0, "r1_gamma": 0.0,
            "ema_decay": 0.0}
ABLATION = {  # name: settings changed, or a cell of the notebook: (old text, new text)
    "the notebook's recipe": {}, "D sees paper as -1, not 0": PAPER,
    "no gradient penalty": {"r1_gamma": 0.0}, "penalty at every step": {"r1_interval": 1},
    "learning rate never falls": {"decay_from": 1.0}, "Adam's beta1 0.5": {"betas": (0.5, 0.99)},
    "no BatchNorm in G": {"generator": (", bias=False), nn.BatchNorm1d(fan_out), ", "), ")},
    "G of 512-512": {"generator_widths": (512, 512)},
    "batches of 64": {"batch_size": 64}, "batches of 256": {"batch_size": 256}, "latent of 64": {"latent_dim": 64},
}


class TimeIsUp(Exception):
    pass


class Watch:
    """Scores a generator now and then, on a clock that stands still meanwhile."""

    def __init__(self, story, reference, latent_dim):
        import torch
        self.helpers, self.reference, self.torch = story.helpers, reference, torch
        self.latent = torch.randn(10_000, latent_dim, generator=torch.Generator().manual_seed(12345))
        self.seconds, self.curve = 0.0, []

    def look(self, generator):
        random_state = self.torch.get_rng_state()
        images = self.helpers.generate(generator, self.latent[:5000])
        self.curve.append((self.seconds, self.helpers.frechet_of_images(self.reference, images)))
        self.torch.set_rng_state(random_state)

    def final(self, generator):
        return self.helpers.score_images(self.reference, self.helpers.generate(generator, self.latent))

    def reached(self, distance):
        """Seconds until the curve was first at or below `distance`, or None."""
        return next((seconds for seconds, value in self.curve if value <= distance), None)


def seconds_per_epoch(contestants, images):
    """Seconds that an epoch takes with each (story, settings), the best of three measured in alternation.

    In alternation, since a shared machine is half as fast one minute as it is the next; on a fifth of the images.
    """
    images, best = images[:len(images) // 5], [float("inf")] * len(contestants)
    for _ in range(3):
        for number, (story, settings) in enumerate(contestants):
            one = dataclasses.replace(settings, epochs=1, train_images=len(images))
            state = silent_train(story, *story.fresh_players(one), images, one, lambda state: None)
            best[number] = min(best[number], 5 * state.history[-1]["seconds"])
    return best


def timed_run(story, settings, images, reference, seconds=None, classes=()):
    """Train through the notebook's loop; with `seconds`, stop after the epoch in which they have passed.

    Returns (watch, scores of the average, scores of the generator itself).
    """
    watch, states = Watch(story, reference, settings.latent_dim), []

    def after_epoch(state):
        states[:] = [state]
        if state.history:
            watch.seconds += state.history[-1]["seconds"]
            watch.look(state.ema_generator)
            if seconds and watch.seconds >= seconds:
                raise TimeIsUp

    with contextlib.suppress(TimeIsUp):
        silent_train(story, *story.fresh_players(settings, *classes), images, settings, after_epoch)
    return watch, watch.final(states[0].ema_generator), watch.final(states[0].generator)


def plain_run(story, settings, reference, seconds):
    """Train through the plain loop for so many seconds; returns (watch, scores)."""
    watch = Watch(story, reference, settings.latent_dim)
    loop, batches = plain_loop(story, settings), 60_000 // settings.batch_size
    while watch.seconds < seconds:
        start = time.perf_counter()
        for _ in range(batches):
            generator = next(loop)
            if watch.seconds + time.perf_counter() - start >= seconds:
                break
        watch.seconds += time.perf_counter() - start
        watch.look(generator)
    return watch, watch.final(generator)


COLUMNS = "| Fréchet | precision | recall | coverage | confident | KL |"


def cells(scores):
    return (f"| {scores['frechet']:.2f} | {scores['precision']:.3f} | {scores['recall']:.3f} | "
            f"{scores['coverage']:.3f} | {scores['confident']:.1%} | {scores['kl']:.4f} |")


def prepare():
    story = story_with({})
    images, _ = story.helpers.load_mnist(train=True)
    reference = story.helpers.make_reference(story.helpers.load_mnist(train=False)[0])
    print(describe(story), flush=True)
    return story, images, reference


def quality(seeds, ours_only):
    story, images, reference = prepare()
    ours, epochs = [], story.settings.epochs
    print(f"\n| recipe and loop | epochs | training {COLUMNS}\n|---|---|---|---|---|---|---|---|---|", flush=True)
    for seed in seeds:
        settings = dataclasses.replace(story.settings, seed=seed)
        watch, average, itself = timed_run(story, settings, images, reference)
        ours.append((watch, average))
        print(f"| this notebook, seed {seed} | {epochs} | {watch.seconds:.0f} s {cells(average)}", flush=True)
        print(f"| seed {seed}, without the average of weights | {epochs} | {watch.seconds:.0f} s {cells(itself)}", flush=True)
    if ours_only:
        return
    seconds = statistics.median(watch.seconds for watch, _ in ours)
    story, textbook = story_with(PAPER), dataclasses.replace(story.settings, **TEXTBOOK, epochs=10_000)
    plain, plain_scores = plain_run(story, textbook, reference, seconds)
    print(f"| textbook, plain DataLoader loop | {len(plain.curve)} | {plain.seconds:.0f} s {cells(plain_scores)}", flush=True)
    fast, fast_scores, _ = timed_run(story, textbook, images, reference, seconds)
    print(f"| textbook, this notebook's loop | {len(fast.curve)} | {fast.seconds:.0f} s {cells(fast_scores)}", flush=True)
    print(f"| *real training images* | | {cells(story.helpers.score_images(reference, images[:10_000]))}")
    middle = statistics.median(average["frechet"] for _, average in ours)
    print(f"\nFréchet, median of the seeds: 1/{plain_scores['frechet'] / middle:.1f} of the textbook's through the "
          f"plain loop, 1/{fast_scores['frechet'] / middle:.1f} of the textbook's through the notebook's loop")
    for name, target in [("plain loop", plain.curve[-1][1]), ("notebook's loop", fast.curve[-1][1])]:
        times = {"this notebook": ours[0][0], "textbook, this notebook's loop": fast, "textbook, plain loop": plain}
        reached = {who: watch.reached(target) for who, watch in times.items()}
        print(f"Seconds to the textbook's final distance through the {name} ({target:.2f} on 5,000 samples): "
              + ", ".join(f"{who} {seconds:.0f}" if seconds else f"{who} not in time"
                          for who, seconds in reached.items()))


def dcgan(seeds):
    import torch
    story, images, reference = prepare()
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2), value=-1)
    print(f"\n| network | epochs | training {COLUMNS}\n|---|---|---|---|---|---|---|---|---|", flush=True)
    for seed in seeds:
        settings = dataclasses.replace(story.dcgan_settings, seed=seed)
        watch, average, _ = timed_run(story, settings, padded, reference,
                                      classes=(story.ConvGenerator, story.ConvDiscriminator))
        print(f"| DCGAN, seed {seed} | {settings.epochs} | {watch.seconds:.0f} s {cells(average)}", flush=True)


def ablation(epochs, seeds):
    """Every change once, with the first seed; the recipe itself with each of them, so that the spread can be seen.

    The recipe has so many epochs, a change as many whole ones as take the same time, by a trial beside the recipe.
    """
    story, images, reference = prepare()
    print(f"\n| change | epochs | training {COLUMNS}\n|---|---|---|---|---|---|---|---|---|", flush=True)
    for name, changes in ABLATION.items():
        new_cells = {key: change for key, change in changes.items() if not hasattr(story.settings, key)}
        changed = story_with(new_cells)
        settings = dataclasses.replace(story.settings, **{k: v for k, v in changes.items() if k not in new_cells})
        recipe, other = seconds_per_epoch([(story, story.settings), (changed, settings)], images) if changes else (1, 1)
        settings = dataclasses.replace(settings, epochs=max(1, round(epochs * recipe / other)))
        for seed in seeds[:1] if changes else seeds:
            watch, average, itself = timed_run(changed, dataclasses.replace(settings, seed=seed), images, reference)
            length = f"{len(watch.curve)} | {watch.seconds:.0f} s"
            print(f"| {name}, seed {seed} | {length} {cells(average)}", flush=True)
            if not changes:
                print(f"| no average of weights, seed {seed} | {length} {cells(itself)}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=25_600, help="images per run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quality", action="store_true")
    parser.add_argument("--ours", action="store_true")
    parser.add_argument("--dcgan", action="store_true")
    parser.add_argument("--ablation", type=int, metavar="EPOCHS")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["GAN_DEVICE"] = "cpu"
    if options.quality:
        return quality(options.seeds, options.ours)
    if options.dcgan:
        return dcgan(options.seeds)
    if options.ablation:
        return ablation(options.ablation, options.seeds)
    if options.variant:
        return measure(options.variant, options.images)
    names = {"plain": "plain DataLoader loop, float32", "untuned": "this notebook's loop, float32, untuned",
             "float32": "this notebook's loop, float32",
             "chosen": "this notebook's loop, chosen precision"}
    results = {variant: [] for variant in names}
    for _ in range(options.rounds):
        for variant in names:
            environment = dict(os.environ)
            if variant != "chosen":
                environment["GAN_PRECISION"] = "float32"
            run = subprocess.run([sys.executable, __file__, "--variant", variant, "--images", str(options.images)],
                                 env=environment, capture_output=True, text=True, check=False)
            if run.returncode:
                sys.exit(run.stderr)
            results[variant].append(json.loads(run.stdout.split("RESULT")[1]))
    middle = lambda variant, key: statistics.median(result[key] for result in results[variant])
    print(f"{results['chosen'][0]['machine']}; medians of {options.rounds} runs of {options.images:,} images\n")
    print(f"| {'loop':38} | images/s | against plain | peak memory | share of matrix peak |")
    print("|---|---|---|---|---|")
    for variant, name in names.items():
        speed = middle(variant, "speed")
        print(f"| {name:38} | {speed:,.0f} | {speed / middle('plain', 'speed'):.1f}x | "
              f"{middle(variant, 'memory') / 1e6:,.0f} MB | {middle(variant, 'peak_share'):.0%} |")
    subprocess.run([sys.executable, __file__, "--variant", "scores"], check=True)


if __name__ == "__main__":
    main()
