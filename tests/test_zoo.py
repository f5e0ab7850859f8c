import pytest
import torch
from torchvision.models import resnet50

from scnet_minimal.lab import nets


@pytest.mark.parametrize("name", ["scnet_toy", "resnet_toy", "resnet50_v1d", "mobilenet_v3_small", "googlenet"])
def test_a_network_by_its_name_gives_one_logit_per_class(name):
    assert nets.build(name, 7).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


def test_googlenet_trains_as_any_other_with_logits_alone():
    assert isinstance(nets.build("googlenet", 7).train()(torch.zeros(2, 3, 64, 64)), torch.Tensor)


def test_the_toy_twins_are_equal_in_parameters_within_a_percent():
    toy, twin = (sum(p.numel() for p in nets.build(name, 10).parameters()) for name in ("scnet_toy", "resnet_toy"))
    assert abs(toy - twin) < 0.01 * twin


def test_arguments_reach_the_builder():
    assert nets.build("scnet50", 2, in_chans=1).conv1.weight.shape[1] == 1


def test_every_name_is_known_once():
    assert len(set(nets.names())) == len(nets.names()) and {"scnet101_v1d", "resnet50"} < set(nets.names())
    assert nets.build("resnet50").state_dict().keys() == resnet50().state_dict().keys()


def test_a_misspelt_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="no network 'scnet5': did you mean scnet50"):
        nets.build("scnet5")
