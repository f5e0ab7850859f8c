"""The mirror's weights (pytorchcv's) are the authors' tensors under other names: these are the rules that undo it."""
import re

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
