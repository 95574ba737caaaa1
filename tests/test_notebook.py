"""The committed notebook and README: their files, their text, and the code that is taught."""

import math
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
import torch
from conftest import NOTEBOOK, ROOT, cell_sources, differences, flat, python, some_images, tiny
from PIL import Image
from torch.nn.functional import binary_cross_entropy_with_logits, pad
from torch.optim import SGD

import gan_helpers as helpers

README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXT = "\n".join(cell_sources().values())
OUTSIDE = re.compile(r"(^|[\s'\"(=])(/(home|root|tmp|work|Users|content|usr|var)/|[A-Z]:\\)")
SMALL_CONVOLUTIONS = {"generator_widths": (8,) * 4, "discriminator_widths": (8,) * 4}


def complaints(notebook):
    """Whatever must not be in a committed notebook, as a list of sentences."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    in_order = [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    found = [] if in_order else ["not executed 1..N"]
    if notebook.metadata.get("widgets"):
        found.append("widget state")
    for output in (output for cell in code for output in cell.outputs):
        data = output.get("data", {})
        shown = [str(value) for kind, value in data.items() if not kind.startswith("image/")]
        text = "".join([output.get("text", ""), *shown])
        checks = {"error": output.output_type == "error", "stderr": output.get("name") == "stderr",
                  "widget": any("widget-view" in kind for kind in data),
                  "quick mode": "QUICK MODE" in text, "carriage return": "\r" in text,
                  "absolute path": OUTSIDE.search(text) is not None}
        found += [complaint for complaint, is_so in checks.items() if is_so]
    return found


def test_committed_file_is_clean_and_small():
    nbformat.validate(NOTEBOOK)
    assert complaints(NOTEBOOK) == []
    assert (ROOT / "HandwrittenNumberGAN.ipynb").stat().st_size < 3e6


def test_complaints_are_made():
    new, widget = nbformat.v4.new_output, "application/vnd.jupyter.widget-view+json"
    outputs = [new("error", ename="E", evalue="", traceback=[]), new("stream", name="stderr"),
               new("display_data", {widget: {}}), new("stream", text="QUICK MODE (GAN_QUICK=1)"),
               new("stream", text="50%\r100%"), new("stream", text="in /tmp/x")]
    cell = nbformat.v4.new_code_cell("1", execution_count=2, outputs=outputs)
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {"state": {}}})
    assert complaints(notebook) == ["not executed 1..N", "widget state", "error", "stderr",
                                    "widget", "quick mode", "carriage return", "absolute path"]


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


def test_readme_example_runs_in_a_fresh_process_with_pytorch_and_torchvision_alone(story, tmp_path):
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    (tmp_path / "output").mkdir()
    writer = story.Writer(story.ConditionalGenerator(100, (8, 8, 8, 8))).eval()
    inputs = torch.randn(10, 100), torch.arange(10)
    helpers.export_generator(writer, tmp_path / "output" / "writer.pt2", *inputs)
    forbidden = "import sys; sys.modules.update(gan_helpers=None, matplotlib=None, IPython=None)\n"
    run = python("-c", forbidden + example, cwd=tmp_path)
    assert run.returncode == 0 and (tmp_path / "2026.png").exists(), run.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs a script called git")
def test_first_cell_clones_in_colab_only_and_survives_a_failed_clone(tmp_path):
    for folder in ("google/colab", "content", "origin"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "google" / "colab" / "__init__.py").touch()
    (tmp_path / "origin" / "gan_helpers.py").write_text("print('of the clone')")
    git = "for folder; do :; done; mkdir $folder && cp ../origin/* $folder && test -e ../network"
    (tmp_path / "git").write_text(f"#!/bin/sh\n{git} || exit 128\n")  # fails with half a clone
    (tmp_path / "git").chmod(0o755)

    def run_first_cell(python_path):
        path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
        return python("-P", "-c", cell_sources()["colab"] + "\nimport gan_helpers",
                      cwd=tmp_path / "content", env=os.environ | {
                          "PATH": path, "PYTHONPATH": str(python_path)})

    assert run_first_cell(tmp_path / "origin").stdout == "of the clone\n"
    assert os.listdir(tmp_path / "content") == []  # no Colab: nothing is done
    failed = run_first_cell(tmp_path).stderr
    assert "put your name into REPOSITORY" in failed and "upload gan_helpers.py" in failed
    (tmp_path / "network").touch()
    for _ in range(2):  # the second time, the clone is there already
        assert run_first_cell(tmp_path).stdout == "of the clone\n"
    assert os.listdir(tmp_path / "content") == ["HandwrittenNumberGAN"]


def test_each_step_lowers_torch_s_loss_and_moves_its_own_player_only(story):
    torch.manual_seed(0)
    generator, discriminator = story.Generator(8, (16,)), story.Discriminator((16,))
    real, fake, ones = some_images(6), generator(torch.randn(6, 8)), torch.ones(6)
    g_before, d_before = flat(generator), flat(discriminator)
    expected = (binary_cross_entropy_with_logits(discriminator(real), ones)
                + binary_cross_entropy_with_logits(discriminator(fake), 0 * ones))
    loss = story.discriminator_step(discriminator, SGD(discriminator.parameters(), 0.1), real, fake)
    torch.testing.assert_close(loss, expected.detach())
    assert differences(g_before, flat(generator)) == []
    assert differences(d_before, flat(discriminator)) != []

    d_before = flat(discriminator)
    expected = binary_cross_entropy_with_logits(discriminator(fake), ones)
    loss = story.generator_step(generator, discriminator, SGD(generator.parameters(), 0.1), fake)
    torch.testing.assert_close(loss, expected.detach())
    assert differences(g_before, flat(generator)) != []
    assert differences(d_before, flat(discriminator)) == []


@pytest.fixture
def small_d():
    """A discriminator of 4 x 4 pixels in float64."""
    torch.manual_seed(0)
    nn = torch.nn
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1),
                         nn.Flatten(0)).double()


def test_r1_penalty_is_that_of_finite_differences_and_of_a_linear_d_its_weight(story, small_d):
    real = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    pixels = 1e-6 * torch.eye(16, dtype=torch.float64).view(16, 1, 1, 4, 4)
    slopes = [(small_d(real + pixel) - small_d(real - pixel)) / 2e-6 for pixel in pixels]
    expected = torch.stack(slopes).square().sum(dim=0).mean()
    torch.testing.assert_close(story.r1_penalty(small_d, real), expected, rtol=1e-6, atol=0)
    linear = torch.nn.Linear(2, 1)
    penalty = story.r1_penalty(linear, torch.randn(5, 2))
    torch.testing.assert_close(penalty, linear.weight.square().sum())


def test_half_the_weighted_penalty_s_gradient_is_added_to_the_step_s(story, small_d):
    real, fake = torch.rand(2, 3, 1, 4, 4, dtype=torch.float64)
    weight, gradients = small_d[1].weight, []

    def penalty_of(value):
        def network(images):
            return torch.func.functional_call(small_d, {"1.weight": value}, images)
        return story.r1_penalty(network, real)

    for penalty_weight in (0, 3.0):
        story.penalized_step(small_d, SGD([weight], 0.0), real, fake, penalty_weight)
        gradients.append(weight.grad.clone())
    story.discriminator_step(small_d, SGD([weight], 0.0), real, fake)
    torch.autograd.gradcheck(penalty_of, weight)  # finite differences
    penalty, = torch.autograd.grad(penalty_of(weight), weight)
    torch.testing.assert_close(gradients[1] - gradients[0], 1.5 * penalty)
    torch.testing.assert_close(gradients[0], weight.grad)


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


def play(story, settings, after_epoch=do_nothing, images=None):
    """A short run of the notebook's loop, on random images; returns the state."""
    if images is None:
        images = some_images(settings.train_images)
    return story.train(story.fresh_state(settings), images, after_epoch)


