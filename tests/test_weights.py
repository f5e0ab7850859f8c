"""Where the weights come from and what a file must hold, with small networks and a server of our own."""
import contextlib
import hashlib
import http.server
import io
import os
import pickle
import re
import socket
import sys
import threading
import time
import zipfile
from functools import partial
from pathlib import Path

import golden
import pytest
import torch
import torchvision

import scnet_minimal
from scnet_minimal import SCNet, scnet50, scnet50_v1d, scnet101_v1d, weights

ROOT = Path(__file__).parent.parent
V1D = dict(stem_width=4, avg_down=True, avd=True)
THIN = dict(widths=(4, 8, 16, 32))                                   # a full-depth network in a blink


def tiny(num_classes: int = 1000, **kwargs) -> SCNet:
    return SCNet((1, 1, 1, 1), num_classes, widths=(4, 4, 4, 4), **kwargs)


def packed(state, **kwargs) -> bytes:
    file = io.BytesIO()
    torch.save(state, file, **kwargs)
    return file.getvalue()


def mirrored(state: dict) -> dict:
    """A tiny network's state dict under the mirror's names."""
    renamed = {}
    for name, tensor in state.items():
        for ours, theirs in [
            ("conv1.weight", "features.init_block.conv.conv.weight"), ("bn1.", "features.init_block.conv.bn."),
            ("fc.", "output."), *((f"layer{i}.0.", f"features.stage{i}.unit1.") for i in range(1, 5)),
        ]:
            if name.startswith(ours):
                name = theirs + name[len(ours):]
        for half in "ab":
            for kind in ("conv", "bn"):
                name = name.replace(f".{kind}1_{half}.", f".body.conv1{half}.{kind}.")
        for ours, theirs in [("downsample", "identity_block"), ("k1", "body.conv2a"),
                             ("scconv.k3", "body.conv2b.conv1"), ("scconv.k4", "body.conv2b.conv2")]:
            name = name.replace(f".{ours}.0.", f".{theirs}.conv.").replace(f".{ours}.1.", f".{theirs}.bn.")
        name = name.replace(".scconv.k2.1.", ".body.conv2b.down.conv.conv.")
        name = name.replace(".scconv.k2.2.", ".body.conv2b.down.conv.bn.")
        for kind in ("conv", "bn"):
            name = name.replace(f"unit1.{kind}3.", f"unit1.body.conv3.{kind}.")
        renamed[name] = tensor
    return renamed


def same(model: SCNet, state: dict) -> bool:
    own = model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[name], t) for name, t in state.items())


class Site:
    """A web server on this machine.  pages: path -> bytes (200), number (that status), or a function of the request."""

    def __init__(self):
        site, self.pages, self.asked, self.over = self, {}, [], threading.Event()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                site.asked.append(self.path)
                page = site.pages.get(self.path, 404)
                if callable(page):
                    page(self)
                elif isinstance(page, int):
                    self.send_error(page)
                else:
                    self.answer(page, len(page))

            def answer(self, body: bytes, length: int):
                self.send_response(200)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def hang(self, request):
        self.over.wait(20)

    def stall(self, request):
        request.answer(b"PK\x03\x04", 10_000)
        self.over.wait(20)

    def close(self):
        self.over.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def site(monkeypatch, tmp_path):
    """A site that serves the weights `.state` of a tiny network at both addresses; torch.hub's folder is tmp_path."""
    site = Site()
    site.state = tiny().state_dict()
    official, mirror = packed(site.state), packed(mirrored(site.state), _use_new_zipfile_serialization=False)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as members:
        members.writestr("tiny-mirror.pth", mirror)
        members.writestr("../escaped.pth", b"not asked for")
    name = f"/tiny-{hashlib.sha256(official).hexdigest()[:8]}.pth"
    site.official, site.mirror = name, "/tiny-mirror.pth.zip"
    site.pages = {site.official: official, site.mirror: archive.getvalue()}
    site.entry = dict(official=site.address + site.official, mirror=site.address + site.mirror, drive="an-id",
                      sha1=hashlib.sha1(mirror).hexdigest())
    monkeypatch.setitem(weights.SOURCES, "tiny", site.entry)
    monkeypatch.setattr(weights, "TIMEOUT", 0.5)
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    site.cache = tmp_path / "hub" / "checkpoints"
    yield site
    site.close()


