"""`finetune tensorboard` as it is typed."""

import pytest


def test_it_needs_a_folder(typed, tmp_path):
    code, _, err = typed("tensorboard", tmp_path / "absent")
    assert code == 2
    assert "no such folder" in err


@pytest.mark.filterwarnings("ignore:html5lib:DeprecationWarning")  # that TensorBoard carries
def test_a_start_that_fails_is_one_message(typed, tmp_path, monkeypatch):
    from tensorboard import program

    def launch(self):
        raise program.TensorBoardServerException("could not bind to port 6006, it was already in use")

    monkeypatch.setattr(program.TensorBoard, "launch", launch)  # the real one starts a process before it looks
    code, out, err = typed("tensorboard", tmp_path)
    assert (code, out) == (5, "")
    assert "TensorBoard cannot start: could not bind to port 6006" in err
    assert "--port" in err
    assert len(err.splitlines()) == 2