def watch_calls(story, monkeypatch, name, look):
    """A list, to which each call of a function of the notebook adds `look(*its arguments)`."""
    seen, function = [], getattr(story, name)

    def watched(*arguments):
        seen.append(look(*arguments))
        return function(*arguments)

    monkeypatch.setitem(story.train.__globals__, name, watched)
    return seen


def test_rate_penalty_and_average_follow_their_schedules(story, monkeypatch):
    d_calls = watch_calls(story, monkeypatch, "penalized_step", lambda d, optimizer, x, y, weight: (
        optimizer.param_groups[0]["lr"], weight))
    g_rates = watch_calls(story, monkeypatch, "generator_step", lambda g, d, optimizer, fake: (
        optimizer.param_groups[0]["lr"]))
    decays = watch_calls(story, monkeypatch, "update_average", lambda kept, new, decay: decay)
    play(story, tiny(story, epochs=4, decay_from=0.5, learning_rate=3e-3, r1_gamma=2.0,
                     r1_interval=5, ema_decay=0.5))  # 24 steps
    rates, weights = zip(*d_calls)
    assert list(rates) == g_rates
    assert g_rates == pytest.approx([3e-3 * min(1, (1 - step / 24) / 0.5) for step in range(24)])
    assert list(weights) == [10 if step % 5 == 0 else 0 for step in range(24)]
    assert decays == [min(0.5, (1 + step) / (10 + step)) for step in range(24)]


