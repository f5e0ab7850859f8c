"""The training loop, on a data set of a few coloured squares."""
import signal
from functools import partial

import pytest
import torch
import torch._dynamo.testing
from torch import nn
from tqdm import tqdm

from scnet_minimal import SCNet
from scnet_minimal.lab import device
from scnet_minimal.lab.data import load_data
from scnet_minimal.lab.errors import UserError
from scnet_minimal.lab.train import Task, Trainer, checkpoint, classify, evaluate, fit, loop, predict, top1
from scnet_minimal.lab.train.checkpoint import Interrupts, Keeper, read_checkpoint
from scnet_minimal.lab.train.loop import one_cycle, step_decay


@pytest.fixture(scope="module")
def folder(squares, tmp_path_factory):
    return squares(tmp_path_factory.mktemp("squares"), 20)


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """A figure after each epoch takes longer than the epoch does here."""
    monkeypatch.setattr(checkpoint, "history_png", lambda history, score: b"")


def keep(folder, score="val_top1"):
    keeper = Keeper(folder, {"arch": "small", "classes": ["blue", "red"]}, score)
    keeper.open()
    return keeper


def train(folder, seed=0, memory_limit=2**30, **kwargs):
    data = load_data(folder, size=16, batch_size=12, device="cpu", seed=seed, memory_limit=memory_limit, workers=0)
    torch.manual_seed(seed)
    model = SCNet((1, 1, 1, 1), 2, widths=(4, 8, 8, 8), bottleneck_width=32)
    model.fc = nn.Sequential(nn.Dropout(0.2), model.fc)         # draws from torch's generator at every step
    return model, data, fit(model, data, **{"epochs": 3, "lr": 0.1, **kwargs})


@pytest.mark.slow
def test_it_learns_to_tell_colours_and_returns_its_history(folder):
    model, data, history = train(folder, epochs=20)
    assert [row["epoch"] for row in history] == list(range(20))
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert history[-1]["val_top1"] == 1.0 == top1(*predict(model, data.val))
    assert all(0 <= row["train_top1"] <= 1 and row["seconds"] > 0 for row in history)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights(folder):
    (one, _, _), (two, _, _), (other, _, _) = train(folder), train(folder), train(folder, seed=1)
    pairs = list(zip(one.state_dict().values(), two.state_dict().values()))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(one.fc[1].weight, other.fc[1].weight)


def test_predictions_keep_the_order_and_count_every_image_once(folder):
    model, data, _ = train(folder, epochs=1)
    logits, labels = predict(model, data.val)
    assert labels.tolist() == data.val.labels.tolist() == [0] * 8 + [1] * 8
    assert logits.shape == (16, 2) and not model.training


def test_a_loss_that_is_not_finite_stops_the_run(folder):
    with pytest.raises(FloatingPointError, match="step 2 of epoch 1; .*smaller --lr"):
        train(folder, lr=1e30)


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(folder, tmp_path, monkeypatch):
    keeper = keep(tmp_path)
    train(folder, epochs=1, keeper=keeper)
    before = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(FloatingPointError, match="step [23] of epoch 2"):
        train(folder, epochs=2, lr=1e30, keeper=keeper, resume=read_checkpoint(tmp_path))
    assert (tmp_path / "last.pt").read_bytes() == before


def test_at_the_first_step_the_data_are_named_as_the_reason(folder):
    data = load_data(folder, size=16, batch_size=12, device="cpu")
    task = Task(lambda model, batch: (model(batch[0]).sum() * float("nan"), len(batch[1]), {}), lambda model: {})
    model = SCNet((1, 1, 1, 1), 2, widths=(4, 8, 8, 8))
    trainer = Trainer(model, data.train, task, torch.optim.SGD(model.parameters()), step_decay(0.1), epochs=1)
    with pytest.raises(FloatingPointError, match="step 1 of epoch 1; .*the data"):
        trainer.run()


