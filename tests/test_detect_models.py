"""SCNet under torchvision's heads: what is built, that it learns, what is loaded and refused."""
import hashlib
import os
from types import SimpleNamespace

import pytest
import torch
import torchvision
from coco_folder import needs_pycocotools
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from scnet_minimal.lab.detect.coco import VOID
from scnet_minimal.lab.detect.drawing import overlay
from scnet_minimal.lab.detect.metrics import evaluate_detector
from scnet_minimal.lab.detect.models import build_detector, load_detector
from scnet_minimal.lab.detect.scenes import draw_scene, load_scenes
from scnet_minimal.lab.detection import detection_task
from scnet_minimal.lab.errors import UserError
from scnet_minimal.lab.train import Task, Trainer
from scnet_minimal.lab.train.loop import one_cycle
from scnet_minimal.lab.zoo import OURS, create_model, trained
from scnet_minimal.weights import read_weights

# pycocotools' own, on numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SMALL = dict(arch="scnet_toy", classes=10, size=48, channels=8, keypoints=5)


def shapes(model):
    return {name: tuple(t.shape) for name, t in model.state_dict().items()}


def batch(n=2, size=48):
    images, targets = zip(*(draw_scene("train", i, size) for i in range(n)))
    return [x / 255 for x in images], list(targets)


# --- architecture ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("task, theirs", [("box", "fasterrcnn_resnet50_fpn"), ("mask", "maskrcnn_resnet50_fpn"),
                                          ("keypoint", "keypointrcnn_resnet50_fpn")])
def test_on_resnet50_the_detectors_are_torchvisions_own(task, theirs):
    classes = 1 if task == "keypoint" else 90
    with torch.device("meta"):
        ours = build_detector(task, "resnet50", classes)
        reference = torchvision.models.get_model(theirs, weights=None, weights_backbone=None, num_classes=classes + 1)
        scnet = build_detector(task, "scnet50", classes)
    assert shapes(ours) == shapes(reference)
    assert ours.rpn.anchor_generator.sizes == reference.rpn.anchor_generator.sizes
    assert ours.transform.max_size == reference.transform.max_size
    body = {name for name in shapes(scnet) if ".body." in name}
    assert {k: v for k, v in shapes(scnet).items() if k not in body} == {
        k: v for k, v in shapes(reference).items() if ".body." not in k}


@pytest.mark.slow
@pytest.mark.parametrize("head, theirs", [("fcn", "fcn_resnet50"), ("deeplab", "deeplabv3_resnet50")])
def test_on_resnet50_the_class_maps_are_torchvisions_own_at_output_stride_8(head, theirs):
    with torch.device("meta"):
        ours = build_detector("segment", "resnet50", 20, head=head)
        reference = torchvision.models.get_model(theirs, weights=None, weights_backbone=None, num_classes=21,
                                                 aux_loss=False)
        scnet = build_detector("segment", "scnet50", 20, head=head)
    assert shapes(ours.network) == shapes(reference)
    for model in (ours, scnet):
        assert model.network.backbone(torch.zeros(1, 3, 64, 64, device="meta"))["out"].shape == (1, 2048, 8, 8)


@pytest.mark.slow
def test_every_builder_of_ours_can_carry_the_heads():
    with torch.device("meta"):
        for arch in OURS:
            assert build_detector("box", arch, 2).backbone.out_channels == 256


@pytest.mark.parametrize("task, parts", [
    ("box", set()), ("mask", {"masks"}), ("keypoint", {"keypoints", "keypoints_scores"}),
    ("mask+keypoint", {"masks", "keypoints", "keypoints_scores"})])
def test_every_head_has_its_loss_and_its_predictions(task, parts):
    torch.manual_seed(0)
    model = build_detector(task, **SMALL)
    losses = model(*batch())
    heads = {f"loss_{part}" for part in ("mask", "keypoint") if part in task}
    assert losses.keys() == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"} | heads
    assert all(loss.isfinite() for loss in losses.values())
    model.eval().roi_heads.score_thresh = 0
    with torch.inference_mode():
        predictions = model(batch()[0])
    assert len(predictions) == 2 and predictions[0].keys() == {"boxes", "labels", "scores"} | parts
    n = len(predictions[0]["labels"])
    assert n and predictions[0].get("masks", torch.zeros(n, 1, 48, 48)).shape == (n, 1, 48, 48)
    assert predictions[0].get("keypoints", torch.zeros(n, 5, 3)).shape == (n, 5, 3)


