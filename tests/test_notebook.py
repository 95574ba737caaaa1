"""The committed notebook and README: their files, their text, and the code that is taught."""

import ast
import math
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import nbformat
import pytest
import torch
from conftest import differences, flat, python
from exercises import EXERCISES, run
from notebook_code import (
    CODE,
    NOTEBOOK,
    ROOT,
    cell_sources,
    notebook_code,
    some_images,
    tiny_discriminator,
    tiny_game,
    tiny_generator,
    tiny_settings,
)
from PIL import Image
from torch.nn.functional import softplus
from torch.optim import SGD

import gan_helpers as helpers

README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXT = "\n".join(cell.source for cell in NOTEBOOK.cells)
PROSE = "\n".join(cell.source for cell in NOTEBOOK.cells if cell.cell_type == "markdown")
OUTSIDE = r"(^|[\s'\"(=])(/(home|root|tmp|work|Users|content)/|[A-Z]:\\)"
UNWANTED = re.compile(r"QUICK MODE|\r|widget-view|" + OUTSIDE)


def test_committed_file_is_clean_and_small():
    nbformat.validate(NOTEBOOK)
    assert [cell.execution_count for cell in CODE] == list(range(1, len(CODE) + 1))
    assert not NOTEBOOK.metadata.get("widgets")
    for output in (output for cell in CODE for output in cell.outputs):
        assert output.output_type != "error" and output.get("name") != "stderr"
        shown = {kind: value for kind, value in output.get("data", {}).items()
                 if not kind.startswith("image/")}
        assert not UNWANTED.search(output.get("text", "") + str(shown))
    assert (ROOT / "HandwrittenNumberGAN.ipynb").stat().st_size < 3e6


def test_refresh_refuses_quick_mode_copies_nothing_ignored_and_keeps_the_notebook(tmp_path):
    script = shutil.copytree(ROOT / "tests", tmp_path / "tests") / "refresh_notebook.py"
    for name in ("gan_helpers.py", ".gitignore"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "large").touch()
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    notebook = tmp_path / "HandwrittenNumberGAN.ipynb"
    cell = nbformat.v4.new_code_cell("import os; raise OSError(sorted(os.listdir()))")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), notebook)
    before = notebook.read_bytes()
    quick = python(script, env=os.environ | {"GAN_QUICK": "1"})
    failed = python(script, env={k: v for k, v in os.environ.items() if not k.startswith("GAN_")})
    assert "GAN_QUICK is set" in quick.stderr
    assert "['.gitignore', 'HandwrittenNumberGAN.ipynb', 'gan_helpers.py', 'te" in failed.stderr
    assert notebook.read_bytes() == before


# The text ----------------------------------------------------------------------------------------

def test_every_picture_is_an_output_and_no_link_needs_a_client_s_rules_for_anchors():
    assert re.findall(r"!\[[^]]*\]\((?!https://)[^)]*\)|<img(?![^>]*https://)", PROSE) == []
    assert re.findall(r"\]\(#[^)]*\)", PROSE) == []
    shown = [cell for cell in CODE if cell.source.splitlines()[-1].startswith("helpers.picture(")]
    assert len(shown) == 2
    assert all("image/png" in cell.outputs[-1].data for cell in shown)


def test_names_of_the_helper_exist():
    for name in set(re.findall(r"helpers\.(\w+)", TEXT)) - {"py"}:
        assert hasattr(helpers, name), name


def test_one_address_everywhere_and_a_placeholder_that_github_can_give_to_nobody():
    owners = re.findall(r"github(?:\.com)?/([\w.-]+)/HandwrittenNumberGAN\b", README + TEXT)
    assert len(owners) >= 4 and len(set(owners)) == 1
    assert "_" in owners[0] or "your" not in owners[0].lower()  # no account has an underscore


def names_bound(cell):
    """The names that a cell binds at its top level: of functions and classes, and of variables."""
    functions, variables = set(), set()
    for statement in ast.parse(cell.source).body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            functions.add(statement.name)
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.alias):
                functions.add((node.asname or node.name).split(".")[0])
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                variables.add(node.id)
    return functions, variables


