"""Errors name parameters, and commands the flags that set them."""

import pickle

import pytest

from vf.types import UserError, naming_flags, nearest


def raised(error: UserError, *commands: dict[str, str]) -> str:
    """The sentence that comes out of commands, the innermost first."""

    def run(commands: tuple[dict[str, str], ...]) -> None:
        if not commands:
            raise error
        with naming_flags(commands[-1]):
            run(commands[:-1])

    with pytest.raises(UserError) as caught:
        run(commands)
    return str(caught.value)


def test_a_command_names_the_flag_of_the_parameter_that_is_to_be_changed():
    error = UserError("no split 'dev': known are train, test", "split")
    assert raised(error) == "no split 'dev': known are train, test"
    assert raised(error, {"split": "--split", "fps": "--fps"}) == "no split 'dev': known are train, test (--split)"
    assert raised(error, {"fps": "--fps"}) == "no split 'dev': known are train, test"
    assert raised(UserError("no clips"), {"split": "--split"}) == "no clips"


def test_the_innermost_command_that_has_a_flag_names_it():
    error = UserError("it does not exist", "source")
    assert (
        raised(error, {"split": "--split"}, {"source": "--real"}, {"source": "--data"}) == "it does not exist (--real)"
    )


def test_a_slip_is_answered_by_the_nearest_word_or_by_all():
    assert nearest("foldr", ["webvid", "folder"]) == "did you mean folder?"
    assert nearest("x", ["webvid", "folder"]) == "known are folder, webvid"


def test_an_error_of_another_process_keeps_its_parameter():
    error = pickle.loads(pickle.dumps(UserError("no room", "out")))
    assert (str(error), error.parameter) == ("no room", "out")
