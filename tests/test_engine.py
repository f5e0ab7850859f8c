"""The training loop, on a data set of a few coloured squares."""
import pytest
import torch
from PIL import Image

from scnet_minimal import SCNet
from scnet_minimal.lab.data import load_data
from scnet_minimal.lab.engine import fit, predict, top1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes, red and blue, of 24 + 8 pictures each."""
    root = tmp_path_factory.mktemp("squares")
    for split, n in (("train", 24), ("val", 8)):
        for name, channel in (("blue", 2), ("red", 0)):
            (root / split / name).mkdir(parents=True)
            for i in range(n):
                colour = [40 + i, 60 + i, 50 + i]
                colour[channel] = 200 + i
                Image.new("RGB", (40, 40), tuple(colour)).save(root / split / name / f"{i:02}.png")
    return root


def train(folder, seed=0, **kwargs):
    data = load_data(folder, size=32, batch_size=12, device="cpu", seed=seed)
    torch.manual_seed(seed)
    model = SCNet((1, 1, 1, 1), 2, widths=(4, 8, 8, 8), bottleneck_width=32)
    return model, data, fit(model, data, **{"epochs": 20, "lr": 0.1, **kwargs})


def test_it_learns_to_tell_colours_and_says_how_it_went(folder):
    model, data, history = train(folder)
    assert [e.epoch for e in history] == list(range(20))
    assert history[-1].train_loss < history[0].train_loss
    assert history[-1].val_top1 == 1.0 == top1(*predict(model, data.val))
    assert all(0 <= e.train_top1 <= 1 and e.seconds > 0 for e in history)


def test_the_same_seed_gives_the_same_weights(folder):
    (one, _, _), (two, _, _), (other, _, _) = train(folder), train(folder), train(folder, seed=1)
    pairs = list(zip(one.state_dict().values(), two.state_dict().values()))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(one.fc.weight, other.fc.weight)


def test_predictions_keep_the_order_and_count_every_picture_once(folder):
    model, data, _ = train(folder, epochs=1)
    logits, labels = predict(model, data.val)
    assert labels.tolist() == data.val.labels.tolist() == [0] * 8 + [1] * 8
    assert logits.shape == (16, 2) and not model.training


def test_a_loss_that_is_not_finite_stops_the_run(folder):
    with pytest.raises(FloatingPointError, match="in epoch 1: try a smaller lr than 1e\\+30"):
        train(folder, lr=1e30)


def test_no_epochs_is_an_error(folder):
    with pytest.raises(ValueError, match="epochs must be at least 1, not 0"):
        train(folder, epochs=0)


def test_top1_is_the_share_of_right_answers():
    assert top1(torch.tensor([[2.0, 1], [0, 1], [3, 2]]), torch.tensor([0, 1, 1])) == pytest.approx(2 / 3)


def test_weight_decay_spares_norms_and_biases(folder, monkeypatch):
    seen = []
    monkeypatch.setattr(torch.optim, "SGD", lambda groups, **kw: seen.extend(groups) or _stop())
    with pytest.raises(KeyboardInterrupt):
        train(folder)
    assert seen[0]["weight_decay"] > 0 and all(p.ndim > 1 for p in seen[0]["params"])
    assert seen[1]["weight_decay"] == 0 and all(p.ndim == 1 for p in seen[1]["params"])
    everything = SCNet((1, 1, 1, 1), 2, widths=(4, 8, 8, 8)).parameters()
    assert sum(len(g["params"]) for g in seen) == len(list(everything))


def _stop():
    raise KeyboardInterrupt