def test_no_name_is_a_function_in_one_cell_and_a_variable_in_another():
    bound = [names_bound(cell) for cell in CODE]
    functions, variables = (set().union(*names) for names in zip(*bound))
    assert {"train", "take_turn", "helpers", "Settings"} <= functions
    assert {"turn", "mlp", "settings"} <= variables
    assert functions & variables == set()


RANDOM = {"rand", "randn", "randint", "randperm", "normal", "randn_like", "rand_like"}


def test_random_numbers_are_drawn_on_the_cpu_whatever_the_device():
    """So a seed begins the same game everywhere, and a checkpoint keeps one random state."""
    sources = [cell.source for cell in CODE] + [(ROOT / "gan_helpers.py").read_text("utf-8")]
    calls = [node for source in sources for node in ast.walk(ast.parse(source))
             if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in RANDOM]
    assert len(calls) > 10
    for call in calls:
        assert "device" not in {keyword.arg for keyword in call.keywords}, ast.unparse(call)
        assert not call.func.attr.endswith("_like"), ast.unparse(call)


FIRST_CELL = f"{CODE[0].source}\n\nprint(importlib.util.find_spec('gan_helpers').origin)"


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for git is a shell script")
@pytest.mark.parametrize("hosted", ["COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE", None])
def test_where_the_helper_is_missing_a_host_clones_it_once_and_elsewhere_a_sentence_helps(
        tmp_path, hosted):
    git, folder = tmp_path / "bin" / "git", tmp_path / "content"
    git.parent.mkdir()
    folder.mkdir()
    environment = {"PATH": f"{git.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    environment |= {hosted: "1"} if hosted else {}

    def run_first_cell(script):
        git.write_text(f"#!/bin/sh\n{script}\n")
        git.chmod(0o755)
        return python("-c", FIRST_CELL, cwd=folder, env=environment)

    failed = run_first_cell("exit 128")
    for advice in ("folder of its repository", "upload gan_helpers.py and the folder data",
                   "On Kaggle, turn on Internet"):
        assert advice in failed.stderr.splitlines()[-1]
    cloned = run_first_cell(
        f"mkdir HandwrittenNumberGAN; cp '{helpers.__file__}' HandwrittenNumberGAN; echo $4")
    again = run_first_cell("exit 128")
    if hosted:
        clone = folder / "HandwrittenNumberGAN" / "gan_helpers.py"
        assert f"/HandwrittenNumberGAN\n{clone}\n" in cloned.stdout, cloned.stderr
        assert again.stdout.split() == [str(clone)]
    else:
        assert cloned.returncode == again.returncode == 1 and list(folder.iterdir()) == []
    shutil.copy(helpers.__file__, folder)  # uploaded
    uploaded = run_first_cell("exit 128")
    assert uploaded.stdout.strip().endswith("content/gan_helpers.py"), uploaded.stderr


def test_readme_example_runs_with_pytorch_and_torchvision_alone_and_any_batch(story, tmp_path):
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    (tmp_path / "output").mkdir()
    file = tmp_path / "output" / "writer.pt2"
    writer = story.Writer(story.told_conv_generator(100)).eval()
    helpers.export_generator(writer, file, torch.randn(10, 100), torch.arange(10))
    forbidden = "import sys; sys.modules.update(gan_helpers=None, matplotlib=None, IPython=None)\n"
    run = python("-c", forbidden + example, cwd=tmp_path)
    assert run.returncode == 0 and (tmp_path / "2026.png").exists(), run.stderr
    for n in (1, 1000):
        asked = torch.randn(n, 100), torch.arange(n) % 10
        drawn = torch.export.load(file).module()(*asked)
        torch.testing.assert_close(drawn, writer(*asked).detach())


# The steps ----------------------------------------------------------------------------------------

def test_each_step_lowers_softplus_and_moves_its_own_player_only(story):
    torch.manual_seed(0)
    generator, discriminator = tiny_generator(8), tiny_discriminator()
    real, fake = some_images(6), generator(torch.randn(6, 8))
    real_logits, fake_logits = discriminator(real).detach(), discriminator(fake).detach()
    before = flat([generator, discriminator])
    loss, d_real, d_fake = story.discriminator_step(
        discriminator, SGD(discriminator.parameters(), 0.1), real, fake)
    torch.testing.assert_close(loss, softplus(-real_logits).mean() + softplus(fake_logits).mean())
    torch.testing.assert_close(d_real, real_logits.sigmoid().mean())
    torch.testing.assert_close(d_fake, fake_logits.sigmoid().mean())
    moved = differences(before, flat([generator, discriminator]))
    assert moved and all(name.startswith("..1.") for name in moved)

    expected = softplus(-discriminator(fake)).mean().detach()
    before = flat([generator, discriminator])
    loss = story.generator_step(generator, discriminator, SGD(generator.parameters(), 0.1), fake)
    torch.testing.assert_close(loss, expected)
    moved = differences(before, flat([generator, discriminator]))
    assert moved and all(name.startswith("..0.") for name in moved)


AT_ONCE = ("        psi -= 0.2 * d_push\n", "", "        theta -= 0.2 * g_push\n",
           "        psi -= 0.2 * d_push\n        theta -= 0.2 * g_push\n")
MINUS_LOG_D = ("g_slope = -psi / (1 + math.exp(-psi * theta))",
               "g_slope = -psi / (1 + math.exp(psi * theta))")


@pytest.mark.parametrize("change, momentum, least, most, still_moves", [
    ((), 0.0, 0.97, 1.03, True), (AT_ONCE, 0.0, 2.0, 3.0, True),
    (MINUS_LOG_D, 0.0, 0.2, 0.5, True), ((), 0.9, 5.2, 5.4, False),
    (MINUS_LOG_D, 0.9, 5.4, 5.6, True)])
def test_the_smallest_game_circles_runs_away_or_comes_closer_as_the_text_says(
        change, momentum, least, most, still_moves):
    """How far from the goal it is after 300 turns, having begun at a distance of 1."""
    path = notebook_code(cell_sources({"duel": change}))["duel"](momentum=momentum)
    assert path[0] == (1, 0) and least < math.hypot(*path[-1]) < most
    assert (math.dist(path[-1], path[-30]) > 0.1) == still_moves


def test_the_smallest_game_arrives_with_a_penalty_and_its_average_nearly(story):
    assert math.hypot(*story.duel(penalty=0.3)[-1]) < 1e-3
    assert math.hypot(*story.duel(average=0.99)[-1]) < 0.1


def test_r1_is_that_of_finite_differences_and_half_of_it_times_its_weight_is_charged(story):
    nn = torch.nn
    small_d = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1),
                            nn.Flatten(0)).double()
    real, fake = torch.rand(2, 3, 1, 4, 4, dtype=torch.float64)
    pixels = 1e-6 * torch.eye(16, dtype=torch.float64).view(16, 1, 1, 4, 4)
    slopes = [(small_d(real + pixel) - small_d(real - pixel)) / 2e-6 for pixel in pixels]
    expected = torch.stack(slopes).square().sum(dim=0).mean()
    penalty = story.r1_penalty(small_d, real)
    torch.testing.assert_close(penalty, expected, rtol=1e-6, atol=0)

    weight = small_d[1].weight
    of_penalty, = torch.autograd.grad(penalty, weight)
    story.discriminator_step(small_d, SGD([weight], 0.0), real, fake, r1_weight=3.0)
    charged = weight.grad.clone()
    story.discriminator_step(small_d, SGD([weight], 0.0), real, fake)
    torch.testing.assert_close(charged - weight.grad, 1.5 * of_penalty)


