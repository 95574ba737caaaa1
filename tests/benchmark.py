"""Speed of the training loop, measured by hand (pytest never runs this):

    python tests/benchmark.py

Trains the notebook's networks with its losses, penalty and EMA, at its batch size, three ways in alternation: through a
plain DataLoader + ToTensor + Normalize loop in float32, through the notebook's loop in float32, and through the
notebook's loop at the precision it chooses here. Each run is a process of its own. Prints the median images a second of
each, the ratios, the peak memory, and what fraction of this machine's matrix-multiply peak each reaches; then what
the scores cost.

    python tests/benchmark.py --quality

Trains the notebook's recipe with three seeds, and for as many seconds the textbook recipe, through a plain DataLoader
loop and through the notebook's loop. Prints their scores and the time each took to reach the textbook's final one.

    python tests/benchmark.py --dcgan

Trains the DCGAN for as long as the perceptron takes, with two seeds, and for twice as long.

    python tests/benchmark.py --ablation 60

Trains the notebook's recipe, and the same with one ingredient changed at a time, for 60 seconds each.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
WARM_UP_BATCHES = 30


def matmul_flops_per_image(latent_dim, generator_widths, discriminator_widths, r1_interval):
    """Floating-point operations of the matrix products that one training image costs, counted from the layer sizes.

    A product of (n, a) with (a, b) costs 2 n a b. A linear layer has three: its output, the gradient of its weights,
    the gradient of its input (which the first layer of a network that learns from its input does not need).
    r1_interval 0 means no penalty.
    """
    products = lambda sizes: [2 * a * b for a, b in zip(sizes, sizes[1:])]
    g = products([latent_dim, *generator_widths, 784])
    d = products([784, *discriminator_widths, 1])
    d_step = 2 * (2 * sum(d) + sum(d[1:]))  # real and fake through D, forwards and backwards
    g_step = sum(g) + sum(d) + sum(d) + 2 * sum(g) - g[0]  # forwards through both, back through D's inputs and all of G
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
    generator, discriminator = networks(story, settings)
    adam = lambda network: torch.optim.Adam(network.parameters(), lr=settings.learning_rate, betas=settings.betas)
    g_optimizer, d_optimizer = adam(generator), adam(discriminator)
    ema = story.AveragedModel(generator, multi_avg_fn=story.ema_update(settings.ema_decay))
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
                ema.update_parameters(generator)
            d_loss.item(), g_loss.item()
            step += 1
            yield generator


def silent_train(story, *arguments):
    """The notebook's loop without its progress line, which would run through the tables printed here."""
    with contextlib.redirect_stdout(io.StringIO()):
        return story.train(*arguments)


def networks(story, settings):
    import torch
    if settings.name == "dcgan":
        players = (story.ConvGenerator(settings.latent_dim, settings.generator_widths),
                   story.ConvDiscriminator(settings.discriminator_widths))
        return [player.apply(story.init_weights).to(memory_format=torch.channels_last) for player in players]
    return (story.Generator(settings.latent_dim, settings.generator_widths, settings.generator_batch_norm),
            story.Discriminator(settings.discriminator_widths))


def peak_memory():
    """The most resident memory that this process has held, in bytes."""
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
    from conftest import notebook_code
    story = argparse.Namespace(**notebook_code())
    torch.manual_seed(0)
    settings = story.Settings()
    batches = image_count // settings.batch_size
    if variant == "plain":
        torch.set_flush_denormal(False)
        loop = plain_loop(story, settings)
        for _ in range(WARM_UP_BATCHES):
            next(loop)
        start = time.perf_counter()
        for _ in range(batches):
            next(loop)
        seconds = time.perf_counter() - start
    else:
        images, _ = story.helpers.load_mnist(train=True)
        records = []
        for count in (WARM_UP_BATCHES, batches):
            count *= settings.batch_size
            one = dataclasses.replace(settings, epochs=1, train_images=count)
            silent_train(story, *networks(story, one), images[:count], one, lambda state: records.extend(state.history))
        seconds = records[-1]["seconds"]
    flops = matmul_flops_per_image(settings.latent_dim, settings.generator_widths, settings.discriminator_widths,
                                   settings.r1_interval if settings.r1_gamma else 0)
    speed = batches * settings.batch_size / seconds
    dtype = torch.float32 if variant == "plain" else story.precision
    memory = peak_memory()
    print("RESULT" + json.dumps(dict(speed=speed, memory=memory, peak_share=speed * flops / matmul_peak(dtype),
                                     machine=story.helpers.describe_device(story.device, story.precision))))


