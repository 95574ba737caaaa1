"""The committed notebook and README: their files, their text, and the code that is taught."""

import ast
import math
import os
import re
import sys
from types import SimpleNamespace

import nbformat
import pytest
import torch
from conftest import differences, flat, python
from notebook_code import CODE, NOTEBOOK, SOURCES, notebook_code, run_cell, some_images, tiny_game
from torch import nn
from torch.nn.functional import one_hot, softplus
from torch.optim import SGD

import gan_helpers as helpers

README = (helpers.FOLDER / "README.md").read_text(encoding="utf-8")
TEXT = "\n".join(cell.source for cell in NOTEBOOK.cells)
PROSE = "\n".join(cell.source for cell in NOTEBOOK.cells if cell.cell_type == "markdown")
OUTSIDE = r"(^|[\s'\"(=])(/(home|root|tmp|work|Users|content)/|[A-Z]:\\)"
UNWANTED = re.compile(r"QUICK MODE|\r|widget-view|" + OUTSIDE)


# The files ----------------------------------------------------------------------------------------

def test_committed_file_is_clean_and_small():
    nbformat.validate(NOTEBOOK)
    assert [cell.execution_count for cell in CODE] == list(range(1, len(CODE) + 1))
    assert not NOTEBOOK.metadata.get("widgets")
    for output in (output for cell in CODE for output in cell.outputs):
        assert output.output_type != "error" and output.get("name") != "stderr"
        shown = {kind: value for kind, value in output.get("data", {}).items()
                 if not kind.startswith("image/")}
        assert not UNWANTED.search(output.get("text", "") + str(shown))
    assert (helpers.FOLDER / "HandwrittenNumberGAN.ipynb").stat().st_size < 3e6


def test_every_cell_is_short_and_open_and_no_text_speaks_of_folding():
    for cell in CODE:
        lines = cell.source.splitlines()
        assert len(lines) <= 26 and max(map(len, lines)) <= 100, cell.id
    assert "source_hidden" not in nbformat.writes(NOTEBOOK)
    assert re.findall(r"(?i).*\b(?:un)?fold(?:s|ed|ing)?\b.*", PROSE + README) == []


# The text -----------------------------------------------------------------------------------------

def test_every_picture_is_an_output_every_name_exists_and_no_link_is_for_one_client_only():
    assert re.findall(r"!\[[^]]*\]\((?!https://)[^)]*\)|<img(?![^>]*https://)", PROSE) == []
    assert re.findall(r"\]\(#[^)]*\)", PROSE) == []
    files = set(re.findall(r'"\.github" / "(.*?)"', TEXT))
    assert files and all((helpers.FOLDER / ".github" / name).exists() for name in files)
    names = set(re.findall(r"helpers\.(\w+)", TEXT)) - {"py"}
    assert names and [name for name in names if not hasattr(helpers, name)] == []


def test_one_address_everywhere_and_a_placeholder_that_github_can_give_to_nobody():
    owners = re.findall(r"github(?:\.com)?/([\w.-]+)/HandwrittenNumberGAN\b", README + TEXT)
    assert len(owners) >= 4 and len(set(owners)) == 1
    assert "_" in owners[0] or "your" not in owners[0].lower()  # no account has an underscore


