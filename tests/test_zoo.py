"""Networks by their names, their ImageNet weights, and the small trained ones."""
import hashlib
from types import SimpleNamespace

import pytest
import torch
import torchvision

from scnet_minimal.lab import zoo
from scnet_minimal.lab.errors import UserError
from scnet_minimal.weights import load_weights


@pytest.mark.parametrize("name", ["scnet_toy", "resnet_toy", "resnet50_v1d", "mobilenet_v3_small", "googlenet"])
def test_a_network_by_its_name_gives_one_logit_per_class(name):
    assert zoo.create_model(name, 7).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


def test_googlenet_trains_as_any_other_with_logits_alone():
    assert isinstance(zoo.create_model("googlenet", 7).train()(torch.zeros(2, 3, 64, 64)), torch.Tensor)


def test_the_toy_twins_are_equal_in_parameters_within_a_percent():
    toy, twin = (sum(p.numel() for p in zoo.create_model(f"{kind}_toy", 10).parameters())
                 for kind in ("scnet", "resnet"))
    assert abs(toy - twin) < 0.01 * twin


def test_arguments_reach_the_builder():
    assert zoo.create_model("scnet50", 2, in_chans=1, widths=(4, 8, 16, 32)).conv1.weight.shape[1] == 1


def test_every_name_is_known_once():
    names = zoo.model_names()
    assert len(set(names)) == len(names) and {"scnet101_v1d", "resnet50"} < set(names)
    with torch.device("meta"):
        assert zoo.create_model("resnet50").state_dict().keys() == torchvision.models.resnet50().state_dict().keys()


def test_a_misspelt_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="'scnet5'.*scnet50"):
        zoo.create_model("scnet5")


# --- ImageNet weights -----------------------------------------------------------------------------------------------

@pytest.fixture
def cache(tmp_path, monkeypatch):
    """torch.hub's cache, in tmp_path; nothing can be downloaded."""
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *args, **kwargs: pytest.fail("asked the network"))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_torchvisions_file_in_the_cache_is_taken_only_with_the_hash_in_its_name(cache, monkeypatch):
    digest = hashlib.sha256(b"weights").hexdigest()
    for start, right in ((digest[:8], True), ("0" * 8, False)):
        path = cache / f"resnet18-{start}.pth"
        path.write_bytes(b"weights")
        monkeypatch.setattr(torchvision.models, "get_model_weights",
                            lambda name, path=path: {"DEFAULT": SimpleNamespace(url=f"https://host/{path.name}")})
        if right:
            assert zoo.fetch_imagenet("resnet18") == path
        else:
            with pytest.raises(UserError, match=digest[:8]):
                zoo.fetch_imagenet("resnet18")


def test_a_network_without_imagenet_weights_names_those_that_have_them(cache):
    with pytest.raises(UserError, match="scnet_toy.*scnet50, scnet101, scnet50_v1d"):
        zoo.fetch_imagenet("scnet_toy")


# --- the small trained networks -------------------------------------------------------------------------------------

def test_the_trained_networks_are_there_and_load():
    for name in zoo.TRAINED:
        arch, seed = name.rsplit("_", 1)
        load_weights(zoo.create_model(arch, 10), zoo.trained(arch, int(seed)))


def test_those_trained_on_photographs_keep_the_names_of_their_fifty_classes():
    for name in zoo.PHOTOGRAPHS:
        kind, seed = name.rsplit("_", 1)
        path = zoo.trained(kind, int(seed))
        classes = torch.load(path, weights_only=True)["classes"]
        assert len(set(classes)) == 50 and all(classes)
        load_weights(zoo.create_model("scnet_toy" if "scnet" in kind else "resnet_toy", 50), path)


def test_outside_of_the_checkout_they_are_found_above_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "TRAINED_FOLDER", tmp_path / "installed")
    below = tmp_path / "course" / "notebooks"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    with pytest.raises(FileNotFoundError, match="scnet_toy_0.pt"):
        zoo.trained("scnet_toy")
    file = tmp_path / "course" / "data" / "trained" / "scnet_toy_0.pt"
    file.parent.mkdir(parents=True)
    file.touch()
    assert zoo.trained("scnet_toy") == file
