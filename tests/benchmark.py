"""Speed of the training loop, measured by hand (pytest never runs this):

    python tests/benchmark.py

Trains the notebook's networks with its losses, penalty and EMA, at its batch size, three ways in alternation: through a
plain DataLoader + ToTensor + Normalize loop in float32, through the notebook's loop in float32, and through the
notebook's loop at the precision it chooses here. Each run is a process of its own. Prints the median images a second of
each, the ratios, the peak memory, and what fraction of this machine's matrix-multiply peak each reaches.
"""

import argparse
import dataclasses
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

    A product of (n, a) with (a, b) costs 2 n a b. A linear layer has three: its output, the gradient of its weights, the
    gradient of its input (which the first layer of a network that learns from its input does not need).
    r1_interval 0 means no penalty.
    """
    products = lambda sizes: [2 * a * b for a, b in zip(sizes, sizes[1:])]
    g = products([latent_dim, *generator_widths, 784])
    d = products([784, *discriminator_widths, 1])
    d_step = sum(g) + 2 * (2 * sum(d) + sum(d[1:]))  # one fake made; real and fake through D, forwards and backwards
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


def plain_loop(story, settings, batches):
    """What a reader would otherwise run; yields after every batch."""
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
            ema.update_parameters(generator)
            d_loss.item(), g_loss.item()
            step += 1
            yield


def networks(story, settings):
    return (story.Generator(settings.latent_dim, settings.generator_widths, settings.generator_batch_norm),
            story.Discriminator(settings.discriminator_widths))


def measure(variant, image_count):
    """One run in this process: a warm-up, then about `image_count` images."""
    import torch
    from conftest import notebook_code
    story = argparse.Namespace(**notebook_code())
    torch.manual_seed(0)
    settings = story.Settings()
    batches = image_count // settings.batch_size
    if variant == "plain":
        torch.set_flush_denormal(False)
        loop = plain_loop(story, settings, batches)
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
            story.train(*networks(story, one), images[:count], one, lambda state: records.append(state.record))
        seconds = records[-1]["seconds"]
    flops = matmul_flops_per_image(settings.latent_dim, settings.generator_widths, settings.discriminator_widths,
                                   settings.r1_interval if settings.r1_gamma else 0)
    speed = batches * settings.batch_size / seconds
    dtype = torch.float32 if variant == "plain" else story.precision
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print("RESULT" + json.dumps(dict(speed=speed, memory=memory, peak_share=speed * flops / matmul_peak(dtype),
                                     machine=story.helpers.describe_device(story.device, story.precision))))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=25_600, help="images per run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["GAN_DEVICE"] = "cpu"
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


if __name__ == "__main__":
    main()
