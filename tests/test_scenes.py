"""Pictures of several objects: drawn scenes, and a folder in COCO's layout that is made here; and their figures."""
import contextlib
import importlib.util
import io
import json
import sys

import pytest
import torch
from PIL import Image

from scnet_minimal.lab import precision, toynette
from scnet_minimal.lab.precision import as_coco, as_results, average_precision, confusion_matrix, mean_iou
from scnet_minimal.lab.scenes import FIRST, VOID, load_scenes, mirror, scene

# pycocotools' own, on numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
needs_pycocotools = pytest.mark.skipif(not importlib.util.find_spec("pycocotools"), reason="pip install pycocotools")


@pytest.fixture(scope="module")
def toy():
    return load_scenes("toynette", "mask+keypoint", size=48, pictures=(6, 4), batch_size=2, device="cpu")


# --- drawn scenes ---------------------------------------------------------------------------------------------------

def test_no_scene_shares_its_seed_with_a_picture_of_toynette_or_with_the_other_split(toy):
    classifier = {int(seed) for split in toynette.SPLITS for seed in toynette.plan(split)[1]}
    train, val = ({target["image_id"] for _, target in map(split.scenes.__getitem__, range(len(split.scenes)))}
                  for split in (toy.train, toy.val))
    assert len(train) == 6 and len(val) == 4 and not train & val and not (train | val) & classifier
    assert FIRST["val"] - FIRST["train"] >= 1_000_000


def test_a_scene_follows_from_its_seed_and_its_target_fits_the_picture():
    picture, target = scene(FIRST["train"] + 1, 48)
    scene.cache_clear()
    again, _ = scene(FIRST["train"] + 1, 48)
    assert torch.equal(picture, again) and picture.shape == (3, 48, 48) and picture.dtype == torch.uint8
    n = len(target["labels"])
    assert target["masks"].shape == (n, 48, 48) and target["keypoints"].shape == (n, 5, 3)
    assert 1 <= target["labels"].min() and target["labels"].max() <= 10
    for mask, label, (x0, y0, x1, y1) in zip(target["masks"], target["labels"], target["boxes"].int().tolist()):
        assert mask.sum() == mask[y0:y1, x0:x1].sum() > 0
        assert (target["classes"][mask > 0] == label).all()
    assert (target["classes"][target["masks"].amax(0) == 0] == 0).all()


def test_scenes_hold_one_to_four_objects():
    assert {len(scene(FIRST["val"] + i, 48)[1]["labels"]) for i in range(16)} == {1, 2, 3, 4}


def test_an_epoch_is_a_function_of_seed_and_number_and_can_be_entered_anywhere(toy):
    def ids(epoch, start=0):
        toy.train.set_epoch(epoch, start)
        return [[(t["image_id"], x.sum().item()) for x, t in zip(*batch)] for batch in toy.train]

    first = ids(0)
    assert ids(0) == first and ids(1) != first and ids(0, start=1) == first[1:] and len(first) == len(toy.train) == 3
    assert {i for batch in first for i, _ in batch} == {t["image_id"] for _, t in toy.train.scenes.drawn}


def test_processes_share_each_batch_and_every_validation_picture_is_seen_once(toy):
    parts = [load_scenes("toynette", "box", size=48, pictures=(6, 3), batch_size=2, device="cpu", shard=(rank, 2))
             for rank in (0, 1)]

    def ids(batches):
        return [[t["image_id"] for t in targets] for _, targets in batches]

    toy.train.set_epoch(0)
    whole = [set(batch) for batch in ids(toy.train)]
    assert [set(a + b) for a, b in zip(ids(parts[0].train), ids(parts[1].train))] == whole and len(whole) == 3
    seen = [i for part in parts for batch in ids(part.val) for i in batch]
    assert sorted(seen) == [FIRST["val"] + i for i in range(3)]


def test_a_batch_that_processes_cannot_share_evenly_is_refused():
    with pytest.raises(ValueError, match="cannot be shared evenly by 2 processes: take 2"):
        load_scenes("toynette", "box", size=48, pictures=(1, 1), batch_size=3, device="cpu", shard=(0, 2))


def test_a_mirrored_scene_is_true_of_the_mirrored_picture():
    picture, target = scene(FIRST["train"] + 1, 48)
    mirrored, other = mirror(picture, target)
    assert torch.equal(mirrored, picture.flip(-1)) and torch.equal(other["classes"], target["classes"].flip(-1))
    for mask, (x0, y0, x1, y1) in zip(other["masks"], other["boxes"].int().tolist()):
        ys, xs = mask.nonzero().T
        assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (x0, y0, x1, y1)
    shown = target["keypoints"][..., 2] > 0
    assert torch.allclose(other["keypoints"][..., 0][shown], 48 - target["keypoints"][..., 0][shown])
    back = mirror(mirrored, other)[1]
    assert torch.allclose(back["boxes"], target["boxes"]) and torch.allclose(back["keypoints"], target["keypoints"])


