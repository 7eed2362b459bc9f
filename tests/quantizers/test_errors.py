from quantizers.errors import UsageError, unknown_choice


def test_unknown_choice_names_the_nearest_and_lists_all():
    error = unknown_choice("part", "xc7z2", ["xc7a35t", "xc7z020"])
    assert isinstance(error, UsageError)
    assert str(error) == "unknown part 'xc7z2' (did you mean 'xc7z020'?); expected one of: xc7a35t, xc7z020"
    assert (error.given, error.expected) == ("xc7z2", ["xc7z020", "xc7a35t"])


def test_unknown_choice_without_a_near_one():
    error = unknown_choice("part", "???", ["xc7a35t"])
    assert str(error) == "unknown part '???'; expected one of: xc7a35t"
