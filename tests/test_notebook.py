"""The committed notebook: its file, its text, and the code that it teaches."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from conftest import ROOT, cell_sources, read_notebook, some_images, tiny
from torch.nn.functional import binary_cross_entropy_with_logits

NOTEBOOK = ROOT / "HandwrittenNumberGAN.ipynb"
README = (ROOT / "README.md").read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------
# The file


def complaints(notebook):
    """Whatever must not be in a committed notebook, as a list of sentences."""
    found = []
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("the code cells are not executed 1..N in order")
    if notebook.metadata.get("widgets"):
        found.append("it carries widget state")
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("its kernel is not python3")
    for cell in code:
        if len(cell.source.splitlines()) > 30:
            found.append(f"cell {cell.id} has more than 30 lines")
        for output in cell.outputs:
            text = json.dumps(output)
            if output.output_type == "error":
                found.append(f"cell {cell.id} ended in an error")
            if output.output_type == "stream" and output.name == "stderr":
                found.append(f"cell {cell.id} wrote to stderr")
            if "widget-view" in text:
                found.append(f"cell {cell.id} shows a widget")
            if "QUICK MODE" in text:
                found.append("it was run in quick mode")
            texts = "".join([output.get("text", "")] + [
                str(value) for kind, value in output.get("data", {}).items() if not kind.startswith("image/")])
            if re.search(r"(^|[\s'\"(=])(/(home|root|tmp|work|Users|content|usr|var)/|[A-Z]:\\)", texts):
                found.append(f"cell {cell.id} prints an absolute path")
            if "\r" in texts:
                found.append(f"cell {cell.id} left carriage returns")
    return found


def test_committed_file_is_clean():
    notebook = read_notebook()
    nbformat.validate(notebook)
    assert complaints(notebook) == []
    assert NOTEBOOK.stat().st_size < 3e6


@pytest.mark.parametrize("break_it, complaint", [
    (lambda n, c: c.update(execution_count=99), "executed 1..N"),
    (lambda n, c: n.metadata.update(widgets={"state": {}}), "widget state"),
    (lambda n, c: n.metadata.kernelspec.update(name="venv"), "kernel"),
    (lambda n, c: c.update(source="x\n" * 31), "30 lines"),
    (lambda n, c: c.outputs.append(nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])), "error"),
    (lambda n, c: c.outputs.append(nbformat.v4.new_output("stream", name="stderr", text="w")), "stderr"),
    (lambda n, c: c.outputs.append(nbformat.v4.new_output("stream", text="in /tmp/x")), "absolute path"),
    (lambda n, c: c.outputs.append(nbformat.v4.new_output("stream", text="50%\r100%")), "carriage"),
    (lambda n, c: c.outputs.append(nbformat.v4.new_output("stream", text="QUICK MODE (GAN_QUICK=1)")), "quick mode"),
    (lambda n, c: c.outputs.append(nbformat.v4.new_output(
        "display_data", {"application/vnd.jupyter.widget-view+json": {}})), "widget"),
])
def test_hygiene_check_notices(break_it, complaint):
    notebook = read_notebook()
    break_it(notebook, next(cell for cell in notebook.cells if cell.cell_type == "code"))
    assert any(complaint in found for found in complaints(notebook))


def test_grids_are_small_and_one_an_epoch():
    notebook = read_notebook()
    outputs = next(cell for cell in notebook.cells if cell.id == "train-run").outputs
    grids = [output for output in outputs if "image/png" in output.get("data", {})]
    quick = next(cell for cell in notebook.cells if cell.id == "quick")
    epochs = re.search(r"(\d+) epochs", quick.outputs[0].text)
    assert len(grids) == int(epochs[1]) + 1 >= 10
    assert max(len(output.data["image/png"]) * 3 / 4 for output in grids) <= 30 * 1024
    lines = [output for output in outputs if "data" in output and "image/png" not in output.data]
    assert len(lines) == 1 and "100%" in lines[0].data["text/plain"]
    for name in ("filmstrip", "plane-average"):
        film = next(cell for cell in notebook.cells if cell.id == name).outputs[-1]
        assert len(film.data["image/png"]) * 3 / 4 <= 400 * 1024


def test_refresh_refuses_quick_mode_and_keeps_the_notebook_on_an_error(tmp_path):
    before = NOTEBOOK.read_bytes()
    script = ROOT / "tests" / "refresh_notebook.py"
    run = subprocess.run([sys.executable, script], env={**os.environ, "GAN_QUICK": "1"}, capture_output=True, text=True, check=False)
    assert run.returncode != 0 and "GAN_QUICK" in run.stderr and NOTEBOOK.read_bytes() == before

    clone = tmp_path / "clone"
    (clone / "tests").mkdir(parents=True)
    shutil.copy(script, clone / "tests")
    shutil.copy(ROOT / "gan_helpers.py", clone)
    broken = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    nbformat.write(broken, clone / NOTEBOOK.name)
    before = (clone / NOTEBOOK.name).read_bytes()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GAN_")}
    run = subprocess.run([sys.executable, clone / "tests" / script.name], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode != 0 and "ZeroDivisionError" in run.stderr
    assert (clone / NOTEBOOK.name).read_bytes() == before


def test_section_links_and_helper_names_exist():
    sources = cell_sources()
    headings = {line[3:].replace(" ", "-") for source in sources.values() for line in source.splitlines()
                if line.startswith("## ")}
    links = re.findall(r"\]\(#([^)]+)\)", "".join(sources.values()))
    assert len(links) >= 9 and set(links) <= headings
    import gan_helpers
    used = set(re.findall(r"helpers\.(\w+)", "\n".join(sources.values()))) - {"py"}
    assert used and all(hasattr(gan_helpers, name) for name in used)


# ---------------------------------------------------------------------------------------------------------------------
# README


def test_repository_address_is_the_same_everywhere():
    address = re.search(r'REPOSITORY = "https://github.com/([^"]+)"', cell_sources()["colab"])[1]
    badges = re.findall(r"colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)/blob/main/HandwrittenNumberGAN.ipynb",
                        README + cell_sources()["title"])
    assert len(badges) == 2 and set(badges) == {address}
    assert set(re.findall(r"github\.com/([\w.-]+/HandwrittenNumberGAN)", README)) == {address}


def test_readme_names_the_test_command_that_ci_runs():
    command = "pytest --nbval HandwrittenNumberGAN.ipynb tests"
    assert command in README and command in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_readme_example_runs_in_a_fresh_process(story, tmp_path):
    """The five lines that use an exported generator, exactly as README has them, in a folder with nothing else."""
    lines = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    assert len(lines.strip().splitlines()) == 5
    (tmp_path / "output").mkdir()
    torch.manual_seed(0)
    story.helpers.export_generator(story.Generator(12, (16,)), tmp_path / "output" / "generator.pt2", 12)
    run = subprocess.run([sys.executable, "-c", lines], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "digits.png").stat().st_size > 0


# ---------------------------------------------------------------------------------------------------------------------
# The code that the notebook teaches


def play(story, settings, after_epoch=lambda state: None):
    """A short run of the notebook's loop on random images; returns the state and its history without times."""
    state = story.train(*story.fresh_players(settings), some_images(settings.train_images), settings, after_epoch)
    return state, [{**record, "seconds": 0} for record in state.history]


