"""Stop, kill and resume: nothing is lost, nothing half-written, nothing wrongly continued."""

import signal
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, differences, files, flat, python
from killed_run import play, tiny_run
from pressing import pressing

import gan_helpers as helpers

FILE = "mlp_checkpoint.pt"
MOVING = ("generator", "discriminator", "ema_generator", "g_optimizer", "d_optimizer")


def saved_in(folder):
    return torch.load(folder / FILE, weights_only=True)


def moving(state):
    return flat([getattr(state, part) for part in MOVING])


@pytest.fixture(autouse=True)
def in_a_kernel(monkeypatch):
    def yes():
        return True
    monkeypatch.setattr(helpers, "_in_kernel", yes)  # where a stop does not end the program


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Of a run that nobody disturbs: its folder, what it saved, and what moves, step -> values."""
    names, folder, steps = tiny_run(), tmp_path_factory.mktemp("undisturbed"), {}
    train_step = names["train_step"]

    def watched_step(state, real, latent):
        losses = train_step(state, real, latent)
        steps[state.step] = moving(state)
        return losses

    names["train_step"] = watched_step
    play(names, folder)
    assert differences(steps[17], steps[18])  # it moves, and differences are seen
    return SimpleNamespace(folder=folder, saved=saved_in(folder), steps=steps)


@pytest.mark.parametrize("function, call, steps, epochs", [
    ("penalized_step", 1, 1, 0), ("generator_step", 8, 8, 1), ("after_epoch", 1, 6, 1),
    ("train_step", 12, 12, 2), ("update_average", 18, 18, 3)])  # the last two end an epoch
def test_a_stop_waits_for_the_end_of_its_step_and_resume_goes_on_bit_for_bit(
        undisturbed, tmp_path, function, call, steps, epochs):
    names = tiny_run()
    names[function] = pressing(names[function], call)
    stopped = play(names, tmp_path)
    assert (stopped.step, stopped.epoch) == (steps, epochs)
    assert differences(moving(stopped), undisturbed.steps[steps]) == []
    torch.randn(17)  # whatever happens in between
    resumed = play(names, tmp_path, resume=True)
    assert resumed.history[:epochs] == stopped.history  # with their seconds: not trained again
    assert differences(saved_in(tmp_path), undisturbed.saved) == []


def test_a_second_press_interrupts_at_once(undisturbed, tmp_path):
    names, before = tiny_run(), signal.getsignal(signal.SIGINT)
    names["generator_step"] = pressing(names["generator_step"], 8, presses=2)
    with pytest.raises(KeyboardInterrupt) as interrupt:
        play(names, tmp_path)
    assert "train_step" in [entry.name for entry in interrupt.traceback]  # before its end
    assert signal.getsignal(signal.SIGINT) is before
    play(names, tmp_path, resume=True)
    assert differences(saved_in(tmp_path), undisturbed.saved) == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_run_killed_while_it_writes_and_resumed_ends_the_same(undisturbed, tmp_path):
    killed = python(ROOT / "tests" / "killed_run.py", tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [name for name in files(tmp_path) if not name.startswith(".")] == [FILE]
    assert saved_in(tmp_path)["epoch"] == 1  # and not half of what epoch 2 wrote
    play(tiny_run(), tmp_path, resume=True)
    assert differences(saved_in(tmp_path), undisturbed.saved) == []


def test_running_the_training_cell_again_repeats_the_run(undisturbed, tmp_path):
    names = tiny_run()
    for _ in range(2):
        play(names, tmp_path)
        assert differences(saved_in(tmp_path), undisturbed.saved) == []


def test_a_fresh_run_names_what_it_will_replace_and_replaces_it_after_an_epoch(tmp_path, capsys):
    play(tiny_run(), tmp_path)
    finished = files(tmp_path)
    names = tiny_run(seed=1)
    names["train_step"] = pressing(names["train_step"], 5)
    capsys.readouterr()
    play(names, tmp_path)
    assert FILE in capsys.readouterr().out and files(tmp_path) == finished
    names["train_step"] = pressing(names["train_step"], 6)
    play(names, tmp_path)
    assert saved_in(tmp_path)["epoch"] == 1 and files(tmp_path).keys() == finished.keys()


def test_a_run_can_be_lengthened_and_scored_with_another_number_of_samples(tmp_path):
    play(tiny_run(epochs=4, decay_from=1.0), tmp_path)  # the rate never falls
    whole = saved_in(tmp_path)
    play(tiny_run(epochs=2, decay_from=1.0), tmp_path)
    play(tiny_run(epochs=4, decay_from=1.0, score_samples=500), tmp_path, resume=True)
    assert differences(saved_in(tmp_path), whole) == [".settings.score_samples"]


def refused(names, folder):
    """What a run says that goes on from this folder's checkpoint, and must not."""
    before = files(folder)
    with pytest.raises(ValueError) as error:
        play(names, folder, resume=True)
    assert files(folder) == before and FILE in str(error.value) and "RESUME" in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("setting, before, now", [
    ("r1_gamma", 1.0, 2.0), ("seed", 0, 1), ("generator_widths", (32, 16), (16, 16)),
    ("epochs", 3, 2)])  # fewer than are done
def test_what_trains_differently_is_refused_by_its_name_and_both_values(
        undisturbed, setting, before, now):
    said = refused(tiny_run(**{setting: now}), undisturbed.folder)
    assert setting in said and repr(before) in said and repr(now) in said


def test_half_a_checkpoint_is_refused(undisturbed, tmp_path):
    whole = (undisturbed.folder / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[:len(whole) // 2])
    refused(tiny_run(), tmp_path)


def test_a_checkpoint_of_another_edition_is_refused(undisturbed, tmp_path):
    torch.save({**undisturbed.saved, "players": 2}, tmp_path / FILE)
    assert "edition" in refused(tiny_run(), tmp_path)


class Payload:
    def __reduce__(self):
        return open, ("it ran", "w")


def test_code_in_a_checkpoint_is_not_run(undisturbed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({**undisturbed.saved, "history": Payload()}, FILE)
    refused(tiny_run(), tmp_path)
    assert "it ran" not in files(tmp_path)
    torch.load(FILE, weights_only=False)
    assert "it ran" in files(tmp_path)  # where it may


def test_a_checkpoint_keeps_no_larger_tensor_alive_for_a_part_of_it(undisturbed):
    tensors = [undisturbed.saved["fixed_noise"], *undisturbed.saved["snapshots"]]
    assert [tensor.untyped_storage().nbytes() - tensor.nbytes for tensor in tensors] == 5 * [0]