def test_class_maps_have_the_size_of_each_image_whatever_else_is_in_the_batch():
    torch.manual_seed(0)
    model = build_detector("segment", **SMALL, weights=trained("scnet_toy")).eval()
    images = [torch.rand(3, 48, 40), torch.rand(3, 30, 62)]
    with torch.inference_mode():
        together, alone = model(images), [model([x])[0] for x in images]
    assert [tuple(prediction["classes"].shape) for prediction in together] == [(48, 40), (30, 62)]
    agree = [(a["classes"] == b["classes"]).float().mean() for a, b in zip(together, alone)]
    assert min(agree) > 0.5                                     # padding reaches in from the border, as in detectors


def test_pixels_that_are_void_have_no_loss():
    model = build_detector("segment", **SMALL | {"size": 64}, weights=trained("scnet_toy")).eval()
    image, classes = torch.rand(3, 64, 64), torch.randint(11, (64, 64))
    void = classes.clone()
    void[:, 24:] = VOID
    logits = nn.functional.interpolate(model.network(model.transform([image])[0].tensors)["out"], size=(64, 64),
                                       mode="bilinear")
    loss = model([image], [{"classes": void}])["loss_classes"]
    assert torch.allclose(loss, nn.functional.cross_entropy(logits[..., :24], classes[None, :, :24]))


# --- weights --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("arch", ["scnet_toy", "resnet_toy"])
def test_from_trained_weights_norms_are_frozen_and_the_chosen_stages_learn(arch):
    model = build_detector("box", **SMALL | {"arch": arch}, weights=trained(arch), trainable=2)
    body = model.backbone.body
    file, before = read_weights(trained(arch)), {name: t.clone() for name, t in body.state_dict().items()}
    assert before and all(torch.equal(t, file[name].float()) for name, t in before.items())
    norms = [m for m in body.modules() if isinstance(m, (nn.BatchNorm2d, FrozenBatchNorm2d))]
    assert norms and all(isinstance(m, FrozenBatchNorm2d) for m in norms)
    assert {name.split(".")[0] for name, p in body.named_parameters() if p.requires_grad} == {"layer3", "layer4"}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01)
    sum(model(*batch()).values()).backward()
    optimizer.step()
    changed = {name.split(".")[0] for name, t in body.state_dict().items() if not torch.equal(t, before[name])}
    assert changed == {"layer3", "layer4"}
    assert all(torch.equal(t, before[n]) for n, t in body.state_dict().items() if n.endswith(("mean", "var")))


def test_without_weights_everything_learns_and_norms_do_too():
    model = build_detector("segment", **SMALL)
    assert all(p.requires_grad for p in model.parameters())
    assert not any(isinstance(m, FrozenBatchNorm2d) for m in model.modules())


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A function that puts a file into torch.hub's cache as resnet18's ImageNet weights; right: with its own hash."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def put(write, right=True):
        folder = tmp_path / "hub" / "checkpoints"
        folder.mkdir(parents=True)
        write(folder / "file")
        digest = hashlib.sha256((folder / "file").read_bytes()).hexdigest()
        name = f"resnet18-{digest[:8] if right else '0' * 8}.pth"
        (folder / "file").rename(folder / name)
        version = SimpleNamespace(url=f"https://example.invalid/{name}")
        monkeypatch.setattr(torchvision.models, "get_model_weights", lambda _: {"IMAGENET1K_V1": version})
        return name
    return put


def test_torchvisions_imagenet_weights_come_from_the_cache(cached):
    state = create_model("resnet18", 1000).state_dict()
    cached(lambda path: torch.save(state, path))
    body = build_detector("box", "resnet18", 2, pretrained=True, size=64, channels=8).backbone.body
    assert all(torch.equal(t, state[name]) for name, t in body.state_dict().items())


