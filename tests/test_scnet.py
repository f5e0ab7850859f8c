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

@pytest.mark.slow
@pytest.mark.parametrize("output_stride, dilate", [(32, [False] * 3), (16, [False, False, True]),
                                                   (8, [False, True, True])])
def test_plain_twin_is_torchvisions_resnet(output_stride, dilate):
    layers = (1, 2, 1, 2)
    twin = golden.fill(SCNet(layers, 10, block=Bottleneck, bottleneck_width=64, output_stride=output_stride))
    resnet = golden.fill(torchvision.models.ResNet(Bottleneck, layers, 10, replace_stride_with_dilation=dilate))
    assert golden.shapes(twin) == golden.shapes(resnet)
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
        model = getattr(scnet_minimal, builder)(widths=(4, 8, 16, 32))
        assert [name for name, _ in model.named_children()] == names


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"output_stride": 8, "stem_width": 8, "avg_down": True, "avd": True}])
def test_compiles_into_one_graph(x, options):
    model = small(**options).eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for size in [(64, 64), (17, 80)]:
        y = x[:, :, :1, :1] * torch.ones(1, 1, *size)
        torch.testing.assert_close(compiled(y), model(y), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_training_step_compiles_into_one_graph(x):
    model = small()
    torch.compile(model, fullgraph=True, backend="eager")(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.slow
def test_exports_with_a_dynamic_batch(x):
    model = small().eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    for n in (1, 2, 5):
        y = torch.randn(n, 3, 64, 64)
        torch.testing.assert_close(program.module()(y), model(y))


@pytest.mark.slow
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
    with pytest.raises(ValueError, match=r"\(3, 64, 64\)"):
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


# --- one line for each mistake --------------------------------------------------------------------------------------

@pytest.mark.parametrize("build, fact", [
    (lambda: SCConv(63), "63"),
    (lambda: SCConv(0), "channels=0"),
    (lambda: SCConv(32, groups=3), "channels=16, .*groups=3"),
    (lambda: SCConv(32, 0), "pooling_r=0"),
    (lambda: SelfCalibration(16, stride=0), "stride=0"),
    (lambda: scnet50(output_stride=12), "output_stride=12"),
    (lambda: scnet50(num_classes=-1), "num_classes=-1"),
    (lambda: scnet50(in_chans=0), "in_chans=0"),
    (lambda: SCNet((3, 4, 6)), r"\(3, 4, 6\)"),
    (lambda: SCNet(50), "50"),
    (lambda: SCNet((1, 1, 0, 1)), r"\(1, 1, 0, 1\)"),
    (lambda: SCNet((1, 1, 1, 1), widths=(1, 1, 1)), r"\(1, 1, 1\)"),
])
def test_bad_arguments_get_one_line_that_names_them(build, fact):
    with pytest.raises(ValueError, match=fact) as error:
        build()
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_half_without_channels_is_refused():
    with pytest.raises(ValueError, match="channels=0"):
        SCBottleneck(64, 1)


@pytest.mark.parametrize("module", [SCConv(4), small(in_chans=4)], ids=["SCConv", "SCNet"])
@pytest.mark.parametrize("spoil, error, fact", [
    (lambda x: x[0], ValueError, r"\(B, 4, H, W\).*\(4, 32, 48\).*x\[None\]"),
    (lambda x: x[0, 0, 0], ValueError, r"\(48,\)"),
    (lambda x: x[:, :3], ValueError, r"\(B, 4, H, W\).*\(2, 3, 32, 48\)"),
    (lambda x: x.permute(0, 2, 3, 1), ValueError, r"\(2, 32, 48, 4\).*permute\(0, 3, 1, 2\)"),
    (lambda x: (255 * x).to(torch.uint8), TypeError, "torch.uint8"),
    (lambda x: x.long(), TypeError, "torch.int64"),
    (lambda x: x.numpy(), TypeError, "ndarray"),
])
def test_bad_input_gets_one_line_that_says_what_it_is(module, spoil, error, fact):
    with pytest.raises(error, match=fact) as caught:
        module(spoil(torch.rand(2, 4, 32, 48)))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_input_is_checked_once_in_a_network_and_not_in_every_block(x, monkeypatch):
    checks, checked = [], scnet_minimal.scnet.checked
    monkeypatch.setattr(scnet_minimal.scnet, "checked", lambda *args: checks.append(args[1]) or checked(*args))
    small().eval()(x)
    assert checks == [3]


# --- the gate -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("block", [SelfCalibration(8), SCConv(16)])
def test_a_hook_on_the_gate_sees_it_and_can_change_it(block):
    x, seen = torch.randn(2, 8 if isinstance(block, SelfCalibration) else 16, 9, 12), []
    block.eval().gate.register_forward_hook(lambda module, inputs, output: seen.append(output))
    before = block(x)
    assert seen[0].shape == (2, 8, 9, 12) and 0 < seen[0].min() and seen[0].max() < 1
    block.gate.register_forward_hook(lambda module, inputs, output: torch.ones_like(output))
    opened, half = block(x), x[:, :8]
    torch.testing.assert_close(opened[:, :8], block.k4(block.k3(half)))
    assert not torch.allclose(opened[:, :8], before[:, :8])


def test_the_drop_in_block_has_a_calibration_and_is_none():
    assert not issubclass(SCConv, SelfCalibration)


# --- one file -------------------------------------------------------------------------------------------------------

@pytest.fixture
def alone(tmp_path):
    """A function that runs lines of Python in a folder that holds scnet.py and nothing else."""
    shutil.copy(Path(scnet_minimal.__file__).with_name("scnet.py"), tmp_path)

    def run(*lines: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=tmp_path, capture_output=True, text=True)
    return run


@pytest.mark.slow
def test_the_one_file_builds_trains_and_loads_official_names_alone_in_an_empty_folder(alone, tmp_path):
    state = {name: torch.randn(shape) if shape else torch.tensor(1)
             for name, shape in golden.load("official_scnet")["scnet50"]["state_dict"].items()}
    torch.save(state, tmp_path / "official.pth", _use_new_zipfile_serialization=False)      # as in 2020
    done = alone("import sys, torch, scnet",
                 "model = scnet.scnet50_v1d(num_classes=2, widths=(4, 8, 16, 32))",
                 "model(torch.randn(2, 3, 40, 40)).sum().backward()",
                 "print([m for m in ('torchvision', 'matplotlib', 'datasets', 'scnet_minimal') if m in sys.modules])",
                 "print(scnet.scnet50().load_state_dict(torch.load('official.pth', weights_only=True)))")
    assert done.stdout.startswith("[]") and "All keys matched" in done.stdout, done.stderr


@pytest.mark.slow
def test_the_one_file_alone_says_in_one_line_where_weights_come_from(alone):
    done = alone("import scnet", "for wish in (dict(pretrained=True), dict(weights='official.pth')):",
                 "    try: scnet.scnet50(**wish, widths=(4, 8, 16, 32))",
                 "    except ImportError as error: print(error)")
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all("weights.py" in line and "https://" in line for line in lines), done.stderr


def test_public_names_are_the_documented_ones():
    names = ["SelfCalibration", "SCConv", "SCBottleneck", "SCNet", *BUILDERS]
    assert sorted(scnet_minimal.scnet.__all__) == sorted(names)
    assert sorted(scnet_minimal.__all__) == sorted([*names, "fuse"])
    assert all(getattr(scnet_minimal, name).__doc__ for name in scnet_minimal.__all__)
    assert scnet101.__module__ == "scnet_minimal.scnet" and callable(scnet_minimal.fuse)


def test_each_file_keeps_to_its_size():
    folder = Path(scnet_minimal.__file__).parent
    lines = {name: len((folder / name).read_text().splitlines()) for name in ("scnet.py", "weights.py", "fuse.py")}
    assert lines["scnet.py"] <= 260 and lines["weights.py"] <= 150 and lines["fuse.py"] <= 70
