"""A folder in COCO's layout, read; and files that are not."""
import json
import sys

import pytest
import torch
from coco_folder import needs_pycocotools, write_coco_folder

from scnet_minimal.lab.detect.coco import VOID, need_pycocotools
from scnet_minimal.lab.detect.scenes import load_scenes
from scnet_minimal.lab.errors import UserError

# pycocotools' own, on numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return write_coco_folder(tmp_path_factory.mktemp("coco"))


@needs_pycocotools
def test_boxes_and_masks_come_without_crowds_and_labels_without_gaps(coco):
    data = load_scenes(coco, "mask", batch_size=2, device="cpu")
    assert data.classes == ["ball", "person"] and data.ids == [3, 7] and len(data.train) == 1
    (images, targets), = data.train
    assert sorted(t["image_id"] for t in targets) == [1, 2]                  # the third has nothing to learn from
    (_, one), = [(x, t) for x, t in zip(images, targets) if t["image_id"] == 1]
    assert one["labels"].tolist() == [2, 1] and images[0].shape == (3, 30, 40)
    assert one["masks"].shape == (2, 30, 40) and one["masks"].flatten(1).sum(1).tolist() == [200, 16]
    image, plain = data.train.scenes[0]
    assert plain["boxes"].tolist() == [[4, 6, 24, 16], [10, 8, 14, 12]] and image.dtype == torch.uint8
    assert [len(t["labels"]) for _, targets in data.val for t in targets] == [2, 1, 0]


@needs_pycocotools
def test_in_a_class_map_the_smaller_object_is_in_front_and_crowds_are_ignored(coco):
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
    assert sorted(data.train.order) == list(range(17)) != list(data.train.order)


@needs_pycocotools
def test_workers_read_the_same_images(coco):
    alone, helped = (load_scenes(coco, "box", batch_size=2, device="cpu", workers=n) for n in (0, 2))
    for (a, s), (b, t) in zip(alone.val, helped.val):
        assert all(torch.equal(x, y) for x, y in zip(a, b)) and [o["image_id"] for o in s] == [o["image_id"] for o in t]


# --- what is refused ------------------------------------------------------------------------------------------------

@needs_pycocotools
def test_a_folder_without_annotations_or_images_is_refused(tmp_path):
    with pytest.raises(UserError, match="instances_val.*json"):
        load_scenes(tmp_path, "box", device="cpu")
    root = write_coco_folder(tmp_path / "coco")
    (root / "val2017").rename(root / "elsewhere")
    with pytest.raises(UserError, match="val2017"):
        load_scenes(root, "box", device="cpu")


@needs_pycocotools
@pytest.mark.parametrize("change, fact", [
    (lambda d: d["annotations"][1].update(bbox=[0, 0, float("inf"), 4]), "annotation 2 .*inf"),
    (lambda d: d["annotations"][1].update(bbox=[0, 0, float("nan"), 4]), "annotation 2 .*nan"),
    (lambda d: d["annotations"][1].update(bbox=[0, 0, 4]), r"annotation 2 .*\[0, 0, 4\]"),
    (lambda d: d["annotations"][1].update(bbox="0 0 4 4"), "annotation 2 .*0 0 4 4"),
    (lambda d: d["annotations"][1].pop("bbox"), "bbox"),
    (lambda d: d["annotations"][1].update(category_id=5), "annotation 2 .*5"),
    (lambda d: d["annotations"][1].update(image_id=99), "annotation 2 .*99"),
    (lambda d: d.pop("categories"), "categories"),
    (lambda d: d.pop("images"), "images"),
    (lambda d: d["categories"][0].pop("name"), "name"),
    (lambda d: d.update(categories=[]), "0 categories"),
    (lambda d: d.update(annotations=None), ""),
])
def test_annotations_that_would_fail_later_are_refused_at_once(change, fact, tmp_path):
    root = write_coco_folder(tmp_path)
    path = root / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"instances_val2017.json.*{fact}"):
        load_scenes(root, "mask", device="cpu")


@needs_pycocotools
@pytest.mark.parametrize("text", ["[]", "", "{", "<html>"])
def test_a_file_that_holds_something_else_is_refused(text, tmp_path):
    root = write_coco_folder(tmp_path)
    (root / "annotations" / "instances_val2017.json").write_text(text)
    with pytest.raises(UserError, match="instances_val2017.json"):
        load_scenes(root, "mask", device="cpu")


def test_without_pycocotools_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(UserError, match="pip install pycocotools"):
        need_pycocotools()