def test_weights_that_are_not_finite_are_not_saved(folder):
    model, data, _ = train(folder, epochs=1)
    trainer = Trainer(model, data.train, None, torch.optim.SGD(model.parameters()), step_decay(0.1), epochs=1)
    torch.nn.init.constant_(model.fc[1].weight, float("inf"))
    with pytest.raises(FloatingPointError, match="Weights are not finite"):
        trainer.state()


def test_no_epochs_is_an_error(folder):
    with pytest.raises(UserError, match="0"):
        train(folder, epochs=0)


def test_top1_is_the_share_of_correct_answers():
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


# --- stopping and resuming ---------------------------------------------------------------------------------

def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def without_seconds(history):
    return [{name: value for name, value in row.items() if "second" not in name} for row in history]


def interrupted_at(step, monkeypatch, signal_number=signal.SIGINT):
    """From now on a Ctrl-C arrives in the middle of the step of this number."""
    learn, count = Trainer._train_step, iter(range(1, 1000))

    def learn_and_interrupt(self, batch):
        if next(count) == step:
            signal.raise_signal(signal_number)
        learn(self, batch)

    monkeypatch.setattr(Trainer, "_train_step", learn_and_interrupt)


@pytest.mark.parametrize("recipe, memory_limit, step", [        # of 4 in each epoch: mid-epoch, and at an epoch's end
    ("quick", 2**30, 1), ("quick", 0, 6), ("paper", 2**30, 6), ("paper", 2**30, 8)])
