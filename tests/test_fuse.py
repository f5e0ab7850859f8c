"""fuse(): the same numbers from fewer steps, whatever the network, the size and the tool that runs it."""
import copy
import io
from functools import partial

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.resnet import Bottleneck

import scnet_minimal
from scnet_minimal import SCBottleneck, SCConv, SCNet, SelfCalibration, fuse

BUILDERS = ["scnet50", "scnet101", "scnet50_v1d", "scnet101_v1d"]
THIN = {"widths": (8, 16, 32, 64), "num_classes": 10}
V1D = {"stem_width": 4, "avg_down": True, "avd": True}


def lived_in(model: nn.Module) -> nn.Module:
    """The model in float64 and eval mode, its norms with scales, shifts and statistics as after some training."""
    random = torch.Generator().manual_seed(0)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None:
            for values, low, high in [(m.weight.data, 0.7, 1.3), (m.bias.data, -0.2, 0.2),
                                      (m.running_mean, -0.2, 0.2), (m.running_var, 0.5, 2)]:
                values.uniform_(low, high, generator=random)
    return model.double().eval()


def small(**kwargs) -> SCNet:
    return lived_in(SCNet((1, 2, 1, 1), **(THIN | kwargs)))


def pictures(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def assert_same(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """The fused copy of the model, whose outputs are those of the model to 1e-10 of the largest."""
    fused = fuse(model)
    with torch.no_grad():
        y = model(x)
        torch.testing.assert_close(fused(x), y, rtol=0, atol=1e-10 * y.abs().max().item())
    return fused


def count(model: nn.Module, kind: type) -> int:
    return sum(type(m) is kind for m in model.modules())


# --- the same outputs -----------------------------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_every_builder_gives_the_same_without_a_norm(name):
    model = lived_in(getattr(scnet_minimal, name)(**THIN))
    fused = assert_same(model, pictures(2, 3, 97, 65))
    assert count(fused, nn.BatchNorm2d) == 0
    assert count(fused, nn.Conv2d) == count(model, nn.Conv2d) - count(model, SCBottleneck)


@pytest.mark.slow
def test_scnet50_at_full_width_gives_the_same():
    assert_same(lived_in(scnet_minimal.scnet50()), pictures(1, 3, 64, 64))


@pytest.mark.parametrize("size", [(1, 1), (33, 7), (40, 111), (64, 64)])
@pytest.mark.parametrize("output_stride", [32, 16, 8])
@pytest.mark.parametrize("options", [{}, V1D], ids=["plain", "v1d"])
def test_sizes_and_output_strides_give_the_same(options, output_stride, size):
    assert_same(small(output_stride=output_stride, **options), pictures(2, 3, *size))


@pytest.mark.parametrize("build", [
    lambda: SCConv(16), lambda: SCConv(16, 2, stride=2, groups=4), lambda: SelfCalibration(16, dilation=3),
    lambda: SCBottleneck(16, 4), lambda: nn.Sequential(nn.Conv2d(16, 8, 3), nn.BatchNorm2d(8), SCConv(8)),
    lambda: nn.ModuleDict({"body": SCConv(16)})["body"]])
def test_blocks_give_the_same_by_themselves(build):
    assert count(assert_same(lived_in(build()), pictures(2, 16, 11, 14)), nn.BatchNorm2d) == 0


@pytest.mark.parametrize("build", [
    partial(SCNet, (1, 2, 1, 1), block=Bottleneck, bottleneck_width=64, **THIN),
    partial(SCNet, (1, 1, 1, 1), groups=4, bottleneck_width=16, **THIN),
    partial(torchvision.models.resnet18, num_classes=10),
    lambda: torchvision.models.mobilenet_v2(num_classes=10).features],
    ids=["plain twin", "groups", "resnet18", "mobilenet_v2"])
def test_other_networks_lose_their_norms_too(build):
    assert count(assert_same(lived_in(build()), pictures(1, 3, 40, 33)), nn.BatchNorm2d) == 0


def test_a_block_inside_a_model_that_nobody_can_trace_is_fused():
    class Picky(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = SCConv(4)

        def forward(self, x):
            return self.block(x) if x.sum() > 0 else x

    assert count(assert_same(lived_in(Picky()), pictures(1, 4, 8, 8).abs()), nn.BatchNorm2d) == 0


def test_fusing_twice_changes_nothing_more():
    once = fuse(small())
    assert [*fuse(once).state_dict()] == [*once.state_dict()]


# --- what has to stay -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("norm", [partial(nn.GroupNorm, 2), nn.Identity,
                                  partial(nn.BatchNorm2d, track_running_stats=False)],
                         ids=["group norm", "no norm", "batch norm without statistics"])
def test_norms_that_do_not_fold_stay(norm):
    model = small(norm_layer=norm)
    fused = assert_same(model, pictures(2, 3, 64, 64))
    kept = type(norm(2))
    assert kept is nn.Identity or count(fused, kept) == count(model, kept)


class PreActivation(nn.Module):
    """Registered conv, norm; run norm, conv."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.conv1(self.bn1(x).relu())


def test_a_norm_that_does_not_follow_a_convolution_stays():
    relu = nn.ReLU()                                                 # one module in two places
    model = nn.Sequential(relu, nn.Conv2d(4, 4, 3), relu, nn.BatchNorm2d(4), PreActivation())
    assert count(assert_same(lived_in(model), pictures(2, 4, 12, 12)), nn.BatchNorm2d) == 2


@pytest.mark.parametrize("module", [fuse.__module__, "scnet_minimal.scnet", "torchvision.models.resnet"])
def test_a_class_of_the_users_is_not_taken_for_ours_wherever_it_is_defined(module, monkeypatch):
    """As when this file is pasted into a notebook: fuse() and the user's classes then share one module, __main__."""
    monkeypatch.setattr(PreActivation, "__module__", module)
    assert count(assert_same(lived_in(PreActivation()), pictures(2, 4, 12, 12)), nn.BatchNorm2d) == 1


@pytest.mark.parametrize("base", [SCBottleneck, Bottleneck])
def test_a_subclass_that_may_run_its_children_in_another_order_keeps_its_norms(base):
    class NormLast(base):
        def forward(self, x):
            return self.bn3(super().forward(x))

    block = lived_in(NormLast(16, 4))
    assert isinstance(assert_same(block, pictures(1, 16, 9, 9)), NormLast)


def test_a_convolution_shared_by_two_norms_folds_into_two():
    conv = nn.Conv2d(4, 4, 3)
    model = lived_in(nn.Sequential(nn.Sequential(conv, nn.BatchNorm2d(4)), nn.Sequential(conv, nn.BatchNorm2d(4))))
    assert count(assert_same(model, pictures(2, 4, 12, 12)), nn.BatchNorm2d) == 0


def test_the_original_and_the_random_numbers_stay_as_they_are():
    model = small()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    fused = fuse(model)
    for p in fused.parameters():
        p.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters()) and not any(p.requires_grad for p in fused.parameters())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("part", ["", "layer2.0.scconv", "layer3.0.bn3"])
