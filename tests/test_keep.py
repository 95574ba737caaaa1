"""Stop, kill and resume: nothing is lost, nothing half-written, nothing wrongly continued.

`python tests/test_keep.py FOLDER` is a run that is killed while it writes.
"""

import contextlib
import itertools
import signal
import sys
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import differences, python
from notebook_code import notebook_code, run_cell, some_images, tiny_game

import gan_helpers as helpers

FILE = "mlp_checkpoint.pt"


def play(folder, epochs=3, resume=False, change=None, **settings):
    """Play the notebook's way, two tiny players; `change` may change its names. Returns the game.
    """
    names = notebook_code()
    names.update(output=folder, RESUME=resume)
    if change is not None:
        change(names)
    story = SimpleNamespace(**names)
    game = story.begin(tiny_game(story, **settings))
    story.train(game, epochs, story.after_epoch)
    return game


def saved_in(folder, name=FILE):
    return torch.load(folder / name, weights_only=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a game that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    play(folder)
    return folder


class Interrupter:
    """Counts the lines that run in the notebook's cells and in the helper, and at one of them
    raises what the stop button raises."""

    def __init__(self, at=None):
        self.at, self.lines, self.place = at, 0, None

    def __call__(self, frame, event, argument):
        file = frame.f_code.co_filename
        if not (file.startswith("notebook cell") or file == helpers.__file__):
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                self.place = frame.f_code.co_name
                raise KeyboardInterrupt
        return self

    @contextlib.contextmanager
    def watching(self):
        before = sys.gettrace()
        sys.settrace(self)
        try:
            yield self
        finally:
            sys.settrace(before)


def test_wherever_a_stop_falls_files_are_whole_and_resume_ends_bit_for_bit(undisturbed, tmp_path):
    (tmp_path / "counted").mkdir()
    with Interrupter().watching() as counter:
        play(tmp_path / "counted")
    places = set()
    for number, at in enumerate(range(counter.lines // 20, counter.lines, counter.lines // 11)):
        folder = tmp_path / str(number)
        folder.mkdir()
        with Interrupter(at).watching() as interrupter, contextlib.suppress(KeyboardInterrupt):
            play(folder)
        places.add(interrupter.place)
        for path in folder.glob("*.pt"):
            torch.load(path, weights_only=True)  # or it raises
        torch.randn(17)  # whatever happens in between
        play(folder, resume=True)
        assert differences(saved_in(folder), saved_in(undisturbed)) == [], interrupter.place
    assert len(places) > 3 and None not in places


@pytest.mark.parametrize("function", ["take_turn", "update_average", "after_epoch"])
def test_a_stop_ends_train_quietly_and_what_was_trained_is_there(tmp_path, capsys, function):
    calls = itertools.count(1)

    def press_stop_later(names):
        original = names[function]

        def pressed(*arguments):
            result = original(*arguments)
            if next(calls) == 2:
                raise KeyboardInterrupt
            return result

        names[function] = pressed

    game = play(tmp_path, change=press_stop_later)
    assert 2 <= game.turn < 18
    assert f"Stopped after {game.turn} of 18 turns" in capsys.readouterr().out


def test_in_a_thread_of_its_own_nothing_is_missing(undisturbed, tmp_path):
    thread = threading.Thread(target=play, args=[tmp_path])
    thread.start()
    thread.join()
    assert differences(saved_in(tmp_path), saved_in(undisturbed)) == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_run_killed_while_it_writes_and_resumed_ends_the_same(undisturbed, tmp_path):
    killed = python(__file__, tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert saved_in(tmp_path)["turn"] == 6  # and not half of what the second epoch wrote
    play(tmp_path, resume=True)
    assert differences(saved_in(tmp_path), saved_in(undisturbed)) == []


@pytest.mark.parametrize("cell, name", [
    ("train-run", "mlp"), ("told-train", "told_mlp"), ("conditional-train", "told_dcgan")])
def test_each_of_the_three_runs_resumes_bit_for_bit(tmp_path, cell, name):
    def run(folder, stop=None, resume=False):
        folder.mkdir(exist_ok=True)
        names = notebook_code()
        small = {"batch_size": 4, "turns_per_epoch": 3, "decay_from": 0.5}
        names.update(output=folder, RESUME=resume, QUICK=True, EPOCHS=2, images=some_images(50),
                     labels=torch.arange(50) % 10)
        names["ask_any"] = partial(names["ask_for_any"], labels=names["labels"])
        names["settings"] = names["replace"](names["Settings"](), **small)
        run_cell("conv-init", names)
        take_turn, turns = names["take_turn"], itertools.count(1)

        def stopped_turn(*arguments):
            if next(turns) == stop:
                raise KeyboardInterrupt
            return take_turn(*arguments)

        names["take_turn"] = stopped_turn
        run_cell(cell, names)
        return saved_in(folder, f"{name}_checkpoint.pt")

    whole = run(tmp_path / "whole")
    assert run(tmp_path / "stopped", stop=whole["turn"] - 1)["turn"] == whole["turn"] // 2
    assert differences(run(tmp_path / "stopped", resume=True), whole) == []


def test_a_new_game_names_what_it_will_replace_and_replaces_it_after_an_epoch(tmp_path, capsys):
    play(tmp_path)
    finished = (tmp_path / FILE).read_bytes()

    def stop_at_once(names):
        names["r1_weight_at"] = lambda turn, settings: 1 / 0 if turn == 5 else 0

    with pytest.raises(ZeroDivisionError):
        play(tmp_path, seed=1, change=stop_at_once)
    assert FILE in capsys.readouterr().out and (tmp_path / FILE).read_bytes() == finished
    play(tmp_path, seed=1, epochs=1)
    assert saved_in(tmp_path)["turn"] == 6


def test_resume_without_a_checkpoint_says_so_and_a_game_can_be_lengthened(tmp_path, capsys):
    play(tmp_path, epochs=4, decay_from=1.0)  # the rate never falls
    whole = saved_in(tmp_path)
    (tmp_path / FILE).unlink()
    play(tmp_path, epochs=2, decay_from=1.0, resume=True)
    assert f"there is no {tmp_path / FILE} to go on from" in capsys.readouterr().out
    play(tmp_path, epochs=4, decay_from=1.0, resume=True)
    assert differences(saved_in(tmp_path), whole) == []


@pytest.mark.parametrize("now, parts", [
    ({"r1_weight": 2.0}, ["r1_weight = 1.0", "2.0"]),
    ({"images": some_images(49)}, ["images = 50", "49"]),
    ({"images": some_images(50).flip(0)}, ["checksum of the images = "])])
def test_another_setting_and_other_data_are_refused_by_name_and_both_values(
        undisturbed, now, parts):
    with pytest.raises(ValueError, match=f"{FILE}' was made with .*RESUME = False") as error:
        play(undisturbed, resume=True, **now)
    assert all(part in str(error.value) for part in parts)


def test_half_a_checkpoint_and_one_of_another_edition_are_refused(undisturbed, tmp_path):
    whole = (undisturbed / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[:len(whole) // 2])
    with pytest.raises(ValueError, match=f"{FILE}' is no whole checkpoint .*RESUME = False"):
        play(tmp_path, resume=True)
    without_average, fewer_settings = saved_in(undisturbed), saved_in(undisturbed)
    del without_average["average"], fewer_settings["settings"]["beta1"]
    for of_another in (without_average, fewer_settings, [1, 2]):
        torch.save(of_another, tmp_path / FILE)
        with pytest.raises(ValueError, match=f"{FILE}' is of another edition .*RESUME = False"):
            play(tmp_path, resume=True)


def test_a_checkpoint_keeps_no_larger_tensor_alive_for_a_part_of_it(undisturbed):
    saved = saved_in(undisturbed)
    for tensor in [saved["fixed_noise"], *saved["snapshots"].values()]:
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_numbers_of_numpy_are_saved_and_resumed_as_python_s(tmp_path):
    settings = {"learning_rate": np.linspace(1e-4, 1e-3, 3)[1], "seed": np.int64(3),
                "beta2": np.float32(0.5)}
    play(tmp_path, epochs=np.int64(1), **settings)
    assert play(tmp_path, epochs=2, resume=True, **settings).turn == 12


def test_a_loss_that_is_no_number_ends_the_game_and_the_advice_works(tmp_path):
    def poison(names):
        def poisoned(game):
            names["helpers"].save_checkpoint(game, tmp_path / FILE)
            game.discriminator[1].bias.data[0] = torch.nan
        names["after_epoch"] = poisoned

    message = "between turns 66 and 100: D's loss is nan"
    with pytest.raises(FloatingPointError, match=message) as error:
        play(tmp_path, turns_per_epoch=66, change=poison)
    assert saved_in(tmp_path)["turn"] == 66
    for advice in ("RESUME = False", "a lower learning_rate", "a higher r1_weight"):
        assert advice in str(error.value)
    assert play(tmp_path, resume=False, learning_rate=1e-4, r1_weight=2.0).turn == 18


def write_half(path, content):
    """In place of Path.write_bytes: half of a checkpoint, and the end of this process."""
    with open(path, "wb") as file:
        file.write(content[:len(content) // 2])
    if FILE in str(path):
        signal.raise_signal(signal.SIGKILL)


if __name__ == "__main__":
    play(Path(sys.argv[1]), epochs=1)
    Path.write_bytes = write_half
    play(Path(sys.argv[1]), resume=True)  # until it saves the second epoch