def test_the_average_is_a_mean_with_a_memory_of_a_ninth_and_holds_batchnorm_s_numbers_too(story):
    average, generator = tiny_generator(8), tiny_generator(8)
    generator(5 + 3 * torch.randn(64, 8))
    before, new = flat(average), flat(generator)
    story.update_average(average, generator, turn=81)  # keeps 0.9 of what it was
    assert any("running_var" in name for name in differences(before, flat(average)))
    for name, kept in flat(average).items():
        mean = 0.9 * before[name] + 0.1 * new[name]
        torch.testing.assert_close(kept, mean if kept.is_floating_point() else new[name])


# The loop -----------------------------------------------------------------------------------------

def test_rate_and_penalty_follow_the_turn_and_never_leave_their_range():
    names = notebook_code()
    rates, weights = [], []

    def take_turn(game, real, latent, r1_weight):
        assert real.shape == (8, 1, 28, 28) and latent.shape == (8, 8)
        rates.append((game.g_optimizer.param_groups[0]["lr"],
                      game.d_optimizer.param_groups[0]["lr"]))
        weights.append(r1_weight)
        game.turn += 1
        return torch.zeros(4)

    names["take_turn"] = take_turn
    story = SimpleNamespace(**names)
    game = tiny_game(story, decay_from=0.5, learning_rate=3e-3, r1_weight=2.0, r1_every=5)
    story.train(game, epochs=4)  # 24 turns
    expected = [3e-3 * min(1, (1 - turn / 24) / 0.5) for turn in range(24)]
    assert rates == [pytest.approx((rate, rate)) for rate in expected]
    assert weights == [10 if turn % 5 == 0 else 0 for turn in range(24)]
    for share in (0.0, 0.5, 1.0, 1.5):
        for decay_from in (0.0, 0.9, 1.0):
            settings = tiny_settings(story, decay_from=decay_from)
            assert 0 <= story.rate_at(share, settings) <= settings.learning_rate
    assert story.rate_at(0.999, tiny_settings(story, decay_from=1.0)) == 1e-3


