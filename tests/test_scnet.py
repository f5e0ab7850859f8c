"""What people do with SCConv and SCNet: pass them wrong things, compile, export, cut, copy and carry them elsewhere."""
import copy
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import golden
import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.resnet import Bottleneck

import scnet_minimal
from scnet_minimal import SCBottleneck, SCConv, SCNet, SelfCalibration, scnet50, scnet50_v1d, scnet101

BUILDERS = ["scnet50", "scnet101", "scnet50_v1d", "scnet101_v1d"]


def small(**kwargs) -> SCNet:
    return SCNet((1, 1, 1, 1), **{"num_classes": 10, "widths": (8, 16, 32, 64), **kwargs})


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


# --- shapes ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("stride, dilation, groups", [(1, 1, 1), (2, 1, 1), (1, 3, 2), (2, 2, 4)])
def test_block_has_the_shape_of_the_3x3_that_it_replaces(stride, dilation, groups):
    conv = nn.Conv2d(16, 16, 3, stride, dilation, dilation, groups)
    x = torch.randn(2, 16, 13, 18)
    assert SCConv(16, stride=stride, dilation=dilation, groups=groups)(x).shape == conv(x).shape


def test_block_has_the_weights_of_the_3x3_that_it_replaces():
    convolutions = [m for m in SCConv(64).modules() if isinstance(m, nn.Conv2d)]
    assert sum(m.weight.numel() for m in convolutions) == nn.Conv2d(64, 64, 3, bias=False).weight.numel()


@pytest.mark.parametrize("size", [(32, 32), (1, 1), (40, 300), (33, 7)])
def test_pictures_smaller_than_the_official_minimum_work(size):
    assert small().eval()(torch.randn(1, 3, *size)).shape == (1, 10)


@pytest.mark.parametrize("height, width", [(3, 9), (2, 2), (1, 7), (4, 4)])
def test_pooling_window_shrinks_to_the_map_on_each_axis(height, width):
    x = torch.randn(1, 2, height, width, dtype=torch.float64)
    window = (min(4, height), min(4, width))
    assert torch.equal(SelfCalibration(2).k2[0](x), nn.functional.avg_pool2d(x, window, window))


@pytest.mark.parametrize("output_stride", [32, 16, 8])
@pytest.mark.parametrize("builder", [scnet50, scnet50_v1d])
def test_output_stride_is_the_stride_of_the_last_map(builder, output_stride):
    model = builder(output_stride=output_stride).eval()
    with torch.inference_mode():
        last = model.forward_features(torch.randn(1, 3, 64, 96))
    assert last.shape == (1, 2048, 64 // output_stride, 96 // output_stride)


def test_no_classes_gives_the_pooled_features():
    assert small(num_classes=0).eval()(torch.randn(1, 3, 64, 64)).shape == (1, 256)


def test_channels_classes_and_widths_are_what_was_asked_for():
    model = SCNet((1, 2, 1, 1), 7, in_chans=5, widths=(4, 8, 12, 16), bottleneck_width=32)
    assert model.eval()(torch.randn(3, 5, 40, 40)).shape == (3, 7)
    assert [len(stage) for stage in (model.layer1, model.layer2, model.layer3, model.layer4)] == [1, 2, 1, 1]
    assert model.inplanes == model.num_features == 64


# --- the plain twin -------------------------------------------------------------------------------------------------

def test_plain_twin_is_torchvisions_resnet():
    twin = golden.fill(SCNet((3, 4, 6, 3), block=Bottleneck, bottleneck_width=64))
    resnet = golden.fill(torchvision.models.resnet50())
    assert golden.shapes(twin) == golden.shapes(resnet)
    x = golden.picture(1, 3, 97, 65)
    with torch.inference_mode():
        assert torch.equal(twin(x), resnet(x))


def test_plain_twin_dilates_like_torchvisions_resnet():
    twin = golden.fill(SCNet((3, 4, 6, 3), block=Bottleneck, bottleneck_width=64, output_stride=8))
    resnet = golden.fill(torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True]))
    x = golden.picture(1, 3, 97, 65)
    with torch.inference_mode():
        assert torch.equal(twin(x), resnet(x))


