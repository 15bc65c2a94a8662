import re

import pytest

from tests.data import imagenet_archives
from tnt_jax.tools import prepare


def test_a_set_is_prepared_once_and_described(tmp_path, capsys):
    imagenet_archives.make_archives(tmp_path / "downloads" / "manual", images_per_synset=1, num_validation=3)
    arguments = ["imagenet2012", f"--directory={tmp_path}"]
    prepare.main(arguments)
    said = capsys.readouterr().out.splitlines()[-1]
    place = tmp_path / "imagenet2012" / "5.1.0"
    assert said == f"imagenet2012/5.1.0 is prepared in {place}: train 5, validation 3"
    written = {file: file.stat().st_mtime_ns for file in place.iterdir()}
    prepare.main(arguments)
    assert capsys.readouterr().out.splitlines() == [said]
    assert {file: file.stat().st_mtime_ns for file in place.iterdir()} == written


def test_digits_too(tmp_path, capsys):
    prepare.main(["digits", f"--directory={tmp_path}"])
    assert capsys.readouterr().out.splitlines()[-1].endswith(": train 1,437, test 360")


def test_a_folder_that_is_not_there_is_named_by_its_flag(tmp_path, capsys):
    with pytest.raises(SystemExit):
        prepare.main(["imagenet2012", f"--directory={tmp_path / 'nothing'}"])
    assert f"--directory={tmp_path / 'nothing'}: there is no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, message",
    [
        ("imagenet2012", r"archives must be fetched by hand.*ILSVRC2012_img_train\.tar.*tools\.prepare imagenet2012"),
        ("imagenet2021", "is not a tfds data set.*imagenet2012"),
    ],
)
def test_what_cannot_be_prepared_ends_with_the_fix(tmp_path, capsys, name, message):
    with pytest.raises(SystemExit) as stop:
        prepare.main([name, f"--directory={tmp_path}"])
    said = " ".join(capsys.readouterr().err.split())
    assert stop.value.code == 2
    assert re.search(message, said)
    assert not list(tmp_path.iterdir())
