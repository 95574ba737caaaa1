"""The committed notebook and README: their files, their text, and the code that is taught."""

import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import nbformat
import pytest
import torch
from conftest import NOTEBOOK, ROOT, differences, flat, python, run_cell, some_images, tiny
from exercises import EXERCISES, run
from PIL import Image
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim import SGD

import gan_helpers as helpers

README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXT = "\n".join(cell.source for cell in NOTEBOOK.cells)
SMALL_CONVOLUTIONS = {"generator_widths": (8,) * 4, "discriminator_widths": (8,) * 4}
OUTSIDE = r"(^|[\s'\"(=])(/(home|root|tmp|work|Users|content)/|[A-Z]:\\)"
UNWANTED = re.compile(r"QUICK MODE|\r|widget-view|" + OUTSIDE)


def test_committed_file_is_clean_and_small():
    nbformat.validate(NOTEBOOK)
    code = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not NOTEBOOK.metadata.get("widgets")
    for output in (output for cell in code for output in cell.outputs):
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


def test_section_links_and_names_of_the_helper_exist():
    titles = {title.replace(" ", "-") for title in re.findall(r"(?m)^##+ (.*)", TEXT)}
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= titles
    for name in set(re.findall(r"helpers\.(\w+)", TEXT)) - {"py"}:
        assert hasattr(helpers, name), name


def test_one_address_everywhere():
    owners = re.findall(r"github(?:\.com)?/([\w.-]+)/HandwrittenNumberGAN\b", README + TEXT)
    assert len(owners) >= 4 and len(set(owners)) == 1


def test_readme_example_runs_with_pytorch_and_torchvision_alone_and_any_batch(story, tmp_path):
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    (tmp_path / "output").mkdir()
    file = tmp_path / "output" / "writer.pt2"
    writer = story.Writer(story.ConditionalGenerator(100, (8, 8, 8, 8))).eval()
    helpers.export_generator(writer, file, torch.randn(10, 100), torch.arange(10))
    forbidden = "import sys; sys.modules.update(gan_helpers=None, matplotlib=None, IPython=None)\n"
    run = python("-c", forbidden + example, cwd=tmp_path)
    assert run.returncode == 0 and (tmp_path / "2026.png").exists(), run.stderr
    for n in (1, 1000):
        asked = torch.randn(n, 100), torch.arange(n) % 10
        drawn = torch.export.load(file).module()(*asked)
        torch.testing.assert_close(drawn, writer(*asked))


def test_first_cell_clones_in_colab_and_survives_a_failed_clone(tmp_path, monkeypatch):
    codes = [128, 0]  # that git ends with: the first time it fails

    def half_or_whole_clone(command, env):
        Path(command[-1]).mkdir()
        return SimpleNamespace(returncode=codes.pop(0))

    monkeypatch.setattr(subprocess, "run", half_or_whole_clone)
    for name in ("google", "google.colab"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match="name into REPOSITORY .* upload gan_helpers.py"):
        run_cell("colab", {})
    for _ in range(2):  # the second time, the clone is there already
        monkeypatch.chdir(tmp_path)
        run_cell("colab", {})
        assert Path.cwd().samefile(tmp_path / "HandwrittenNumberGAN")


def test_each_step_lowers_torch_s_loss_and_moves_its_own_player_only(story):
    torch.manual_seed(0)
    generator, discriminator = story.Generator(8, (16,)), story.Discriminator((16,))
    real, fake, ones = some_images(6), generator(torch.randn(6, 8)), torch.ones(6)
    real_loss = binary_cross_entropy_with_logits(discriminator(real), ones)
    fake_loss = binary_cross_entropy_with_logits(discriminator(fake), 0 * ones)
    before = flat([generator, discriminator])
    loss = story.discriminator_step(discriminator, SGD(discriminator.parameters(), 0.1), real, fake)
    torch.testing.assert_close(loss, (real_loss + fake_loss).detach())
    moved = differences(before, flat([generator, discriminator]))
    assert moved and all("1.layers" in name for name in moved)

    expected = binary_cross_entropy_with_logits(discriminator(fake), ones)
    before = flat([generator, discriminator])
    loss = story.generator_step(generator, discriminator, SGD(generator.parameters(), 0.1), fake)
    torch.testing.assert_close(loss, expected.detach())
    moved = differences(before, flat([generator, discriminator]))
    assert moved and all("0.layers" in name for name in moved)


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
    story.penalized_step(small_d, SGD([weight], 0.0), real, fake, weight=3.0)
    charged = weight.grad.clone()
    story.discriminator_step(small_d, SGD([weight], 0.0), real, fake)
    torch.testing.assert_close(charged - weight.grad, 1.5 * of_penalty)


def test_average_holds_the_statistics_of_batchnorm_too(story):
    average, generator = story.Generator(8, (16,)), story.Generator(8, (16,))
    generator(5 + 3 * torch.randn(64, 8))
    before, new = flat(average), flat(generator)
    story.update_average(average, generator, 0.9)
    assert any("running_var" in name for name in differences(before, flat(average)))
    for name, kept in flat(average).items():
        mean = 0.9 * before[name] + 0.1 * new[name]
        torch.testing.assert_close(kept, mean if kept.is_floating_point() else new[name])