def test_scnet_and_its_plain_twin_differ_by_less_than_one_percent():
    sc, plain = golden.parameters(small()), golden.parameters(small(block=Bottleneck, bottleneck_width=64))
    assert abs(sc - plain) / plain < 0.01


# --- what the field's tools ask of a network ------------------------------------------------------------------------

def test_children_are_named_as_in_torchvision():
    names = [name for name, _ in torchvision.models.resnet50().named_children()]
    for builder in BUILDERS:
        assert [name for name, _ in getattr(scnet_minimal, builder)().named_children()] == names


@pytest.mark.parametrize("options", [{}, {"output_stride": 8, "stem_width": 8, "avg_down": True, "avd": True}])
def test_compiles_into_one_graph(x, options):
    model = small(**options).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for size in [(64, 64), (17, 80)]:
        y = x[:, :, :1, :1] * torch.ones(1, 1, *size)
        torch.testing.assert_close(compiled(y), model(y), rtol=1e-4, atol=1e-4)


def test_training_step_compiles_into_one_graph(x):
    model = small()
    torch.compile(model, fullgraph=True, backend="aot_eager")(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_exports_with_a_dynamic_batch(x):
    model = small().eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    for n in (1, 2, 5):
        y = torch.randn(n, 3, 64, 64)
        torch.testing.assert_close(program.module()(y), model(y))


def test_exports_with_dynamic_height_and_width():
    model = small().eval()
    height, width = torch.export.Dim("height", min=5, max=32), torch.export.Dim("width", min=5, max=32)
    dynamic = ({2: 32 * height, 3: 32 * width},)
    program = torch.export.export(model, (torch.randn(2, 3, 320, 320),), dynamic_shapes=dynamic)
    y = torch.randn(2, 3, 256, 384)
    torch.testing.assert_close(program.module()(y), model(y))


@pytest.mark.parametrize("size", [(64, 64), (33, 50)])
def test_feature_extractor_gives_the_four_maps(size):
    model = small().eval()
    y = torch.randn(2, 3, *size)
    maps = create_feature_extractor(model, {f"layer{i}": f"c{i + 1}" for i in range(1, 5)})(y)
    assert [m.shape[1] for m in maps.values()] == [32, 64, 128, 256]
    torch.testing.assert_close(maps["c5"], model.forward_features(y))


def test_feature_extractor_still_explains_bad_input():
    extractor = create_feature_extractor(small(), ["layer2"])
    with pytest.raises(ValueError, match="batch dimension"):
        extractor(torch.randn(3, 64, 64))


def test_serves_as_a_detection_backbone(x):
    model = small()
    widths = [model.inplanes // 8 * 2 ** i for i in range(4)]                 # as torchvision's own helper does it
    backbone = BackboneWithFPN(model, {f"layer{i}": str(i - 1) for i in range(1, 5)}, widths, out_channels=16)
    assert {name: tuple(m.shape[1:]) for name, m in backbone(x).items()} == {
        "0": (16, 16, 16), "1": (16, 8, 8), "2": (16, 4, 4), "3": (16, 2, 2), "pool": (16, 1, 1)}


def test_float64_agrees_with_float32(x):
    model = small().eval()
    torch.testing.assert_close(copy.deepcopy(model).double()(x.double()).float(), model(x), rtol=1e-4, atol=1e-4)


def test_bfloat16_autocast_trains_and_keeps_float32_weights(x):
    model = small()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
    logits.float().sum().backward()
    assert logits.dtype == torch.bfloat16
    assert {p.dtype for p in model.parameters()} == {p.grad.dtype for p in model.parameters()} == {torch.float32}


def test_channels_last_gives_the_same_and_stays(x):
    model = small().eval()
    last = torch.channels_last
    y = copy.deepcopy(model).to(memory_format=last).forward_features(x.to(memory_format=last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, model.forward_features(x), rtol=1e-4, atol=1e-4)


def test_deepcopy_shares_nothing(x):
    model = small().eval()
    twin, before = copy.deepcopy(model), model(x)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert torch.equal(model(x), before) and not torch.equal(twin(x), before)


def test_group_norm_makes_a_network_without_batch_statistics(x):
    model = small(norm_layer=partial(nn.GroupNorm, 4))
    torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=1e-4, atol=1e-4)


def test_every_parameter_gets_a_gradient(x):
    model = small(stem_width=4, avg_down=True, avd=True)
    model(x).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


# --- one sentence for each mistake ----------------------------------------------------------------------------------

@pytest.mark.parametrize("build, sentence", [
    (lambda: SCConv(63), "even, not 63"),
    (lambda: SCConv(0), "channels must be a positive whole number, not 0"),
    (lambda: SCConv(64.0), "channels must be a positive whole number, not 64.0"),
    (lambda: SCConv("64"), "channels must be a positive whole number, not '64'"),
    (lambda: SCConv(32, groups=3), "3 groups do not divide the 16 channels"),
    (lambda: SCConv(32, 0), "pooling_r must be a positive whole number, not 0"),
    (lambda: SelfCalibration(16, stride=0), "stride must be a positive whole number, not 0"),
    (lambda: SCBottleneck(64, 1), "at least 64"),
    (lambda: scnet50(output_stride=12), "output_stride must be 32, 16 or 8, not 12"),
    (lambda: scnet50(num_classes=-1), "num_classes must be 0 \\(no classifier\\) or more, not -1"),
    (lambda: scnet50(in_chans=0), "in_chans must be a positive whole number, not 0"),
    (lambda: SCNet((3, 4, 6)), "four stages"),
    (lambda: SCNet(50), "four stages"),
    (lambda: SCNet((1, 1, 0, 1)), "four stages"),
])
def test_bad_arguments_get_one_clear_sentence(build, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        build()
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


@pytest.mark.parametrize("module, channels", [(SCConv(4), 4), (SelfCalibration(4), 4), (small(in_chans=4), 4)])
@pytest.mark.parametrize("spoil, error, sentence", [
    (lambda x: x[0], ValueError, r"batch dimension with x\[None\]"),
    (lambda x: x[0, 0, 0], ValueError, r"takes a batch \(B, 4, H, W\), not shape \(48,\)"),
    (lambda x: x[:, :3], ValueError, r"built for 4 channels, but x has shape \(2, 3, 32, 48\)"),
    (lambda x: x.permute(0, 2, 3, 1), ValueError, "channels last"),
    (lambda x: (255 * x).to(torch.uint8), TypeError, "not torch.uint8"),
    (lambda x: x.long(), TypeError, "not torch.int64"),
    (lambda x: x.numpy(), TypeError, "takes a torch.Tensor, not ndarray"),
])
def test_bad_input_gets_one_clear_sentence(module, channels, spoil, error, sentence):
    with pytest.raises(error, match=sentence) as caught:
        module(spoil(torch.rand(2, channels, 32, 48)))
    assert type(module).__name__ in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


# --- one file -------------------------------------------------------------------------------------------------------

def test_the_one_file_works_alone_in_an_empty_folder(tmp_path):
    shutil.copy(Path(scnet_minimal.__file__).with_name("scnet.py"), tmp_path)
    program = ("import sys; from scnet import scnet50; print(sum(p.numel() for p in scnet50().parameters())); "
               "print([m for m in ('torchvision', 'matplotlib', 'datasets', 'scnet_minimal') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["25564584", "[]"], done.stderr


def test_public_names_are_the_documented_ones():
    names = ["SelfCalibration", "SCConv", "SCBottleneck", "SCNet", "fuse", *BUILDERS]
    assert sorted(scnet_minimal.__all__) == sorted(scnet_minimal.scnet.__all__) == sorted(names)
    assert all(getattr(scnet_minimal, name).__doc__ for name in names)
    assert scnet101.__module__ == "scnet_minimal.scnet"