def test_in_a_mirrored_picture_a_left_eye_is_a_right_eye():
    target = {"boxes": torch.tensor([[0., 0, 4, 4]]), "keypoints": torch.tensor([[[1., 1, 2], [3, 1, 2], [0, 0, 0]]])}
    points = mirror(torch.zeros(3, 8, 10), target, (1, 0, 2))[1]["keypoints"]
    assert points.tolist() == [[[7, 1, 2], [9, 1, 2], [0, 0, 0]]]


# --- a folder in COCO's layout --------------------------------------------------------------------------------------

BOX = [4, 6, 20, 10]


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """Three pictures a split: two objects, a crowd as well, nothing.  Categories 3 and 7; one of them has keypoints."""
    root = tmp_path_factory.mktemp("coco")
    (root / "annotations").mkdir()
    square = [[4, 6, 24, 6, 24, 16, 4, 16]]
    small = [[10, 8, 14, 8, 14, 12, 10, 12]]
    for split in ("train2017", "val2017"):
        (root / split).mkdir()
        for i in (1, 2, 3):
            Image.new("L", (40, 30), 60 * i).save(root / split / f"{i}.jpg")
        runs = {"size": [30, 40], "counts": [0, 60, 1140]}      # the first two columns
        objects = [dict(id=1, image_id=1, category_id=7, bbox=BOX, area=200, iscrowd=0, segmentation=square),
                   dict(id=2, image_id=1, category_id=3, bbox=[10, 8, 4, 4], area=16, iscrowd=0, segmentation=small),
                   dict(id=3, image_id=2, category_id=7, bbox=BOX, area=200, iscrowd=0, segmentation=square),
                   dict(id=4, image_id=2, category_id=7, bbox=[0, 0, 2, 30], area=60, iscrowd=1, segmentation=runs)]
        images = [dict(id=i, file_name=f"{i}.jpg", height=30, width=40) for i in (1, 2, 3)]
        categories = [dict(id=3, name="ball"), dict(id=7, name="person")]
        path = root / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(dict(images=images, annotations=objects, categories=categories)))
        points = [5, 7, 2] * 16 + [0, 0, 0]
        people = [o | dict(keypoints=points, num_keypoints=16) for o in objects if o["category_id"] == 7]
        people[1] |= dict(keypoints=[0] * 51, num_keypoints=0)
        names = [dict(id=7, name="person", keypoints=[f"p{i}" for i in range(17)])]
        path = root / "annotations" / f"person_keypoints_{split}.json"
        path.write_text(json.dumps(dict(images=images, annotations=people, categories=names)))
    return root


@needs_pycocotools
def test_a_coco_folder_gives_boxes_and_masks_without_crowds_and_labels_without_gaps(coco):
    data = load_scenes(coco, "mask", batch_size=2, device="cpu")
    assert data.classes == ["ball", "person"] and data.ids == [3, 7] and len(data.train) == 1
    (pictures, targets), = data.train
    assert sorted(t["image_id"] for t in targets) == [1, 2]                  # the third has nothing to learn from
    (_, one), = [(x, t) for x, t in zip(pictures, targets) if t["image_id"] == 1]
    assert one["labels"].tolist() == [2, 1] and pictures[0].shape == (3, 30, 40)
    assert one["masks"].shape == (2, 30, 40) and one["masks"].flatten(1).sum(1).tolist() == [200, 16]
    picture, plain = data.train.scenes[0]
    assert plain["boxes"].tolist() == [[4, 6, 24, 16], [10, 8, 14, 12]] and picture.dtype == torch.uint8
    assert [len(t["labels"]) for _, targets in data.val for t in targets] == [2, 1, 0]


@needs_pycocotools
def test_in_a_class_map_the_smaller_object_is_in_front_and_crowds_count_for_nothing(coco):
    data = load_scenes(coco, "segment", device="cpu")
    first, second, third = (data.val.scenes[i][1]["classes"] for i in range(3))
    assert first[10, 12] == 1 and first[7, 5] == 2 and (first == 2).sum() == 200 - 16 and first[20, 20] == 0
    assert (second == VOID).sum() == 60 and third.sum() == 0


@needs_pycocotools
def test_for_keypoints_only_people_with_some_are_learned_from(coco):
    data = load_scenes(coco, "keypoint", device="cpu")
    assert data.classes == ["person"] and len(data.keypoints) == 17 and len(data.train.scenes) == 1
    _, target = data.train.scenes[0]
    assert target["keypoints"].shape == (1, 17, 3) and target["keypoints"][0, 0].tolist() == [5, 7, 2]
    assert len(data.train.mirror) == 17


