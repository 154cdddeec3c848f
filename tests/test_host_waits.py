"""What the counter of waits between host and device sees."""

import pytest
import torch
from host_waits import DEVICE, DeviceTensor, count_host_waits, describe, on_device, on_host, put_on_device


def same(x):
    return x + torch.arange(3, device=x.device) + torch.full((3,), 2.0, device=x.device) + x.new_zeros(3)


@pytest.mark.parametrize(
    ("function", "reasons"),
    [
        (lambda x: x.sum().item(), ["values are read"]),
        (lambda x: bool((x > 0).all()), ["values are read"]),
        (lambda x: x.tolist(), ["values are read"]),
        (lambda x: x.nonzero(), ["values are read"]),
        (lambda x: torch.equal(x, x + 1), ["values are read"]),
        (lambda x: x[x > 1], ["a mask selects, whose values are read"]),
        (lambda x: x[[0, 2]], ["a tensor of numbers goes to the device"]),
        (lambda x: x[None][:, (0, 2)], ["a tensor of numbers goes to the device"]),
        (lambda x: x[torch.tensor([0, 2])], ["indices go to the device"]),
        (lambda x: x * torch.tensor([1.0, 2, 3], device=x.device), ["a tensor of numbers goes to the device"]),
        (lambda x: x * x.new_tensor([1.0, 2, 3]), ["a tensor of numbers goes to the device"]),
        (lambda x: x * torch.tensor([1.0, 2, 3]).to(x.device), ["a tensor goes to the device"]),
        (lambda x: x.cpu(), ["a tensor goes to the host"]),
        (lambda x: x.cpu().numpy(), ["a tensor goes to the host"]),
        (lambda x: torch.empty(3).copy_(x), ["a tensor goes to the host"]),
        (lambda x: x.repeat_interleave(x.long()), ["values are read"]),
        (same, []),
        (lambda x: x[1:] + x[torch.zeros(2, dtype=torch.long, device=x.device)], []),
        (lambda x: x.double().half() * 2 + torch.tensor(1.0), []),
        (lambda x: torch.tensor([1.0]).tolist() + [torch.ones(2).nonzero().sum().item()], []),
    ],
)
def test_waits_are_seen(function, reasons):
    values = torch.tensor([0.0, 1.0, 2.0])

    with count_host_waits() as waits:
        result = function(on_device(values))

    assert [wait.reason for wait in waits] == reasons
    assert all(wait.path == "tests/test_host_waits.py" and "lambda x" in wait.code for wait in waits)
    expected = function(values)
    result = on_host(result)
    assert torch.equal(result, expected) if isinstance(result, torch.Tensor) else repr(result) == repr(expected)


def test_inference_mode_is_entered():
    with count_host_waits() as waits, torch.inference_mode():
        result = on_device(torch.ones(3, 2)).view(6)[1:]

    assert result.shape == (5,)
    assert not waits


def test_tensors_of_both_places_do_not_mix():
    with count_host_waits(), pytest.raises(RuntimeError, match="on the host and on the device"):
        on_device(torch.ones(3)) + torch.ones(3)


def test_training_goes_on_as_on_the_host():
    losses = []
    for is_on_device in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
        inputs = torch.randn(5, 3)
        if is_on_device:
            put_on_device(model)
            inputs = on_device(inputs)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        with count_host_waits() as waits:
            for _ in range(3):
                loss = model(inputs).square().mean()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        assert not waits, describe(waits)
        losses.append(on_host(loss.detach()))

    assert loss.device == DEVICE
    assert isinstance(model[0].weight, DeviceTensor)
    assert torch.equal(*losses)
