from reports.style import marks_of


def test_formats_keep_their_marks_and_designs_take_turns():
    formats = marks_of(["mx", "integer"])
    assert formats["integer"] == marks_of(["integer", "ternary"])["integer"]
    names = [f"design {letter}" for letter in "abcdefgh"]
    designs = marks_of(names)
    assert list(designs) == names
    assert len({mark.colour for mark in designs.values()}) == 8
    assert len({mark.plotly for mark in designs.values()}) == 8


def test_many_designs_take_other_shapes_when_colours_come_again():
    marks = marks_of([f"design {number:02}" for number in range(20)])
    assert len({(mark.colour, mark.plotly) for mark in marks.values()}) == 20
    assert len({(mark.colour, mark.matplotlib) for mark in marks.values()}) == 20
    assert marks["design 08"].colour == marks["design 00"].colour
