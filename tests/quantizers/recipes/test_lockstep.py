import gc
import random
import threading
import time
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

from quantizers.prepare import prepare
from quantizers.recipes import Recipe, quantize_by
from quantizers.recipes.gptq import Gptq
from quantizers.recipes.lockstep import LockStep, WalkError
from quantizers.recipes.smoothing import ChannelDivision
from tests.quantizers.recipes.layer_problems import generator, settings


def network():
    torch.manual_seed(51)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(16, 3)
    )


def images():
    return torch.randn(32, 2, 4, 4, generator=generator(52))


def waiting_threads():
    return [thread for thread in threading.enumerate() if thread.name == "lockstep"]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert waiting_threads() == []


def test_an_unknown_layer_leaves_no_hook():
    model = network()
    with pytest.raises(AttributeError):
        LockStep(model, ["0", "nowhere"], [images()])
    assert not model[0]._forward_pre_hooks


class TestResults:
    @pytest.mark.parametrize("recipe", ["gptq", "gpfq", "qronos + bias_correction(inputs='quantized')"])
    @pytest.mark.parametrize("name", ["int4", "e2m1"])
    def test_do_not_depend_on_the_size_of_batches(self, name, recipe):
        prepared = prepare(network(), [images()])
        wanted = quantize_by(prepared, settings(name), Recipe.parse(recipe)).state_dict()
        for size in (16, 5, 1):
            # The same scales: only the walk sees the other batches.
            other = replace(prepared, batches=images().split(size))
            found = quantize_by(other, settings(name), Recipe.parse(recipe)).state_dict()
            for key, value in wanted.items():
                torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5, msg=key)

    def test_do_not_depend_on_timing(self):
        class Slow(nn.Module):
            def __init__(self, seed):
                super().__init__()
                self.random = random.Random(seed)

            def forward(self, x):
                time.sleep(self.random.random() / 500)
                return x

        found = []
        for seed in (1, 2):
            model = nn.Sequential(Slow(seed), *network())
            prepared = prepare(model, images().split(4))
            found.append(quantize_by(prepared, settings("e2m1"), Recipe.parse("gptq")).state_dict())
        assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])

    def test_inputs_are_those_of_an_ordinary_forward_pass(self):
        model, batches = network(), images().split(8)
        with LockStep(model, ["0", "2", "4"], batches) as walk, torch.no_grad():
            for name, before in (("0", 0), ("2", 2), ("4", 4)):
                found, inputs = walk.advance()
                assert found == name
                for actual, batch in zip(inputs, batches, strict=True):
                    assert torch.equal(actual, model[:before](batch))
            assert walk.advance() is None
            assert walk.advance() is None
        assert not any(module._forward_pre_hooks for module in model.modules())

    def test_later_layers_see_what_a_layer_became(self):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        with LockStep(model, ["0", "1"], [torch.ones(1, 2)] * 2) as walk, torch.no_grad():
            walk.advance()
            model[0].weight.fill_(3)
            model[0].bias.zero_()
            assert [x.tolist() for x in walk.advance()[1]] == [[[6.0, 6.0]]] * 2

    def test_a_layer_that_runs_twice_is_waited_for_once(self):
        shared = nn.Linear(3, 3)
        with LockStep(nn.Sequential(shared, nn.ReLU(), shared), ["0"], [torch.ones(1, 3)]) as walk:
            assert walk.advance()[0] == "0"
            assert walk.advance() is None

    def test_passes_outside_the_walk_are_not_stopped(self):
        model = network()
        with LockStep(model, ["0", "2"], [images()]) as walk:
            walk.advance()
            assert model(images()).shape == (32, 3)

    def test_gradients_are_not_recorded(self):
        with LockStep(network(), ["0", "2"], [images()]) as walk:
            walk.advance()
            assert not any(x.requires_grad for x in walk.advance()[1])


