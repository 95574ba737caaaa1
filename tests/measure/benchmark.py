"""Speed and memory of the training loop, and the recipe that most tutorials copy, measured by hand:

    python tests/measure/benchmark.py speed

trains the notebook's MLP at its batch size, with its losses, penalty and average, in alternation: through a plain
DataLoader loop as most would write it, through the notebook's loop without its line on float32 products, and as it is. Each run is a process of its own. Prints medians of images a second, their
ratios, peak memory, and the share of the rate at which this machine multiplies square matrices; then what scores cost.

    python tests/measure/benchmark.py textbook --seconds 85

trains the textbook's recipe for as many seconds as the notebook's takes (exercises.py MLP), through a plain DataLoader
loop and through the notebook's loop, and prints the scores.
"""

import argparse
import copy
import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
import time

import torch
from exercises import BLACK_AT_MINUS_1, ROOT, evaluator_of, machine, matrix_rate, silent_train, story_with

WARM_UP_BATCHES = 30
VARIANTS = {"plain": "plain DataLoader loop", "highest": "this notebook's loop, products as they are",
            "ours": "this notebook's loop"}
TEXTBOOK = {"latent_dim": 100, "generator_widths": (128, 256, 512, 1024), "discriminator_widths": (512, 256),
            "batch_size": 64, "learning_rate": 2e-4, "betas": (0.5, 0.999), "decay_from": 1.0, "r1_gamma": 0.0,
            "ema_decay": 0.0}


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
    d_step = 2 * (2 * sum(d) + sum(d[1:])) + (0 if shared_fakes else sum(g))  # real and fake, forwards and backwards
    g_step = sum(g) + sum(d) + sum(d) + 2 * sum(g) - g[0]  # forwards through both, back to D's input and all of G
    g_step += 0 if shared_fakes else sum(d)  # a plain backward() computes the gradients of D's weights, too
    # The penalty: forwards, back to the pixels, and for each of the latter's products two of the second derivative.
    penalty = 4 * sum(d) / r1_interval if r1_interval else 0
    return d_step + g_step + penalty


def plain_loop(story, settings):
    """What a reader would otherwise run; yields the generator after every batch."""
    from torch.nn.functional import softplus
    from torchvision import datasets, transforms
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])
    digits = datasets.MNIST(str(ROOT / "data"), train=True, download=True, transform=transform)
    loader = torch.utils.data.DataLoader(digits, batch_size=settings.batch_size, shuffle=True, drop_last=True)
    generator, discriminator = story.fresh_players(settings)
    adam = lambda network: torch.optim.Adam(network.parameters(), lr=settings.learning_rate, betas=settings.betas)
    g_optimizer, d_optimizer, average, step = adam(generator), adam(discriminator), copy.deepcopy(generator), 0
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


def measure(variant, image_count):
    """One run in this process: a warm-up, then about `image_count` images."""
    story = story_with({})
    if variant in ("plain", "highest"):
        torch.set_float32_matmul_precision("highest")
    torch.set_flush_denormal(variant != "plain")
    settings, batches = story.Settings(), image_count // story.Settings().batch_size
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
                                   settings.r1_interval, shared_fakes=variant != "plain")
    speed, memory = batches * settings.batch_size / seconds, peak_memory()
    share = speed * flops / matrix_rate(torch.get_float32_matmul_precision())
    print("RESULT" + json.dumps({"speed": speed, "memory": memory, "share": share}))


def speed(rounds, image_count):
    results = {variant: [] for variant in VARIANTS}
    for variant in list(VARIANTS) * rounds:
        run = subprocess.run([sys.executable, __file__, "speed", "--variant", variant, "--images", str(image_count)],
                             capture_output=True, text=True, check=False)
        if run.returncode:
            sys.exit(run.stderr)
        results[variant].append(json.loads(run.stdout.split("RESULT")[1]))
    middle = lambda variant, key: statistics.median(result[key] for result in results[variant])
    print(f"{machine()}; medians of {rounds} runs of {image_count:,} images\n")
    print("| loop | images/s | against plain | peak memory | share of matrix peak |\n|---|---|---|---|---|")
    for variant, name in VARIANTS.items():
        ratio = middle(variant, "speed") / middle("plain", "speed")
        print(f"| {name} | {middle(variant, 'speed'):,.0f} | {ratio:.1f}x | {middle(variant, 'memory') / 1e6:,.0f} MB | "
              f"{middle(variant, 'share'):.0%} |")
    story = story_with({})
    images, evaluator = story.helpers.load_mnist(train=True)[0], evaluator_of(story, story.helpers.load_mnist(train=False)[0])
    start = time.perf_counter()
    evaluator.scores(images[:10_000])
    print(f"\nA row of scores of 10,000 images takes {time.perf_counter() - start:.1f} s")


def textbook(seconds):
    story, black_at_minus_1 = story_with({}), story_with(BLACK_AT_MINUS_1)
    images, test_images = (story.helpers.load_mnist(train)[0] for train in (True, False))
    evaluator = evaluator_of(story, test_images)
    settings = dataclasses.replace(story.Settings(), **TEXTBOOK, epochs=10_000)

    class TimeIsUp(Exception):
        pass

    def until(state):
        if sum(record["seconds"] for record in state.history) >= seconds:
            raise TimeIsUp(state)

    print(f"{machine()}\n\n| loop | epochs | training | Fréchet | precision | recall | coverage | confident | KL |"
          "\n|---|---|---|---|---|---|---|---|---|")
    loop, start, steps = plain_loop(black_at_minus_1, settings), time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        generator, steps = next(loop), steps + 1
    ends = {"plain DataLoader loop": (generator, steps * settings.batch_size // len(images))}
    try:
        silent_train(story, *black_at_minus_1.fresh_players(settings), images, settings, until)
    except TimeIsUp as end:
        ends["this notebook's loop"] = (end.args[0].generator, end.args[0].epoch)
    for name, (generator, epochs) in ends.items():
        latent = torch.randn(10_000, settings.latent_dim, generator=torch.Generator().manual_seed(1))
        row = evaluator.scores(story.helpers.generate(generator, latent))
        print(f"| {name} | {epochs} | {seconds:.0f} s | {row['frechet']:.2f} | {row['precision']:.3f} | "
              f"{row['recall']:.3f} | {row['coverage']:.3f} | {row['confident']:.1%} | {row['kl']:.3f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "textbook"])
    parser.add_argument("--images", type=int, default=25_600, help="images per run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=85)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        measure(options.variant, options.images)
    elif options.what == "speed":
        speed(options.rounds, options.images)
    else:
        textbook(options.seconds)


if __name__ == "__main__":
    main()