def test_the_heart_of_the_loop_that_the_text_shows_is_that_of_the_cell():
    heart = re.search(r"```python\n(while game.turn.*?)```", PROSE, re.DOTALL)[1].splitlines()
    code = [line.strip() for line in cell_sources()["train"].splitlines()]
    assert len(heart) == 5
    first = next(number for number, line in enumerate(code) if line.startswith(heart[0]))
    assert code[first + 1:first + 5] == [line.strip() for line in heart[1:]]


def test_a_game_remembers_the_means_of_its_epochs_and_plays_on_from_a_stop(story):
    game = tiny_game(story)
    story.train(game, epochs=2)
    assert [record["epoch"] for record in game.history] == [1, 2] and game.turn == 12
    story.train(game, epochs=1)  # it is older than that
    assert game.turn == 12
    story.train(game, epochs=3)
    assert game.turn == 18 and len(game.history) == 3
    for name in story.MEASURED:
        assert all(math.isfinite(record[name]) for record in game.history)
    assert 0 < game.history[-1]["D(G(z))"] < 1


@pytest.mark.parametrize("name, value", [
    ("batch_size", 1), ("turns_per_epoch", 0), ("latent_dim", "8"), ("learning_rate", "2e-4"),
    ("beta1", 1.0), ("r1_every", 0), ("name", "a/b")])
def test_settings_that_cannot_work_are_refused_by_name_and_value(story, name, value):
    with pytest.raises(ValueError, match=re.escape(f"{name} = {value!r} must be ")):
        tiny_settings(story, **{name: value})


def test_images_of_another_size_are_refused_with_both_sizes(story):
    with pytest.raises(ValueError, match=r"G draws images of \(1, 28, 28\), .* \(1, 32, 32\)"):
        story.new_game(tiny_settings(story), some_images(9, size=32))


@pytest.mark.parametrize("size, rows, kinds, width, left", [
    (32, 2, 10, 3, 1), (32, 2, 5, 6, 1), (32, 2, 26, 1, 3), (28, 1, 10, 2, 4), (28, 1, 28, 1, 0)])
def test_a_label_is_one_box_in_the_last_rows(story, size, rows, kinds, width, left):
    images = some_images(kinds, size)
    labelled = story.write_label(images, torch.eye(kinds), rows)
    boxes = labelled[:, 0, -rows:, left:left + kinds * width].unflatten(2, (kinds, width))
    assert torch.equal(boxes, 2 * torch.eye(kinds)[:, None, :, None].expand_as(boxes) - 1)
    assert torch.equal(labelled[:, :, :-rows], images[:, :, :-rows])
    assert labelled.shape == images.shape and not torch.equal(labelled, images)


