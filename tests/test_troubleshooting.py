"""The page of troubleshooting quotes the code's own sentences, and has all of them."""

import ast

import pytest

from tests import messages


def test_every_sentence_that_is_explained_is_one_of_the_code():
    code = messages.literals()
    quoted = list(messages.quoted())
    assert len(quoted) > 20
    assert [text for text in quoted if not any(messages.matches(text, other) for other in code)] == []


def test_every_sentence_of_the_code_is_on_the_page():
    written = messages.PAGE.read_text().partition(messages.BEGIN)[2]
    assert messages.BEGIN + written == messages.appendix(), "run `python -m tests.messages`"


@pytest.mark.parametrize(
    ("source", "template"),
    [
        ("'plain'", "plain"),
        ("f'{a} is {b!r}: ' 'take {c}'", "... is ...: take {c}"),
        ("f'{a}{b} left'", "... left"),
        ("'%s of %.0f s, 100%%'", "... of ... s, 100%"),
        ("f'{counted(len(a), \"clip\")} of {b}'", "... clips of ..."),
        ("'one ' + f'{a} two'", "one ... two"),
        ("str(error)", "..."),
    ],
)
def test_what_is_filled_in_is_left_open(source, template):
    assert messages.template(ast.parse(source, mode="eval").body) == template


def test_a_quotation_may_leave_out_and_not_change():
    code = "no checkpoint in ...: train first, or give the run's folder"
    assert messages.matches("no checkpoint in ...: train first", code)
    assert messages.matches("no checkpoint ... folder", code)
    assert not messages.matches("no checkpoint in ...: train last", code)
    assert not messages.matches("train first ... no checkpoint", code)
