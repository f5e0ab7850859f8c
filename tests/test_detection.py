"""SCNet under torchvision's heads: what is built, that it learns, and the command."""
import csv

import pytest
import torch
import torchvision
from PIL import Image
from test_scenes import coco, needs_pycocotools  # noqa: F401  the small folder in COCO's layout
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from scnet_minimal.lab import detection, nets, scenes
from scnet_minimal.lab.checkpoint import read_file
from scnet_minimal.lab.detection import build, drawn, load, task_of
from scnet_minimal.lab.engine import Task, Trainer, one_cycle
from scnet_minimal.lab.precision import evaluate
from scnet_minimal.lab.trained import trained

# pycocotools' own, on numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SMALL = dict(arch="scnet_toy", classes=10, size=48, channels=8, keypoints=5)


def shapes(model):
    return {name: tuple(t.shape) for name, t in model.state_dict().items()}


def batch(n=2, size=48):
    pictures, targets = zip(*(scenes.scene(scenes.FIRST["train"] + i, size) for i in range(n)))
    return [x / 255 for x in pictures], list(targets)


# --- networks -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("task, theirs", [("box", "fasterrcnn_resnet50_fpn"), ("mask", "maskrcnn_resnet50_fpn"),
                                          ("keypoint", "keypointrcnn_resnet50_fpn")])
def test_on_resnet50_the_detectors_are_torchvisions_own(task, theirs):
    classes = 1 if task == "keypoint" else 90
    with torch.device("meta"):
        ours = build(task, "resnet50", classes)
        reference = torchvision.models.get_model(theirs, weights=None, weights_backbone=None, num_classes=classes + 1)
        scnet = build(task, "scnet50", classes)
    assert shapes(ours) == shapes(reference)
    assert ours.rpn.anchor_generator.sizes == reference.rpn.anchor_generator.sizes
    assert ours.transform.max_size == reference.transform.max_size
    body = {name for name in shapes(scnet) if ".body." in name}
    assert {k: v for k, v in shapes(scnet).items() if k not in body} == {
        k: v for k, v in shapes(reference).items() if ".body." not in k}


@pytest.mark.parametrize("head, theirs", [("fcn", "fcn_resnet50"), ("deeplab", "deeplabv3_resnet50")])
def test_on_resnet50_the_class_maps_are_torchvisions_own_at_output_stride_8(head, theirs):
    with torch.device("meta"):
        ours = build("segment", "resnet50", 20, head=head)
        reference = torchvision.models.get_model(theirs, weights=None, weights_backbone=None, num_classes=21,
                                                 aux_loss=False)
        scnet = build("segment", "scnet50", 20, head=head)
    assert shapes(ours.network) == shapes(reference)
    for model in (ours, scnet):
        assert model.network.backbone(torch.zeros(1, 3, 64, 64, device="meta"))["out"].shape == (1, 2048, 8, 8)


@pytest.mark.parametrize("arch", ["scnet_toy", "resnet_toy"])
def test_from_trained_weights_norms_are_frozen_and_the_chosen_stages_learn(arch):
    model = build("box", **SMALL | {"arch": arch}, weights=trained(arch), trainable=2)
    body = model.backbone.body
    state = read_file(trained(arch))
    own = {name: t for name, t in body.state_dict().items()}
    assert own and all(torch.equal(t, state[name].float()) for name, t in own.items())
    norms = [m for m in body.modules() if isinstance(m, (nn.BatchNorm2d, FrozenBatchNorm2d))]
    assert norms and all(isinstance(m, FrozenBatchNorm2d) for m in norms)
    assert {name.split(".")[0] for name, p in body.named_parameters() if p.requires_grad} == {"layer3", "layer4"}
    before = {name: t.clone() for name, t in body.state_dict().items()}
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, 0.01)
    sum(model(*batch()).values()).backward()
    optimizer.step()
    changed = {name.split(".")[0] for name, t in body.state_dict().items() if not torch.equal(t, before[name])}
    assert changed == {"layer3", "layer4"}
    assert all(torch.equal(t, before[n]) for n, t in body.state_dict().items() if n.endswith(("mean", "var")))


def test_without_weights_everything_learns_and_norms_do_too():
    model = build("segment", **SMALL)
    assert all(p.requires_grad for p in model.parameters())
    assert not any(isinstance(m, FrozenBatchNorm2d) for m in model.modules())


@pytest.mark.parametrize("task, parts", [
    ("box", set()), ("mask", {"masks"}), ("keypoint", {"keypoints", "keypoints_scores"}),
    ("mask+keypoint", {"masks", "keypoints", "keypoints_scores"})])
