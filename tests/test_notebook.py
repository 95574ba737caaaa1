"""The committed notebook and README: their files, their text, and the code that the notebook teaches."""

import dataclasses
import json
import math
import os
import re
import shutil
import sys
from itertools import pairwise
from types import SimpleNamespace

import nbformat
import pytest
import torch
from conftest import NOTEBOOK, ROOT, cell_sources, differences, flat, notebook_code, python, run_cell, some_images, tiny
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils._python_dispatch import TorchDispatchMode

import gan_helpers as helpers

README = (ROOT / "README.md").read_text(encoding="utf-8")


def complaints(notebook):
    """Whatever must not be in a committed notebook, as a list of sentences."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    found = {"the code cells are not executed 1..N in order":
                 [cell.execution_count for cell in code] != list(range(1, len(code) + 1)),
             "it carries widget state": bool(notebook.metadata.get("widgets")),
             "its kernel is not python3": notebook.metadata.get("kernelspec", {}).get("name") != "python3"}
    for cell in code:
        found[f"cell {cell.id} has more than 30 lines"] = len(cell.source.splitlines()) > 30
        for number, output in enumerate(cell.outputs):
            texts = "".join([output.get("text", "")] + [
                str(value) for kind, value in output.get("data", {}).items() if not kind.startswith("image/")])
            found |= {f"cell {cell.id}, output {number}: {complaint}": is_so for complaint, is_so in {
                "an error": output.output_type == "error", "stderr": output.get("name") == "stderr",
                "a widget": "widget-view" in json.dumps(output), "quick mode": "QUICK MODE" in texts,
                "carriage returns": "\r" in texts, "an absolute path": re.search(
                    r"(^|[\s'\"(=])(/(home|root|tmp|work|Users|content|usr|var)/|[A-Z]:\\)", texts)}.items()}
    return [complaint for complaint, is_so in found.items() if is_so]


def test_committed_file_is_clean():
    nbformat.validate(NOTEBOOK)
    assert complaints(NOTEBOOK) == [] and (ROOT / "HandwrittenNumberGAN.ipynb").stat().st_size < 3e6


def test_complaints_are_made():
    new, cell = nbformat.v4.new_output, nbformat.v4.new_code_cell("1\n" * 30, execution_count=1)
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": {"name": "python3", "display_name": ""}})
    assert complaints(notebook) == []
    cell.outputs = [new("error", ename="E", evalue="", traceback=[]), new("stream", name="stderr"), *(
        new("stream", text=text) for text in ("in /tmp/x", "50%\r100%", "QUICK MODE (GAN_QUICK=1)")),
        new("display_data", {"application/vnd.jupyter.widget-view+json": {}})]
    assert [complaint.split(": ")[1] for complaint in complaints(notebook)] == [
        "an error", "stderr", "an absolute path", "carriage returns", "quick mode", "a widget"]
    notebook.metadata = {"widgets": {"state": {}}, "kernelspec": {"name": "venv"}}
    cell.update(source="1\n" * 31, execution_count=2, outputs=[])
    assert len(complaints(notebook)) == 4


def test_refresh_refuses_quick_mode_and_keeps_the_notebook_on_an_error(tmp_path):
    script = shutil.copytree(ROOT / "tests", tmp_path / "tests") / "refresh_notebook.py"
    shutil.copy(ROOT / "gan_helpers.py", tmp_path)
    notebook = tmp_path / "HandwrittenNumberGAN.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")]), notebook)
    before, environment = notebook.read_bytes(), {k: v for k, v in os.environ.items() if not k.startswith("GAN_")}
    for more, message in [({"GAN_QUICK": "1"}, "GAN_QUICK"), ({}, "ZeroDivisionError")]:
        assert message in python(script, env=environment | more).stderr and notebook.read_bytes() == before


def test_section_links_and_helper_names_exist():
    text = "\n".join(cell_sources().values())
    links = re.findall(r"\]\(#([^)]+)\)", text)
    assert len(links) >= 9 and set(links) <= {title.replace(" ", "-") for title in re.findall(r"(?m)^## (.*)", text)}
    used = set(re.findall(r"helpers\.(\w+)", text)) - {"py"}
    assert len(used) > 20 and [name for name in used if not hasattr(helpers, name)] == []


def test_readme_and_training_cell_are_short_and_address_and_test_command_are_the_same_everywhere():
    assert len(README.splitlines()) <= 120 and len(cell_sources()["train"].splitlines()) <= 30
    badges = re.findall(r"colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)/blob/main/HandwrittenNumberGAN.ipynb",
                        README + cell_sources()["title"])
    assert len(badges) == 2 and {*badges, *re.findall(r"github\.com/([\w.-]+/HandwrittenNumberGAN)", README)} == {
        re.search(r'REPOSITORY = "https://github.com/([^"]+)"', cell_sources()["colab"])[1]}
    command = "pytest --nbval HandwrittenNumberGAN.ipynb tests"
    assert command in README and command in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_readme_example_runs_in_a_fresh_process(story, tmp_path):
    lines = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    (tmp_path / "output").mkdir()
    conditional = SimpleNamespace(ema_generator=story.ConditionalGenerator(12, (8, 8, 8, 8)))
    mlp = dcgan = SimpleNamespace(ema_generator=story.Generator(12, (16,)))
    names = {**vars(story), "settings": tiny(story, latent_dim=12), "latent": torch.randn(10, 12)}
    run_cell("export", {**names, "mlp": mlp, "dcgan": dcgan, "conditional": conditional, "output": tmp_path / "output"})
    run = python("-c", lines, cwd=tmp_path)
    assert len(lines.splitlines()) == 5 and run.returncode == 0 and (tmp_path / "2026.png").stat().st_size, run.stderr


def play(story, settings, after_epoch=lambda state: None, images=None):
    """A short run of the notebook's loop, on random images; returns the state."""
    images = some_images(settings.train_images) if images is None else images
    return story.train(*story.fresh_players(settings), images, settings, after_epoch)