@pytest.mark.parametrize("network, rows", [("told_mlp_generator", 1), ("told_conv_generator", 2)])
def test_a_told_generator_labels_what_it_draws_and_the_drawing_alone_has_no_label(
        story, network, rows):
    told, digits = getattr(story, network)(8).eval(), torch.tensor([3, 0, 9])
    latent = torch.randn(3, 8)
    labelled = told(story.ask(digits, latent)).detach()
    alone = story.draw_digits(told, digits, latent)
    frame = (labelled.shape[3] - 28) // 2
    assert torch.equal(labelled[:, :, frame:frame + 28, frame:frame + 28], alone)
    again = story.write_label(labelled, torch.eye(10)[digits], rows)
    assert torch.equal(again, labelled) and alone.shape == (3, 1, 28, 28)
    assert not torch.equal(story.draw_digits(told, digits.flip(0), latent), alone)


def test_r1_does_not_charge_the_discriminator_for_reading_the_label(story):
    discriminator = story.LabelReader()
    images = story.write_label(some_images(4, size=32), torch.eye(10)[:4], 2).requires_grad_()
    slope, = torch.autograd.grad(discriminator(images).sum(), images)
    assert (slope[:, :, :30] != 0).any() and (slope[:, :, 30:] == 0).all()
    other_labels = story.write_label(images.detach(), torch.eye(10)[4:8], 2)
    assert (discriminator(other_labels) != discriminator(images)).all()


@pytest.mark.parametrize("tell_g, tell_d", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_in_the_plane_each_player_sees_the_code_only_if_it_is_told(story, tell_g, tell_d):
    game = story.told_points_game(tell_g, tell_d)
    seen = []
    game.generator.generator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    fakes, reals = game.generator(torch.randn(50, 16)), story.real_told(50, tell_d)
    assert (seen[0][:, 16:].sum(dim=1) == tell_g).all()
    assert (fakes[:, 2:].sum(dim=1) == tell_d).all() and (reals[:, 2:].sum(dim=1) == tell_d).all()
    if tell_d:
        nearest = torch.cdist(reals[:, :2], story.CENTRES).argmin(dim=1)
        assert torch.equal(reals[:, 2:].argmax(dim=1), nearest)
    if tell_g and tell_d:
        assert torch.equal(fakes[:, 2:], seen[0][:, 16:])


def test_images_from_a_folder_train_in_the_sizes_of_the_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_pictures" / "kind").mkdir(parents=True)
    for name, grey in [("1.png", 0), ("2.jpg", 255)]:
        Image.new("RGB", (40, 60), (grey, grey, grey)).save(f"my_pictures/kind/{name}")
    code = re.search(r"```python\n([^`]*images_from\(.*?)```", TEXT, re.DOTALL)[1]
    names = notebook_code()
    small = tiny_settings(SimpleNamespace(**names), turns_per_epoch=1)
    names.update(settings=small, dcgan_settings=small, EPOCHS=1, output=tmp_path)
    exec(code, names)
    means = names["images_from"]("my_pictures", 28).mean(dim=(2, 3))
    torch.testing.assert_close(means, torch.tensor([[-1.0], [1.0]]))
    assert {"mine28_checkpoint.pt", "mine32_epoch_01.png"} <= set(os.listdir(tmp_path))


def test_one_more_width_makes_64_by_64_pixels_as_the_text_says():
    more_widths = {
        "conv-generator": ("            nn.ConvTranspose2d(16, 4, 4, stride=2, padding=1),",
                           "nn.ConvTranspose2d(16, 8, 4, stride=2, padding=1), nn.BatchNorm2d(8), "
                           "nn.LeakyReLU(0.05), nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1),"),
        "conv-discriminator": ("nn.Conv2d(1, 16, 4, stride=2, padding=1)",
                               "nn.Conv2d(1, 8, 4, stride=2, padding=1), nn.LeakyReLU(0.2), "
                               "nn.Conv2d(8, 16, 4, stride=2, padding=1)")}
    story = SimpleNamespace(**notebook_code(cell_sources(more_widths)))
    game = story.new_game(tiny_settings(story, turns_per_epoch=1), some_images(9, size=64),
                          story.ConvGenerator, story.ConvDiscriminator)
    story.train(game, epochs=1)
    assert game.turn == 1


@pytest.mark.parametrize("name", EXERCISES)
def test_every_exercise_runs(name):
    story, game = run(name, some_images(80), torch.arange(80) % 10, epochs=1, turns_per_epoch=2,
                      batch_size=4)
    assert game.turn == 2 and math.isfinite(game.history[0][story.MEASURED[0]])