def test_two_runs_are_equal_bit_for_bit_and_another_seed_is_not(story):
    first, second = play(story, tiny(story)), play(story, tiny(story))
    other = play(story, tiny(story, seed=1))
    for name in ("generator", "discriminator", "ema_generator"):
        weights = [getattr(state, name).state_dict() for state, _ in (first, second, other)]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
        assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])
    assert first[1] == second[1] and len(first[1]) == 2


def test_after_epoch_does_not_disturb_the_run(story):
    """Drawing from the generator between epochs must leave the training as it is (mode, BatchNorm, randomness)."""
    draw = lambda state: (story.helpers.generate(state.ema_generator, torch.zeros(4, 8)),
                          story.helpers.generate(state.generator, torch.zeros(4, 8)))
    assert play(story, tiny(story))[1] == play(story, tiny(story), draw)[1]


def test_steps_against_torch_losses_and_who_moves(story):
    torch.manual_seed(0)
    generator, discriminator = story.Generator(8, (16,)), story.Discriminator((16,))
    real, fake = some_images(6), generator(torch.randn(6, 8))
    with torch.no_grad():
        real_logits, fake_logits = discriminator(real), discriminator(fake)
    ones, zeros = torch.ones(6), torch.zeros(6)
    expected = (binary_cross_entropy_with_logits(real_logits, ones) + binary_cross_entropy_with_logits(fake_logits, zeros))
    before = [{k: v.clone() for k, v in net.state_dict().items()} for net in (generator, discriminator)]
    moved = lambda: [any(not torch.equal(v, old[k]) for k, v in net.state_dict().items())
                     for net, old in zip((generator, discriminator), before)]

    no_move = torch.optim.SGD(discriminator.parameters(), lr=0.0)
    loss, on_real, on_fake = story.discriminator_step(discriminator, no_move, real, fake, 0)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(on_real, real_logits.sigmoid().mean())
    torch.testing.assert_close(on_fake, fake_logits.sigmoid().mean())
    assert moved() == [False, False] and all(parameter.grad is None for parameter in generator.parameters())
    d_gradients = [parameter.grad.clone() for parameter in discriminator.parameters()]
    loss = story.generator_step(generator, discriminator, torch.optim.SGD(generator.parameters(), lr=0.1), fake)
    torch.testing.assert_close(loss, binary_cross_entropy_with_logits(fake_logits, ones))
    assert moved() == [True, False]
    assert all(torch.equal(parameter.grad, old) for parameter, old in zip(discriminator.parameters(), d_gradients))
    assert not any(value.requires_grad for value in (loss, on_real, on_fake))
    generator.load_state_dict(before[0])
    story.discriminator_step(discriminator, torch.optim.SGD(discriminator.parameters(), lr=0.1), real, fake, 0)
    assert moved() == [False, True]