def conditional_story(labels, images=None, **changes):
    """The notebook's definitions, ready for section 11 on a few images of 28 x 28 pixels and a small network."""
    names = notebook_code()
    images = some_images(len(labels)) if images is None else images
    small = {"generator_widths": (8, 8, 8, 8), "discriminator_widths": (8, 8, 8, 8), "name": "conditional"} | changes
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2), value=-1)
    names.update(conditional_settings=tiny(SimpleNamespace(**names), train_images=len(labels), **small), labels=labels,
                 ticked=names["tick"](padded, labels), settings=tiny(SimpleNamespace(**names), train_images=len(labels)))
    return names


def test_pictures_and_samples_of_a_run_do_not_change_what_is_trained(tmp_path):
    """Section 11 with pictures, samples and files, and the same run without; once it drew its pictures at random."""
    names = conditional_story(torch.arange(100) % 10, epochs=6, keep_every=2)
    names["output"] = tmp_path
    run_cell("after-epoch", names)
    shown = run_cell("conditional-train", names)["conditional"]
    assert len(shown.snapshots) == 7 and list(shown.samples) == [0, 2, 4, 6] and len(list(tmp_path.iterdir())) == 1
    players = names["fresh_players"](shown.settings, names["ConditionalGenerator"], names["ConvDiscriminator"])
    silent = names["train"](*players, names["ticked"], shown.settings, lambda state: None, names["ask_for_any"])
    for state in (shown, silent):
        del state.snapshots, state.samples
    assert silent.step == 18 and differences(vars(shown), vars(silent)) == []