def test_a_run_that_was_interrupted_ends_in_the_bits_of_one_that_was_not(folder, tmp_path, monkeypatch, recipe,
                                                                         memory_limit, step):
    options = dict(epochs=3, recipe=recipe, memory_limit=memory_limit)
    straight, _, history = train(folder, **options)
    with monkeypatch.context() as patch:
        interrupted_at(step, patch, signal.SIGTERM if step == 6 else signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            train(folder, **options, keeper=keep(tmp_path))
    torch.manual_seed(99)
    state = read_checkpoint(tmp_path)
    assert state["epoch"] * 4 + state["step"] == step
    resumed, _, resumed_history = train(folder, **options, keeper=keep(tmp_path), resume=state)
    assert same(straight, resumed)
    assert without_seconds(resumed_history) == without_seconds(history)


@pytest.mark.slow
def test_two_epochs_and_two_more_are_four(folder, tmp_path):
    straight, _, history = train(folder, epochs=4, recipe="paper")
    train(folder, epochs=2, recipe="paper", keeper=keep(tmp_path))
    resumed, _, resumed_history = train(folder, epochs=4, recipe="paper", resume=read_checkpoint(tmp_path))
    assert same(straight, resumed) and without_seconds(resumed_history) == without_seconds(history)


def test_an_interrupt_during_evaluation_loses_nothing_either(folder, tmp_path, monkeypatch):
    straight, _, history = train(folder, epochs=2)
    with monkeypatch.context() as patch:
        patch.setattr(classify, "evaluate", lambda *_, **__: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            train(folder, epochs=2, keeper=keep(tmp_path))
    assert read_checkpoint(tmp_path)["step"] == 4
    resumed, _, resumed_history = train(folder, epochs=2, resume=read_checkpoint(tmp_path))
    assert same(straight, resumed) and without_seconds(resumed_history) == without_seconds(history)


def test_an_interrupt_that_a_library_turns_into_an_error_of_its_own_is_an_interrupt_all_the_same(folder, tmp_path,
                                                                                                  monkeypatch):
    def decode(*_, **__):           # numpy does so where a Ctrl-C arrives while it calls pycocotools' __array__
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as interrupt:
            raise TypeError("unexpected keyword argument 'copy'") from interrupt

    monkeypatch.setattr(classify, "evaluate", decode)
    with pytest.raises(KeyboardInterrupt):
        train(folder, epochs=2, keeper=keep(tmp_path))
    assert read_checkpoint(tmp_path)["step"] == 4


def test_an_error_without_an_interrupt_stays_itself(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(classify, "evaluate", lambda *_, **__: [][0])
    with pytest.raises(IndexError):
        train(folder, epochs=1, keeper=keep(tmp_path))


def test_a_resumed_run_obeys_the_new_learning_rate(folder, tmp_path):
    train(folder, epochs=1, recipe="paper", keeper=keep(tmp_path))
    rows = []
    train(folder, epochs=2, recipe="paper", lr=0.007, resume=read_checkpoint(tmp_path),
          on_epoch=lambda row, best: rows.append(row))
    assert [row["lr"] for row in rows] == [0.007]


@pytest.mark.parametrize("before, after", [(True, True), (False, True), (True, False)])
def test_the_loss_scaler_is_resumed_and_precision_may_change_between_runs(folder, before, after):
    model, data, _ = train(folder, epochs=1)
    one, two = (Trainer(model, data.train, None, torch.optim.SGD(model.parameters()), step_decay(0.1), epochs=1)
                for _ in range(2))
    one.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, enabled=before)
    two.scaler = torch.amp.GradScaler("cpu", init_scale=2.0, enabled=after)
    for trainer in (one, two):
        trainer.scaler.scale(torch.ones(()))            # a scaler has its scale from its first use on
    two.resume(one.state())
    assert two.scaler.get_scale() == (8.0 if before and after else 2.0 if after else 1.0)


def test_signals_are_handled_as_before_once_training_is_over(folder, tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    train(folder, epochs=1, keeper=keep(tmp_path))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_an_interrupt_waits_for_what_must_not_be_cut():
    for number in (signal.SIGINT, signal.SIGTERM):
        done = []
        with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt):
            with interrupts.held():
                with interrupts.held():
                    signal.raise_signal(number)
                done.append("whole")
        assert done == ["whole"]
        with Interrupts(), pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
            done.append("never")
        assert done == ["whole"]


def test_a_second_interrupt_does_not_wait_and_saves_nothing(folder, tmp_path, monkeypatch):
    step = Trainer._train_step

    def interrupted_twice(self, batch):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        step(self, batch)

    monkeypatch.setattr(Trainer, "_train_step", interrupted_twice)
    with pytest.raises(KeyboardInterrupt):
        train(folder, keeper=keep(tmp_path))
    assert not (tmp_path / "last.pt").exists()


def test_under_torchrun_an_interrupt_that_is_passed_on_again_changes_nothing(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    done = []
    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt):
        with interrupts.held():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            done.append("whole")
    assert done == ["whole"]


# --- the parts --------------------------------------------------------------------------------------------

def test_the_cycle_is_torchs_one_cycle():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.4, total_steps=1001, pct_start=0.25)
    ours = one_cycle(0.4, epochs=10)
    for i in range(1000):
        assert ours(i / 100) == pytest.approx(theirs.get_last_lr()[0], abs=0.4 * 0.005)
        optimizer.step()
        theirs.step()


def test_the_paper_divides_by_ten_after_every_thirty_epochs():
    lr = step_decay(0.1)
    assert [lr(e) for e in (0, 29.99, 30, 59.99, 60, 99.9)] == pytest.approx([.1, .1, .01, .01, .001, .0001])


def test_an_unknown_recipe_is_an_error(folder):
    with pytest.raises(ValueError, match="slow"):
        train(folder, recipe="slow")


def test_evaluation_counts_what_predict_predicts(folder):
    model, data, _ = train(folder, epochs=2)
    logits, labels = predict(model, data.val)
    result = evaluate(model, data.val)
    assert result["top1"] == top1(logits, labels) and result["top5"] == 1
    assert result["loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item())


def test_top5_counts_the_five_largest():
    class Fixed(nn.Module):
        def forward(self, x):
            return -torch.arange(10.0).expand(len(x), 10)           # class 0 first, class 9 last

    class Val(list):
        labels = torch.tensor([0, 4, 5, 9])

    result = evaluate(Fixed(), Val([(torch.zeros(4, 3, 8, 8), Val.labels)]))
    assert (result["top1"], result["top5"]) == (0.25, 0.5)


def test_another_task_runs_through_the_same_loop(tmp_path):
    """Regression of a line: a loss of its own, a score of its own, checkpoints, resuming."""
    class Line(list):
        def set_epoch(self, epoch, start=0):
            torch.manual_seed(epoch)
            self[:] = [torch.rand(16, 1) for _ in range(8)]
            del self[:start]

        def __len__(self):
            return 8

    def run(epochs, keeper=None, state=None):
        torch.manual_seed(0)
        model = nn.Linear(1, 1)
        task = Task(lambda model, x: (((model(x) - 3 * x) ** 2).mean(), len(x), {}),
                    lambda model: {"slope": 1 - abs(model.weight.item() - 3)})
        trainer = Trainer(model, Line(), task, torch.optim.SGD(model.parameters(), momentum=0.9), step_decay(0.1),
                          epochs=epochs, keeper=keeper)
        if state:
            trainer.resume(state)
        return trainer.run()

    straight = run(8)
    assert straight[-1]["train_loss"] < 0.1 and straight[-1]["val_slope"] > 0.8
    run(2, keep(tmp_path, "val_slope"))
    resumed = run(8, state=read_checkpoint(tmp_path))
    assert [row["val_slope"] for row in resumed] == [row["val_slope"] for row in straight]


def in_float16(monkeypatch):
    """As on a GPU without bfloat16."""
    for room in (device, loop, classify):
        monkeypatch.setattr(room, "amp_dtype", lambda device, amp=None: None if amp is False else torch.float16)


def test_float16_scales_its_loss_and_learns(folder, tmp_path, monkeypatch):
    in_float16(monkeypatch)
    model, _, history = train(folder, epochs=3, keeper=keep(tmp_path))
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert read_checkpoint(tmp_path)["scaler"]["scale"] > 1


def test_an_evaluation_that_overflows_in_float16_is_repeated_in_float32(folder, monkeypatch):
    model, data, _ = train(folder, epochs=1)
    model.fc = nn.Sequential(model.fc, nn.Linear(2, 2, bias=False))
    nn.init.constant_(model.fc[1].weight, 1e6)                      # beyond 65,504
    expected = evaluate(model, data.val)
    in_float16(monkeypatch)
    assert not predict(model, data.val)[0].isfinite().all()
    assert evaluate(model, data.val) == expected


@pytest.mark.slow
def test_compiled_is_for_one_batch_size_and_others_run_as_they_are(monkeypatch):
    counter = torch._dynamo.testing.CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    model, plain = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    plain.load_state_dict(model.state_dict())
    classify.compile_for(model, 4)
    for mode in (True, False):
        for n in (4, 4, 3, 4, 2, 5):
            x = torch.randn(n, 3)
            torch.testing.assert_close(model.train(mode)(x), plain.train(mode)(x))
    assert counter.frame_count == 2                                 # training, evaluation
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_mixed_precision_keeps_the_weights_in_float32_and_learns(folder):
    model, data, history = train(folder, epochs=2, amp=True)
    assert all(p.dtype == torch.float32 for p in model.parameters()) and history[1]["train_loss"] < 1


def test_the_bar_shows_speed_loss_top1_and_time_left(folder, capsys, monkeypatch):
    monkeypatch.setattr(loop, "tqdm", partial(tqdm, mininterval=0))       # drawn after every batch, however quick
    train(folder, epochs=1, print_freq=1, name="squares")
    shown = capsys.readouterr().out
    assert "squares 1/1: 100%" in shown and "images/s, loss 0." in shown and "top1 0." in shown
    assert "<00:00" in shown
    train(folder, epochs=1, quiet=True)
    assert tuple(capsys.readouterr()) == ("", "")
