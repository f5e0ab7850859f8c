"""Drawn scenes, their batches, and what mirroring makes of a target."""
import pytest
import torch

from scnet_minimal.lab.data import toynette
from scnet_minimal.lab.detect.scenes import FIRST_SEED, draw_scene, load_scenes, mirror
from scnet_minimal.lab.errors import UserError


@pytest.fixture(scope="module")
def toy():
    return load_scenes("toynette", "mask+keypoint", size=48, images=(6, 4), batch_size=2, device="cpu")


def test_no_scene_shares_its_seed_with_an_image_of_toynette_or_with_the_other_split(toy):
    classifier = {int(seed) for split in toynette.SPLITS for seed in toynette.plan(split)[1]}
    train, val = ({target["image_id"] for _, target in map(split.scenes.__getitem__, range(len(split.scenes)))}
                  for split in (toy.train, toy.val))
    assert len(train) == 6 and len(val) == 4 and not train & val and not (train | val) & classifier
    assert FIRST_SEED["val"] - FIRST_SEED["train"] >= 1_000_000


def test_a_scene_follows_from_its_seed_and_its_target_fits_the_image():
    image, target = draw_scene("train", 1, 48)
    draw_scene.cache_clear()
    again, _ = draw_scene("train", 1, 48)
    assert torch.equal(image, again) and image.shape == (3, 48, 48) and image.dtype == torch.uint8
    n = len(target["labels"])
    assert target["masks"].shape == (n, 48, 48) and target["keypoints"].shape == (n, 5, 3)
    assert 1 <= target["labels"].min() and target["labels"].max() <= 10
    for mask, label, (x0, y0, x1, y1) in zip(target["masks"], target["labels"], target["boxes"].int().tolist()):
        assert mask.sum() == mask[y0:y1, x0:x1].sum() > 0
        assert (target["classes"][mask > 0] == label).all()
    assert (target["classes"][target["masks"].amax(0) == 0] == 0).all()


def test_scenes_hold_one_to_four_objects():
    assert {len(draw_scene("val", i, 48)[1]["labels"]) for i in range(16)} == {1, 2, 3, 4}


def ids(batches):
    return [[target["image_id"] for target in targets] for _, targets in batches]


def test_an_epoch_is_a_function_of_seed_and_number_and_can_be_entered_anywhere(toy):
    def content(epoch, start=0):
        toy.train.set_epoch(epoch, start)
        return [[(t["image_id"], x.sum().item()) for x, t in zip(*batch)] for batch in toy.train]

    first = content(0)
    assert content(0) == first and content(1) != first and content(0, start=1) == first[1:]
    assert len(first) == len(toy.train) == 3
    assert {i for batch in first for i, _ in batch} == {t["image_id"] for _, t in toy.train.scenes.drawn}


def test_half_of_the_training_images_are_mirrored_with_their_targets_and_no_validation_image(toy):
    own, mirrored = {t["image_id"]: x for x, t in toy.train.scenes.drawn}, []
    for epoch in range(4):
        toy.train.set_epoch(epoch)
        for images, targets in toy.train:
            for x, t in zip(images, targets):
                original = own[t["image_id"]] / 255
                mirrored.append(not torch.equal(x, original))
                assert torch.equal(x, original.flip(-1) if mirrored[-1] else original)
                x0, x1 = t["boxes"][0, [0, 2]].int().tolist()
                assert t["masks"][0, :, x0:x1].sum() == t["masks"][0].sum()
    assert 4 <= sum(mirrored) <= 20 and len(mirrored) == 24
    shown = [x for images, _ in toy.val for x in images]
    assert len(shown) == 4 and all(torch.equal(x, own / 255) for x, (own, _) in zip(shown, toy.val.scenes.drawn))


def test_processes_share_each_batch_and_every_validation_image_is_seen_once(toy):
    parts = [load_scenes("toynette", "box", size=48, images=(6, 3), batch_size=2, device="cpu", shard=(rank, 2))
             for rank in (0, 1)]
    toy.train.set_epoch(0)
    whole = [set(batch) for batch in ids(toy.train)]
    assert [set(a + b) for a, b in zip(ids(parts[0].train), ids(parts[1].train))] == whole and len(whole) == 3
    seen = [i for part in parts for batch in ids(part.val) for i in batch]
    assert sorted(seen) == [FIRST_SEED["val"] + i for i in range(3)]


def test_a_batch_that_processes_cannot_share_evenly_is_refused():
    with pytest.raises(UserError, match="3 .* 2"):
        load_scenes("toynette", "box", size=48, images=(1, 1), batch_size=3, device="cpu", shard=(0, 2))


def test_to_evaluate_no_training_scene_is_drawn():
    data = load_scenes("toynette", "box", size=48, images=(10**6, 2), device="cpu", only_val=True)
    assert len(data.val.scenes) == 2


# --- mirroring ------------------------------------------------------------------------------------------------------

def test_a_mirrored_scene_is_true_of_the_mirrored_image():
    image, target = draw_scene("train", 1, 48)
    mirrored, other = mirror(image, target)
    assert torch.equal(mirrored, image.flip(-1)) and torch.equal(other["classes"], target["classes"].flip(-1))
    assert all(type(value) is torch.Tensor for name, value in other.items() if name != "image_id")
    for mask, (x0, y0, x1, y1) in zip(other["masks"], other["boxes"].int().tolist()):
        ys, xs = mask.nonzero().T
        assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (x0, y0, x1, y1)
    shown = target["keypoints"][..., 2] > 0
    assert torch.allclose(other["keypoints"][..., 0][shown], 48 - target["keypoints"][..., 0][shown])
    back = mirror(mirrored, other)[1]
    assert torch.allclose(back["boxes"], target["boxes"]) and torch.allclose(back["keypoints"], target["keypoints"])


def test_in_a_mirrored_image_a_left_eye_is_a_right_eye():
    target = {"boxes": torch.tensor([[0., 0, 4, 4]]), "keypoints": torch.tensor([[[1., 1, 2], [3, 1, 2], [0, 0, 0]]])}
    points = mirror(torch.zeros(3, 8, 10), target, (1, 0, 2))[1]["keypoints"]
    assert points.tolist() == [[[7, 1, 2], [9, 1, 2], [0, 0, 0]]]


def test_an_image_without_objects_can_be_mirrored():
    target = {"boxes": torch.zeros(0, 4), "masks": torch.zeros(0, 8, 10, dtype=torch.uint8)}
    mirrored = mirror(torch.zeros(3, 8, 10), target)[1]
    assert mirrored["boxes"].shape == (0, 4) and mirrored["masks"].shape == (0, 8, 10)


def test_scenes_too_small_to_draw_are_refused():
    with pytest.raises(UserError, match="48 px.*32"):
        load_scenes("toynette", "box", size=32, images=(1, 1), device="cpu")