@needs_pycocotools
def test_workers_read_the_same_pictures(coco):
    alone, helped = (load_scenes(coco, "box", batch_size=2, device="cpu", workers=n) for n in (0, 2))
    for (a, s), (b, t) in zip(alone.val, helped.val):
        assert all(torch.equal(x, y) for x, y in zip(a, b)) and [o["image_id"] for o in s] == [o["image_id"] for o in t]


def test_a_folder_without_annotations_is_refused_in_a_sentence(tmp_path):
    if importlib.util.find_spec("pycocotools"):
        with pytest.raises(FileNotFoundError, match="no annotations/instances_train.*name a folder in COCO's layout"):
            load_scenes(tmp_path, "box", device="cpu")


# --- figures --------------------------------------------------------------------------------------------------------

def as_found(target, score=0.9):
    """The truth, as a detector would say it."""
    n = len(target["labels"])
    return {"boxes": target["boxes"], "labels": target["labels"], "scores": torch.full((n,), score),
            "masks": target["masks"][:, None].float(), "keypoints": target["keypoints"]}


@needs_pycocotools
@pytest.mark.parametrize("kind", ["box", "mask", "keypoint"])
def test_perfect_detections_have_an_average_precision_of_one(toy, kind):
    truth = toy.truth()
    results = [r for _, target in toy.val.scenes.drawn
               for r in as_results(as_found(target), target["image_id"], toy.ids, kind)]
    found = average_precision(truth, results, kind)
    assert found["ap"] == found["ap50"] == found["ap75"] == pytest.approx(1)


@needs_pycocotools
def test_a_worked_example_of_average_precision():
    """One picture, two objects of a class.  The surer box hits the first exactly; the next overlaps the second with
    IoU 80 / 120 = 0.667; a third hits nothing.  At thresholds 0.50 to 0.65 (4 of 10) recall 1 at precision 1; above,
    recall 0.5 at precision 1, which is 51 of COCO's 101 points of recall."""
    target = {"image_id": 1, "labels": torch.tensor([1, 1]), "boxes": torch.tensor([[0., 0, 10, 10], [20, 0, 30, 10]])}
    found = {"labels": torch.tensor([1, 1, 1]), "scores": torch.tensor([0.9, 0.8, 0.1]),
             "boxes": torch.tensor([[0., 0, 10, 10], [20, 2, 30, 12], [50, 50, 60, 60]])}
    ap = average_precision(as_coco([((64, 64), target)], [5]), as_results(found, 1, [5], "box"), "box")
    assert ap["ap50"] == pytest.approx(1) and ap["ap75"] == pytest.approx(51 / 101)
    assert ap["ap"] == pytest.approx((4 + 6 * 51 / 101) / 10) and ap["ap_large"] == -1


@needs_pycocotools
def test_figures_are_those_of_cocoeval_on_the_same_files(coco, tmp_path):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    data = load_scenes(coco, "mask", device="cpu")
    results = {"box": [], "mask": []}
    for i in range(3):
        _, target = data.val.scenes[i]
        found = {"labels": target["labels"], "scores": torch.linspace(0.9, 0.3, len(target["labels"])),
                 "boxes": target["boxes"] + torch.tensor([1., 0, 2, 1]),
                 "masks": target["masks"][:, None].roll(1, -1) * 0.8}
        for kind in results:
            results[kind] += as_results(found, target["image_id"], data.ids, kind)
    for kind, name in (("box", "bbox"), ("mask", "segm")):
        (tmp_path / "results.json").write_text(json.dumps(results[kind]))
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(coco / "annotations" / "instances_val2017.json"))
            judge = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), name)
            judge.evaluate(), judge.accumulate(), judge.summarize()
        ours = average_precision(data.truth(), results[kind], kind)
        assert list(ours.values()) == judge.stats[:6].tolist() and 0 < ours["ap"] < 1


@needs_pycocotools
def test_nothing_found_is_a_precision_of_zero(toy):
    assert set(average_precision(toy.truth(), [], "mask").values()) == {0.0}


def test_mean_iou_of_a_worked_example():
    classes, found = torch.tensor([[0, 0, 1, 1], [2, 2, VOID, 0]]), torch.tensor([[0, 1, 1, 1], [2, 0, 1, 0]])
    confusion = confusion_matrix(classes, found, 4)
    assert confusion.tolist() == [[2, 1, 0, 0], [0, 2, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    assert mean_iou(confusion) == pytest.approx((2 / 4 + 2 / 3 + 1 / 2) / 3)


def test_without_pycocotools_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ValueError, match="pip install pycocotools"):
        precision.need_pycocotools()
