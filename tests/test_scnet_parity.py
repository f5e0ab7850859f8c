"""scnet.py against the authors' code (golden numbers) and a second, independent implementation (pytorchcv)."""
import golden
import pytest
import torch

import scnet_minimal
from scnet_minimal import SCConv, SCNet
from scnet_minimal.sources import official_names

OFFICIAL = golden.load("official_scnet")
MORE = golden.load("official_scnet_more")["cases"]
DROP_IN = golden.load("sc_conv_drop_in")


def some_slow(names, quick: tuple[str, ...]) -> list:
    """All names, those that are not quick marked as slow."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


def norm(tensors) -> float:
    return sum(t.double().pow(2).sum().item() for t in tensors) ** 0.5


@pytest.mark.parametrize("name", some_slow(OFFICIAL, quick=("scnet50",)))
def test_network_equals_the_official_code(name):
    reference, model = OFFICIAL[name], golden.fill(getattr(scnet_minimal, name)())
    assert list(golden.shapes(model).items()) == list(reference["state_dict"].items())      # names, shapes and order
    assert golden.parameters(model) == reference["parameters"]
    with torch.inference_mode():
        logits = model(golden.picture(*reference["input"]))
    assert golden.close(logits[:, :8], reference["logits_first8"])
    assert golden.close(logits.norm(), reference["logits_norm"])
    assert logits.argmax(1).tolist() == reference["argmax"]


@pytest.mark.parametrize("case", some_slow(MORE, quick=()))
def test_sizes_output_strides_and_gradients_equal_the_official_code(case):
    reference = MORE[case]
    model = golden.fill(getattr(scnet_minimal, reference["builder"])(**reference["arguments"]))
    x = golden.picture(*reference["input"])
    with torch.inference_mode():
        logits = model(x)
    assert golden.close(logits.flatten()[:8], reference["eval_first8"])
    assert golden.close(logits.norm(), reference["eval_norm"])

    logits = model.train()(x)
    (logits * torch.linspace(-1, 1, logits.shape[1], dtype=torch.float64)).sum().backward()
    running = [b for name, b in model.named_buffers() if name.endswith(("running_mean", "running_var"))]
    assert golden.close(logits.detach().norm(), reference["train_norm"], rel=1e-6)
    assert golden.close(norm(p.grad for p in model.parameters()), reference["grad_norm"], rel=1e-6)
    assert golden.close(norm(running), reference["running_norm_after_one_forward"], rel=1e-6)


@pytest.mark.parametrize("reference", DROP_IN, ids=lambda r: f"{r['channels']} channels, r = {r['pooling_r']}")
def test_drop_in_block_equals_the_reference(reference):
    block = golden.fill(SCConv(reference["channels"], reference["pooling_r"]))
    assert golden.shapes(block) == reference["state_dict"]
    assert golden.parameters(block) == reference["parameters"]
    with torch.inference_mode():
        y = block(golden.picture(*reference["input"]))
    assert list(y.shape) == reference["output"]
    assert golden.close(y.norm(), reference["norm"])
    assert golden.close(y.flatten()[:4], reference["first4"]) and golden.close(y.flatten()[-4:], reference["last4"])


def test_scnext_50_has_the_parameters_of_the_official_class():
    with torch.device("meta"):
        assert golden.parameters(SCNet((3, 4, 6, 3), groups=32, bottleneck_width=2)) == 25_044_008


@pytest.mark.slow
@pytest.mark.parametrize("ours, theirs", [
    ("scnet50", "scnet50"), ("scnet50_v1d", "scneta50")])
def test_any_size_equals_pytorchcv(ours, theirs):
    zoo = pytest.importorskip("pytorchcv.model_provider", reason="pip install pytorchcv: the peer of this test")
    peer = golden.fill(zoo.get_model(theirs))
    model = getattr(scnet_minimal, ours)().double().eval()
    model.load_state_dict(official_names(peer.state_dict()))
    for size in [(97, 97), (197, 251), (230, 250)]:
        x = golden.picture(1, 3, *size)
        with torch.inference_mode():
            assert golden.close(model(x), peer(x)), size


def test_official_names_stay_as_they_are():
    assert list(official_names(OFFICIAL["scnet50_v1d"]["state_dict"])) == list(OFFICIAL["scnet50_v1d"]["state_dict"])