def test_steps_against_torch_losses_and_who_moves(story):
    torch.manual_seed(0)
    generator, discriminator = story.Generator(8, (16,)), story.Discriminator((16,))
    real, fake = some_images(6), generator(torch.randn(6, 8))
    real_logits, fake_logits = discriminator(real).detach(), discriminator(fake).detach()
    ones, zeros, before = torch.ones(6), torch.zeros(6), (flat(generator), flat(discriminator))
    moved = lambda: [differences(old, flat(net)) != [] for old, net in zip(before, (generator, discriminator))]
    sgd = lambda network, rate: torch.optim.SGD(network.parameters(), rate)
    d_loss = story.discriminator_step(discriminator, sgd(discriminator, 0.0), real, fake)
    torch.testing.assert_close(d_loss, binary_cross_entropy_with_logits(real_logits, ones)
                               + binary_cross_entropy_with_logits(fake_logits, zeros))
    assert moved() == [False, False] and all(parameter.grad is None for parameter in generator.parameters())
    gradients = [parameter.grad.clone() for parameter in discriminator.parameters()]
    g_loss = story.generator_step(generator, discriminator, sgd(generator, 0.1), fake)
    torch.testing.assert_close(g_loss, binary_cross_entropy_with_logits(fake_logits, ones))
    assert moved() == [True, False] and not d_loss.requires_grad and not g_loss.requires_grad
    assert all(torch.equal(parameter.grad, old) for parameter, old in zip(discriminator.parameters(), gradients))
    story.discriminator_step(discriminator, sgd(discriminator, 0.1), real, fake)
    assert moved() == [True, True]


def test_r1_penalty_its_gradient_and_its_weight_against_finite_differences(story):
    torch.manual_seed(0)
    discriminator = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 8), torch.nn.LeakyReLU(0.2),
                                        torch.nn.Linear(8, 1), torch.nn.Flatten(0)).double()
    (real, fake), pixels = torch.rand(2, 3, 1, 4, 4, dtype=torch.float64), torch.eye(16).double().view(16, 1, 1, 4, 4)
    at = lambda h: torch.stack([discriminator(real + h * pixel) for pixel in pixels])  # (16 pixels, 3 images)
    expected = ((at(1e-6) - at(-1e-6)) / 2e-6).square().sum(dim=0).mean()
    torch.testing.assert_close(story.r1_penalty(discriminator, real), expected, rtol=1e-6, atol=0)
    weight, gradients, call = discriminator[1].weight, [], torch.func.functional_call
    with_weight = lambda value: lambda images: call(discriminator, {"1.weight": value}, images)
    torch.autograd.gradcheck(lambda value: story.r1_penalty(with_weight(value), real), weight)
    for penalty_weight in (0, 3.0):
        story.discriminator_step(discriminator, torch.optim.SGD([weight], lr=0.0), real, fake, penalty_weight)
        gradients.append(weight.grad.clone())
    penalty, = torch.autograd.grad(story.r1_penalty(discriminator, real), weight)
    torch.testing.assert_close(gradients[1] - gradients[0], 1.5 * penalty)  # half its weight


def test_average_has_batchnorm_s_statistics_too_and_copies_its_counter(story):
    average, generator = story.Generator(8, (16,)), story.Generator(8, (16,))
    generator(5 + 3 * torch.randn(64, 8))
    before, new = ({name: value.clone() for name, value in net.state_dict().items()} for net in (average, generator))
    story.update_average(average, generator, 0.9)
    for name, kept in average.state_dict().items():
        mean = 0.9 * before[name] + 0.1 * new[name]
        torch.testing.assert_close(kept, mean if kept.is_floating_point() else new[name])
    moved = {name.split(".")[-1] for name in differences(before, new)}
    assert {"weight", "running_mean", "running_var", "num_batches_tracked"} <= moved


