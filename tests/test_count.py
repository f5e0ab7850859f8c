"""Counting: costs against published and torchvision's figures, receptive fields counted against measured."""
import golden
import pytest
import torch
import torchvision
from torch import nn

import scnet_minimal
from scnet_minimal.lab.study.count import cost, measured_field, receptive_field, sides

OFFICIAL = golden.load("official_scnet")


def shapes_of(build) -> nn.Module:
    """A network without values: built on the meta device, in no time."""
    with torch.device("meta"):
        return build()


@pytest.mark.slow
@pytest.mark.parametrize("name, published_giga_flops", [
    ("scnet50", 7.9), ("scnet50_v1d", 9.4), ("scnet101", 14.4), ("scnet101_v1d", None)])
def test_the_four_networks_cost_what_their_authors_code_does_and_what_they_published(name, published_giga_flops):
    found = cost(shapes_of(getattr(scnet_minimal, name)), 3, 224, 224)
    assert found.parameters == OFFICIAL[name]["parameters"]
    assert found.multiply_adds == OFFICIAL[name]["multiply_adds_224"]
    assert published_giga_flops in (None, round(found.published_flops / 1e9, 1))


@pytest.mark.parametrize("name, parameters, multiply_adds", [
    ("resnet50", 25_557_032, 4_089_184_256), ("resnext50_32x4d", 25_028_904, 4_230_479_872)])
def test_torchvision_networks_cost_what_torchvision_says(name, parameters, multiply_adds):
    assert cost(shapes_of(getattr(torchvision.models, name)), 3, 224, 224)[:2] == (parameters, multiply_adds)


def test_counting_copies_no_weight_from_the_device_that_holds_it(monkeypatch):
    model = scnet_minimal.fuse(scnet_minimal.scnet50(widths=(4, 8, 16, 32)).eval())
    monkeypatch.setattr(nn.Parameter, "__deepcopy__", lambda *args: pytest.fail("a weight was copied"))
    monkeypatch.setattr(torch.Tensor, "__deepcopy__", lambda *args: pytest.fail("a buffer was copied"))
    assert cost(model, 3, 64, 64).multiply_adds > 0


def test_counting_takes_modules_of_any_precision():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    expected = cost(model, 3, 8, 8)
    assert cost(model.half(), 3, 8, 8) == cost(model.double(), 3, 8, 8) == expected == (402, 4176, 0)


def test_counting_leaves_the_module_alone():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    cost(module, 3, 8, 8)
    assert module.training and module[0].weight.device.type == "cpu" and not module[1]._forward_hooks


@pytest.mark.parametrize("layers", [
    [(3, 1, 1)], [(3, 1, 1), (3, 1, 1)], [(3, 1, 4)], [(7, 2, 1), (3, 2, 1), (3, 1, 1)], [(4, 4, 1), (3, 1, 1)]])
def test_counted_field_is_the_measured_one(layers):
    net = nn.Sequential(*[nn.Conv2d(2, 2, k, s, dilation=d) for k, s, d in layers])
    assert sides(measured_field(net, 2)) == (receptive_field(layers),) * 2


def test_dilated_field_has_holes():
    assert int(measured_field(nn.Conv2d(1, 1, 3, dilation=4), 1).sum()) == 9


def test_a_relu_at_zero_hides_the_field_unless_looked_through():
    net = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Sequential(nn.ReLU()), nn.Conv2d(2, 2, 3))
    nn.init.constant_(net[0].bias, -1000)
    assert sides(measured_field(net, 2)) == (0, 0)
    assert sides(measured_field(net, 2, through_relus=True)) == (5, 5)
    assert isinstance(net[1][0], nn.ReLU)


def test_field_of_some_maps_only():
    net = nn.Conv2d(2, 2, 3, groups=2)
    nn.init.zeros_(net.weight[:1])
    assert [int(measured_field(net, 2, maps=slice(i, i + 1)).sum()) for i in (0, 1)] == [0, 9]


def test_nothing_seen_has_no_sides():
    assert sides(torch.zeros(4, 4, dtype=torch.bool)) == (0, 0)
