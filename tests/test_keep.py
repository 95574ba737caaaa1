"""Stop, kill and resume: nothing is lost, nothing half-written, nothing wrongly continued."""

import contextlib
import os
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch
import tqdm.std
from conftest import differences, flat
from notebook_code import notebook_code, tiny_game

import gan_helpers as helpers

FILE = "mlp_checkpoint.pt"


def play(names, folder, resume=False, **settings):
    """Play the notebook's way, two tiny players; returns the game."""
    folder.mkdir(exist_ok=True)
    names["output"] = folder
    game = tiny_game(names, **settings)
    names["train"](game, names["images"], look_from=torch.ones(4, 8), resume=resume)
    return game


def saved_in(folder):
    return torch.load(folder / FILE, weights_only=True)


@pytest.fixture(scope="module")
def names():
    return notebook_code()


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


def show_a_progress_line():
    helpers.ProgressLine(total=1, file=sys.stdout).close()


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
        another = threading.Thread(target=show_a_progress_line, daemon=True)
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
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_run_killed_while_it_writes_leaves_one_file_more_and_resumes_bit_for_bit(
        names, undisturbed, tmp_path):
    training = helpers.Training(play(names, tmp_path, epochs=1), tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    child = os.fork()
    if child == 0:
        try:
            Path.write_bytes = write_half
            training.save()
        finally:
            os._exit(1)  # never reached
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (tmp_path / FILE).read_bytes() == whole
    assert [path.name for path in tmp_path.glob("*.part*")] == [f"{FILE}.part"]
    play(names, tmp_path, resume=True)
    assert list(tmp_path.glob("*.part*")) == []
    assert differences(saved_in(tmp_path), saved_in(undisturbed)) == []


def test_a_save_that_fails_is_told_and_the_next_epoch_saves(
        names, undisturbed, tmp_path, monkeypatch, capsys):
    replace, turns_on_disk = os.replace, []

    def refuse_the_second(source, target):
        turns_on_disk.append(target.exists() and saved_in(tmp_path)["turn"])
        if len(turns_on_disk) == 2:
            raise PermissionError(f"{target} is open in another program")  # as Windows does
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse_the_second)
    play(names, tmp_path)
    assert f"Epoch 2 is not saved ({tmp_path / FILE} is open" in capsys.readouterr().out
    assert turns_on_disk == [False, 6, 6]
    assert differences(saved_in(tmp_path), saved_in(undisturbed)) == []


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
    message = f"{FILE} was made with r1_weight = 1.0, which is now 2.0: .*resume=True"
    with pytest.raises(ValueError, match=message):
        play(names, undisturbed, resume=True, r1_weight=2.0)
    play(names, tmp_path, epochs=2)  # the rate begins to fall in the last turn
    play(names, tmp_path, epochs=3, resume=True)
    assert saved_in(tmp_path)["turn"] == 18


def test_a_loss_that_is_no_number_ends_the_game_and_the_last_checkpoint_is_intact(
        names, tmp_path, monkeypatch):
    update_average = names["update_average"]

    def poison(average, generator, turn):
        update_average(average, generator, turn)
        generator[0].bias.data[0] = torch.nan if turn == 70 else 0

    monkeypatch.setitem(names, "update_average", poison)
    with pytest.raises(FloatingPointError, match="before turn 100 .* lower learning_rate"):
        play(names, tmp_path, turns_per_epoch=66)
    kept = flat(saved_in(tmp_path))
    assert kept[".turn"] == 66 and all(value.isfinite().all() for value in kept.values()
                                       if isinstance(value, torch.Tensor))


def test_a_seed_makes_the_same_game_again_and_the_history_has_its_means(names, tmp_path):
    once, again, other = (play(names, tmp_path, seed=seed) for seed in (3, 3, 4))
    assert differences(once.average, again.average) == []
    assert not torch.equal(once.average[0].weight, other.average[0].weight)
    assert [means["epoch"] for means in once.history] == [1, 2, 3]
    assert 0 < once.history[-1]["D(G(z))"] < 1 and list(once.drawings) == [0, 1, 2, 3]
