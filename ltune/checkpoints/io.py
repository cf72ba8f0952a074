"""Lightning's checkpoint dict <-> a published folder: weights.safetensors, state.safetensors and state.json. No pickle is written or read.

state.json is the dict itself, with {"~": KIND, ...} wherever JSON has no word for a value: tensor, tuple, float (nan, inf), dict (keys
that are not strings), OrderedDict.
"""

import json
import math
import os
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ltune.checkpoints.publish import publish, remove, verify

WEIGHTS, STATE = "weights.safetensors", "state.safetensors"
TREE = "state.json"
TAG = "~"
DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool),
}


class SafetensorsIO(CheckpointIO):
    """Saves and loads Lightning's checkpoints as folders. Pass it to the Trainer as a plugin."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: dict[str, Any] | None = None) -> None:
        """Publish the checkpoint as the folder `path`.

        Args:
            checkpoint: dicts, lists, tuples, None, bool, int, float, str and dense tensors, nested; keys are None, bool, int, float or str.
            path: the folder, replaced if it exists.
            storage_options: facts for the manifest beside "step", such as position and hashes, JSON values
                (`trainer.save_checkpoint(path, storage_options=...)`).

        Raises:
            TypeError: something else is in there; names where.
            ResourceError: the disk is full.
        """
        files: dict[str, dict[str, Tensor]] = {WEIGHTS: {}, STATE: {}}
        tree = json.dumps(_encode(checkpoint, (), files), allow_nan=False)
        need = len(tree) + sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())
        step = {"step": checkpoint["global_step"]} if "global_step" in checkpoint else {}
        with publish(Path(path), extra=step | (storage_options or {}), need=need) as stage:
            for name, tensors in files.items():
                _save_tensors(tensors, stage / name)
            (stage / TREE).write_text(tree, encoding="utf-8")

    def load_checkpoint(
        self, path: str | os.PathLike, map_location: str | torch.device | None = None, weights_only: bool | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The dict that was saved, tensors on the CPU or on `map_location`. `weights_only` is moot: nothing here can hold code.

        Raises:
            Damaged: the folder is not what was saved; nothing of it is used.
        """
        folder = Path(path)
        verify(folder)
        device = str(map_location or "cpu")
        # copies: what load_file gives may be a view of the mapped file, and the optimizer goes on writing into its state
        files = {
            name: {key: tensor.clone() for key, tensor in load_file(folder / name, device=device).items()} for name in (WEIGHTS, STATE)
        }
        return _decode(json.loads((folder / TREE).read_text(encoding="utf-8")), files)

    def remove_checkpoint(self, path: str | os.PathLike) -> None:
        """Delete the folder; at no instant does it look like a checkpoint with parts missing."""
        if Path(path).exists():
            remove(Path(path))


def _encode(value: Any, path: tuple, files: dict[str, dict[str, Tensor]]) -> Any:
    """A JSON value for `value`, which lies at `path` in the checkpoint; its tensors are put into `files`."""
    kind = type(value)  # exactly: a subclass would come back as something else
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {TAG: "float", "value": repr(value)}
    if kind is list:
        return [_encode(item, (*path, index), files) for index, item in enumerate(value)]
    if kind is tuple:
        return {TAG: "tuple", "items": [_encode(item, (*path, index), files) for index, item in enumerate(value)]}
    if kind in (dict, OrderedDict):
        return _encode_dict(value, path, files)
    if kind in (Tensor, torch.nn.Parameter):
        return _encode_tensor(value, path, files)
    raise TypeError(f"checkpoint{_place(path)} is a {kind.__module__}.{kind.__qualname__}: a checkpoint cannot hold it")


def _encode_dict(value: dict, path: tuple, files: dict[str, dict[str, Tensor]]) -> dict[str, Any]:
    for key in value:
        if type(key) not in (str, int, float, bool, type(None)):
            raise TypeError(f"checkpoint{_place(path)} has a key {key!r}, a {type(key).__qualname__}: a checkpoint cannot hold it")
    if type(value) is dict and TAG not in value and all(type(key) is str for key in value):
        return {key: _encode(item, (*path, key), files) for key, item in value.items()}
    items = [[_encode(key, path, files), _encode(item, (*path, key), files)] for key, item in value.items()]
    return {TAG: type(value).__name__, "items": items}


def _encode_tensor(value: Tensor, path: tuple, files: dict[str, dict[str, Tensor]]) -> dict[str, str]:
    if value.layout != torch.strided or value.dtype not in DTYPES or value.device.type == "meta":
        raise TypeError(f"checkpoint{_place(path)} is a {value.layout} {value.dtype} tensor on {value.device}: a checkpoint cannot hold it")
    weight = path[0] == "state_dict"
    file = WEIGHTS if weight else STATE
    name = ".".join(str(key) for key in (path[1:] if weight else path)).encode("ascii", "backslashreplace").decode()
    while name in files[file] or name == "__metadata__":  # the latter is the format's own
        name += "'"
    files[file][name] = value.detach()
    return {TAG: "tensor", "file": file, "name": name}


def _decode(value: Any, files: dict[str, dict[str, Tensor]]) -> Any:
    if isinstance(value, list):
        return [_decode(item, files) for item in value]
    if not isinstance(value, dict):
        return value
    if TAG not in value:
        return {key: _decode(item, files) for key, item in value.items()}
    if value[TAG] == "tensor":
        return files[value["file"]][value["name"]]
    if value[TAG] == "float":
        return float(value["value"])
    if value[TAG] == "tuple":
        return tuple(_decode(item, files) for item in value["items"])
    kind = {"dict": dict, "OrderedDict": OrderedDict}[value[TAG]]
    return kind((_decode(key, files), _decode(item, files)) for key, item in value["items"])


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(_apart(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:  # it reports a full disk as text
        if code := re.search(r"os error (\d+)|code: (\d+)", str(error)):
            number = int(code[1] or code[2])
            raise OSError(number, os.strerror(number), str(path)) from error
        raise


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same values, contiguous on the CPU, no two of them sharing memory: safetensors refuses anything else."""
    apart, seen = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return apart


def _place(path: tuple) -> str:
    return "".join(f"[{key!r}]" for key in path)
