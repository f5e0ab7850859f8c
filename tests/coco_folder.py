"""A small folder in COCO's layout, which several tests read."""
import importlib.util
import json

import pytest
from PIL import Image

BOX = [4, 6, 20, 10]
needs_pycocotools = pytest.mark.skipif(not importlib.util.find_spec("pycocotools"), reason="pip install pycocotools")


def write_coco_folder(root):
    """Three images a split: two objects; one and a crowd; none.  Categories 3 and 7; those of 7 have keypoints."""
    (root / "annotations").mkdir(parents=True)
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