# What most tutorials copy.
TEXTBOOK = dict(latent_dim=100, generator_widths=(128, 256, 512, 1024), discriminator_widths=(512, 256), batch_size=64,
                learning_rate=2e-4, betas=(0.5, 0.999), decay_from=1.0, r1_gamma=0.0, ema_decay=0.0)
ABLATION = {
    "the notebook's recipe": {},
    "no gradient penalty": dict(r1_gamma=0.0), "penalty at every step": dict(r1_interval=1),
    "learning rate never falls": dict(decay_from=1.0), "Adam's beta1 0.5": dict(betas=(0.5, 0.99)),
    "no BatchNorm in G": dict(generator_batch_norm=False), "G of 512-512": dict(generator_widths=(512, 512)),
    "batches of 64": dict(batch_size=64),
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


def timed_run(story, settings, images, reference, seconds=None, fit=False):
    """Train through the notebook's loop; with `seconds`, stop then, or with `fit` choose epochs that take so long.

    Returns (watch, scores of the average, scores of the generator itself).
    """
    import torch
    if fit:
        epoch_seconds = []
        for _ in range(2):  # the first epoch of a process also warms up
            torch.manual_seed(settings.seed)
            one = dataclasses.replace(settings, epochs=1)
            silent_train(story, *networks(story, one), images, one,
                        lambda state: epoch_seconds.extend(record["seconds"] for record in state.history))
        settings = dataclasses.replace(settings, epochs=max(1, round(seconds / epoch_seconds[-1])))
    watch, kept = Watch(story, reference, settings.latent_dim), {}

    def after_epoch(state):
        kept.update(average=state.ema.module, itself=state.generator)
        if state.history:
            watch.seconds += state.history[-1]["seconds"]
            watch.look(state.ema)
            if seconds and not fit and watch.seconds >= seconds:
                raise TimeIsUp

    torch.manual_seed(settings.seed)
    try:
        silent_train(story, *networks(story, settings), images, settings, after_epoch)
    except TimeIsUp:
        pass
    return watch, watch.final(kept["average"]), watch.final(kept["itself"])


def plain_run(story, settings, reference, seconds):
    """Train through the plain loop for so many seconds; returns (watch, scores)."""
    import torch
    torch.manual_seed(settings.seed)
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
    from conftest import DEFINITIONS, cell_sources, notebook_code
    with contextlib.redirect_stdout(io.StringIO()):
        names = notebook_code([*DEFINITIONS, "conv-generator", "conv-discriminator"])
        names.update(QUICK=False, settings=names["Settings"]())
        exec(cell_sources()["conv-init"], names)
    story = argparse.Namespace(**names)
    images, _ = story.helpers.load_mnist(train=True)
    reference = story.helpers.make_reference(story.helpers.load_mnist(train=False)[0])
    print(story.helpers.describe_device(story.device, story.precision), flush=True)
    return story, images, reference


def quality():
    story, images, reference = prepare()
    ours = []
    print(f"\n| recipe and loop | training {COLUMNS}\n|---|---|---|---|---|---|---|---|", flush=True)
    for seed in range(3):
        watch, average, itself = timed_run(story, story.Settings(seed=seed), images, reference)
        ours.append((watch, average))
        print(f"| this notebook, seed {seed} | {watch.seconds:.0f} s {cells(average)}", flush=True)
        print(f"| the same without the average of weights | {watch.seconds:.0f} s {cells(itself)}", flush=True)
        if seed == 0:
            textbook = story.Settings(**TEXTBOOK, epochs=10_000)
            plain, plain_scores = plain_run(story, textbook, reference, watch.seconds)
            print(f"| textbook, plain DataLoader loop | {plain.seconds:.0f} s {cells(plain_scores)}", flush=True)
            fast, fast_scores, _ = timed_run(story, textbook, images, reference, watch.seconds)
            print(f"| textbook, this notebook's loop | {fast.seconds:.0f} s {cells(fast_scores)}", flush=True)
    from statistics import median
    middle = median(average["frechet"] for _, average in ours)
    print(f"\nFréchet, median of the seeds: 1/{plain_scores['frechet'] / middle:.1f} of the textbook's through the "
          f"plain loop, 1/{fast_scores['frechet'] / middle:.1f} of the textbook's through the notebook's loop")
    for name, target in [("plain loop", plain.curve[-1][1]), ("notebook's loop", fast.curve[-1][1])]:
        times = {"this notebook": ours[0][0], "textbook, this notebook's loop": fast, "textbook, plain loop": plain}
        reached = {who: watch.reached(target) for who, watch in times.items()}
        print(f"Seconds to the textbook's final distance through the {name} ({target:.2f} on 5,000 samples): "
              + ", ".join(f"{who} {seconds:.0f}" if seconds else f"{who} not in time"
                          for who, seconds in reached.items()))


def dcgan():
    import torch
    story, images, reference = prepare()
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2), value=-1)
    print(f"\n| networks | epochs | training {COLUMNS}\n|---|---|---|---|---|---|---|---|---|", flush=True)
    perceptron = story.Settings()
    watch, average, _ = timed_run(story, perceptron, images, reference)
    print(f"| perceptron, seed 0 | {perceptron.epochs} | {watch.seconds:.0f} s {cells(average)}", flush=True)
    seconds = watch.seconds
    for seed, factor in [(0, 1), (1, 1), (0, 2)]:
        settings = dataclasses.replace(story.dcgan_settings, seed=seed)
        watch, average, _ = timed_run(story, settings, padded, reference, factor * seconds, fit=True)
        print(f"| DCGAN, seed {seed} | {len(watch.curve)} | {watch.seconds:.0f} s {cells(average)}", flush=True)