def test_no_name_is_a_function_in_one_cell_and_a_variable_in_another():
    functions, variables = set(), set()
    for statement in (each for source in SOURCES.values() for each in ast.parse(source).body):
        if isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom):
            functions |= {getattr(each, "asname", None) or each.name
                          for each in getattr(statement, "names", [statement])}
        else:
            variables |= {node.id for node in ast.walk(statement)
                          if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    assert {"train", "helpers", "Settings"} <= functions and {"turn", "mlp"} <= variables
    assert functions & variables == set()


def test_random_numbers_are_drawn_on_the_cpu_whatever_the_device():
    """So a seed begins the same game everywhere, and a checkpoint keeps one random state."""
    sources = "\n".join([*SOURCES.values(), (helpers.FOLDER / "gan_helpers.py").read_text("utf-8")])
    calls = [ast.unparse(node) for node in ast.walk(ast.parse(sources))
             if isinstance(node, ast.Call) and getattr(node.func, "attr", "").startswith("rand")]
    assert len(calls) > 10
    assert [call for call in calls if "device=" in call or "_like" in call] == []


# The first cell ---------------------------------------------------------------------------------

FIRST_CELL = SOURCES["imports"].partition("import matplotlib")[0] + """
print(find_spec("gan_helpers").origin)"""


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
    for advice in ("gan_helpers.py is missing", "folder of its repository", "On Kaggle, turn on"):
        assert advice in failed.stderr.splitlines()[-1]
    cloned = run_first_cell(
        f"mkdir HandwrittenNumberGAN && cp '{helpers.__file__}' HandwrittenNumberGAN && echo $5")
    again = run_first_cell("exit 128")
    if hosted:
        clone = folder / "HandwrittenNumberGAN" / "gan_helpers.py"
        assert f"/HandwrittenNumberGAN\n{clone}\n" in cloned.stdout, cloned.stderr
        assert again.stdout.split() == [str(clone)]
    else:
        assert cloned.returncode == again.returncode == 1 and list(folder.iterdir()) == []


def test_a_notebook_and_a_helper_of_two_editions_are_refused(monkeypatch):
    monkeypatch.setattr(helpers, "EDITION", helpers.EDITION - 1)
    with pytest.raises(AssertionError, match="of another edition than this notebook"):
        run_cell("imports", {})


# The steps ----------------------------------------------------------------------------------------

def test_each_step_lowers_softplus_and_moves_its_own_player_only(story):
    game = tiny_game(vars(story))
    generator, discriminator = game.generator, game.discriminator
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


def test_r1_is_that_of_finite_differences_and_the_penalty_is_added_to_the_loss(story):
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
    story.discriminator_step(small_d, SGD([weight], 0.0), real, fake,
                             1.5 * story.r1_penalty(small_d, real))
    charged = weight.grad.clone()
    story.discriminator_step(small_d, SGD([weight], 0.0), real, fake)
    torch.testing.assert_close(charged - weight.grad, 1.5 * of_penalty)


def test_the_average_moves_by_a_falling_share_and_holds_batchnorm_s_numbers_too(story):
    average, generator = (tiny_game(vars(story), seed=seed).generator for seed in (1, 2))
    generator(5 + 3 * torch.randn(64, 8))
    before, new = flat(average), flat(generator)
    story.update_average(average, generator, turn=81)  # keeps 0.9 of what it was
    assert any("running_var" in name for name in differences(before, flat(average)))
    for name, kept in flat(average).items():
        mean = 0.9 * before[name] + 0.1 * new[name]
        torch.testing.assert_close(kept, mean if kept.is_floating_point() else new[name])


def test_the_rate_falls_at_the_end_and_the_penalty_comes_on_each_fifth_turn(tmp_path):
    names, seen = notebook_code(), []

    def take_turn(game, real, latent, penalty):
        assert real.shape == (8, 1, 28, 28) and latent.shape == (8, 8)
        rates = {optimizer.param_groups[0]["lr"]
                 for optimizer in (game.g_optimizer, game.d_optimizer)}
        seen.append((*rates, penalty))
        return torch.zeros(4)

    names.update(output=tmp_path, take_turn=take_turn, r1_penalty=lambda discriminator, real: 7.0)
    game = tiny_game(names, epochs=4, decay=0.5, learning_rate=3e-3, r1_weight=2.0, r1_every=5)
    names["train"](game, some_images(9))
    assert seen == [(pytest.approx(3e-3 * min(1, (1 - turn / 24) / 0.5)),
                     35.0 if turn % 5 == 4 else 0.0) for turn in range(24)]


# The smallest game, the plane, labels -------------------------------------------------------------

AT_ONCE = {"        psi -= 0.2 * d_push\n": "",
           "        theta -= 0.2 * g_push\n":
           "        psi -= 0.2 * d_push\n        theta -= 0.2 * g_push\n"}
REJECTED_LOSS = {
    "g_gradient = -psi / (1 + math.exp(psi": "g_gradient = -psi / (1 + math.exp(-psi"}
BOTH = {"g_momentum": 0.9, "d_momentum": 0.9}


@pytest.mark.parametrize("change, variant, least, most, still_moves", [
    ({}, {}, 0.3, 0.4, True), ({}, {"charge": 0.15}, 0, 1e-3, False),
    ({}, {"g_momentum": 0.9}, 1.4, 2.2, True), ({}, {"d_momentum": 0.9}, 1.4, 2.2, True),
    ({}, BOTH, 4.8, 6.2, True), ({}, {"average": 0.99}, 0, 0.1, False),
    (REJECTED_LOSS, {}, 0.97, 1.03, True), (REJECTED_LOSS, BOTH, 5.2, 5.4, False),
    (REJECTED_LOSS | AT_ONCE, {}, 2.0, 3.0, True)])
def test_the_smallest_game_circles_runs_away_or_comes_closer_as_the_text_says(
        monkeypatch, change, variant, least, most, still_moves):
    """How far from the goal it is after 300 turns, having begun at a distance of 1."""
    for old, new in change.items():
        assert SOURCES["duel"].count(old) == 1
        monkeypatch.setitem(SOURCES, "duel", SOURCES["duel"].replace(old, new))
    names = {}
    run_cell("duel", names)
    path = names["duel"](**variant)
    assert path[0] == (1, 0) and least <= math.hypot(*path[-1]) < most
    assert (math.dist(path[-1], path[-30]) > 0.1) == still_moves


@pytest.mark.parametrize("tell_g, tell_d", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_in_the_plane_each_player_sees_the_code_only_if_it_is_told(story, tell_g, tell_d):
    generator, seen = story.ToldPoints(tell_g, tell_d), []

    def remember(_, inputs):
        seen.append(inputs[0])

    generator.generator.register_forward_pre_hook(remember)
    fakes, reals = generator(torch.randn(50, 16)), story.real_told(50, tell_d)
    assert (seen[0][:, 16:].sum(dim=1) == tell_g).all()
    assert (fakes[:, 2:].sum(dim=1) == tell_d).all() and (reals[:, 2:].sum(dim=1) == tell_d).all()
    if tell_d:
        nearest = torch.cdist(reals[:, :2], story.CENTRES).argmin(dim=1)
        assert torch.equal(reals[:, 2:].argmax(dim=1), nearest)
    if tell_g and tell_d:
        assert torch.equal(fakes[:, 2:], seen[0][:, 16:])


@pytest.mark.parametrize("kinds, width", [(5, 6), (10, 3), (26, 1), (32, 1)])
def test_a_label_is_one_box_in_the_last_two_rows(kinds, width):
    names, images = notebook_code(kinds), some_images(kinds, size=32)
    labelled = names["write_label"](images.clone(), torch.eye(kinds))
    boxes = labelled[:, 0, -2:, :kinds * width].unflatten(2, (kinds, width))
    assert torch.equal(boxes, 2 * torch.eye(kinds)[:, None, :, None].expand_as(boxes) - 1)
    assert (labelled[:, 0, -2:, kinds * width:] == -1).all()
    assert torch.equal(labelled[:, :, :-2], images[:, :, :-2])


@pytest.mark.parametrize("make", ["told_mlp_generator", "told_conv_generator"])
def test_a_told_generator_labels_what_it_draws_and_the_drawing_alone_has_no_label(story, make):
    told, digits, latent = getattr(story, make)(8).eval(), torch.tensor([3, 0, 9]), torch.eye(8)[:3]
    labelled, game = told(story.ask(digits, latent)).detach(), SimpleNamespace(average=told)
    alone = story.draw(game, digits, latent)
    assert torch.equal(labelled[:, :, 2:30, 2:30], alone) and alone.shape == (3, 1, 28, 28)
    assert torch.equal(story.write_label(labelled.clone(), one_hot(digits, 10)), labelled)
    assert not torch.equal(story.draw(game, digits.flip(0), latent), alone)
    real = story.frame(some_images(3))
    assert torch.equal(real[:, :, 2:30, 2:30], some_images(3)) and (real[:, :, :2] == -1).all()
