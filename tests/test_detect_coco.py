"""A folder in COCO's layout, read; and files that are not."""
import contextlib
import json
import sys

import pytest
import torch
from coco_folder import needs_pycocotools, write_coco_folder

from scnet_minimal.lab.detect.coco import VOID, CocoFolder, encode_mask, need_pycocotools
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


ENTRY = {"images": 0, "annotations": 1, "categories": 1}
WRONG = {                                               # by file and field: what it must not be
    ("images", "id"): ["1", None, 1.5, 2], ("images", "file_name"): ["", None, "gone.jpg", "a\0b"],
    ("images", "height"): [0, -1, "30"], ("categories", "id"): ["7", 3, None], ("categories", "name"): [None, 5],
    ("categories", "keypoints"): [None, "nose", [1]], ("annotations", "id"): ["2", 1, None],
    ("annotations", "image_id"): [99, "1", None], ("annotations", "category_id"): [5, "3", None],
    ("annotations", "bbox"): [[0, 0, float("inf"), 4], [0, 0, float("nan"), 4], [0, 0, 4], "0 0 4 4", None,
                              [0, 0, -4, 4], [1e300, 0, 4, 4]],
    ("annotations", "area"): ["16", None, -1, float("nan")], ("annotations", "iscrowd"): ["0", 2],
    ("annotations", "segmentation"): [None, [], [[1, 2]], [[0, 0, 1, 1, float("inf"), 0]], "x",
                                      {"size": [9, 9], "counts": [81]}, {"size": [30, 40], "counts": [1201]},
                                      {"size": [30, 40], "counts": "0"}, {"size": [30, 40]}],
    ("annotations", "keypoints"): [None, [1, 2, 3], ["x"] * 51, [5, 7, 3] * 17],
    ("annotations", "num_keypoints"): [None, -1, "16", 18],
}


@needs_pycocotools
@pytest.mark.parametrize("kind, field", WRONG, ids=".".join)
def test_a_field_that_would_fail_later_is_named_when_the_file_is_opened(kind, field, tmp_path):
    people = "keypoints" in field
    root = write_coco_folder(tmp_path)
    path = root / "annotations" / f"{'person_keypoints' if people else 'instances'}_val2017.json"
    whole = path.read_text()
    for value in WRONG[kind, field]:
        content = json.loads(whole)
        content[kind][min(ENTRY[kind], len(content[kind]) - 1)][field] = value
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=rf"{path.name}.*{field}|{path.name}.*(an id stands twice|no such file)"):
            CocoFolder(root, "val", "keypoint" if people else "mask")
    content = json.loads(whole)
    del content[kind][min(ENTRY[kind], len(content[kind]) - 1)][field]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"{path.name}.*{field}") if field != "iscrowd" else contextlib.nullcontext():
        CocoFolder(root, "val", "keypoint" if people else "mask")


@needs_pycocotools
def test_masks_as_compressed_run_lengths_are_taken_if_they_fill_the_image(tmp_path):
    root = write_coco_folder(tmp_path)
    path = root / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    mask = torch.zeros(30, 40, dtype=torch.uint8)
    mask[3:7, ::3] = 1
    content["annotations"][1]["segmentation"] = encode_mask(mask)
    path.write_text(json.dumps(content))
    assert torch.equal(CocoFolder(root, "val", "mask")[0][1]["masks"][1], mask)
    content["annotations"][1]["segmentation"]["counts"] += "1"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="segmentation"):
        CocoFolder(root, "val", "mask")


@needs_pycocotools
@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named_without_a_traceback(tmp_path, workers):
    root = write_coco_folder(tmp_path)
    (root / "val2017" / "2.jpg").write_bytes(b"no image")
    data = load_scenes(root, "box", device="cpu", workers=workers, only_val=True)
    with pytest.raises(UserError, match="2.jpg") as caught:
        list(data.val)
    assert "\n" not in str(caught.value)


@needs_pycocotools
@pytest.mark.parametrize("text", ["[]", "", "{", "<html>", "{}", '{"images": [], "annotations": [], "categories": []}'])
def test_a_file_that_holds_something_else_is_refused(text, tmp_path):
    root = write_coco_folder(tmp_path)
    (root / "annotations" / "instances_val2017.json").write_text(text)
    with pytest.raises(UserError, match="instances_val2017.json"):
        load_scenes(root, "mask", device="cpu")


def test_without_pycocotools_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(UserError, match="pip install pycocotools"):
        need_pycocotools()