def fetched(network: str = "tiny") -> SCNet:
    return weights.load_weights(tiny(), weights.fetch_weights(network))


def cached(site) -> list[str]:
    return sorted(path.name for path in site.cache.rglob("*"))


# --- fetching -------------------------------------------------------------------------------------------------------

def test_official_address_is_asked_first_and_the_cache_from_then_on(site, capsys):
    assert same(fetched(), site.state)
    assert site.asked == [site.official] and cached(site) == [site.official[1:]]
    capsys.readouterr()
    assert same(fetched(), site.state)
    assert site.asked == [site.official] and capsys.readouterr() == ("", "")


def broken(site, how: str) -> None:
    page = site.pages[site.official]
    site.pages[site.official] = {
        "wrong hash": page + b"!", "403": 403, "404": 404, "login page": b"<html>Sign in</html>",
        "truncated": lambda request: request.answer(page[:1000], len(page)),
        "closes": lambda request: request.close_connection, "hangs": site.hang, "stalls": site.stall,
    }[how]


@pytest.mark.parametrize("how, reason", [
    ("wrong hash", "invalid hash value"), ("login page", "invalid hash value"), ("truncated", "invalid hash value"),
    ("403", "HTTP Error 403: Forbidden"), ("404", "HTTP Error 404: Not Found"), ("closes", "closed connection"),
    ("hangs", "timed out"), ("stalls", "timed out")])
def test_mirror_takes_over_and_one_line_says_why(site, capsys, how, reason):
    broken(site, how)
    start = time.monotonic()
    assert same(fetched(), site.state)
    assert time.monotonic() - start < 5
    told = [line for line in capsys.readouterr().err.replace("\r", "\n").split("\n") if "trying" in line]
    assert len(told) == 1 and reason in told[0] and told[0].endswith(f"trying {site.entry['mirror']}")
    assert told[0].startswith(site.entry["official"])
    assert site.asked == [site.official, site.mirror] and cached(site) == ["tiny-mirror.pth"]
    assert same(fetched(), site.state) and len(site.asked) == 2                          # from the cache


def test_redirects_are_followed(site):
    def elsewhere(request):
        request.send_response(302)
        request.send_header("Location", "/moved.pth")
        request.end_headers()
    site.pages["/moved.pth"], site.pages[site.official] = site.pages[site.official], elsewhere
    assert same(fetched(), site.state) and site.asked == [site.official, "/moved.pth"]


def test_mirrors_archive_gives_one_member_and_leaves_nothing_else(site, tmp_path):
    site.pages[site.official] = 404
    fetched()
    assert cached(site) == ["tiny-mirror.pth"] and not list(tmp_path.rglob("escaped*"))


def test_when_all_fail_one_error_says_what_to_type_and_nothing_is_left(site, monkeypatch):
    site.pages = {site.official: b"wrong", site.mirror: site.hang}
    monkeypatch.setitem(weights.SOURCES, "scnet50", site.entry)
    start = time.monotonic()
    with pytest.raises(RuntimeError) as error:
        scnet50(pretrained=True, **THIN)
    message, digest = str(error.value), hashlib.sha256(b"wrong").hexdigest()
    assert time.monotonic() - start < 5 and message.count("\n") == 2
    for part in (site.entry["official"], site.entry["mirror"], 'scnet50(weights="PATH")', "timed out",
                 "https://drive.google.com/file/d/an-id/view", f'(expected "{site.official[6:14]}", got "{digest}")'):
        assert part in message
    assert cached(site) == []


@pytest.mark.parametrize("spoil, reason", [
    (lambda page: page[:2000], "not a zip file"), (lambda page: b"<html>", "not a zip file"),
    (lambda page: page.replace(b"tiny-mirror", b"otherwise12"[:11]), "no item named 'tiny-mirror.pth'")])