def test_every_head_has_its_loss_and_says_what_it_found(task, parts):
    torch.manual_seed(0)
    model = build(task, **SMALL)
    losses = model(*batch())
    heads = {f"loss_{part}" for part in ("mask", "keypoint") if part in task}
    assert losses.keys() == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"} | heads
    assert all(loss.isfinite() for loss in losses.values())
    model.eval().roi_heads.score_thresh = 0
    with torch.inference_mode():
        found = model(batch()[0])
    assert len(found) == 2 and found[0].keys() == {"boxes", "labels", "scores"} | parts
    n = len(found[0]["labels"])
    assert n and found[0].get("masks", torch.zeros(n, 1, 48, 48)).shape == (n, 1, 48, 48)
    assert found[0].get("keypoints", torch.zeros(n, 5, 3)).shape == (n, 5, 3)


def test_class_maps_come_in_the_size_of_each_picture_whatever_else_is_in_the_batch():
    torch.manual_seed(0)
    model = build("segment", **SMALL, weights=trained("scnet_toy")).eval()
    pictures = [torch.rand(3, 48, 40), torch.rand(3, 30, 62)]
    with torch.inference_mode():
        together, alone = model(pictures), [model([x])[0] for x in pictures]
    assert [tuple(found["classes"].shape) for found in together] == [(48, 40), (30, 62)]
    agree = [(a["classes"] == b["classes"]).float().mean() for a, b in zip(together, alone)]
    assert min(agree) > 0.5                                     # padding reaches in from the border, as in detectors


def test_pixels_that_count_for_nothing_have_no_loss():
    model = build("segment", **SMALL, weights=trained("scnet_toy")).eval()
    picture, classes = torch.rand(3, 48, 48), torch.randint(11, (48, 48))
    half = classes.clone()
    half[:, 24:] = scenes.VOID
    other = half.clone()
    other[:, :24] = classes[:, :24]
    one, two, all_ = (model([picture], [{"classes": c}])["loss_classes"].item() for c in (half, other, classes))
    assert one == two != all_


def test_what_does_not_go_together_is_refused_in_a_sentence():
    for kwargs, words in [(dict(task="boxes"), "task must be one of box, mask"), (dict(trainable=6), "0 to 5, not 6"),
                          (dict(arch="vgg11"), "no four stages"), (dict(arch="scnet5"), "did you mean scnet50"),
                          (dict(arch="scnet_toy", pretrained=True), "no ImageNet weights")]:
        with pytest.raises(ValueError, match=words):
            build(**{"task": "box", **kwargs})


# --- learning -------------------------------------------------------------------------------------------------------

@needs_pycocotools
def test_eight_scenes_can_be_learned_by_heart_boxes_and_masks():
    data = scenes.load_scenes("toynette", "mask", size=64, pictures=(8, 1), device="cpu")
    data.val.scenes = data.train.scenes                         # and not mirrored
    torch.manual_seed(0)
    model = build("mask", "scnet_toy", 10, weights=trained("scnet_toy"), trainable=5, size=64, channels=32)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 3e-3)
    task = Task(task_of(data, "mask").loss, lambda model: {})
    rows = Trainer(model, data.val, task, optimizer, one_cycle(3e-3, 60), epochs=60, quiet=True).run()
    found = evaluate(model, data, "mask")
    assert rows[-1]["train_loss"] < 0.3 * rows[0]["train_loss"]
    assert found["box_ap50"] > 0.9 and found["mask_ap50"] > 0.9


# --- the command ----------------------------------------------------------------------------------------------------

def run(*words, task="segment", size=48):
    more = ["--channels", 8, "--pictures", 4, 2, "-b", 2, "-j", 0]
    return detection.main(list(map(str, ["toynette", "--task", task, "--size", size, "--seed", 1, *more, *words])))


