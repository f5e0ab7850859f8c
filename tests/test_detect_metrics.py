"""Average precision is pycocotools' on the same files; both metrics give worked examples."""
import contextlib
import io
import json

import pytest
import torch
from coco_folder import needs_pycocotools, write_coco_folder

from scnet_minimal.lab.detect.coco import VOID, coco_results, coco_truth
from scnet_minimal.lab.detect.metrics import average_precision, confusion_matrix, evaluate_detector, mean_iou
from scnet_minimal.lab.detect.scenes import load_scenes

# pycocotools' own, on numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def toy():
    return load_scenes("toynette", "mask+keypoint", size=48, images=(1, 4), batch_size=2, device="cpu")


def perfect(target):
    """The target as a prediction."""
    return {"boxes": target["boxes"], "labels": target["labels"], "scores": torch.full((len(target["labels"]),), 0.9),
            "masks": target["masks"][:, None].float(), "keypoints": target["keypoints"], "classes": target["classes"]}


class Oracle(torch.nn.Module):
    """A model that knows the targets of a split, by the sum of an image's values."""

    def __init__(self, batches):
        super().__init__()
        self.known = {x.sum().item(): perfect(t) for images, targets in batches for x, t in zip(images, targets)}

    def forward(self, images):
        return [self.known[x.sum().item()] for x in images]


@needs_pycocotools
def test_perfect_predictions_have_an_average_precision_of_one(toy):
    results = evaluate_detector(Oracle(toy.val), toy, "mask+keypoint")
    for kind in ("box", "mask", "keypoint"):
        assert results[f"{kind}_ap"] == results[f"{kind}_ap50"] == results[f"{kind}_ap75"] == pytest.approx(1)


def test_perfect_class_maps_have_a_mean_iou_of_one(toy):
    assert evaluate_detector(Oracle(toy.val), toy, "segment") == {"miou": 1, "pixels": 1}


@needs_pycocotools
def test_a_worked_example_of_average_precision():
    """One image, two objects of a class.  The surest box hits the first exactly; the next overlaps the second with
    IoU 80 / 120 = 0.667; a third hits nothing.  At thresholds 0.50 to 0.65 (4 of 10) recall 1 at precision 1; above,
    recall 0.5 at precision 1, which is 51 of COCO's 101 points of recall."""
    target = {"image_id": 1, "labels": torch.tensor([1, 1]), "boxes": torch.tensor([[0., 0, 10, 10], [20, 0, 30, 10]])}
    prediction = {"labels": torch.tensor([1, 1, 1]), "scores": torch.tensor([0.9, 0.8, 0.1]),
                  "boxes": torch.tensor([[0., 0, 10, 10], [20, 2, 30, 12], [50, 50, 60, 60]])}
    ap = average_precision(coco_truth([((64, 64), target)], [5]), coco_results(prediction, 1, [5], "box"), "box")
    assert ap["ap50"] == pytest.approx(1) and ap["ap75"] == pytest.approx(51 / 101)
    assert ap["ap"] == pytest.approx((4 + 6 * 51 / 101) / 10) and ap["ap_large"] == -1


@needs_pycocotools
def test_figures_are_those_of_cocoeval_on_the_same_files(tmp_path):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    root = write_coco_folder(tmp_path)
    data = load_scenes(root, "mask", device="cpu")
    results = {"box": [], "mask": []}
    for i in range(3):
        _, target = data.val.scenes[i]
        prediction = {"labels": target["labels"], "scores": torch.linspace(0.9, 0.3, len(target["labels"])),
                      "boxes": target["boxes"] + torch.tensor([1., 0, 2, 1]),
                      "masks": target["masks"][:, None].roll(1, -1) * 0.8}
        for kind in results:
            results[kind] += coco_results(prediction, target["image_id"], data.ids, kind)
    for kind, name in (("box", "bbox"), ("mask", "segm")):
        (tmp_path / "results.json").write_text(json.dumps(results[kind]))
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(root / "annotations" / "instances_val2017.json"))
            reference = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), name)
            reference.evaluate(), reference.accumulate(), reference.summarize()
        ours = average_precision(data.truth(), results[kind], kind)
        assert list(ours.values()) == reference.stats[:6].tolist() and 0 < ours["ap"] < 1


@needs_pycocotools
def test_no_predictions_are_an_average_precision_of_zero(toy):
    assert set(average_precision(toy.truth(), [], "mask").values()) == {0.0}


def test_mean_iou_of_a_worked_example():
    classes, predicted = torch.tensor([[0, 0, 1, 1], [2, 2, VOID, 0]]), torch.tensor([[0, 1, 1, 1], [2, 0, 1, 0]])
    confusion = confusion_matrix(classes, predicted, 4)
    assert confusion.tolist() == [[2, 1, 0, 0], [0, 2, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    assert mean_iou(confusion) == pytest.approx((2 / 4 + 2 / 3 + 1 / 2) / 3)