@pytest.mark.parametrize("shape", [(2,), (20,), (1, 8, 8), (3, 4, 4)], ids=str)
def test_r1_penalty_of_a_linear_discriminator_is_its_squared_weight_for_any_shape_of_sample(story, shape):
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(math.prod(shape), 1)).double()
    real = torch.randn(5, *shape, dtype=torch.float64)
    torch.testing.assert_close(story.r1_penalty(linear, real), linear[1].weight.square().sum())
    assert not real.requires_grad


def test_r1_penalty_and_its_gradient_against_finite_differences(story):
    torch.manual_seed(0)
    discriminator = story.Discriminator((8,)).double()
    discriminator.forward = lambda images: discriminator.layers(images).squeeze(1)  # without the cast to float32
    real = torch.rand(2, 1, 28, 28, dtype=torch.float64)
    base, slope, h = discriminator(real), torch.zeros(2, 784, dtype=torch.float64), 1e-6
    for pixel in range(784):
        moved = real.clone().view(2, -1)
        moved[:, pixel] += h
        slope[:, pixel] = (discriminator(moved.view_as(real)) - base).detach() / h
    torch.testing.assert_close(story.r1_penalty(discriminator, real), slope.square().sum(1).mean(), rtol=1e-4, atol=1e-8)

    weight = discriminator.layers[1].weight
    gradient, = torch.autograd.grad(story.r1_penalty(discriminator, real), weight)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[0, 0] += sign * h
        values.append(story.r1_penalty(discriminator, real).item())
        with torch.no_grad():
            weight[0, 0] -= sign * h
    assert (values[0] - values[1]) / (2 * h) == pytest.approx(gradient[0, 0].item(), rel=1e-4)


