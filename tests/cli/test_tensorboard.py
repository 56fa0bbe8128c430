"""`finetune tensorboard` as it is typed."""


def test_it_needs_a_folder(typed, tmp_path):
    code, _, err = typed("tensorboard", tmp_path / "absent")
    assert code == 2
    assert "no such folder" in err