def test_a_run_that_is_resumed_ends_where_the_uninterrupted_one_does(tmp_path, capsys):
    assert run("--epochs", 2, "--output", tmp_path / "whole", "--export", tmp_path / "half.pt") == 0
    for name in ("best.pt", "last.pt", "history.csv", "curve.png", "args.json", "predictions.png"):
        assert (tmp_path / "whole" / name).is_file()
    assert Image.open(tmp_path / "whole" / "predictions.png").size[0] > 700
    assert "val_miou" in next(csv.reader((tmp_path / "whole" / "history.csv").open()))

    stopped = Trainer._close_epoch

    def stop(self, row):
        stopped(self, row)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_close_epoch", stop)
        assert run("--epochs", 2, "--output", tmp_path / "parts") == 130
    assert "--resume" in capsys.readouterr().out
    assert detection.main(["--resume", str(tmp_path / "parts"), "-j", "0"]) == 0
    one, two = (read_file(tmp_path / name / "last.pt")["state_dict"] for name in ("whole", "parts"))
    assert all(torch.equal(t, two[name]) for name, t in one.items())

    model, about = load(tmp_path / "half.pt")
    assert about["task"] == "segment" and "arguments" not in about and not model.training
    assert all(torch.allclose(t.float(), one[n].float(), rtol=1e-3, atol=1e-5) for n, t in model.state_dict().items())
    assert detection.main(["-e", "--resume", str(tmp_path / "whole" / "last.pt"), "-j", "0"]) == 0
    last = read_file(tmp_path / "whole" / "last.pt")["history"][-1]
    assert f"{last['val_miou']:.3f}" in capsys.readouterr().out


@needs_pycocotools
def test_the_command_trains_on_a_folder_in_cocos_layout(coco, tmp_path, capsys):  # noqa: F811
    for task in ("mask", "keypoint"):
        output = tmp_path / task
        words = ["--task", task, "-a", "scnet_toy", "--size", 48, "--channels", 8, "--epochs", 1, "-b", 1, "-j", 0]
        assert detection.main(list(map(str, [coco, *words, "--output", output]))) == 0
        assert f"{task} ap " in capsys.readouterr().out and (output / "predictions.png").is_file()


@pytest.mark.parametrize("words, said", [
    pytest.param(["/nowhere/at/all", "--task", "segment"], "no annotations/instances_train", marks=needs_pycocotools),
    (["toynette", "--task", "segment", "-a", "scnet5"], "did you mean scnet50"),
    (["toynette", "--task", "segment", "--weights", "missing.pt"], "There is no file missing.pt"),
    (["toynette", "--task", "segment", "--epochs", "0"], "--epochs must be at least 1"),
    (["toynette", "-e"], "-e evaluates the file that --resume names"),
    (["toynette", "--resume", "missing"], "no checkpoint"),
])
def test_what_is_wrong_is_said_in_one_line_with_exit_code_2(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert detection.main([*words, *(["--pictures", "1", "1", "--size", "48"] if words[0] == "toynette" else [])]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error


def test_a_run_goes_on_only_as_what_it_is(tmp_path, capsys):
    assert run("--epochs", 1, "--output", tmp_path) == 0
    assert detection.main(["--resume", str(tmp_path), "--task", "box"]) == 2
    assert "is a run whose task is segment" in capsys.readouterr().err
    state = read_file(tmp_path / "last.pt")
    torch.save({name: value for name, value in state.items() if name != "build"}, tmp_path / "last.pt")
    assert detection.main(["--resume", str(tmp_path)]) == 2
    assert "that of another command" in capsys.readouterr().err


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "last.pt").write_bytes(b"")
    assert run("--output", tmp_path) == 2 and "holds a run already" in capsys.readouterr().err


def test_help_teaches_with_worked_examples(capsys):
    with pytest.raises(SystemExit) as end:
        detection.main(["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and text.count("python -m scnet_minimal.lab.detection ") >= 3 and "torchrun" in text


# --- pictures -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("task", ["box", "mask", "keypoint", "mask+keypoint", "segment"])
def test_what_is_true_and_what_is_found_can_be_drawn(task):
    picture, target = scenes.scene(scenes.FIRST["train"], 48)
    picture, names = picture / 255, [str(i) for i in range(10)]
    plain = drawn(picture, {"labels": torch.zeros(0, dtype=torch.int64)}, "box", names)
    assert plain.dtype == torch.uint8 and plain.shape == (3, 384, 384)
    true = drawn(picture, target, task, names)
    assert true.shape == plain.shape and not torch.equal(true, plain)
    n = len(target["labels"])
    found = {**target, "scores": torch.full((n,), 0.4), "masks": target["masks"][:, None].float()}
    if task != "segment":
        assert torch.equal(drawn(picture, found, task, names), plain)       # not sure enough
        assert not torch.equal(drawn(picture, found, task, names, above=0.3), plain)


def test_every_builder_of_ours_can_carry_the_heads():
    with torch.device("meta"):
        for arch in nets.OURS:
            assert build("box", arch, 2).backbone.out_channels == 256