def test_mirrors_archive_must_be_whole_and_hold_its_file(site, spoil, reason):
    site.pages = {site.mirror: spoil(site.pages[site.mirror])}
    with pytest.raises(RuntimeError, match=reason):
        fetched()
    assert cached(site) == []


def test_mirrors_file_must_have_its_hash(site):
    del site.pages[site.official]
    found, site.entry["sha1"] = site.entry["sha1"], 40 * "0"
    with pytest.raises(RuntimeError, match=f'expected "{40 * "0"}", got "{found}"'):
        fetched()
    assert cached(site) == []


def test_hosts_that_cannot_be_reached_fail_like_the_others(site):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    site.entry |= {"official": f"http://127.0.0.1:{port}/a-12345678.pth", "mirror": f"http://127.0.0.1:{port}/b.pth.zip"}
    with pytest.raises(RuntimeError, match="refused"):
        fetched()


def test_cache_that_cannot_be_written_is_told_before_any_request(site):
    site.cache.parent.mkdir()
    site.cache.write_text("a file where the folder should be")
    with pytest.raises(RuntimeError, match="File exists"):
        fetched()
    assert site.asked == []


def test_limit_on_silence_ends_with_the_download(site):
    socket.setdefaulttimeout(33)
    try:
        fetched()
        assert socket.getdefaulttimeout() == 33
    finally:
        socket.setdefaulttimeout(None)


def test_network_without_weights_says_so_and_takes_a_file(site, tmp_path):
    with pytest.raises(ValueError, match="scnet101_v1d.*scnet50, scnet101, scnet50_v1d"):
        scnet101_v1d(pretrained=True, **THIN)
    with pytest.raises(FileNotFoundError, match="absent.pth"):
        scnet101_v1d(pretrained=True, weights=tmp_path / "absent.pth", **THIN)
    assert site.asked == []


def test_wrong_arguments_are_told_before_anything_is_downloaded(site, monkeypatch):
    monkeypatch.setitem(weights.SOURCES, "scnet50", site.entry)
    with pytest.raises(ValueError, match="output_stride"):
        scnet50(pretrained=True, output_stride=12)
    assert site.asked == []


def test_official_addresses_are_named_after_their_networks():
    assert list(weights.SOURCES) == ["scnet50", "scnet101", "scnet50_v1d"]
    for network, source in weights.SOURCES.items():
        assert re.fullmatch(rf"https://[^?]+/{network}-[0-9a-f]{{8}}\.pth", source["official"])


@pytest.mark.parametrize("network, short", [
    ("scnet50", "61236331"), ("scnet101", "40cd4d4c"), ("scnet50_v1d", "eb3c25d6")])
def test_mirrors_archives_are_named_after_the_sha1_inside(network, short):
    source = weights.SOURCES[network]
    assert source["mirror"].endswith(f"-{short}.pth.zip") and re.fullmatch(short + "[0-9a-f]{32}", source["sha1"])


# --- files that load ------------------------------------------------------------------------------------------------

def without_counters(state):
    return {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrap", [
    dict, lambda state: {"module." + name: t for name, t in state.items()}, without_counters, mirrored,
    lambda state: {"state_dict": {"module." + name: t for name, t in state.items()}, "epoch": 99}],
    ids=["plain", "module.", "without counters", "mirror", "checkpoint"])
def test_both_formats_and_the_usual_wrappings_load(tmp_path, wrap, legacy):
    state = tiny().state_dict()
    path = tmp_path / "a.pth"
    path.write_bytes(packed(wrap(state), _use_new_zipfile_serialization=not legacy))
    assert same(weights.load_weights(tiny(), path), state)
    assert same(weights.load_weights(tiny(), str(path)), state)


def test_every_file_is_opened_on_the_cpu_and_as_data_only(tmp_path, monkeypatch):
    path, load, seen = tmp_path / "a.pth", torch.load, []
    path.write_bytes(packed(tiny().state_dict()))
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: seen.append(kwargs) or load(*args, **kwargs))
    weights.load_weights(tiny(), path)
    assert seen == [{"map_location": "cpu", "weights_only": True}]


@pytest.fixture
def thousand(tmp_path):
    path, state = tmp_path / "thousand.pth", tiny().state_dict()
    path.write_bytes(packed(state))
    return path, state


def body(state: dict) -> dict:
    return {name: t for name, t in state.items() if not name.startswith("fc.")}


@pytest.mark.parametrize("num_classes", [10, 1, 0])
def test_other_num_classes_keep_the_body_and_start_a_new_head(thousand, num_classes):
    path, state = thousand
    torch.manual_seed(0)
    fresh = tiny(num_classes)
    torch.manual_seed(0)
    model = weights.load_weights(tiny(num_classes), path)
    assert same(model, body(state) | {n: t for n, t in fresh.state_dict().items() if n.startswith("fc.")})
    assert model.eval()(torch.randn(2, 3, 32, 32)).shape == (2, num_classes or 16)


def test_file_with_as_many_classes_as_asked_for_loads_whole(tmp_path):
    path, state = tmp_path / "ten.pth", tiny(10).state_dict()
    path.write_bytes(packed(state))
    assert same(weights.load_weights(tiny(10), path), state)
    assert same(weights.load_weights(tiny(0), path), body(state))


@pytest.mark.parametrize("options", [{}, V1D])
def test_one_channel_answers_a_grey_picture_as_three_did(tmp_path, options):
    path, rgb = tmp_path / "a.pth", golden.fill(tiny(**options))
    path.write_bytes(packed(rgb.state_dict()))
    grey = weights.load_weights(tiny(in_chans=1, **options).double(), path).eval()
    x = golden.picture(2, 1, 33, 48)
    assert golden.close(grey(x).detach(), rgb(x.expand(-1, 3, -1, -1)).detach())


@pytest.mark.parametrize("in_chans", [2, 4, 7])
def test_other_channels_repeat_the_filters_of_rgb_and_keep_the_response(thousand, in_chans):
    path, state = thousand
    own = weights.load_weights(tiny(in_chans=in_chans), path).state_dict()
    for i in range(in_chans):
        torch.testing.assert_close(own["conv1.weight"][:, i], state["conv1.weight"][:, i % 3] * 3 / in_chans)
    assert all(torch.equal(own[name], t) for name, t in state.items() if name != "conv1.weight")


def test_file_for_as_many_channels_as_asked_for_loads_whole(tmp_path):
    path, state = tmp_path / "four.pth", tiny(in_chans=4).state_dict()
    path.write_bytes(packed(state))
    assert same(weights.load_weights(tiny(in_chans=4), path), state)


def test_frozen_batch_norm_takes_the_weights(thousand):
    frozen = tiny(norm_layer=torchvision.ops.FrozenBatchNorm2d)
    assert same(weights.load_weights(frozen, thousand[0]), without_counters(thousand[1]))


@pytest.mark.slow
def test_scnet50_takes_a_file_without_pretrained_and_predicts_as_its_source(tmp_path):
    path, source = tmp_path / "scnet50.pth", scnet50(**THIN).eval()
    torch.save(source.state_dict(), path)
    model = scnet50(weights=path, **THIN).eval()
    ten = scnet50(weights=path, num_classes=10, in_chans=1, output_stride=8, **THIN)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(model(x), source(x))
    assert torch.equal(ten.layer4[2].scconv.k4[0].weight, source.layer4[2].scconv.k4[0].weight)
    with pytest.raises(ValueError, match=r"found scnet50, expected scnet50_v1d\.\n54 tensors differ"):
        scnet50_v1d(pretrained=True, weights=path, **THIN)


def test_safetensors_files_load(tmp_path):
    files = pytest.importorskip("safetensors.torch", reason="pip install safetensors")
    path, state = tmp_path / "a.safetensors", tiny().state_dict()
    files.save_file(state, path)
    assert same(weights.load_weights(tiny(), path), state)
    files.save_file({f"module.{name}": t for name, t in mirrored(state).items()}, path)
    assert same(weights.load_weights(tiny(), str(path)), state)
    path.write_bytes(path.read_bytes()[:500])
    assert "cut off" in refusal(path)


def test_safetensors_files_ask_for_the_package_where_it_is_missing(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"\0")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    assert "pip install safetensors" in refusal(path, error=ImportError)


# --- files that do not ----------------------------------------------------------------------------------------------

def refusal(path, model: SCNet | None = None, error=ValueError) -> str:
    with pytest.raises(error) as caught:
        weights.load_weights(model or tiny(), path)
    assert str(path) in str(caught.value) and caught.value.__cause__ is None
    return str(caught.value)


@pytest.mark.parametrize("build, options, facts", [
    (lambda: tiny(**V1D), {}, ["found an SCNet_v1d of (1, 1, 1, 1) blocks", "conv1.weight", "(4, 3, 7, 7)"]),
    (lambda: tiny(block=torchvision.models.resnet.Bottleneck), {}, ["ResNet", "layer1.0.conv1_a.weight"]),
    (lambda: tiny(in_chans=4), {"in_chans": 5}, ["conv1.weight", "(4, 4, 7, 7)", "(4, 5, 7, 7)"]),
    (lambda: torch.nn.Linear(2, 2), {}, ["no SCNet", "(4, 3, 7, 7)"]),
    (lambda: SCNet((3, 4, 6, 3), widths=(4, 4, 4, 4)), {},
     ["found scnet50, expected an SCNet of (1, 1, 1, 1) blocks.", "layer1.1.conv1_a.weight"]),
    (lambda: SCNet((3, 4, 23, 3), widths=(4, 4, 4, 4), **V1D), {}, ["found scnet101_v1d, expected an SCNet of"]),
])
def test_file_of_another_network_says_what_differs_and_what_it_looks_like(tmp_path, build, options, facts):
    path = tmp_path / "other.pth"
    path.write_bytes(packed(build().state_dict()))
    model = tiny(**options)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    message = refusal(path, model)
    assert all(fact in message for fact in facts) and "classes" not in message
    assert message.count("\n") == 1 and same(model, before)


@pytest.mark.parametrize("theirs, ours", [(12, 10), (10, 1000), (10, 12), (0, 10)])
def test_a_head_of_other_than_imagenets_1000_classes_is_never_replaced(tmp_path, theirs, ours):
    path, model = tmp_path / "head.pth", tiny(ours)
    path.write_bytes(packed(tiny(theirs).state_dict()))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    message = refusal(path, model)
    assert f" does not fit this network: found {theirs} classes, expected {ours} classes.\n" in message
    assert "SCNet" not in message and same(model, before)            # the two differ in nothing else


def test_a_file_of_a_v1d_network_does_not_fit_a_network_without_its_names(tmp_path):
    path = tmp_path / "v1d.pth"
    path.write_bytes(packed(tiny(**V1D).state_dict()))
    with pytest.raises(ValueError, match="conv1.0.weight|weight is missing"):
        weights.load_weights(torch.nn.Linear(2, 2), path)


@pytest.mark.parametrize("spoil", [
    torch.Tensor.to_sparse, lambda t: t.to(torch.float8_e4m3fn), lambda t: t.to("meta"), lambda t: t.long(),
    lambda t: t.to(torch.complex64), lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)],
    ids=["sparse", "float8", "meta", "int64", "complex", "quantized"])
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_not_plain_numbers_are_named(tmp_path, spoil):
    path, state = tmp_path / "odd.pth", tiny().state_dict()
    path.write_bytes(packed(state | {"layer2.0.conv3.weight": spoil(state["layer2.0.conv3.weight"])}))
    assert "layer2.0.conv3.weight" in refusal(path)


class Hostile:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("save", [
    lambda thing, file: torch.save(thing, file),
    lambda thing, file: torch.save({"state_dict": tiny().state_dict(), "args": thing}, file),
    lambda thing, file: torch.save(thing, file, _use_new_zipfile_serialization=False),
    lambda thing, file: pickle.dump(thing, file, protocol=2), lambda thing, file: pickle.dump(thing, file, protocol=5)])
def test_hostile_pickle_is_refused_without_running(tmp_path, save):
    mark, path = tmp_path / "ran", tmp_path / "hostile.pth"
    with path.open("wb") as file:
        save(Hostile(mark), file)
    message = refusal(path)
    assert "nothing in it" in message and "\n" not in message and not mark.exists()
    with contextlib.suppress(Exception):
        torch.load(path, weights_only=False)
    assert mark.exists()                                                                 # it would have run


def test_whole_saved_model_asks_for_the_state_dict(tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(packed(torch.nn.Linear(2, 2)))
    message = refusal(path)
    assert "torch.nn.modules.linear.Linear" in message and "\n" not in message


@pytest.mark.parametrize("content, fact", [
    (b"", "empty"), (b"<!doctype html><title>Sign in</title>", "web page, not weights: download"),
    (b"\n <HTML>", "web page"),
    (b"hello world", "damaged"), (bytes(range(256)), "damaged"),
    (packed(tiny().state_dict())[:3000], "cut off"), (packed(tiny().state_dict())[:10], "cut off"),
    (packed(tiny().state_dict(), _use_new_zipfile_serialization=False)[:-40], "cut off"),
    (packed(tiny().state_dict(), _use_new_zipfile_serialization=False)[:20], "cut off"),
    (packed(torch.ones(3)), "Tensor"), (packed([1, 2]), "list"), (packed({}), "dict"),
    (packed({"epoch": 3, "net": {}}), "epoch, net"),
], ids=lambda value: value if isinstance(value, str) else f"{len(value)} bytes")
def test_what_is_no_weights_file_gets_one_line_that_says_what_it_is(tmp_path, content, fact):
    path = tmp_path / "odd.pth"
    path.write_bytes(content)
    message = refusal(path)
    assert fact in message and "\n" not in message and len(message) < len(str(path)) + 120


def test_paths_that_are_no_file_get_one_line(tmp_path):
    assert "folder" in refusal(tmp_path, error=FileNotFoundError)
    assert "\n" not in refusal(tmp_path / "a.pth", error=FileNotFoundError)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.pth")
        refusal(tmp_path / "pipe.pth", error=FileNotFoundError)                          # without waiting for a writer
    with zipfile.ZipFile(tmp_path / "a.pth.zip", "w") as archive:
        archive.writestr("a.pth", packed(tiny().state_dict()))
    assert "unzip" in refusal(tmp_path / "a.pth.zip")


# --- torch.hub ------------------------------------------------------------------------------------------------------

def test_torch_hub_finds_the_four_networks(monkeypatch):
    monkeypatch.setattr(torch.hub, "_get_cache_or_reload", lambda *args, **kwargs: str(ROOT))   # instead of GitHub
    builders = ["scnet101", "scnet101_v1d", "scnet50", "scnet50_v1d"]
    assert sorted(torch.hub.list("owner/repo", trust_repo=True)) == builders
    assert torch.hub.help("owner/repo", "scnet50", trust_repo=True) == scnet50.__doc__
    model = torch.hub.load(str(ROOT), "scnet50_v1d", source="local", num_classes=10, **THIN)
    assert type(model).__name__ == "SCNet" and model.fc.out_features == 10


@pytest.mark.parametrize("network", ["scnet50", "scnet101", "scnet50_v1d", "scnet101_v1d"])
def test_every_builder_loads_files(network, monkeypatch):
    monkeypatch.setattr(weights, "fetch_weights", lambda name: f"fetched for {name}")
    monkeypatch.setattr(weights, "load_weights", lambda model, path: path)
    build = partial(getattr(scnet_minimal, network), **THIN)
    assert build(pretrained=True) == f"fetched for {network}"
    assert build(pretrained=True, weights="mine") == build(weights="mine") == "mine"
    assert isinstance(build(), SCNet)
