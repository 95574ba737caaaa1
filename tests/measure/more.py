# ruff: noqa: F821  the notebook's names are not defined here
"""What Part II says and no cell prints: rows for results.md, of one seed. (Part I has part_one.py.)

run_seeds.py runs this in the notebook's kernel, behind the last cell: %run -i tests/measure/more.py
"""

import re
import resource

import nbformat
from rows import print_row, print_score

peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # of KB, on Linux
print(f"== peak memory of the notebook: {peak:.2f} GB")

print("== networks")
for name, row in scoreboard.items():
    print_score(name, row)
for trained in (mlp, told_mlp, told_dcgan):
    weights = sum(weight.numel() for player in (trained.generator, trained.discriminator)
                  for weight in player.parameters())
    print_row(trained.settings.name, f"{scores['training seconds'][trained.settings.name]:.0f} s",
              f"{weights / 1e6:.2f} million weights")
print_row("read as asked: told MLP", f"{(read(told_drawings) == asked).float().mean():.1%}")
print_row("read as asked: told DCGAN", f"{read_as_asked:.1%}")
print_row("memory", f"{scores['memory']:.2f}")
lighter = LongGame(replace(settings, name="lighter", r1_weight=0.3), told_mlp_generator,
                   ToldDiscriminator)
train(lighter, write_label(frame(images), one_hot(labels, KINDS)), ask_for_any)
for stretch in (1, 1.1, 1.2):
    print_score(f"told MLP with an R1 of 0.3, stretched by {stretch}",
                score(draw(lighter, asked, stretch * latents)))

print("== DCGAN, told nothing, two epochs, with momentum and without")
for beta1 in (0.9, 0.0):
    untold = LongGame(replace(dcgan_settings, name="untold", epochs=2, beta1=beta1), ConvGenerator,
                      ConvDiscriminator)
    train(untold, frame(images))
    untold_latents = draw_latent(10_000)
    for which, player in {"not averaged": untold.generator, "average": untold.average}.items():
        drawings = helpers.generate(player, untold_latents)[:, :, 2:30, 2:30]
        print_score(f"DCGAN, beta1 = {beta1}, {which}", score(drawings))


def blurred(pictures):
    return nn.functional.avg_pool2d(frame(pictures)[:, :, 1:-1, 1:-1], 3, stride=1)


if SEED == 0:  # a single run
    print("== detective")
    for levels, share in told_apart.items():
        print_row(f"{levels} greys", 3, f"{share:.1%}")
    lessons, unseen = (real_and_forged(pictures, digits)[0] for pictures, digits in [
        (images[:n], labels[:n]), (test_images, test_labels)])
    for levels, look_at, lesson_epochs in [(256, blurred, 3), (256, nn.Identity(), 8),
                                           (2, nn.Identity(), 8)]:
        round_to_greys(lessons, levels)
        round_to_greys(unseen, levels)
        detective = helpers.train_judge(look_at(lessons), is_forged, epochs=lesson_epochs)
        verdict = helpers.judge_images(detective, look_at(unseen))[1].argmax(dim=1)
        print_row(f"{levels} greys{', blurred' if look_at is blurred else ''}", lesson_epochs,
                  f"{(verdict == truth).float().mean():.1%}")

print("== exercises")
notebook = nbformat.read("HandwrittenNumberGAN.ipynb", as_version=4)
source = {cell.id: cell.source for cell in notebook.cells}
for number in range(2, 7) if SEED == 0 else (2, 6):  # 3 to 5 train for minutes: a single run
    print(f"exercise {number}, seed {SEED}:", flush=True)
    blocks = re.findall(r"```python\n(.*?)```", source[f"exercise-{number}"], re.DOTALL)
    if number == 6:
        blocks.insert(1, source["told-train"])
    for block in blocks:
        exec(block)
        if "def try_out" in block:
            print("without a change:")
            try_out()

drawn_by_atlas = helpers.generate(atlas.average, draw_latent(len(test_images), 2))
features, _ = helpers.judge_images(judge, drawn_by_atlas)
covered = [(torch.cdist(chunk, features) <= radii[:, None]).any(dim=1)
           for chunk, radii in zip(real_features.split(1000), real_radii.split(1000))]
print_row("coverage of the atlas", f"{torch.cat(covered).float().mean():.3f}")


class SeesMinusOne(Discriminator):
    def forward(self, images):
        return self.layers(images)


if SEED == 0:  # a single run of these, too
    print("for test images:", [nearest_images(test_images[:2_000], thousand)[0].median().item()
                               for thousand in (images[:1_000], images[1_000:2_000])])
    print("== D sees black as -1, six epochs")
    minus_one = LongGame(replace(settings, name="exercise", epochs=6), Generator, SeesMinusOne)
    train(minus_one, images)
    print_score("D sees black as -1", score(helpers.generate(minus_one.average, latents)))