def test_rate_penalty_and_average_follow_their_schedules(story, monkeypatch):
    names, step, update = story.train.__globals__, story.discriminator_step, story.update_average
    rates, penalties, decays = [], [], []
    spy = lambda *a: rates.append(a[1].param_groups[0]["lr"]) or penalties.append(a[4]) or step(*a)
    monkeypatch.setitem(names, "discriminator_step", spy)
    monkeypatch.setitem(names, "update_average", lambda *a: decays.append(a[2]) or update(*a))
    changes = {"decay_from": 0.5, "learning_rate": 3e-3, "r1_gamma": 2.0, "r1_interval": 5, "ema_decay": 0.5}
    state = play(story, tiny(story, epochs=4, **changes))  # 24 steps
    assert rates == pytest.approx([3e-3 * min(1, (1 - step / 24) / 0.5) for step in range(24)])
    assert state.g_optimizer.param_groups[0]["lr"] == rates[-1]
    assert penalties == [10 if step % 5 == 0 else 0 for step in range(24)]
    assert decays == [min(0.5, (1 + step) / (10 + step)) for step in range(24)]
    rates.clear(), penalties.clear()  # the textbook's recipe, every ingredient off, is one `replace` away
    state = play(story, tiny(story, r1_gamma=0.0, ema_decay=0.0, decay_from=1.0, learning_rate=2e-4))
    assert {*rates, *penalties} == {2e-4, 0} and differences(flat(state.ema_generator), flat(state.generator)) == []


@pytest.mark.parametrize("images, batches", [(32, 1), (33, 1), (65, 2)])
def test_any_number_of_images_from_one_batch_on_is_shuffled_into_whole_batches(story, monkeypatch, images, batches):
    step, seen = story.discriminator_step, []
    spy = lambda *a: seen.append(a[2][:, 0, 0, 0]) or step(*a)
    monkeypatch.setitem(story.train.__globals__, "discriminator_step", spy)
    numbered, settings = torch.linspace(-1, 1, images)[:, None, None, None].expand(-1, 1, 28, 28), tiny(story, epochs=3)
    assert play(story, settings, images=numbered).step == 3 * batches and {len(batch) for batch in seen} == {32}
    epochs = torch.cat(seen).view(3, -1)
    assert all(len(epoch.unique()) == 32 * batches for epoch in epochs)  # no image twice
    assert all(not torch.equal(first, second) for first, second in pairwise(epochs))
    for few in (0, 31):
        with pytest.raises(ValueError, match=f"^{few} images cannot fill a batch of batch_size = 32: make it smaller"):
            play(story, settings, images=numbered[:few])


def test_nothing_is_read_from_the_device_between_reports(story, monkeypatch):
    """Trained on torch's device without numbers, where reading one, or copying a tensor to the host, is an error."""
    names, reports, update = story.train.__globals__, [], story.update_average
    adam = lambda player, rate, betas: torch.optim.Adam(player.parameters(), rate, betas, foreach=False)  # not fused
    report = lambda progress, step, losses: reports.append((step, losses.shape)) or {}
    for name, value in [("adam", adam), ("device", torch.device("meta")), ("report", report)]:
        monkeypatch.setitem(names, name, value)
    settings, images = tiny(story, epochs=1, batch_size=3), some_images(200).to("meta")
    assert play(story, settings, images=images).step == 66 and reports == [(50, (2,)), (66, (2,))]
    for read in (torch.Tensor.item, torch.Tensor.cpu, bool):  # the check can fail
        spy = lambda *a, read=read: (update(*a), read(a[0].layers[0].weight.sum()))
        monkeypatch.setitem(names, "update_average", spy)
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            play(story, settings, images=images)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_infinite_loss_stops_within_50_steps_and_keeps_what_was_recorded(story, bad):
    states = []

    def poison(state):
        states.append(state)
        if state.epoch == 1:
            state.discriminator.layers[1].bias.data[0] = bad

    with pytest.raises(FloatingPointError, match="unstable: a loss is NaN or infinite in steps 67 to 116"):
        play(story, tiny(story, epochs=3, batch_size=3), poison)  # 66 steps an epoch
    assert [len(state.history) for state in states] == [1, 1]  # one state, seen twice


