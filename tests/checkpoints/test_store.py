from pathlib import Path

import pytest

from ltune.checkpoints.publish import publish, verify
from ltune.checkpoints.store import CheckpointStore
from ltune.errors import UsageError


def save(store: CheckpointStore, step: int) -> None:
    with publish(store.path(step)) as stage:
        (stage / "weights.bin").write_text(f"weights of step {step}")


def damage(store: CheckpointStore, step: int) -> None:
    (store.path(step) / "weights.bin").write_text(f"weights of step {step + 1}")


def quiet(message: str) -> None:
    raise AssertionError(f"unexpected warning: {message}")


def names(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def test_paths_and_steps(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    assert store.path(100) == tmp_path / "checkpoints" / "step-00000100"
    assert store.steps() == []
    assert store.latest() is None
    assert store.newest_intact(quiet) is None
    for step in (100, 20, 3):
        save(store, step)
    (store.folder / "step-notes").mkdir()
    assert store.steps() == [3, 20, 100]


def test_keep_must_be_at_least_one(tmp_path):
    with pytest.raises(UsageError, match="at least 1; got 0"):
        CheckpointStore(tmp_path, keep=0)


def test_the_newest_stay_and_latest_names_the_last(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for step in (1, 2, 3, 4):
        save(store, step)
        store.mark_latest(step)
        store.prune()
    assert names(store) == ["latest", "step-00000003", "step-00000004"]
    assert store.latest() == "step-00000004"
    assert store.newest_intact(quiet) == store.path(4)


def test_prune_never_deletes_the_one_that_latest_names(tmp_path):
    store = CheckpointStore(tmp_path, keep=1)
    for step in (1, 2, 3):
        save(store, step)
    store.mark_latest(1)
    store.prune()
    assert store.steps() == [1, 3]


def test_a_kill_between_any_two_steps_of_a_save_leaves_the_newest_intact_one(tmp_path):
    def states():
        store = CheckpointStore(tmp_path, keep=1)
        save(store, 1)
        yield 1  # published, no `latest` yet
        store.mark_latest(1)
        yield 1
        store.prune()
        yield 1
        stage = tmp_path / ".step-00000002.tmp-1-00000000"
        stage.mkdir()
        (stage / "weights.bin").write_text("half")
        yield 1  # staged, not published
        save(store, 2)
        yield 2  # published, `latest` still names 1
        store.mark_latest(2)
        yield 2  # not pruned
        store.path(1).rename(tmp_path / ".step-00000001.tmp-1-00000000")
        yield 2  # half pruned

    for expected in states():
        again = CheckpointStore(tmp_path, keep=1)  # the next process
        newest = again.newest_intact(quiet)
        assert newest == again.path(expected)
        verify(newest)


def test_damaged_checkpoints_are_named_and_go_after_the_next_save(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for step in (10, 20, 30):
        save(store, step)
    store.mark_latest(30)
    damage(store, 30)
    (store.path(20) / "weights.bin").unlink()
    warnings: list[str] = []
    assert store.newest_intact(warnings.append) == store.path(10)
    assert [str(store.path(30) / "weights.bin") in warnings[0], "sha256" in warnings[0], "step 20" in warnings[0]] == [True] * 3
    assert [str(store.path(20) / "weights.bin") in warnings[1], "is missing" in warnings[1], "step 10" in warnings[1]] == [True] * 3
    saving = CheckpointStore(tmp_path, keep=2)  # another object, the same process
    save(saving, 15)
    saving.mark_latest(15)
    saving.prune()
    assert store.steps() == [10, 15]


def test_a_damaged_checkpoint_that_is_saved_anew_counts_again(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    save(store, 10)
    save(store, 20)
    damage(store, 20)
    assert store.newest_intact(lambda message: None) == store.path(10)
    save(store, 20)
    store.mark_latest(20)
    store.prune()
    assert store.steps() == [10, 20]
    assert CheckpointStore(tmp_path).newest_intact(quiet) == Path(store.path(20))


def test_with_nothing_intact_the_run_starts_from_the_beginning(tmp_path):
    store = CheckpointStore(tmp_path)
    save(store, 10)
    damage(store, 10)
    warnings: list[str] = []
    assert store.newest_intact(warnings.append) is None
    assert "starting from the beginning" in warnings[0]