@pytest.mark.parametrize("n_images, batches", [(32, 1), (33, 1), (65, 2)])
def test_images_are_shuffled_into_whole_batches(story, monkeypatch, n_images, batches):
    seen = watch_calls(story, monkeypatch, "penalized_step",
                       lambda d, optimizer, real, fake, weight: real[:, 0, 0, 0])
    numbered = torch.linspace(-1, 1, n_images)[:, None, None, None].expand(-1, 1, 28, 28)
    play(story, tiny(story, epochs=2), images=numbered)
    first, second = torch.cat(seen).view(2, batches * 32)
    assert len(first.unique()) == len(second.unique()) == batches * 32  # no image twice
    assert not torch.equal(first, second)
    with pytest.raises(ValueError, match="^31 images cannot fill a batch: batch_size = 32"):
        play(story, tiny(story), images=numbered[:31])


def test_nothing_is_read_from_the_device_between_reports(story, monkeypatch):
    """Trained on torch's device without numbers, where reading one is an error."""
    state, reports = story.fresh_state(tiny(story, epochs=1, batch_size=3)), []
    for player, optimizer in [("generator", "g_optimizer"), ("discriminator", "d_optimizer")]:
        network = getattr(state, player).to("meta")
        setattr(state, optimizer, torch.optim.Adam(network.parameters(), foreach=False))
    state.ema_generator.to("meta")

    def report(progress, step, losses):
        reports.append(step)
        return {}

    for name, value in [("device", torch.device("meta")), ("report", report)]:
        monkeypatch.setitem(story.train.__globals__, name, value)
    story.train(state, some_images(200).to("meta"), do_nothing)
    assert reports == [50, 66]


def test_a_loss_that_is_no_number_stops_within_50_steps(story):
    def poison(state):
        state.discriminator.layers[1].bias.data[0] = math.nan

    with pytest.raises(FloatingPointError, match="in steps 67 to 116"):  # 66 steps an epoch
        play(story, tiny(story, epochs=3, batch_size=3), poison)


@pytest.mark.parametrize("name, value", [
    ("batch_size", 201), ("batch_size", 1), ("batch_size", 32.0), ("epochs", 0), ("epochs", 2.5),
    ("latent_dim", "8"), ("learning_rate", math.nan), ("ema_decay", 1.5),
    ("betas", (0.5,)), ("betas", (0.5, 1.0)), ("name", "a/b"), ("name", "")])
def test_settings_that_cannot_work_are_refused_by_name_and_value(story, name, value):
    with pytest.raises(ValueError, match=re.escape(f"{name} = {value!r} cannot work")):
        tiny(story, **{name: value})


def test_integers_where_floats_are_meant_and_a_name_that_begins_with_a_digit_work(story):
    whole = {"betas": (0, 0.9), "learning_rate": 1, "r1_gamma": 1, "ema_decay": 1, "decay_from": 1}
    assert play(story, tiny(story, epochs=1, name="2mlp", **whole)).step == 6


def asked_run(story, monkeypatch, labels, images, after_epoch=do_nothing, **changes):
    """A short run of conditional players on images (N, 1, 28, 28); returns the state."""
    monkeypatch.setitem(story.train.__globals__, "labels", labels)
    settings = tiny(story, train_images=len(images), **SMALL_CONVOLUTIONS, **changes)
    ticked = story.tick(pad(images, (2, 2, 2, 2), value=-1), labels)
    state = story.fresh_state(settings, story.ConditionalGenerator, story.TickReader,
                              story.ask_for_any)
    return story.train(state, ticked, after_epoch, story.ask_for_any)


