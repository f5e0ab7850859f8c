import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scnet_minimal import SCConv, SelfCalibration, fuse
from scnet_minimal.lab import sc_replace
from scnet_minimal.lab.study.explain import (
    effective_field,
    energy_inside,
    field_side,
    gates,
    grad_cam,
    moved,
    points_at,
)
from scnet_minimal.lab.zoo import create_model


def network(seed=0, **kwargs):
    torch.manual_seed(seed)
    return create_model("scnet_toy", 10, **kwargs)


def pictures(n=2, size=96, seed=1):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


# --- Grad-CAM -------------------------------------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("pytorch_grad_cam"), reason="pip install grad-cam, the peer")
@pytest.mark.parametrize("name, layer", [
    ("scnet_toy", "layer4"), ("scnet_toy", "layer3"), ("scnet_toy", "layer4.0.scconv.k4"), ("resnet_toy", "layer4"),
    ("resnet18", "layer4"), ("resnet18", "layer2.1.conv1"), ("squeezenet1_1", "features.12"),
    ("mobilenet_v3_small", "features")])
def test_grad_cam_is_that_of_the_pytorch_grad_cam_package(name, layer):
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    torch.manual_seed(0)
    model, x, classes = create_model(name, 10).eval(), pictures(1).expand(10, -1, -1, -1), torch.arange(10)
    with GradCAM(model, [model.get_submodule(layer)]) as peer:
        theirs = torch.tensor(peer(x, [ClassifierOutputTarget(c) for c in classes]))
    ours, some = grad_cam(model, layer, x, classes), theirs.amax((1, 2)) > 0
    assert some.sum() >= 3                                      # for the other classes nothing speaks: empty maps
    assert ours[~some].abs().sum() == 0
    for a, b in zip(ours[some], theirs[some]):
        assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] > 0.999


def test_grad_cam_finds_the_only_pixels_that_count():
    """A linear head on averaged colour: red speaks for class 0, so the red square is the whole map of class 0."""
    model = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model[0].weight.data = torch.eye(2, 3)[:, :, None, None]
    x = torch.zeros(1, 3, 16, 16)
    x[:, 0, 4:8, 4:8], x[:, 1, 10:14, 10:14] = 1, 1
    assert torch.equal(grad_cam(model, "0", x, torch.tensor([0])), x[:, 0])
    assert torch.equal(grad_cam(model, model[0], x, torch.tensor([1])), x[:, 1])


def test_the_map_of_a_picture_does_not_depend_on_the_batch():
    model, x = network(), pictures(3)
    torch.testing.assert_close(grad_cam(model, "layer3", x)[1:2], grad_cam(model, "layer3", x[1:2]))


def test_without_classes_the_predicted_one_is_explained():
    model, x = network(), pictures()
    predicted = model.eval()(x).argmax(1)
    assert torch.equal(grad_cam(model, "layer4", x), grad_cam(model, "layer4", x, predicted))


def test_maps_lie_in_0_to_1_and_have_the_picture_s_size():
    cam = grad_cam(network(), "layer3", pictures(size=70))
    assert cam.shape == (2, 70, 70) and cam.min() >= 0 and 0.5 < cam.max() <= 1


def test_a_class_that_nothing_speaks_for_has_an_empty_map():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1))
    nn.init.constant_(model[4].weight, -1.0)
    assert grad_cam(model, "1", pictures()).abs().max() == 0


@pytest.mark.parametrize("look", [lambda m, x: grad_cam(m, "layer3", x), gates,
                                  lambda m, x: effective_field(m, "layer2", x, draws=1)])
def test_a_look_leaves_modes_gradients_statistics_and_hooks_as_they_were(look):
    model = network().train()
    model.layer1.eval()
    modes = [m.training for m in model.modules()]
    state = {name: t.clone() for name, t in model.state_dict().items()}
    look(model, pictures())
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_frozen_network_and_no_grad_do_not_hinder():
    model = network().requires_grad_(False)
    with torch.no_grad():
        assert grad_cam(model, "layer4", pictures()).max() > 0