def test_penalty_is_added_with_half_its_weight(story):
    torch.manual_seed(0)
    generator, discriminator = story.Generator(8, (16,)), story.Discriminator((16,))
    real, fake = some_images(6), generator(torch.randn(6, 8))
    weight = discriminator.layers[1].weight
    gradients = []
    for penalty_weight in (0, 3.0):
        no_move = torch.optim.SGD(discriminator.parameters(), lr=0.0)
        story.discriminator_step(discriminator, no_move, real, fake, penalty_weight)
        gradients.append(weight.grad.clone())
    penalty, = torch.autograd.grad(story.r1_penalty(discriminator, real), weight)
    torch.testing.assert_close(gradients[1] - gradients[0], 1.5 * penalty, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_average_against_the_recurrence(story, decay):
    """Inside train: the average after n steps is d * average + (1 - d) * weights, d = min(decay, (1 + n) / (10 + n))."""
    weights, averages, update = [], [], story.update_average

    def spy(average, generator, share):
        update(average, generator, share)
        weights.append(generator.layers[0].weight[0, 0].item())
        averages.append(average.layers[0].weight[0, 0].item())
        assert torch.equal(average.layers[1].running_var, generator.layers[1].running_var)

    try:
        story.train.__globals__["update_average"] = spy
        start = []
        play(story, tiny(story, ema_decay=decay),
             lambda state: start.append(state.ema_generator.layers[0].weight[0, 0].item()))
    finally:
        story.train.__globals__["update_average"] = update
    expected = start[0]
    assert len(weights) == 14
    for n, (weight, average) in enumerate(zip(weights, averages)):
        d = min(decay, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * weight
        assert average == pytest.approx(expected, rel=1e-5, abs=1e-8)
    assert decay or averages == weights  # without averaging the average is the generator


def test_textbook_recipe_is_one_replace_away(story):
    """Every ingredient off: the commonly copied recipe runs, and without decay the rate never falls."""
    settings = tiny(story, r1_gamma=0.0, ema_decay=0.0, decay_from=1.0, learning_rate=2e-4, betas=(0.5, 0.999))
    rates = []
    play(story, settings, lambda state: rates.append([group["lr"] for group in state.g_optimizer.param_groups]))
    assert rates == [[2e-4]] * 3


def test_learning_rate_falls_to_zero_in_both_optimizers(story):
    rates = []
    after = lambda state: rates.append([opt.param_groups[0]["lr"] for opt in (state.g_optimizer, state.d_optimizer)])
    play(story, tiny(story, epochs=4, decay_from=0.5, learning_rate=3e-3), after)  # 28 steps; the last of each epoch
    expected = [3e-3 * min(1, (1 - step / 28) / 0.5) for step in (6, 13, 20, 27)]
    assert rates[1:] == [[pytest.approx(rate)] * 2 for rate in expected]


def test_nothing_is_read_from_or_copied_to_the_device_between_reports(story, monkeypatch):
    """Counted by the operations that the loop calls: values come to Python only where `report` asks, every 50 steps."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        reads = copies = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.reads += function is torch.ops.aten._local_scalar_dense.default
            self.copies += function is torch.ops.aten._to_copy.default and "device" in (kwargs or {})
            return function(*args, **(kwargs or {}))

    settings, reports = tiny(story, epochs=1, train_images=2_400, batch_size=16), []  # 150 steps
    monkeypatch.setattr(story.helpers, "check_finite", lambda values, what: reports.append(what))
    monkeypatch.setitem(story.train.__globals__, "precision", torch.float32)  # autocast's casts look like copies
    players, images = story.fresh_players(settings), some_images(settings.train_images)
    with Counter() as counter:
        story.train(*players, images, settings, lambda state: None)
    assert (counter.reads, counter.copies) == (0, 0)  # `tolist` of a whole tensor, in reports, is neither
    assert reports == ["steps 1 to 50", "steps 51 to 100", "steps 101 to 150", "steps 151 to 150"]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_training_at_both_precisions(story, monkeypatch, precision):
    """The weights, their gradients and the losses stay float32; only the matrix products change."""
    monkeypatch.setitem(story.train.__globals__, "precision", precision)
    seen, step = set(), story.discriminator_step

    def spy(discriminator, optimizer, real, fake, penalty_weight):
        with torch.no_grad():
            seen.add(discriminator.layers[:2](real).dtype if precision == torch.float32 else
                     torch.autocast("cpu", precision)(fresh.layers[:2])(real).dtype)
        values = step(discriminator, optimizer, real, fake, penalty_weight)
        assert all(value.dtype == torch.float32 for value in values) and not torch.is_autocast_enabled("cpu")
        return values

    settings = tiny(story)
    fresh = story.Discriminator(settings.discriminator_widths)
    monkeypatch.setitem(story.train.__globals__, "discriminator_step", spy)
    state, history = play(story, settings)
    assert seen == {precision} and len(history) == 2
    for network in (state.generator, state.discriminator, state.ema_generator):
        assert all(value.dtype in (torch.float32, torch.int64) and value.isfinite().all()
                   for value in network.state_dict().values())


@pytest.mark.parametrize("bad, value, allowed", [
    ("batch_size", 201, "2 to 200"), ("batch_size", 1, "2 to 200"), ("batch_size", 32.0, "whole"),
    ("latent_dim", 0, "1 to 1,024"), ("learning_rate", -1e-3, "numbers from"), ("learning_rate", float("nan"), "numbers from"),
    ("betas", (0.5, 1.0), "0.9999"), ("epochs", 0, "1 to"), ("generator_widths", (), "1 to"),
    ("discriminator_widths", (8, 0), "1 to"), ("r1_gamma", -1.0, "0.0 to"), ("r1_interval", 0, "1 to"),
    ("ema_decay", 1.0, "0.99999"), ("name", "a/b", "one word"), ("name", "", "one word"), ("name", 3, "one word"),
    ("decay_from", 1.5, "0.0 to 1.0"), ("train_images", 60_001, "60,000"),
])
def test_settings_that_cannot_work(story, bad, value, allowed):
    with pytest.raises(ValueError, match=bad) as error:
        tiny(story, **{bad: value})
    assert allowed in str(error.value) and repr(value) in str(error.value)


def test_infinite_loss_stops_within_50_steps_and_keeps_what_was_recorded(story):
    settings, states = tiny(story, epochs=3, train_images=2_000, batch_size=8), []  # 250 steps an epoch

    def poison(state):
        states.append(state)
        if state.epoch == 1:
            with torch.no_grad():
                state.discriminator.layers[1].bias[0] = float("nan")

    with pytest.raises(FloatingPointError, match="steps 251 to 300"):
        play(story, settings, poison)
    assert len(states) == 2 and [record["epoch"] for record in states[1].history] == [1]


# ---------------------------------------------------------------------------------------------------------------------
# Convolutions, play, exercises


def test_convolutional_players_double_and_halve_and_go_through_the_same_loop(story):
    settings = tiny(story, generator_widths=(16, 8, 8, 4), discriminator_widths=(4, 8, 8, 16), train_images=64)
    generator, discriminator = story.fresh_players(settings, story.ConvGenerator, story.ConvDiscriminator)
    sizes, image = [], torch.randn(5, 8)
    for layer in generator.layers:
        image = layer(image)
        sizes += [image.shape[-1]] if isinstance(layer, torch.nn.ConvTranspose2d) else []
    assert sizes == [2, 4, 8, 16, 32] and image.shape == (5, 1, 32, 32) and image.abs().max() < 1
    logits = discriminator(image)
    assert logits.shape == (5,)
    torch.testing.assert_close(logits[3:4], discriminator(image[3:4]))  # no verdict depends on its neighbours
    state = story.train(generator, discriminator, some_images(64, 32), settings, lambda state: None)
    assert len(state.history) == 2 and not torch.equal(state.ema_generator(torch.ones(2, 8)), image[:2])


@pytest.mark.parametrize("kind", ["MLP", "DCGAN"])
def test_a_few_steps_move_every_weight_of_both_networks(story, kind):
    """No weight is dead: none that the arithmetic of kernel, stride and padding leaves without a gradient."""
    settings = tiny(story, train_images=64, generator_widths=(16, 8, 8, 4), discriminator_widths=(4, 8, 8, 16))
    classes, size = ((), 28) if kind == "MLP" else ((story.ConvGenerator, story.ConvDiscriminator), 32)
    players = story.fresh_players(settings, *classes)
    before = [{name: value.detach().clone() for name, value in player.named_parameters()} for player in players]
    story.train(*players, some_images(64, size), settings, lambda state: None)
    for player, old in zip(players, before):
        for name, value in player.named_parameters():
            assert (value != old[name]).double().mean() > 0.95, name  # a ReLU may sleep; a dead layer has 25 %


def test_paper_tells_the_first_layer_of_the_discriminator_nothing(story):
    _, discriminator = story.fresh_players(tiny(story))
    paper = torch.full((1, 1, 28, 28), -1.0)
    verdict = discriminator(paper)
    with torch.no_grad():
        discriminator.layers[1].weight.zero_()
    assert torch.equal(discriminator(paper), verdict)


def test_write_number_asks_for_each_digit_with_one_latent_a_hand(story, monkeypatch):
    asked = []

    def draw_digits(labels, latent):
        """A stand-in whose map is flat where the latent's first number is negative, and steep elsewhere."""
        asked.append((labels, latent))
        return latent[:, :1].clamp(min=0)[:, :, None, None].expand(-1, 1, 28, 28)

    monkeypatch.setitem(story.write_number.__globals__, "settings", tiny(story))
    monkeypatch.setitem(story.write_number.__globals__, "draw_digits", draw_digits)
    torch.manual_seed(0)  # the first numbers of two of the four latents are negative
    assert story.write_number("262", hands=2).shape == (6, 1, 28, 28)
    assert story.all_ten(torch.ones(3, 8)).shape == (3, 1, 280, 28)
    labels, latent = asked[-11]  # the last ten calls are all_ten's
    assert (latent[:, 0] < 0).all()
    assert labels.tolist() == [2, 6, 2, 2, 6, 2] and latent.shape == (6, 8)
    assert (latent[:3] == latent[0]).all() and (latent[3:] == latent[3]).all() and not torch.equal(latent[0], latent[3])
    for bad in ("", "12a", "-1", "1.5", "２", 7, None):
        with pytest.raises(ValueError, match="digits only"):
            story.write_number(bad)


def test_exercises_measure_the_code_of_the_notebook():
    from exercises import EXERCISES, clusters, run, story_with
    images, labels = some_images(80), torch.arange(80) % 10
    small = {"epochs": 8, "train_images": 64, "batch_size": 16, "generator_widths": (16,), "discriminator_widths": (16,)}
    four = {"generator_widths": (8, 8, 8, 8), "discriminator_widths": (8, 8, 8, 8)}
    ends = {}
    for name, exercise in EXERCISES.items():
        _, state, chosen, draw = run(exercise, images, labels, **small | (four if "convolutions" in exercise else {}))
        ends[name] = state.history[-1]["d_loss"]
        assert len(chosen) == 64 and draw(state.ema_generator, 3).shape == (3, 1, 28, 28)
    same = {name for name, loss in ends.items() if loss == ends["the recipe"]}
    assert same == {"the recipe", "9 1,000 images", "10 the recipe, 12 epochs"}  # every other change reaches the training
    assert [name for name, loss in ends.items() if loss == ends["the DCGAN"]] == ["the DCGAN"]
    with pytest.raises(ValueError, match="cell r1"):
        story_with({"r1": ("not in there", "")})
    blobs = torch.cat([some_images(20) * 0.1 + centre for centre in (-0.8, 0.0, 0.8)])
    codes = clusters(blobs, 3).view(3, 20)
    assert (codes == codes[:, :1]).all() and len(codes[:, 0].unique()) == 3


@pytest.mark.parametrize("kinds, rows", [(10, 1), (28, 1), (50, 2)])
def test_tick_writes_the_label_below_and_leaves_the_image(story, monkeypatch, kinds, rows):
    monkeypatch.setitem(story.tick.__globals__, "KINDS", kinds)
    images, labels = some_images(5), torch.tensor([0, 1, kinds - 1, 3, 9])
    ticked = story.tick(images, labels)
    assert ticked.shape == (5, 1, 28 + rows, 28) and torch.equal(ticked[:, :, :28], images)
    boxes = ticked[:, 0, 28:].flatten(1)
    assert torch.equal(boxes.argmax(dim=1), labels) and (boxes.sum(dim=1) == 2 - rows * 28).all()
    generator, discriminator = story.fresh_players(tiny(story), story.ConditionalGenerator, story.ConditionalDiscriminator)
    latent = torch.cat([torch.randn(5, 8), torch.nn.functional.one_hot(labels, kinds)], dim=1)
    drawn = generator(latent)
    assert torch.equal(drawn[:, :, 28:], ticked[:, :, 28:]) and discriminator(drawn).shape == (5,)


def test_conditional_players_learn_what_they_are_asked(story):
    """Two kinds of images, with ink on the left or on the right: what is asked for comes."""
    labels = torch.arange(400) % 2
    ink = torch.where(torch.arange(28) // 14 == labels[:, None], 0.8, -0.8)  # (400, 28), a row of each image
    images = ink[:, None, None].expand(-1, 1, 28, -1) + 0.1 * some_images(400)
    settings = tiny(story, epochs=60, train_images=400, generator_widths=(32,), discriminator_widths=(32,), learning_rate=3e-3)
    ask = lambda n, latent_dim: story.ask(torch.randint(2, (n,)), story.draw_latent(n, latent_dim))
    players = story.fresh_players(settings, story.ConditionalGenerator, story.ConditionalDiscriminator)
    state = story.train(*players, story.tick(images, labels), settings, lambda state: None, ask)
    drawn = story.helpers.generate(state.ema_generator, story.ask(labels, story.draw_latent(400, 8)))[:, :, :28]
    halves = drawn.unflatten(3, (2, 14)).mean(dim=(1, 2, 4))
    assert (halves.argmax(dim=1) == labels).double().mean() > 0.95
    assert halves.amax(dim=1).mean() > 0.5 and halves.amin(dim=1).mean() < -0.5


def test_images_from_a_folder_are_what_train_needs(story, tmp_path):
    """A made-up folder of folders, with colours and other sizes."""
    from torchvision.transforms.functional import to_pil_image
    for name, size, value in [("a/1.png", (40, 60), 0.0), ("a/2.png", (28, 28), 1.0), ("b/3.jpg", (100, 30), 0.5)]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        to_pil_image(torch.full((3, *size), value)).save(tmp_path / name)
    images = story.images_from(tmp_path)
    assert images.shape == (3, 1, 28, 28) and images.dtype == torch.float32
    assert images.mean(dim=(1, 2, 3)).tolist() == pytest.approx([-1, 1, 0], abs=0.01)
    settings = tiny(story, train_images=3, batch_size=3, epochs=1)
    assert story.train(*story.fresh_players(settings), images, settings, lambda state: None).step == 1


def test_games_in_the_plane(story):
    """The closed forms that section 3 leans on, and a short game of each kind."""
    points, cluster = story.real_points(4000)
    assert story.plane_score(points) == (8, pytest.approx(1 - math.exp(-4.5), abs=0.01))  # 3 sigma of a round normal cloud
    assert story.plane_score(points[cluster != 3])[0] == 7
    frames = story.play_in_the_plane((0.0, 0.99), penalty_weight=0.1, ema_decay=0.99, steps=50)
    assert [frame.step for frame in frames] == [10, 50] and frames[-1].points.shape == (2000, 2)
    again = story.play_in_the_plane((0.0, 0.99), penalty_weight=0.1, ema_decay=0.99, steps=50)
    assert torch.equal(frames[-1].points, again[-1].points)
    assert story.play_told(5).probability.shape == frames[0].probability.shape == (61, 61)


# ---------------------------------------------------------------------------------------------------------------------
# Colab


def colab_stub(folder):
    (folder / "google" / "colab").mkdir(parents=True)
    (folder / "google" / "colab" / "__init__.py").touch()
    return folder


def run_first_cell(cwd, python_path, home, *options):
    code = cell_sources()["colab"] + "\nimport gan_helpers\nprint(os.getcwd())"
    environment = {**os.environ, "PYTHONPATH": str(python_path), "HOME": str(home), "GIT_CONFIG_GLOBAL": str(home / ".gitconfig")}
    return subprocess.run([sys.executable, *options, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_first_cell_fetches_the_repository_in_colab(tmp_path):
    address = re.search(r'REPOSITORY = "([^"]+)"', cell_sources()["colab"])[1]
    origin, home, work = tmp_path / "origin", tmp_path / "home", tmp_path / "content"
    for folder in (origin, home, work):
        folder.mkdir()
    shutil.copy(ROOT / "gan_helpers.py", origin)
    git = ["git", "-C", origin, "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *arguments], check=True)
    (home / ".gitconfig").write_text(f'[url "{origin.as_uri()}"]\n\tinsteadOf = {address}\n')
    stub = colab_stub(tmp_path / "stub")
    for _ in range(2):  # the second time, the clone is there already
        run = run_first_cell(work, stub, home, "-P")  # without Python's own entry for the current folder
        assert run.returncode == 0, run.stderr
        assert Path(run.stdout.strip()) == work / "HandwrittenNumberGAN"


def test_first_cell_does_nothing_elsewhere_and_installs_nothing(tmp_path):
    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir()
    home.mkdir()
    run = run_first_cell(work, ROOT, home)  # no google.colab
    assert run.returncode == 0 and list(work.iterdir()) == [] and Path(run.stdout.strip()) == work
    shutil.copy(ROOT / "gan_helpers.py", work)
    run = run_first_cell(work, colab_stub(tmp_path / "stub"), home)  # Colab, with the helper there
    assert run.returncode == 0 and Path(run.stdout.strip()) == work
    assert {path.name for path in work.iterdir()} <= {"gan_helpers.py", "__pycache__"}
    assert "pip" not in cell_sources()["colab"]