def do_nothing(state):
    pass


def play(story, settings, after_epoch=do_nothing):
    """A short run of the notebook's loop, on random images; returns the state."""
    return story.train(story.fresh_state(settings), some_images(200), after_epoch)


def test_rate_penalty_and_average_follow_their_schedules(story, monkeypatch):
    rates, weights, decays = [], [], []

    def penalized_step(discriminator, optimizer, real, fake, weight):
        rates.append(optimizer.param_groups[0]["lr"])
        weights.append(weight)
        return torch.zeros(())

    def update_average(average, generator, decay):
        decays.append(decay)

    monkeypatch.setitem(story.train.__globals__, "penalized_step", penalized_step)
    monkeypatch.setitem(story.train.__globals__, "update_average", update_average)
    play(story, tiny(story, epochs=4, decay_from=0.5, learning_rate=3e-3, r1_gamma=2.0,
                     r1_interval=5, ema_decay=0.5))  # 24 steps
    assert rates == pytest.approx([3e-3 * min(1, (1 - step / 24) / 0.5) for step in range(24)])
    assert weights == [10 if step % 5 == 0 else 0 for step in range(24)]
    assert decays == [min(0.5, (1 + step) / (10 + step)) for step in range(24)]


def test_images_are_shuffled_into_whole_batches(story):
    first, second = (torch.cat(story.shuffled_batches(65, 32)) for _ in range(2))
    assert len(first.unique()) == len(second.unique()) == 64  # no image twice
    assert not torch.equal(first, second)
    with pytest.raises(ValueError, match="^200 images cannot fill a batch: batch_size = 300"):
        play(story, tiny(story, batch_size=300, train_images=300))


def test_a_loss_that_is_no_number_stops_within_50_steps(story):
    def poison(state):
        state.discriminator.layers[1].bias.data[0] = math.nan

    with pytest.raises(FloatingPointError, match="in steps 67 to 116"):  # 66 steps an epoch
        play(story, tiny(story, epochs=3, batch_size=3), poison)


@pytest.mark.parametrize("name, value", [
    ("batch_size", 201), ("batch_size", 32.0), ("epochs", 0), ("latent_dim", "8"),
    ("learning_rate", math.nan), ("ema_decay", 1.5), ("betas", (0.5, 1.0)), ("name", "a/b")])
def test_settings_that_cannot_work_are_refused_by_name_and_value(story, name, value):
    with pytest.raises(ValueError, match=re.escape(f"{name} = {value!r} cannot work")):
        tiny(story, **{name: value})


def test_integers_where_floats_are_meant_and_a_name_that_begins_with_a_digit_work(story):
    whole = {"betas": (0, 0.9), "learning_rate": 1, "r1_gamma": 1, "ema_decay": 1, "decay_from": 1}
    assert play(story, tiny(story, epochs=1, name="2mlp", **whole)).step == 6


def test_tick_marks_one_box_in_the_lower_frame(story):
    images = some_images(10, size=32)
    ticked = story.tick(images, torch.arange(10))
    boxes = ticked[:, 0, 30:, 1:31].unflatten(2, (10, 3))  # (10 images, 2, 10 boxes, 3)
    assert torch.equal(boxes, 2 * torch.eye(10)[:, None, :, None].expand_as(boxes) - 1)
    assert torch.equal(ticked[:, :, :30], images[:, :, :30])


def test_images_from_a_folder_train_in_the_sizes_of_the_text(story, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(story.train.__globals__, "output", tmp_path)
    (tmp_path / "my_pictures" / "kind").mkdir(parents=True)
    for name, grey in [("1.png", 0), ("2.jpg", 255)]:
        Image.new("RGB", (40, 60), (grey, grey, grey)).save(f"my_pictures/kind/{name}")
    code = re.search(r"```python\n([^`]*images_from\(.*?)```", TEXT, re.DOTALL)[1]
    settings = tiny(story, batch_size=2, epochs=1)
    names = {**vars(story), "settings": settings,
             "dcgan_settings": story.replace(settings, **SMALL_CONVOLUTIONS)}
    exec(code, names)
    means = names["images_from"]("my_pictures", 28).mean(dim=(2, 3))
    torch.testing.assert_close(means, torch.tensor([[-1.0], [1.0]]))
    assert {"mine28_checkpoint.pt", "mine32_checkpoint.pt"} <= set(os.listdir(tmp_path))


def test_every_exercise_runs():
    for exercise in EXERCISES.values():
        widths = (8, 8, 8, 8) if "network" in exercise else (16,)
        end = run(exercise, some_images(80), torch.arange(80) % 10, epochs=2, train_images=64,
                  batch_size=16, generator_widths=widths, discriminator_widths=widths)
        assert math.isfinite(end.state.history[-1]["d_loss"])