def test_pictures_do_not_change_what_is_trained(story, monkeypatch, tmp_path):
    monkeypatch.setitem(story.train.__globals__, "output", tmp_path)
    shown, silent = (
        asked_run(story, monkeypatch, torch.arange(100) % 10, some_images(100), after_epoch,
                  epochs=6) for after_epoch in (story.after_epoch, do_nothing))
    assert len(shown.snapshots) == 7
    for state in (shown, silent):
        del state.snapshots
    assert differences(shown, silent) == []


def test_conditional_players_learn_what_they_are_asked(story, monkeypatch):
    """Two kinds of images, white on the left or on the right: what is asked for comes."""
    labels = torch.arange(400) % 2
    rows = torch.where(torch.arange(28) // 14 == labels[:, None], 0.8, -0.8)
    images = rows[:, None, None].expand(-1, 1, 28, -1) + 0.1 * some_images(400)
    state = asked_run(story, monkeypatch, labels, images, epochs=80, learning_rate=4e-3,
                      batch_size=50)
    drawn = helpers.generate(state.ema_generator, story.ask(labels, torch.randn(400, 8)))
    halves = drawn[:, :, 2:-2, 2:-2].unflatten(3, (2, 14)).mean(dim=(1, 2, 4))
    assert (halves.argmax(dim=1) == labels).float().mean() > 0.95


def test_tick_marks_one_box_in_the_lower_frame(story):
    images = some_images(10, size=32)
    ticked = story.tick(images, torch.arange(10))
    boxes = ticked[:, 0, 30:, 1:31].unflatten(2, (10, 3))  # (10 images, 2, 10 boxes, 3)
    assert torch.equal(boxes, 2 * torch.eye(10)[:, None, :, None].expand_as(boxes) - 1)
    assert torch.equal(ticked[:, :, :30], images[:, :, :30])


def test_write_number_asks_for_each_digit_with_one_latent_a_hand(story, monkeypatch):
    for name, value in [("settings", tiny(story)), ("draw_digits", lambda *asked: asked)]:
        monkeypatch.setitem(story.train.__globals__, name, value)
    labels, latent = story.write_number("262", hands=2)
    assert labels.tolist() == [2, 6, 2, 2, 6, 2]
    assert torch.equal(latent, latent[[0, 0, 0, 3, 3, 3]]) and len(latent.unique(dim=0)) == 2
    for number in ("", "12a", "-1", "1.5", "２"):
        with pytest.raises(ValueError, match="cannot be written: it takes digits"):
            story.write_number(number)


def test_images_from_a_folder_train_in_the_sizes_of_the_text(story, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(story.train.__globals__, "output", tmp_path)
    for name, size, grey in [("a/1.png", (40, 60), 0), ("b/2.jpg", (28, 99), 255)]:
        (tmp_path / "my_pictures" / name).parent.mkdir(parents=True)
        Image.new("RGB", size, (grey, grey, grey)).save(tmp_path / "my_pictures" / name)
    code = re.search(r"```python\n([^`]*images_from\(.*?)```", TEXT, re.DOTALL)[1]
    settings = tiny(story, batch_size=2, epochs=1)
    conv = story.replace(settings, **SMALL_CONVOLUTIONS)
    names = {**vars(story), "settings": settings, "dcgan_settings": conv}
    exec(code, names)
    means = names["images_from"]("my_pictures", 28).mean(dim=(2, 3))
    torch.testing.assert_close(means, torch.tensor([[-1.0], [1.0]]), atol=0.01, rtol=0)
    for size in (28, 32):
        checkpoint = torch.load(tmp_path / f"mine{size}_checkpoint.pt")
        assert checkpoint["snapshots"][-1].shape[-1] == size


def test_exercises_change_what_is_trained():
    from exercises import EXERCISES, run
    losses = {}
    for name, exercise in EXERCISES.items():
        widths = (8, 8, 8, 8) if "network" in exercise else (16,)
        end = run(exercise, some_images(80), torch.arange(80) % 10, epochs=8, train_images=64,
                  batch_size=16, generator_widths=widths, discriminator_widths=widths)
        losses[name] = end.state.history[-1]["d_loss"]
    same = {name for name, loss in losses.items() if loss == losses["MLP"]}
    assert same == {"MLP", "6 epochs, the recipe", "6 1,000 images", "6 epochs, G of 512-512",
                    "6 epochs, batches of 64", "6 epochs, batches of 256"}  # what is small here
