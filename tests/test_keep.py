"""Stop, kill and resume: nothing is lost, nothing half-written, nothing wrongly continued."""

import os
import re
import signal

import pytest
import torch
from conftest import ROOT, differences, files, flat, python, tiny, tiny_story
from pressing import pressing

import gan_helpers as helpers


@pytest.fixture(scope="module")
def play():
    """The notebook's own training cell on tiny settings, 3 epochs of 8 steps: play(folder, resume)."""
    return tiny_story()


@pytest.fixture
def in_a_kernel(monkeypatch):
    monkeypatch.setattr(helpers, "_in_kernel", lambda: True)
    monkeypatch.setattr(helpers, "progress_line", lambda total, done: helpers.tqdm(total=total, initial=done))


def moving(state):
    """What moves in training: the networks, both Adams' memories and the average."""
    return flat([state.generator, state.discriminator, state.ema_generator, state.g_optimizer, state.d_optimizer])


def ended(folder):
    return torch.load(folder / "mlp_checkpoint.pt", weights_only=True)


@pytest.fixture(scope="module")
def undisturbed(play, tmp_path_factory):
    """Of a run that nobody disturbed: its last checkpoint, and what moves at the end of each step."""
    folder, steps, states, names = tmp_path_factory.mktemp("undisturbed"), {}, [], dict(play.names)
    play.names["after_epoch"] = lambda state: (
        states.append(state), steps.setdefault(state.step, moving(state)), names["after_epoch"](state))
    play.names["update_average"] = lambda *arguments: (
        names["update_average"](*arguments), steps.update({len(steps): moving(states[0])}))
    play(folder)
    play.names.update(names)
    assert list(steps) == list(range(25)) and differences(steps[23], steps[24])  # it did move
    return ended(folder), steps


def stopped(play, folder, name, call, resume=False, presses=1):
    """Run the training cell, with a press at the end of the n-th call of a function of the notebook or the helper."""
    owner = play.names if name in play.names else vars(helpers)
    real = owner[name]
    owner[name] = pressing(real, call, presses)
    try:
        return play(folder, resume)
    finally:
        owner[name] = real


# (the function in which stop is pressed, its n-th call in the run, the steps and the epochs done in the end)
MOMENTS = [("resume", 1, 0, 0), ("save_checkpoint", 1, 0, 0), ("discriminator_step", 1, 1, 0),
           ("generator_step", 5, 5, 0), ("update_average", 8, 8, 0), ("generate", 2, 8, 1), ("r1_penalty", 3, 9, 1),
           ("report", 2, 16, 2), ("save_checkpoint", 3, 16, 2), ("report", 3, 24, 3), ("save_checkpoint", 4, 24, 3)]


@pytest.mark.parametrize("name, call, steps, epochs", MOMENTS, ids=[f"{name}-{call}" for name, call, *_ in MOMENTS])
def test_a_stop_waits_for_the_end_of_the_step_and_resume_goes_on(
        play, undisturbed, in_a_kernel, tmp_path, capsys, name, call, steps, epochs):
    handler = signal.getsignal(signal.SIGINT)
    state = stopped(play, tmp_path, name, call)
    assert (state.step, state.epoch) == (steps, epochs) and differences(moving(state), undisturbed[1][steps]) == []
    assert f"{epochs} of 3 epochs of 128 images" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is handler
    torch.randn(17)  # whatever happens in between
    assert play(tmp_path, resume=True).epoch == 3 and differences(undisturbed[0], ended(tmp_path)) == []
    assert f" {8 * epochs}/24 [" in capsys.readouterr().err  # the progress line, and with it errors, count from there


def test_a_second_press_interrupts_at_once_and_a_stop_while_it_resumes_loses_nothing(
        play, undisturbed, in_a_kernel, tmp_path, monkeypatch):
    handler, update_average, averaged = signal.getsignal(signal.SIGINT), play.names["update_average"], []
    monkeypatch.setitem(play.names, "update_average", lambda *a: averaged.append(update_average(*a)))
    with pytest.raises(KeyboardInterrupt):
        stopped(play, tmp_path, "generator_step", 13, presses=2)
    assert len(averaged) == 12 and signal.getsignal(signal.SIGINT) is handler
    assert stopped(play, tmp_path, "load_checkpoint", 1, resume=True).step == 8
    assert play(tmp_path, resume=True).epoch == 3
    assert differences(undisturbed[0], ended(tmp_path)) == []