def test_training_mode_is_refused_with_a_reason(part):
    model = small()
    model.get_submodule(part).train()
    with pytest.raises(ValueError, match=r"eval\(\)"):
        fuse(model)


# --- what the field's tools ask of it -------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def fused() -> nn.Module:
    return fuse(small()).float()


def test_the_network_keeps_its_parts(fused):
    x = torch.randn(2, 3, 64, 64)
    last = create_feature_extractor(fused, {"layer4": "c5"})(x)["c5"]
    assert isinstance(fused, SCNet) and fused.num_features == 256 and not fused.training
    torch.testing.assert_close(last, fused.forward_features(x))


def test_the_picture_still_gets_its_gradient():
    model, x = small(), pictures(1, 3, 40, 40)
    gradients = [torch.autograd.grad(m(y).square().sum(), y)[0] for m in (model, fuse(model))
                 for y in [x.clone().requires_grad_()]]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_compiles_into_one_graph(fused):
    compiled = torch.compile(fused.layer2, fullgraph=True, backend="eager")
    for size in [(16, 16), (5, 20)]:
        x = torch.randn(2, 32, *size)
        torch.testing.assert_close(compiled(x), fused.layer2(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_export_goes_to_a_file_and_back_with_a_dynamic_batch(fused):
    dynamic = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(fused, (torch.randn(2, 3, 64, 64),), dynamic_shapes=dynamic)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for n in (1, 5):
        x = torch.randn(n, 3, 64, 64)
        torch.testing.assert_close(loaded(x), fused(x), rtol=1e-4, atol=1e-5)


def test_channels_last_gives_the_same_and_stays(fused):
    last, x = copy.deepcopy(fused).to(memory_format=torch.channels_last), torch.randn(2, 3, 64, 64)
    y = last.forward_features(x)                                     # the weights alone decide
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, fused.forward_features(x), rtol=1e-4, atol=1e-5)


def test_bfloat16_stays_near(fused):
    x = torch.randn(4, 3, 64, 64)
    y = copy.deepcopy(fused).bfloat16()(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert (y.float() - fused(x)).norm() < 0.05 * fused(x).norm()


def test_weights_of_a_fused_network_go_to_a_file_and_back(fused):
    other = fuse(SCNet((1, 2, 1, 1), **THIN).eval())
    other.load_state_dict(fused.state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(other(x), fused(x))
