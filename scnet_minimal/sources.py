"""Where the official weights are, and the names that their mirror (pytorchcv's) gives the same tensors."""
import re

# An official name ends with the beginning of the file's SHA-256, as torch.hub has it; nobody has confirmed these three.
# sha1: of the .pth in the mirror's archive (pytorchcv's).  drive: the id of the authors' copy on Google Drive.
_AUTHORS = "https://backseason.oss-cn-beijing.aliyuncs.com/scnet/"
_MIRROR = "https://github.com/osmr/imgclsmob/releases/download/v0.0.472/"
SOURCES = {
    "scnet50": dict(official=_AUTHORS + "scnet50-dc6a7e87.pth", mirror=_MIRROR + "scnet50-0608-61236331.pth.zip",
                    sha1="61236331bf1b7439f32158f09ff877e5b90b0d03", drive="1rA266TftaUymbtPTVHCJYoxDwl6K4gLr"),
    "scnet101": dict(official=_AUTHORS + "scnet101-44c5b751.pth", mirror=_MIRROR + "scnet101-0575-40cd4d4c.pth.zip",
                     sha1="40cd4d4ca4407798b569e883eb248a5abfddeb75", drive="11-rW7l9vl-HGrOoCktEjRBPxMeKw334x"),
    "scnet50_v1d": dict(official=_AUTHORS + "scnet50_v1d-4109d1e1.pth",
                        mirror=_MIRROR + "scneta50-0468-eb3c25d6.pth.zip",
                        sha1="eb3c25d6c9c8b6c0815a724d798b9b5a2b27ce34", drive="1EWZ4vELJVFNry6SRJEza5-T9nKuoZWgv"),
}

_RULES = [                                              # applied from top to bottom
    (r"^features\.init_block\.conv\.(conv|bn)\.", r"\g<1>1."), (r"^features\.init_block\.conv3\.bn\.", "bn1."),
    (r"^features\.init_block\.conv([123])\.(conv|bn)\.", lambda m: f"conv1.{3 * int(m[1]) - 3 + (m[2] == 'bn')}."),
    (r"^features\.stage(\d+)\.unit(\d+)\.", lambda m: f"layer{m[1]}.{int(m[2]) - 1}."), (r"^output\.", "fc."),
    (r"\.body\.conv1([ab])\.(conv|bn)\.", r".\g<2>1_\1."), (r"\.body\.conv3\.(conv|bn)\.", r".\g<1>3."),
    (r"\.body\.conv2b\.down\.conv\.conv\.", ".scconv.k2.1."), (r"\.body\.conv2b\.down\.conv\.bn\.", ".scconv.k2.2."),
    (r"\.body\.conv2b\.conv1\.", ".scconv.k3."), (r"\.body\.conv2b\.conv2\.", ".scconv.k4."),
    (r"\.identity_block\.conv\.conv\.", ".downsample.1."), (r"\.identity_block\.conv\.bn\.", ".downsample.2."),
    (r"\.identity_block\.", ".downsample."), (r"\.body\.conv2a\.", ".k1."),
    (r"(\.k[134]|\.downsample)\.conv\.", r"\1.0."), (r"(\.k[134]|\.downsample)\.bn\.", r"\1.1."),
]


def official_names(state: dict) -> dict:
    """A state dict with the mirror's names under the official ones.  Official names stay as they are."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in _RULES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed
