"""Device, precision and layout: decided in one place, and not in float64 where a device has none."""
import warnings

import pytest
import torch

from scnet_minimal.lab import device as room
from scnet_minimal.lab.data import load_data
from scnet_minimal.lab.errors import UserError
from scnet_minimal.lab.train import evaluate, predict, top1


def test_the_best_device_is_one_on_which_a_kernel_runs():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = room.best_device()
    assert torch.ones(2, device=found).sum().item() == 2


def test_a_gpu_without_kernels_is_passed_over_with_the_reason(monkeypatch):
    """torch's wheels leave old cards out: is_available() is true, and the first kernel fails."""
    ones = torch.ones

    def fail_on_cuda(*size, device="cpu"):
        if device == "cuda":
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nMore")
        return ones(*size, device=device)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch, "ones", fail_on_cuda)
    with pytest.warns(UserWarning, match="no kernel image is available.*older CUDA version"):
        assert room.best_device().type == "cpu"


def test_each_of_several_processes_has_a_device_and_a_gpu_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert room.process_device(None, local_rank=1, backend="gloo").type == "cpu"
    for backend in (None, "nccl"):                  # eight slow processes in place of eight GPUs have to be asked for
        with pytest.raises(UserError, match="--dist-backend gloo"):
            room.process_device(None, local_rank=1, backend=backend)
    count = torch.cuda.device_count()
    for number in (-1, count):
        with pytest.raises(UserError, match=f"{number}.* {count} "):
            room.process_device(number)


def test_half_precision_on_a_cpu_only_when_asked_for():
    cpu = torch.device("cpu")
    assert room.amp_dtype(cpu) is None and room.amp_dtype(cpu, False) is None
    assert room.amp_dtype(cpu, True) == torch.bfloat16
    with room.autocast(cpu, True):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_half_precision_on_cuda_is_bfloat16_where_the_card_has_it(monkeypatch):
    cuda = torch.device("cuda", 0)
    for has, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert room.amp_dtype(cuda) == room.amp_dtype(cuda, True) == dtype and room.amp_dtype(cuda, False) is None


def test_waiting_for_a_gpu_is_waiting_for_that_one(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    for device in (torch.device("cuda", 1), torch.device("cpu")):
        room.synchronize(device)
    assert waited == [torch.device("cuda", 1)]


def test_the_description_of_the_machine_names_the_version_of_torch():
    assert torch.__version__ in room.describe_machine(torch.device("cpu"))


def test_evaluation_makes_no_float64_tensor_where_the_device_has_none(squares, tmp_path, monkeypatch):
    """As MPS would have it: there every float64 tensor is an error."""
    data = load_data(squares(tmp_path, 20), size=16, device="cpu", workers=0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 2))

    class NoFloat64(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            result = function(*args, **kwargs or {})
            assert getattr(result, "dtype", None) is not torch.float64, function
            return result

    mps = torch.device("mps")
    monkeypatch.setattr("scnet_minimal.lab.train.classify.sum_dtype", lambda device: room.sum_dtype(mps))
    with NoFloat64():
        assert top1(*predict(model, data.val)) == evaluate(model, data.val)["top1"]