def test_running_the_training_cell_again_repeats_the_run_after_a_stop_too(play, undisturbed, in_a_kernel, tmp_path):
    assert stopped(play, tmp_path, "generator_step", 11).step == 11
    for _ in range(2):
        play(tmp_path)
        assert differences(undisturbed[0], ended(tmp_path)) == []
    tiny_story(seed=1)(tmp_path)  # and where runs differ, it is noticed
    found = differences(undisturbed[0], ended(tmp_path))
    for part in (".generator.", ".ema_generator.", ".g_optimizer.", ".history.0.d_loss", ".snapshots.1", ".settings."):
        assert any(name.startswith(part) for name in found), part


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_killed_again_and_again_and_resumed_ends_the_same(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES"}  # for macOS
    run = python(ROOT / "tests" / "killed_run.py", tmp_path, env=environment)
    epochs = [int(epoch) for epoch in re.findall(r"killed after epoch (-?\d+)", run.stdout)]
    assert run.returncode == 0 and epochs == [1, 1, 2, 5, 8, 8], run.stderr + run.stdout
    assert ended(tmp_path / "whole")["epoch"] == 9
    assert differences(ended(tmp_path / "whole"), ended(tmp_path / "killed")) == []
    whole, killed = files(tmp_path / "whole"), files(tmp_path / "killed")
    assert {name for name in killed if not name.startswith(".")} == set(whole)  # no half a file under a final name


def test_a_fresh_run_keeps_the_last_checkpoint_which_goes_on_when_it_is_renamed_back(
        play, undisturbed, in_a_kernel, tmp_path, capsys):
    path, previous = tmp_path / "mlp_checkpoint.pt", tmp_path / "mlp_checkpoint.previous.pt"
    stopped(play, tmp_path, "generator_step", 20, resume=True)
    two_epochs = path.read_bytes()
    stopped(play, tmp_path, "generator_step", 1)  # RESUME was forgotten
    assert previous.read_bytes() == two_epochs
    previous.replace(path)
    play(tmp_path, resume=True)
    assert differences(undisturbed[0], ended(tmp_path)) == []
    done = path.read_bytes()
    assert play(tmp_path, resume=True).epoch == 3 and path.read_bytes() == done  # nothing is left to train
    said = capsys.readouterr().out
    for sentence in ("there is no mlp_checkpoint.pt, so this is a fresh run", "goes on after epoch 2 of 3",
                     "checkpoint is now mlp_checkpoint.previous.pt; rename it to mlp_checkpoint.pt to go on from it"):
        assert sentence in said


def new_state(story, **changes):
    """A state as it is before training."""
    settings = tiny(story, **changes)
    return story.fresh_state(*story.fresh_players(settings), settings, story.draw_latent)


@pytest.fixture(scope="module")
def checkpoint(story, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "c.pt"
    helpers.save_checkpoint(new_state(story), path)
    return path


FIRST = {"settings": {"name": "mlp", "generator_batch_norm": True}, "epoch": 1, "step": 7, "ema": {}}  # edition
CHANGES = {  # to the settings of this run, or to the file
    "r1_gamma = 1.0, and r1_gamma is now 2.0": {"r1_gamma": 2.0}, "epochs = 2": {"epochs": 5}, "seed = 0": {"seed": 1},
    r"generator_widths = \(32, 16\)": {"generator_widths": (16, 16)}, "name = 'mlp'": {"name": "dcgan"},
    "another edition of this notebook": lambda saved: saved.pop("generator"),
    "another edition of this": lambda saved: saved.update(extra=1),
    "made with width = 3, and width is now None": lambda saved: saved["settings"].update(width=3),
    "is now": lambda saved: saved.clear() or saved.update(FIRST, random={"cpu": torch.get_rng_state()}),
    "another device .cpu, cuda.: set GAN_DEVICE": lambda saved: saved["random"].update(cuda=saved["random"]["cpu"]),
    "no whole checkpoint": lambda saved: saved.pop("random"),
}


@pytest.mark.parametrize("named", CHANGES)
def test_a_checkpoint_of_other_settings_another_edition_or_device_is_refused(story, checkpoint, tmp_path, named):
    change, path = CHANGES[named], tmp_path / "c.pt"
    state = new_state(story, **(change if isinstance(change, dict) else {}))
    saved = torch.load(checkpoint, weights_only=True)
    if callable(change):
        change(saved)
    torch.save(saved, path)
    before, untouched, random_state = files(tmp_path), flat(state), torch.get_rng_state()
    with pytest.raises(ValueError, match=named) as raised:
        helpers.resume(state, path, True)
    assert "or set RESUME = False, which trains afresh" in str(raised.value)
    assert files(tmp_path) == before and torch.equal(torch.get_rng_state(), random_state)
    assert differences(untouched, flat(state)) == []


def test_other_networks_and_another_optimizer_under_the_same_settings_are_refused(story, checkpoint):
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 1))
    for name, other in [("discriminator", linear), ("d_optimizer", torch.optim.Adam(linear.parameters()))]:
        state, random_state = new_state(story), torch.get_rng_state()
        setattr(state, name, other)
        with pytest.raises(ValueError, match="(?s)holds other networks: rename it, or set RESUME = False.*(key|group)"):
            helpers.load_checkpoint(state, checkpoint)
        assert torch.equal(torch.get_rng_state(), random_state)


def test_files_with_code_in_them_are_refused_and_the_code_is_not_run(story, checkpoint, tmp_path):
    path, marker = tmp_path / "c.pt", tmp_path / "ran"
    payload = type("Payload", (), {"__reduce__": lambda self: (open, (str(marker), "w"))})()
    torch.save({**torch.load(checkpoint, weights_only=True), "extra": payload}, path)
    for load in (lambda: helpers.load_checkpoint(new_state(story), path), lambda: helpers.load_judge(path)):
        with pytest.raises(ValueError, match="no whole checkpoint|missing or damaged"):
            load()
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # the payload does work where it is let
