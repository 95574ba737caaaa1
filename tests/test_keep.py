"""Stop, kill and resume: nothing is lost, nothing half-written, nothing wrongly continued.

`python tests/test_keep.py FOLDER` is a run that is killed while it writes.
"""

import contextlib
import os
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import tqdm.std
from conftest import differences, flat, python
from notebook_code import notebook_code, tiny_game

import gan_helpers as helpers

FILE = "mlp_checkpoint.pt"


@pytest.fixture(scope="module")
def names():
    """The notebook's, for changes that the other tests must not see."""
    return notebook_code()


def play(names, folder, resume=False, **settings):
    """Play the notebook's way, two tiny players; returns the game."""
    folder.mkdir(exist_ok=True)
    names["output"] = folder
    game = tiny_game(SimpleNamespace(**names), **settings)
    look_from = torch.ones(4, 8)
    names["train"](game, names["images"], look_from=look_from, resume=resume)
    return game


def saved_in(folder):
    return torch.load(folder / FILE, weights_only=True)


@pytest.fixture(scope="module")
def undisturbed(names, tmp_path_factory):
    """The folder of a game that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    play(names, folder)
    return folder


class Interrupter:
    """Counts the lines that run in the notebook's cells, in the helper and in its progress line,
    and at one of them raises what the stop button raises."""

    def __init__(self, at=None):
        self.at, self.lines, self.place = at, 0, None

    def __call__(self, frame, event, argument):
        file = frame.f_code.co_filename
        if not (file.startswith("notebook cell") or file in (helpers.__file__, tqdm.std.__file__)):
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


def draw_a_progress_line():
    with helpers.ProgressLine(total=2, file=open(os.devnull, "w")) as line:
        line.refresh()


def test_wherever_a_stop_falls_files_are_whole_and_resume_ends_bit_for_bit(
        names, undisturbed, tmp_path):
    with Interrupter().watching() as counter:
        play(names, tmp_path / "counted")
    places = set()
    for at in range(counter.lines // 30, counter.lines, counter.lines // 12):
        with Interrupter(at).watching() as stop, contextlib.suppress(KeyboardInterrupt):
            play(names, tmp_path / str(at))
        places.add(stop.place)
        assert torch.get_float32_matmul_precision() == "highest", stop.place
        another = threading.Thread(target=draw_a_progress_line, daemon=True)
        another.start()
        another.join(timeout=10)
        assert not another.is_alive(), f"a stop in {stop.place} leaves a lock taken"
        torch.randn(17)  # whatever happens in between
        play(names, tmp_path / str(at), resume=True)  # from a file that is whole, or there is none
        assert differences(saved_in(tmp_path / str(at)), saved_in(undisturbed)) == [], stop.place
    assert len(places) > 4 and None not in places


def write_half(path, content):
    """In place of Path.write_bytes: half of a checkpoint, and the end of this process."""
    with open(path, "wb") as file:
        file.write(content[:len(content) // 2])
    signal.raise_signal(signal.SIGKILL)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_run_killed_while_it_writes_leaves_one_file_more_and_resumes_bit_for_bit(
        names, undisturbed, tmp_path):
    killed = python(__file__, tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert saved_in(tmp_path)["turn"] == 6  # and not half of what the second epoch wrote
    assert [path.name for path in tmp_path.glob("*.part*")] == [f"{FILE}.part"]
    play(names, tmp_path, resume=True)
    assert list(tmp_path.glob("*.part*")) == []
    assert differences(saved_in(tmp_path), saved_in(undisturbed)) == []


def test_a_save_that_fails_is_told_and_the_next_epoch_saves(
        names, undisturbed, tmp_path, monkeypatch, capsys):
    replace, turns = os.replace, []

    def refuse_the_second(source, target):
        turns.append(saved_in(tmp_path)["turn"] if turns else 0)  # what stands in the old file
        if len(turns) == 2:
            raise PermissionError(f"{target} is open in another program")  # as Windows does
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse_the_second)
    play(names, tmp_path)
    assert f"Epoch 2 is not saved ({tmp_path / FILE} is open" in capsys.readouterr().out
    assert turns == [0, 6, 6] and differences(saved_in(tmp_path), saved_in(undisturbed)) == []


def test_a_new_game_names_what_it_will_replace_and_replaces_it_after_an_epoch(
        names, tmp_path, monkeypatch, capsys):
    play(names, tmp_path)
    finished = (tmp_path / FILE).read_bytes()
    assert "replaced" not in capsys.readouterr().out
    monkeypatch.setitem(names, "r1_penalty", None)  # so that turn 4 fails
    with pytest.raises(TypeError):
        play(names, tmp_path, seed=1)
    assert f"{FILE} of an earlier game is replaced" in capsys.readouterr().out
    assert (tmp_path / FILE).read_bytes() == finished
    monkeypatch.undo()
    play(names, tmp_path, seed=1, epochs=1)
    assert saved_in(tmp_path)["turn"] == 6


def test_another_setting_is_refused_by_name_and_both_values_and_more_epochs_are_played(
        names, undisturbed, tmp_path):
    before = (undisturbed / FILE).read_bytes()
    message = f"{FILE} was made with r1_weight = 1.0, which is now 2.0: .*resume=True"
    with pytest.raises(ValueError, match=message):
        play(names, undisturbed, resume=True, r1_weight=2.0)
    assert (undisturbed / FILE).read_bytes() == before
    play(names, tmp_path, epochs=2, decay=1e-9)  # the rate never falls
    play(names, tmp_path, epochs=4, decay=1e-9, resume=True)
    play(names, tmp_path / "whole", epochs=4, decay=1e-9)
    without = [{**saved_in(folder), "settings": None} for folder in (tmp_path, tmp_path / "whole")]
    assert differences(*without) == []


def test_a_loss_that_is_no_number_ends_the_game_and_the_last_checkpoint_is_intact(
        names, tmp_path, monkeypatch):
    update_average = names["update_average"]

    def poison(average, generator, turn):
        update_average(average, generator, turn)
        generator[0].bias.data[0] = torch.nan if turn == 70 else 0

    monkeypatch.setitem(names, "update_average", poison)
    with pytest.raises(FloatingPointError, match="before turn 100 .*'G's loss\": nan.*lower learn"):
        play(names, tmp_path, turns_per_epoch=66)
    whole = saved_in(tmp_path)
    assert whole["turn"] == 66
    assert all(value.isfinite().all() for value in flat(whole).values()
               if isinstance(value, torch.Tensor))


def test_a_seed_makes_the_same_game_again_and_another_seed_another(names, tmp_path):
    once, again, other = (play(names, tmp_path, epochs=1, seed=seed) for seed in (3, 3, 4))
    assert differences(once.average, again.average) == []
    assert not torch.equal(once.average[0].weight, other.average[0].weight)


def test_a_game_remembers_the_means_of_its_turns_and_a_drawing_of_each_epoch(names, tmp_path):
    game = play(names, tmp_path)
    assert [means["epoch"] for means in game.history] == [1, 2, 3]
    assert list(game.drawings) == [0, 1, 2, 3]
    assert torch.equal(game.drawings[3], helpers.generate(game.average, torch.ones(4, 8)))
    assert 0 < game.history[-1]["D(G(z))"] < 1 and (tmp_path / "mlp_epoch_03.png").exists()


if __name__ == "__main__":
    names_here = notebook_code()
    play(names_here, Path(sys.argv[1]), epochs=1)
    Path.write_bytes = write_half
    play(names_here, Path(sys.argv[1]), resume=True)  # until it saves the second epoch
