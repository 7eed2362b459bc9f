import torch
from torch import nn

from quantizers.recording import Entry, Exit, Operation, record, storage_key, tensors


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x):
        return self.linear(x).add_(1.0)


def test_events_come_in_order_with_the_innermost_module():
    recording = record(Net(), torch.ones(4, 3))
    shown = [
        f"{event.module}:{event.name}"
        if isinstance(event, Operation)
        else f"{'>' if isinstance(event, Entry) else '<'}{event.module}"
        for event in recording.events
    ]
    assert shown == [">", ">linear", "linear:t", "linear:addmm", "<linear", ":add", "<"]


def test_arguments_by_name_with_defaults():
    recording = record(Net(), torch.ones(4, 3))
    add = recording.operations[-1]
    assert add.argument("other") == 1.0
    assert add.argument("alpha") == 1
    assert add.argument("no such argument") is None


def test_written_tensors():
    product, add = record(Net(), torch.ones(4, 3)).operations[1:]
    assert product.written == []
    (written,) = add.written
    assert storage_key(written) == storage_key(product.result)


def test_hooks_are_gone_afterwards():
    net = Net()
    record(net, torch.ones(1, 3))
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())


def test_calls_and_outputs():
    recording = record(Net(), torch.ones(4, 3))
    (call,) = recording.calls("linear")
    assert call.inputs[0].shape == (4, 3)
    (end,) = [event for event in recording.events if isinstance(event, Exit) and event.module == "linear"]
    assert end.outputs[0].shape == (4, 2)
    assert storage_key(recording.output) == storage_key(end.outputs[0])


def test_nested_tensors_are_found():
    a, b, c = torch.ones(1), torch.ones(2), torch.ones(3)
    assert [t.numel() for t in tensors((a, [b, {"c": c, "n": 1}], None))] == [1, 2, 3]