def test_pictures_and_classes_from_inference_mode_will_do():
    with torch.inference_mode():
        x = pictures()
        classes = x.new_zeros(2, dtype=torch.int64)
    assert grad_cam(network(), "layer3", x, classes).shape == (2, 96, 96)
    assert effective_field(network(), "layer2", x, draws=1).sum() > 0


@pytest.mark.parametrize("layer, message", [
    ("layer9", "'layer9'.*conv1, bn1, .*layer4"), ("fc", r"Linear.*\(2, 10\)"), ("layer1.0.relu", "ReLU ran 3 times")])
def test_a_layer_that_has_no_map_is_named(layer, message):
    with pytest.raises(ValueError, match=message):
        grad_cam(network(), layer, pictures())


@pytest.mark.parametrize("classes", [[0], [0, 10], [-1, 0]])
def test_classes_that_do_not_exist_are_refused(classes):
    with pytest.raises(ValueError, match="2 indices below 10"):
        grad_cam(network(), "layer4", pictures(), torch.tensor(classes))


# --- effective receptive field ------------------------------------------------------------------------------------

def convolutions(count, **kwargs):
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1, **kwargs) for _ in range(count)))


def test_the_field_of_linear_convolutions_ends_where_the_counted_one_does():
    field = effective_field(convolutions(3), "2", pictures(size=48))
    rows, columns = field.nonzero().T
    centre, reach = len(field) // 2, 3                                  # three 3x3: 7 px, 3 to each side
    assert [rows.min(), rows.max(), columns.min(), columns.max()] == 2 * [centre - reach, centre + reach]
    assert field.sum().item() == pytest.approx(1, abs=1e-5)


def test_random_signs_give_the_mean_over_the_channels():
    """Of one convolution the answer is known: the energy of its weights, summed over channels in and out."""
    model = convolutions(1)
    field = effective_field(model, "0", pictures(8, 24), draws=200)
    weights = model[0].weight.square().sum((0, 1))
    centre = len(field) // 2
    seen = field[centre - 1:centre + 2, centre - 1:centre + 2]
    torch.testing.assert_close(seen, (weights / weights.sum()).detach(), atol=0.02, rtol=0)


def test_the_centre_is_the_pixel_of_the_position_whatever_the_stride():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, padding=1), nn.Conv2d(4, 4, 3, 2, padding=1))
    field = effective_field(model, "1", pictures(size=64), draws=64)
    grid = torch.arange(len(field), dtype=torch.float) - len(field) // 2
    assert abs((field.sum(0) * grid).sum()) < 1 and abs((field.sum(1) * grid).sum()) < 1


def test_calibration_widens_the_effective_field():
    torch.manual_seed(0)
    plain, calibrated = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1)), nn.Sequential(SCConv(8))
    x = torch.randn(4, 8, 64, 64)
    a, b = (effective_field(m, "0", x, draws=32) for m in (plain, calibrated))
    rows = b.nonzero()[:, 0]
    assert (a > 0).sum() == 9 and rows.max() - rows.min() > 12


def test_the_same_seed_gives_the_same_field():
    model, x = network(), pictures()
    assert torch.equal(effective_field(model, "layer2", x, draws=2), effective_field(model, "layer2", x, draws=2))


def test_a_map_too_coarse_for_the_picture_is_refused():
    with pytest.raises(ValueError, match="1 cells over 16 px"):
        effective_field(network(), "layer4", pictures(size=16))