def ablation(seconds):
    story, images, reference = prepare()
    print(f"\n| change, {seconds} s of training each {COLUMNS}\n|---|---|---|---|---|---|---|", flush=True)
    for name, changes in ABLATION.items():
        _, average, itself = timed_run(story, story.Settings(**changes), images, reference, seconds, fit=True)
        print(f"| {name} {cells(average)}", flush=True)
        if not changes:
            print(f"| no average of weights {cells(itself)}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=25_600, help="images per run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quality", action="store_true")
    parser.add_argument("--dcgan", action="store_true")
    parser.add_argument("--ablation", type=float, metavar="SECONDS")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["GAN_DEVICE"] = "cpu"
    if options.quality:
        return quality()
    if options.dcgan:
        return dcgan()
    if options.ablation:
        return ablation(options.ablation)
    if options.variant:
        return measure(options.variant, options.images)
    names = {"plain": "plain DataLoader loop, float32", "float32": "this notebook's loop, float32",
             "chosen": "this notebook's loop, chosen precision"}
    results = {variant: [] for variant in names}
    for _ in range(options.rounds):
        for variant in names:
            environment = dict(os.environ)
            if variant != "chosen":
                environment["GAN_PRECISION"] = "float32"
            run = subprocess.run([sys.executable, __file__, "--variant", variant, "--images", str(options.images)],
                                 env=environment, capture_output=True, text=True)
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
