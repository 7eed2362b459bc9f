import numpy as np
from amaranth.hdl import signed
from amaranth.lib import data
from amaranth.sim import Simulator

from hw.kv_cache.lane_table import LaneTable, table_rows

LAYOUT = {"value": signed(5), "flag": 1}
VALUES = np.array([3, -16, 15, -1, 0, 7])
FLAGS = np.array([1, 0, 0, 1, 1, 0])


def test_rows_hold_the_fields_of_their_lanes_the_first_lowest():
    rows = table_rows({"value": VALUES, "flag": FLAGS}, LAYOUT, lanes=2)
    fields = [(value & 31) | flag << 5 for value, flag in zip(VALUES.tolist(), FLAGS.tolist(), strict=True)]
    assert rows == [low | high << 6 for low, high in zip(fields[::2], fields[1::2], strict=True)]


def rows_of(table, rows, *, count):
    """The fields of each word, where words pause now and then."""
    found = []

    async def bench(ctx):
        if rows is not None:
            for address, word in enumerate(rows):
                ctx.set(table.write, 1)
                ctx.set(table.address, address)
                ctx.set(table.word, word)
                await ctx.tick()
            ctx.set(table.write, 0)
        for word in range(count):
            ctx.set(table.advance, 0)
            for _ in range(word % 3):
                await ctx.tick()
            ctx.set(table.advance, 1)
            await ctx.tick()
            found.extend((ctx.get(field.value), ctx.get(field.flag)) for field in table.row)

    simulator = Simulator(table)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return found


def test_constant_and_loaded_tables_go_round_with_the_words():
    rows = table_rows({"value": VALUES, "flag": FLAGS}, LAYOUT, lanes=2)
    field = data.StructLayout(LAYOUT)
    expected = list(zip(VALUES.tolist(), FLAGS.tolist(), strict=True))
    constant = LaneTable(field=field, lanes=2, depth=3, rows=rows)
    assert constant.width == 12
    assert rows_of(constant, None, count=6) == 2 * expected
    assert rows_of(LaneTable(field=field, lanes=2, depth=3), rows, count=6) == 2 * expected