@pytest.mark.parametrize("side", [1, 3, 5, 9])
def test_field_side_of_an_even_square_is_known(side):
    """A uniform square of `side` px: a share q of it fills q^(1/2) of its side, up to the steps of whole rings."""
    field = F.pad(torch.ones(side, side), [(15 - side) // 2] * 4)
    assert field_side(field, 0.999999) == pytest.approx(side, abs=1e-3)
    assert abs(field_side(field, 0.5) - max(1, side * 0.5**0.5)) < 0.5


def test_field_side_does_not_depend_on_scale():
    field = torch.rand(31, 31, generator=torch.Generator().manual_seed(0))
    assert field_side(field) == pytest.approx(field_side(7 * field))


def test_field_side_takes_a_field_from_a_device_without_float64():
    class OnMPS(torch.Tensor):
        def double(self):
            raise TypeError("MPS has no float64")

        def cpu(self):
            return self.as_subclass(torch.Tensor)

    field = torch.rand(31, 31, generator=torch.Generator().manual_seed(0))
    assert field_side(field.as_subclass(OnMPS)) == field_side(field)


# --- gates --------------------------------------------------------------------------------------------------------

def test_gates_are_those_that_the_network_applies():
    """Rebuild the calibration's output from its gate: they must be the same numbers."""
    model, x = network().eval(), pictures()
    inputs, outputs = {}, {}
    for name, m in model.named_modules():
        if isinstance(m, SelfCalibration):
            m.register_forward_hook(lambda m, i, o, name=name: inputs.update({name: i[0]}))
            m.register_forward_hook(lambda m, i, o, name=name: outputs.update({name: o}))
    found = gates(model, x)
    assert list(found) == [f"layer{i}.0.scconv" for i in range(1, 5)]
    with torch.no_grad():
        for name, gate in found.items():
            block = model.get_submodule(name)
            assert gate.shape == inputs[name].shape and 0 < gate.min() and gate.max() < 1
            torch.testing.assert_close(block.k4(block.k3(inputs[name]) * gate), outputs[name])


def test_gates_of_a_network_whose_convolutions_were_replaced_are_those_of_its_blocks():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())).eval()
    sc_replace(model)
    x = pictures(size=20)
    found = gates(model, x)
    assert list(found) == ["1.0"] and found["1.0"].shape == (2, 4, 20, 20)
    with torch.no_grad():
        block, maps = model[1][0], model[0](x)
        calibrated = block.k4(block.k3(maps[:, :4]) * found["1.0"])
        torch.testing.assert_close(block(maps)[:, :4], calibrated)


def test_a_fused_network_has_the_same_gates():
    model, x = network().double().eval(), pictures().double()
    for (name, gate), (same, fused) in zip(gates(model, x).items(), gates(fuse(model), x).items(), strict=True):
        assert name == same
        torch.testing.assert_close(fused, gate)


def test_a_network_without_calibration_has_no_gates():
    assert gates(create_model("resnet_toy", 10), pictures()) == {}


# --- half a cell --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("stride", [2, 3, 8, 16])
def test_a_cell_s_peak_moves_from_the_middle_of_its_tile_to_its_first_pixel(stride):
    cells = torch.eye(25).view(25, 1, 5, 5)                     # in map n, cell n is 1, the others 0
    maps = F.interpolate(cells, scale_factor=stride, mode="bilinear")[:, 0]
    inner = [(row, column) for row in range(1, 4) for column in range(1, 4)]        # at the border a peak is flat
    for row, column in inner:
        one = moved(maps, stride)[5 * row + column]
        assert one.shape == (5 * stride, 5 * stride) and (one == one.max()).sum() == 1
        assert divmod(one.argmax().item(), 5 * stride) == (stride * row, stride * column)


def test_with_stride_1_nothing_moves_and_last_values_are_continued():
    maps = torch.rand(2, 6, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(moved(maps, 1), maps)
    assert torch.equal(moved(maps, 3), maps[:, [1, 2, 3, 4, 5, 5]][:, :, [1, 2, 3, 4, 5, 6, 7, 8, 8]])


# --- maps against masks -------------------------------------------------------------------------------------------

def test_energy_inside_is_the_share_of_the_map():
    cam, mask = torch.ones(2, 4, 4), torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, :, :1], mask[1] = True, True
    assert energy_inside(cam, mask).tolist() == [0.25, 1]
    assert energy_inside(torch.zeros(1, 4, 4), mask[:1]).isnan().all()


def test_the_pointing_game_asks_for_the_highest_place_alone():
    cam, mask = torch.rand(2, 5, 5), torch.zeros(2, 5, 5, dtype=torch.bool)
    cam[:, 2, 3], mask[0, 2, 3] = 2, True
    assert points_at(cam, mask).tolist() == [True, False]