class TestPeak:
    def test_one_batch_runs_at_a_time(self):
        class Busy(nn.Module):
            running, most = 0, 0

            def forward(self, x):
                Busy.running += 1
                Busy.most = max(Busy.most, Busy.running)
                time.sleep(0.002)
                Busy.running -= 1
                return x

        model = nn.Sequential(Busy(), nn.Linear(2, 2), Busy(), nn.Linear(2, 2))
        with LockStep(model, ["1", "3"], [torch.ones(1, 2)] * 8) as walk:
            while walk.advance():
                assert len(waiting_threads()) == 8
        assert Busy.most == 1

    def test_a_waiting_batch_holds_the_input_of_one_layer(self):
        """Of 4 batches and 5 layers, 4 inputs are alive between layers, and one more while a layer runs."""
        alive, most = weakref.WeakSet(), []

        class Watched(nn.Module):
            def forward(self, x):
                y = x + 1
                alive.add(y)
                most.append(len(alive))
                return y

        layers = [module for _ in range(5) for module in (Watched(), nn.Linear(3, 3))]
        model = nn.Sequential(*layers)
        gc.disable()
        try:
            with LockStep(model, [str(i) for i in range(1, 10, 2)], [torch.ones(2, 3)] * 4) as walk:
                for _ in range(5):
                    name, inputs = walk.advance()
                    del inputs
                    assert len(alive) == 4, name
        finally:
            gc.enable()
        assert max(most) <= 5

    @pytest.mark.parametrize(
        "cheap", [nn.ConstantPad2d(3, 0.0), ChannelDivision(torch.full((2,), 2.0), axis=1)]
    )
    def test_what_is_cheap_is_done_after_waiting(self, cheap):
        calls = []
        cheap.register_forward_pre_hook(lambda *_: calls.append(1))
        model = nn.Sequential(nn.ReLU(), nn.Sequential(cheap, nn.Conv2d(2, 2, 3)))
        with LockStep(model, ["1.1"], [images()]) as walk:
            name, inputs = walk.advance()
            assert (name, calls) == ("1.1", [])
            assert torch.equal(next(inputs), cheap(images().relu()))


class TestFailures:
    def test_model_that_fails_on_one_batch(self):
        class Picky(nn.Module):
            def forward(self, x):
                if x.shape[0] == 3:
                    msg = "three is too few"
                    raise ValueError(msg)
                return x

        model = nn.Sequential(nn.Linear(2, 2), Picky(), nn.Linear(2, 2))
        with LockStep(model, ["0", "2"], [torch.ones(4, 2), torch.ones(3, 2), torch.ones(4, 2)]) as walk:
            assert walk.advance()[0] == "0"
            with pytest.raises(WalkError) as error:
                walk.advance()
        assert str(error.value) == "the model fails on a calibration batch: three is too few"
        assert isinstance(error.value.__cause__, ValueError)

    def test_batches_that_take_different_ways(self):
        class Fork(nn.Module):
            def __init__(self):
                super().__init__()
                self.left, self.right = nn.Linear(2, 2), nn.Linear(2, 2)

            def forward(self, x):
                return self.left(x) if x.sum() > 0 else self.right(x)

        with (
            LockStep(Fork(), ["left", "right"], [torch.ones(1, 2), -torch.ones(1, 2)]) as walk,
            pytest.raises(WalkError) as error,
        ):
            walk.advance()
        assert str(error.value) == (
            "the model takes different ways for different inputs: batches are before left and right"
        )

    def test_a_step_that_fails(self, monkeypatch):
        """Its own exception comes out, and no thread stays."""

        def fail(_, problem):
            raise ArithmeticError(problem.name)

        monkeypatch.setattr(Gptq, "solve", fail)
        prepared = prepare(network(), images().split(8))
        with pytest.raises(ArithmeticError, match="^0$"):
            quantize_by(prepared, settings("int4"), Recipe.parse("gptq"))
        assert not any(module._forward_pre_hooks for module in prepared.model.modules())

    def test_a_walk_left_half_way(self):
        model = network()
        with LockStep(model, ["0", "2", "4"], images().split(4)) as walk:
            walk.advance()
            assert len(waiting_threads()) == 8
        assert waiting_threads() == []
        assert not any(module._forward_pre_hooks for module in model.modules())

    def test_a_walk_never_begun(self):
        with LockStep(network(), ["0"], images().split(4)):
            assert waiting_threads() == []