@pytest.mark.parametrize("bad, allowed, values", [
    ("batch_size", "whole numbers from 2 to 200", (201, 1, 32.0, (64, 128))), ("seed", "from 0", (-1, True, 2**63)),
    ("epochs", "whole numbers from 1 to", (0, (1, 2))), ("latent_dim", "1 to 1,024", (0, None, "8")),
    ("generator_widths", "a tuple of whole numbers from 1 to 8,192", (512, (), [512], (8, 0), (8, 2.0))),
    ("betas", "a tuple of 2 numbers from 0.0 to 0.9999", (0.5, (0.5,), (0.5, 1.0), (0.5, 0.9, 0.9), (0.5, math.nan))),
    ("learning_rate", "numbers from", (-1e-3, math.nan, True)), ("ema_decay", "0.99999", (1.0,)),
    ("name", "one word", ("a/b", "../x", "", 3, None)), ("train_images", "60,000", (60_001, "all"))])
def test_settings_that_cannot_work_are_refused_by_name(story, bad, allowed, values):
    for value in values:
        with pytest.raises(ValueError, match=f"^{bad} = ") as error:
            tiny(story, **{bad: value})
        assert allowed in str(error.value) and repr(value) in str(error.value)
    assert tiny(story, betas=(0, 0.9999), generator_widths=(1,), batch_size=200, learning_rate=1).betas == (0, 0.9999)


def test_a_missing_picture_of_the_game_is_named_and_no_error(tmp_path):
    shown, image = [], lambda path, width: path.read_bytes()
    names = {"helpers": SimpleNamespace(FOLDER=tmp_path), "display": shown.append, "Image": image}
    run_cell("diagram", names)
    names["helpers"].FOLDER = ROOT
    run_cell("diagram", names)
    assert shown[0] == "gan_diagram.png is missing: git checkout -- .github" and shown[1].startswith(b"\x89PNG")


def test_tick_marks_one_box_of_ten_in_the_lower_frame(story):
    images = some_images(20, size=32)
    ticked = story.tick(images, torch.arange(20) % 10)
    assert torch.equal(ticked[:, :, :30], images[:, :, :30]) and torch.equal(ticked[..., 0], images[..., 0])
    for label, boxes in enumerate(ticked[:10, 0, 30:, 1:31].unflatten(2, (10, 3))):  # (2, 10, 3)
        white = torch.arange(10)[:, None] == label
        assert torch.equal(boxes, torch.where(white, 1.0, -1.0).expand(2, 10, 3))


