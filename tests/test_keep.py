"""Stop, kill and resume: nothing is lost, nothing half-written, nothing wrongly continued.

`python tests/test_keep.py FOLDER` is a run that is killed while it writes.
"""

import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import differences, files, python
from notebook_code import notebook_code, pressing, run_cell, some_images, tiny

import gan_helpers as helpers

FILE = "mlp_checkpoint.pt"


def tiny_run(**changes):
    """The notebook's names, ready for its training cell: 3 epochs of 6 steps, made-up images."""
    names = notebook_code()
    settings = tiny(SimpleNamespace(**names), **{"epochs": 3, **changes})
    names.update(settings=settings, images=some_images(200))
    return names


def play(names, folder, resume=False):
    """Run the cell that trains; returns the state in the end."""
    names.update(output=folder, RESUME=resume)
    return run_cell("train-run", names)["mlp"]


def saved_in(folder):
    return torch.load(folder / FILE, weights_only=True)


@pytest.fixture(autouse=True)
def in_a_kernel(monkeypatch):
    monkeypatch.setattr(helpers, "_in_kernel", lambda: True)  # a stop does not end the program


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    play(tiny_run(), folder)
    return folder


@pytest.mark.parametrize("function, call, steps, epochs", [
    ("penalized_step", 1, 1, 0), ("generator_step", 8, 8, 1), ("after_epoch", 1, 6, 1),
    ("train_step", 12, 12, 2), ("update_average", 18, 18, 3)])  # the last two end an epoch
def test_a_stop_waits_for_the_end_of_its_step_and_resume_goes_on_bit_for_bit(
        undisturbed, tmp_path, function, call, steps, epochs):
    names = tiny_run()
    names[function] = pressing(names[function], call)
    stopped = play(names, tmp_path)
    assert (stopped.step, stopped.epoch) == (steps, epochs)
    torch.randn(17)  # whatever happens in between
    resumed = play(names, tmp_path, resume=True)
    assert resumed.history[:epochs] == stopped.history  # with their seconds: not trained again
    assert differences(saved_in(tmp_path), saved_in(undisturbed)) == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_run_killed_while_it_writes_and_resumed_ends_the_same(undisturbed, tmp_path):
    killed = python(__file__, tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [name for name in files(tmp_path) if not name.startswith(".")] == [FILE]
    assert saved_in(tmp_path)["epoch"] == 1  # and not half of what epoch 2 wrote
    play(tiny_run(), tmp_path, resume=True)
    assert differences(saved_in(tmp_path), saved_in(undisturbed)) == []


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


@pytest.mark.parametrize("setting, before, now", [
    ("r1_gamma", 1.0, 2.0), ("generator_widths", (32, 16), (16, 16)), ("epochs", 3, 2)])
def test_what_trains_differently_is_refused_by_its_name_and_both_values(
        undisturbed, setting, before, now):
    with pytest.raises(ValueError, match="RESUME = False") as error:
        play(tiny_run(**{setting: now}), undisturbed, resume=True)
    assert all(part in str(error.value) for part in (FILE, setting, repr(before), repr(now)))


def test_half_a_checkpoint_and_one_of_another_edition_are_refused(undisturbed, tmp_path):
    whole = (undisturbed / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[:len(whole) // 2])
    with pytest.raises(ValueError, match=f"{FILE}' is no whole checkpoint .*RESUME = False"):
        play(tiny_run(), tmp_path, resume=True)
    torch.save({**saved_in(undisturbed), "players": 2}, tmp_path / FILE)
    with pytest.raises(ValueError, match=f"{FILE}' is of another edition .*RESUME = False"):
        play(tiny_run(), tmp_path, resume=True)


def test_a_checkpoint_keeps_no_larger_tensor_alive_for_a_part_of_it(undisturbed):
    saved = saved_in(undisturbed)
    for tensor in [saved["fixed_noise"], *saved["snapshots"]]:
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def write_half(path, content):
    """In place of Path.write_bytes: half of it, and the end of this process."""
    with open(path, "wb") as file:
        file.write(content[:len(content) // 2])
    signal.raise_signal(signal.SIGKILL)


if __name__ == "__main__":
    play(tiny_run(epochs=1), Path(sys.argv[1]))
    Path.write_bytes = write_half
    play(tiny_run(), Path(sys.argv[1]), resume=True)  # until it saves the second epoch
