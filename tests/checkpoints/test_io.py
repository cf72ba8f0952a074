import math
import resource
import tempfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from ltune.checkpoints.io import DTYPES, SafetensorsIO
from ltune.checkpoints.publish import Damaged, read_manifest, verify
from ltune.errors import ResourceError


def same(left, right) -> bool:
    """Equal in value and in type, to the last bit."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        return (left.dtype, left.shape) == (right.dtype, right.shape) and left.contiguous().view(-1).view(torch.uint8).equal(
            right.contiguous().view(-1).view(torch.uint8)
        )
    if isinstance(left, dict):
        return len(left) == len(right) and all(same(a, b) and same(left[a], right[b]) for a, b in zip(left, right, strict=True))
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, float):
        return left.hex() == right.hex()
    return left == right


def round_trip(value: dict, folder: Path) -> dict:
    SafetensorsIO().save_checkpoint(value, folder / "checkpoint")
    return SafetensorsIO().load_checkpoint(folder / "checkpoint")


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype is torch.bool:
        return torch.rand(shape, generator=generator) > 0.5
    raw = torch.randint(0, 256, (*shape, dtype.itemsize), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).reshape(shape)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
TENSORS = st.builds(
    random_tensor, st.sampled_from(sorted(DTYPES, key=str)), st.lists(st.integers(0, 3), max_size=3).map(tuple), st.integers(0, 99)
)
KEYS = st.text(max_size=4) | st.integers() | st.sampled_from(["~", "state_dict", "__metadata__", "a.b", "a", "b", None, True])
VALUES = st.recursive(
    SCALARS | TENSORS | st.just(math.nan),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.dictionaries(KEYS, inner, max_size=3).map(OrderedDict)
    ),
    max_leaves=12,
)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_nested_structure_comes_back_the_same(value):
    with tempfile.TemporaryDirectory() as folder:
        assert same(value, round_trip(value, Path(folder)))


def test_floats_and_tensors_of_every_kind(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    value = {
        "floats": [0.1, -0.0, 5e-324, math.inf, -math.inf, math.nan, 1e308],
        "state_dict": {
            "a.weight": base,
            "tied": base,
            "view": base[1:],
            "transposed": base.t(),
            "parameter": torch.nn.Parameter(base).detach(),
        },
        "scalar": torch.tensor(1.5),
        "kinds": {str(dtype): random_tensor(dtype, (2, 3), 1) for dtype in DTYPES},
        1: (None, True, 2**70, "\ud800 é"),
    }
    assert same(value, round_trip(value, tmp_path))


def test_weights_lie_apart_under_their_own_names(tmp_path):
    from safetensors.torch import load_file

    round_trip(
        {"state_dict": {"lora_A.weight": torch.ones(2)}, "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}}]}, tmp_path
    )
    assert list(load_file(tmp_path / "checkpoint" / "weights.safetensors")) == ["lora_A.weight"]
    assert list(load_file(tmp_path / "checkpoint" / "state.safetensors")) == ["optimizer_states.0.state.0.exp_avg"]
    assert sorted(path.name for path in (tmp_path / "checkpoint").iterdir()) == [
        "manifest.json", "state.json", "state.safetensors", "weights.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"loops": {"fit": [1, {2}]}}, r"checkpoint\['loops'\]\['fit'\]\[1\] is a builtins.set"),
        ({"callbacks": {"x": Path(".")}}, r"checkpoint\['callbacks'\]\['x'\] is a pathlib"),
        ({"t": torch.ones(2).to_sparse()}, r"checkpoint\['t'\] is a torch.sparse_coo"),
        ({"a": {(1, 2): 3}}, r"checkpoint\['a'\] has a key \(1, 2\)"),
    ],
)
def test_what_cannot_be_held_is_refused_with_its_place(tmp_path, value, place):
    with pytest.raises(TypeError, match=place):
        SafetensorsIO().save_checkpoint(value, tmp_path / "checkpoint")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_resource_error(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    try:
        with pytest.raises(ResourceError, match="0.5 MiB"):
            SafetensorsIO().save_checkpoint({"state_dict": {"w": torch.zeros(2**17)}}, tmp_path / "checkpoint")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_loading_a_damaged_checkpoint_is_refused_and_removing_leaves_nothing(tmp_path):
    round_trip({"state_dict": {"w": torch.zeros(4)}}, tmp_path)
    weights = tmp_path / "checkpoint" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(Damaged, match="weights.safetensors"):
        SafetensorsIO().load_checkpoint(tmp_path / "checkpoint")
    SafetensorsIO().remove_checkpoint(tmp_path / "checkpoint")
    SafetensorsIO().remove_checkpoint(tmp_path / "checkpoint")
    assert list(tmp_path.iterdir()) == []


def test_writing_into_loaded_tensors_leaves_the_files_alone(tmp_path):
    loaded = round_trip({"state_dict": {"w": torch.zeros(1000)}, "s": torch.zeros(1000)}, tmp_path)
    loaded["state_dict"]["w"].add_(1)
    loaded["s"].add_(1)
    verify(tmp_path / "checkpoint")


def adamw(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    torch.manual_seed(seed)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(
        [{"params": [model.weight], "lr": 0.1 + 0.2}, {"params": [model.bias]}], lr=1 / 3, betas=(0.9, 0.95), amsgrad=True
    )
    return model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))


def test_adamw_and_lambda_lr_states_come_back_exactly_and_go_on_the_same(tmp_path):
    def steps(model, optimizer, schedule, number):
        for _ in range(number):
            optimizer.zero_grad()
            model(torch.ones(4, 3)).pow(2).sum().backward()
            optimizer.step()
            schedule.step()

    model, optimizer, schedule = adamw(seed=0)
    steps(model, optimizer, schedule, 3)
    checkpoint = {"state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()], "lr_schedulers": [schedule.state_dict()]}
    loaded = round_trip(checkpoint, tmp_path)
    assert same(checkpoint, loaded)
    model2, optimizer2, schedule2 = adamw(seed=1)
    model2.load_state_dict(loaded["state_dict"])
    optimizer2.load_state_dict(loaded["optimizer_states"][0])
    schedule2.load_state_dict(loaded["lr_schedulers"][0])
    steps(model, optimizer, schedule, 3)
    steps(model2, optimizer2, schedule2, 3)
    assert same(dict(model.state_dict()), dict(model2.state_dict()))
    verify(tmp_path / "checkpoint")


class Tiny(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 2)

    def training_step(self, batch, _):
        return self.layer(batch).pow(2).mean()

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.1)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 0.9**s), "interval": "step"},
        }


def fit(folder: Path, epochs: int, **options) -> tuple[Tiny, Trainer]:
    torch.manual_seed(1)
    rows = DataLoader(torch.randn(8, 4), batch_size=2)
    model = Tiny()
    trainer = Trainer(
        default_root_dir=folder, max_epochs=epochs, accelerator="cpu", devices=1, plugins=[SafetensorsIO()], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, rows, **options)
    return model, trainer


def test_a_trainer_saves_and_goes_on_from_it_to_the_same_weights(tmp_path):
    straight, _ = fit(tmp_path, epochs=4)
    _, trainer = fit(tmp_path, epochs=2)
    trainer.save_checkpoint(tmp_path / "step-8", storage_options={"position": {"epoch": 2, "window": 0}})
    manifest = read_manifest(tmp_path / "step-8")
    assert (manifest["step"], manifest["position"]) == (8, {"epoch": 2, "window": 0})
    resumed, trainer = fit(tmp_path, epochs=4, ckpt_path=str(tmp_path / "step-8"), weights_only=True)
    assert trainer.global_step == 16
    assert same(dict(straight.state_dict()), dict(resumed.state_dict()))