def test_a_cached_file_with_another_hash_is_refused(cached):
    name = cached(lambda path: torch.save(create_model("resnet18", 1000).state_dict(), path), right=False)
    with pytest.raises(UserError, match=name):
        build_detector("box", "resnet18", 2, pretrained=True)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_cached_file_is_never_run(cached, tmp_path):
    name = cached(lambda path: torch.save({"fc.weight": Hostile(str(tmp_path / "was run"))}, path))
    with pytest.raises(UserError, match=name):
        build_detector("box", "resnet18", 2, pretrained=True)
    assert not (tmp_path / "was run").exists()


@pytest.mark.parametrize("name, kind", [("scenes_mask_keypoint", "KeypointRCNN"), ("scenes_segment", "Segmenter")])
def test_the_trained_detectors_load_and_predict(name, kind):
    model, about = load_detector(trained(name))
    image, target = draw_scene("val", 2)
    with torch.inference_mode():
        prediction = model([image / 255])[0]
    assert type(model).__name__ == kind and not model.training and len(about["classes"]) == 10
    if kind == "Segmenter":
        assert (prediction["classes"] == target["classes"]).float().mean() > 0.8
    else:
        assert (prediction["scores"] > 0.5).any() and prediction["keypoints"].shape[1:] == (5, 3)


# --- what is refused ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kwargs, fact", [
    (dict(task="boxes"), "boxes"), (dict(task="segment", head="unet"), "unet"), (dict(trainable=6), "6"),
    (dict(arch="vgg11"), "vgg11"), (dict(arch="inception_v3"), "inception_v3"), (dict(arch="scnet5"), "scnet50"),
    (dict(arch="resnet18", task="segment"), "resnet18"), (dict(arch="scnet_toy", pretrained=True), "scnet_toy"),
    (dict(weights="missing.pt"), "missing.pt"), (dict(arch="scnet50", weights=trained("scnet_toy")), "scnet_toy_0.pt"),
])
def test_arguments_that_do_not_fit_together_are_the_users_errors(kwargs, fact):
    with torch.device("meta"), pytest.raises(UserError, match=fact):
        build_detector(**{"task": "box", **kwargs})


def test_a_classifiers_file_is_no_detector():
    with pytest.raises(UserError, match="scnet_toy_0.pt"):
        load_detector(trained("scnet_toy"))


# --- learning and drawing -------------------------------------------------------------------------------------------

@needs_pycocotools
@pytest.mark.slow
def test_four_scenes_can_be_learned_by_heart_boxes_and_masks():
    """Over five seeds AP50 was 0.81 to 1 for boxes and 0.67 to 0.71 for masks."""
    data = load_scenes("toynette", "mask", size=64, images=(1, 4), batch_size=4, device="cpu")
    torch.manual_seed(0)
    model = build_detector("mask", "scnet_toy", 10, weights=trained("scnet_toy"), trainable=5, size=64, channels=32)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 3e-3)
    task = Task(detection_task(data, "mask").loss, lambda model: {})
    history = Trainer(model, data.val, task, optimizer, one_cycle(3e-3, 40), epochs=40, quiet=True).run()
    results = evaluate_detector(model, data, "mask")
    assert history[-1]["train_loss"] < 0.35 * history[0]["train_loss"]
    assert results["box_ap50"] > 0.5 and results["mask_ap50"] > 0.4


@pytest.mark.parametrize("task", ["box", "mask", "keypoint", "mask+keypoint", "segment"])
def test_targets_and_predictions_can_be_drawn(task):
    image, target = draw_scene("train", 0, 48)
    image, names = image / 255, [str(i) for i in range(10)]
    plain = overlay(image, {"labels": torch.zeros(0, dtype=torch.int64)}, "box", names)
    assert plain.dtype == torch.uint8 and plain.shape == (3, 384, 384)
    drawn = overlay(image, target, task, names)
    assert drawn.shape == plain.shape and not torch.equal(drawn, plain)
    scores = torch.full((len(target["labels"]),), 0.4)
    prediction = {**target, "scores": scores, "masks": target["masks"][:, None].float()}
    if task != "segment":
        assert torch.equal(overlay(image, prediction, task, names), plain)          # the scores are too low
        assert not torch.equal(overlay(image, prediction, task, names, above=0.3), plain)
