import pickle

import pytest

from mammoray import errors

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.MammorayError)]


@pytest.mark.parametrize("kind", KINDS)
def test_errors_survive_pickling_with_all_that_they_say(kind: type[errors.MammorayError]) -> None:
    error = kind("here", "this", "that", "Do so.")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert copy.args == error.args
    assert str(copy) == "here: expected this, found that. Do so."


def test_the_tree_in_the_docstring_names_every_error() -> None:
    assert errors.__doc__ is not None
    assert all(kind.__name__ in errors.__doc__ for kind in KINDS)