def test_conditional_players_learn_what_they_are_asked():
    """Two kinds of images, white on the left or on the right: what is asked for comes."""
    labels = torch.arange(400) % 2
    rows = torch.where(torch.arange(28) // 14 == labels[:, None], 0.8, -0.8)  # (400, 28), a row of each image
    images = rows[:, None, None].expand(-1, 1, 28, -1) + 0.1 * some_images(400)
    names = conditional_story(labels, images, epochs=60, learning_rate=4e-3, batch_size=50)
    names["after_epoch"] = lambda state: None
    state = run_cell("conditional-train", names)["conditional"]
    drawn = helpers.generate(state.ema_generator, names["ask"](labels, names["draw_latent"](400, 8)))
    assert torch.equal(drawn[:, 0, 31, 1:31].unflatten(1, (10, 3)).sum(dim=2).argmax(dim=1), labels)  # ticked below
    halves = drawn[:, :, 2:-2, 2:-2].unflatten(3, (2, 14)).mean(dim=(1, 2, 4))
    assert (halves.argmax(dim=1) == labels).double().mean() > 0.95
    assert halves.amax(dim=1).mean() > 0.5 and halves.amin(dim=1).mean() < -0.5


def test_write_number_asks_for_each_digit_with_one_latent_a_hand(story, monkeypatch):
    monkeypatch.setitem(story.write_number.__globals__, "settings", tiny(story))
    monkeypatch.setitem(story.write_number.__globals__, "draw_digits", lambda labels, latent: (labels, latent))
    labels, latent = story.write_number("262", hands=2)
    assert labels.tolist() == [2, 6, 2, 2, 6, 2] and latent.shape == (6, 8)
    assert (latent[:3] == latent[0]).all() and (latent[3:] == latent[3]).all() and not torch.equal(latent[0], latent[3])
    for bad in ("", "12a", "-1", "1.5", "２", "1" * 13, 7, None):
        with pytest.raises(ValueError, match="takes 1 to 12 digits"):
            story.write_number(bad)


def test_walks_from_digit_to_digit_turn_at_an_even_pace(story):
    """The cell `places`, which has `slerp`, with untrained networks; against Shoemake, 1985."""
    names = notebook_code()
    dcgan = SimpleNamespace(ema_generator=story.ConvGenerator(16, (8, 8, 8, 8)))
    names.update(settings=tiny(story, latent_dim=16), dcgan=dcgan,
                 judge=helpers.Judge().eval())
    slerp = run_cell("places", names)["slerp"]
    start, end = torch.nn.functional.normalize(torch.randn(2, 7, 16, dtype=torch.float64), dim=2)
    for share in torch.tensor([0.0, 0.1, 0.5, 1.0], dtype=torch.float64):
        for other, turned in [(start, share), (end, 1 - share)]:
            angle = turned * (start * end).sum(dim=1).acos()
            torch.testing.assert_close((other * slerp(start, end, share)).sum(dim=1), angle.cos())
    assert slerp(end, end, torch.tensor(0.5)).isfinite().all()  # of a young generator, best 3 and best 8 may be one


def test_images_from_a_folder_are_what_train_needs_in_all_three_sizes_of_the_text(tmp_path, monkeypatch):
    from torchvision.transforms.functional import to_pil_image
    names = notebook_code()
    for name, size, value in [("a/1.png", (40, 60), 0.0), ("a/2.png", (28, 28), 1.0), ("b/3.jpg", (100, 30), 0.5)]:
        (tmp_path / "my_pictures" / name).parent.mkdir(exist_ok=True, parents=True)
        to_pil_image(torch.full((3, *size), value)).save(tmp_path / "my_pictures" / name)
    images = names["images_from"](tmp_path / "my_pictures")
    assert images.shape == (3, 1, 28, 28) and images.dtype == torch.float32
    assert images.mean(dim=(1, 2, 3)).tolist() == pytest.approx([-1, 1, 0], abs=0.01)

    names.update(settings=tiny(SimpleNamespace(**names), batch_size=2, epochs=1), output=tmp_path, QUICK=True)
    run_cell("conv-init", names)
    names["dcgan_settings"] = dataclasses.replace(names["dcgan_settings"], batch_size=2, epochs=1)
    monkeypatch.chdir(tmp_path)
    calls = re.search(r"```python\n(.*?)```", cell_sources()["own-images-about"], re.DOTALL)[1]
    exec(calls, names)  # noqa: S102
    sizes = [torch.load(tmp_path / f"mine{size}_checkpoint.pt")["snapshots"][-1].shape[-1] for size in (28, 32, 64)]
    assert sizes == [28, 32, 64]


def test_exercises_measure_the_code_of_the_notebook():
    from exercises import EXERCISES, clusters, run, story_with
    images, labels = some_images(80), torch.arange(80) % 10
    small, ends = {"epochs": 8, "train_images": 64, "batch_size": 16}, {}
    for name, exercise in EXERCISES.items():
        widths = (8, 8, 8, 8) if "network" in exercise else (16,)
        small.update(generator_widths=widths, discriminator_widths=widths)
        _, state, chosen, draw = run(exercise, images, labels, **small)
        ends[name] = state.history[-1]["d_loss"]
        assert len(chosen) == 64 and draw(state.ema_generator, 3).shape == (3, 1, 28, 28)
    same = {name for name, loss in ends.items() if loss == ends["MLP"]}
    assert same == {"MLP", "6 epochs, the recipe", "9 1,000 images", "6 epochs, G of 512-512",
                    "6 epochs, batches of 64", "6 epochs, batches of 256"}  # what `small` overrides  # other changes reach the training
    assert [name for name, loss in ends.items() if loss == ends["DCGAN"]] == ["DCGAN"]
    with pytest.raises(ValueError, match="cell r1"):
        story_with({"r1": ("not in there", "")})
    codes = clusters(torch.cat([some_images(20) * 0.1 + centre for centre in (-0.8, 0.0, 0.8)]), 3).view(3, 20)
    assert (codes == codes[:, :1]).all() and len(codes[:, 0].unique()) == 3


@pytest.mark.parametrize("penalty", [0, 1])
def test_benchmark_counts_the_matrix_products_that_torch_does(story, penalty):
    from benchmark import matmul_flops_per_image
    flops = []

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
                left, right = args[-2:]  # the second derivative of LeakyReLU is a matrix of zeros, which is no work
                flops.append(2 * left.numel() * right.shape[1] * bool(left.any() and right.any()))
            return function(*args, **(kwargs or {}))

    generator, discriminator = story.Generator(8, (32, 16)), story.Discriminator((24, 16))
    d_optimizer, g_optimizer = (torch.optim.SGD(player.parameters(), 0.1) for player in (discriminator, generator))
    with Counter():
        fake = generator(torch.randn(10, 8))
        story.discriminator_step(discriminator, d_optimizer, some_images(10), fake, penalty)
        story.generator_step(generator, discriminator, g_optimizer, fake)
    assert 10 * matmul_flops_per_image(8, (32, 16), (24, 16), penalty) == pytest.approx(sum(flops), rel=0.01)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a script called git")
def test_first_cell_fetches_the_repository_in_colab_only_and_a_half_clone_does_not_block_it(tmp_path):
    stub, work, origin = (tmp_path / name for name in ("stub", "content", "origin"))
    for folder in (stub / "google" / "colab", work, origin):
        folder.mkdir(parents=True)
    (stub / "google" / "colab" / "__init__.py").touch()
    (origin / "gan_helpers.py").write_text("WHOSE = 'of the clone'")
    (stub / "git").write_text('#!/bin/sh\nfor folder; do :; done\necho "$@" >> ../asked\nmkdir "$folder" || exit 128\n'
                              'cp ../origin/* "$folder"\ntest -e ../network || exit 128\n')  # a git
    (stub / "git").chmod(0o755)

    def run_first_cell(python_path):
        code = cell_sources()["colab"] + "\nimport gan_helpers\nprint(gan_helpers.WHOSE, os.getcwd(), sep='\\n')"
        run = python("-P", "-c", code, cwd=work, env={
            **os.environ, "PYTHONPATH": str(python_path), "PATH": f"{stub}{os.pathsep}{os.environ['PATH']}"})
        return run.stdout.splitlines() if run.returncode == 0 else run.stderr

    assert run_first_cell(origin) == ["of the clone", str(work)] and list(work.iterdir()) == []  # no Colab: nothing
    assert "exit status 128" in run_first_cell(stub) and len(list(work.rglob("gan_helpers.py"))) == 1  # half a clone
    (tmp_path / "network").touch()
    for _ in range(2):  # the second time, the clone is there already
        assert run_first_cell(stub) == ["of the clone", str(work / "HandwrittenNumberGAN")]
    assert [path.name for path in work.iterdir()] == ["HandwrittenNumberGAN"] and "pip" not in cell_sources()["colab"]
    address = re.search(r'REPOSITORY = "([^"]+)"', cell_sources()["colab"])[1]
    assert (tmp_path / "asked").read_text().count(address) == 2
