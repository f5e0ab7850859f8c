"""Counting: costs against published and torchvision's figures, receptive fields counted against measured."""
import golden
import pytest
import torch
import torchvision
from torch import nn

import scnet_minimal
from scnet_minimal.lab.count import cost, measured_field, receptive_field, sides

OFFICIAL = golden.load("official_scnet")


@pytest.mark.parametrize("name", OFFICIAL)
def test_parameters_and_multiply_adds_of_the_four_networks(name):
    found = cost(getattr(scnet_minimal, name)(), 3, 224, 224)
    assert found.parameters == OFFICIAL[name]["parameters"]
    assert found.multiply_adds == OFFICIAL[name]["multiply_adds_224"]


@pytest.mark.parametrize("name, giga", [("scnet50", 7.9), ("scnet50_v1d", 9.4), ("scnet101", 14.4)])
def test_flops_counted_the_published_way_are_the_published_ones(name, giga):
    flops = cost(getattr(scnet_minimal, name)(), 3, 224, 224).published_flops
    assert round(flops / 1e9, 1) == giga


@pytest.mark.parametrize("name, parameters, multiply_adds", [
    ("resnet50", 25_557_032, 4_089_184_256), ("resnext50_32x4d", 25_028_904, 4_230_479_872)])
def test_torchvision_networks_cost_what_torchvision_says(name, parameters, multiply_adds):
    assert cost(getattr(torchvision.models, name)(), 3, 224, 224)[:2] == (parameters, multiply_adds)


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


def test_nothing_seen_has_no_sides():
    assert sides(torch.zeros(4, 4, dtype=torch.bool)) == (0, 0)
