"""The Ghost module against the authors' code (golden numbers)."""
import golden
import pytest
import torch
from torch import nn

from scnet_minimal.lab.study.ghost import GhostModule


@pytest.mark.parametrize("reference", golden.load("official_ghost_module"), ids=lambda r: str(r["args"]))
def test_module_equals_the_official_code(reference):
    module = golden.fill(GhostModule(**reference["args"]))
    assert list(golden.shapes(module).items()) == list(reference["state_dict"].items())
    assert golden.parameters(module) == reference["parameters"]
    with torch.inference_mode():
        y = module(golden.picture(*reference["input"]))
    assert list(y.shape) == reference["output"]
    assert golden.close(y.norm(), reference["norm"]) and golden.close(y.flatten()[:4], reference["first4"])


def test_ratio_one_is_an_ordinary_convolution():
    module = GhostModule(4, 6, kernel_size=3, ratio=1)
    assert [type(m) for m in module.modules()][1:] == [nn.Sequential, nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert module(torch.randn(2, 4, 5, 5)).shape == (2, 6, 5, 5)


@pytest.mark.parametrize("wrong", [{"kernel_size": 2}, {"dw_size": 4}, {"ratio": 0}, {"oup": 0}])
def test_bad_arguments_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)) + "="):
        GhostModule(**{"inp": 4, "oup": 8, **wrong})
