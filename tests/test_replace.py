"""The block in torchvision's classifiers."""
import pytest
import torch
import torchvision
from torch import nn

from scnet_minimal import SCConv, SCNet, scnet50
from scnet_minimal.lab import sc_replace


def build(name):
    torch.manual_seed(0)
    options = {} if "googlenet" not in name else {"init_weights": False}
    return torchvision.models.get_model(name, weights=None, num_classes=10, **options)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d", "regnet_y_400mf"])
def test_a_network_keeps_its_size_within_a_percent_and_trains_a_step(name):
    model = build(name)
    before = parameters(model)
    report = sc_replace(model)
    assert (report.before, report.after) == (before, parameters(model))
    assert report.swapped and abs(report.after - before) < 0.01 * before
    assert sum(isinstance(m, SCConv) for m in model.modules()) == len(report.swapped)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    logits = model(torch.randn(2, 3, 64, 64))
    nn.functional.cross_entropy(logits, torch.tensor([1, 2])).backward()
    blocks = [p for m in model.modules() if isinstance(m, SCConv) for p in m.parameters()]
    assert logits.shape == (2, 10) and all(p.grad.isfinite().all() for p in blocks)
    assert any(p.grad.abs().sum() > 0 for p in blocks)
    optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.fixture
def on_meta():
    """Whatever the test builds has shapes and no values: quick."""
    with torch.device("meta"):
        yield


def test_vgg_keeps_its_size_within_a_percent(on_meta):
    model = build("vgg11_bn")
    report = sc_replace(model)
    assert len(report.swapped) == 4 and abs(report.after - report.before) < 0.01 * report.before
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 10)


def test_resnet50_becomes_scnet50_in_parameters_and_resnext_becomes_scnext(on_meta):
    resnet = torchvision.models.resnet50()
    sc_replace(resnet)
    assert parameters(resnet) == parameters(scnet50()) == 25_564_584
    resnext = torchvision.models.resnext50_32x4d()
    sc_replace(resnext)
    assert parameters(resnext) == parameters(SCNet((3, 4, 6, 3), groups=32, bottleneck_width=2))


def test_densenet_has_no_convolution_that_fits_and_stays_as_it_was():
    model = build("densenet121")
    state = {name: t.clone() for name, t in model.state_dict().items()}
    report = sc_replace(model)
    assert report.swapped == [] and set(report.left.values()) == {"not 3x3", "more or fewer channels out than in"}
    assert len(report.left) == sum(isinstance(m, nn.Conv2d) for m in model.modules())
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    assert str(report).strip().startswith("0 swapped")


def test_stride_dilation_and_groups_are_kept():
    model = nn.Sequential(nn.Conv2d(8, 8, 3, 2, padding=1), nn.Conv2d(8, 8, 3, padding=3, dilation=3),
                          nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False))
    before = [m.weight.numel() for m in model]
    assert sc_replace(model).swapped == ["0", "1", "2"]
    for block, weights, (stride, dilation, groups) in zip(model, before, [(2, 1, 1), (1, 3, 1), (1, 1, 4)]):
        assert block.k1[0].stride == block.k4[0].stride == (stride, stride)
        assert block.k1[0].dilation == block.k2[1].dilation == (dilation, dilation)
        assert block.k1[0].groups == block.k3[0].groups == groups
        convolutions = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
        assert sum(m.weight.numel() for m in convolutions) == weights and all(m.bias is None for m in convolutions)
    assert model(torch.randn(2, 8, 33, 21)).shape == (2, 8, 17, 11)


def test_the_norm_right_behind_goes_and_any_other_stays():
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8),
                          nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    sc_replace(model)
    assert [type(m).__name__ for m in model] == ["SCConv", "Identity", "ReLU", "BatchNorm2d", "SCConv", "ReLU"]


@pytest.mark.parametrize("conv, why", [
    (nn.Conv2d(8, 8, 5, padding=2), "not 3x3"),
    (nn.Conv2d(8, 16, 3, padding=1), "channels out"),
    (nn.Conv2d(7, 7, 3, padding=1), "half of its channels"),
    (nn.Conv2d(24, 24, 3, padding=1, groups=24), "depthwise"),
    (nn.Conv2d(24, 24, 3, padding=1, groups=8), "half of its channels"),
    (nn.Conv2d(8, 8, 3, (2, 1), padding=1), "another stride"),
    (nn.Conv2d(8, 8, 3), "padded"),
    (nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), "padded"),
])
def test_what_does_not_fit_is_left_and_the_report_says_why(conv, why):
    model = nn.Sequential(conv)
    report = sc_replace(model)
    assert model[0] is conv and why in report.left["0"] and why in str(report)


def test_blocks_take_the_mode_and_type_of_what_they_stand_for():
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1)).double().eval()
    sc_replace(model, pooling_r=2)
    assert model(torch.randn(1, 8, 6, 6, dtype=torch.float64)).dtype == torch.float64
    assert not model[0].training and model[0].k2[0].kernel_size == 2


@pytest.mark.parametrize("model", [SCNet((1, 1, 1, 1), widths=(8, 8, 8, 8)), SCConv(8)])
def test_blocks_that_are_calibrated_already_are_left_alone(model):
    report = sc_replace(model)
    assert report.swapped == [] and report.after == report.before
    assert "in a self-calibrated block already" in str(report)


@pytest.mark.parametrize("model", [nn.Sequential(nn.ReLU()), nn.Sequential(nn.Linear(2, 2)), nn.Identity()])
def test_a_model_without_convolutions_stays_and_the_report_says_so(model):
    report = sc_replace(model)
    assert (report.swapped, report.left, report.before) == ([], {}, report.after)
    assert str(report).strip().startswith("0 swapped")


def test_a_second_call_changes_nothing():
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    first, again = sc_replace(model), sc_replace(model)
    assert again.swapped == [] and again.after == first.after
