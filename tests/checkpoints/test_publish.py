import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ltune.checkpoints import publish as module
from ltune.checkpoints.publish import Damaged, hidden_name, other_versions, publish, read_manifest, remove, sweep, verify, write_atomically
from ltune.errors import ResourceError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def published(folder: Path, text: str = "weights") -> Path:
    with publish(folder) as stage:
        (stage / "weights.bin").write_text(text)
        (stage / "sub").mkdir()
        (stage / "sub" / "config.json").write_text("{}")
    return folder


def dead_process_id() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def small_files():
    """No file of this process may grow beyond 64 KiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_folder_appears_whole_with_a_manifest_of_every_file(tmp_path):
    final = tmp_path / "runs" / "step-1"
    with publish(final, extra={"position": [2, 17]}) as stage:
        assert stage.parent == final.parent
        assert stage.name.startswith(f".step-1.tmp-{os.getpid()}-")
        (stage / "a.bin").write_bytes(b"abc")
        (stage / "sub").mkdir()
        (stage / "sub" / "b.txt").write_text("b")
        assert not final.exists()
    manifest = read_manifest(final)
    assert manifest["files"] == {
        "a.bin": {"size": 3, "sha256": hashlib.sha256(b"abc").hexdigest()},
        "sub/b.txt": {"size": 1, "sha256": hashlib.sha256(b"b").hexdigest()},
    }
    assert manifest["position"] == [2, 17]
    assert {"ltune", "torch", "transformers", "peft", "lightning", "bitsandbytes"} <= set(manifest["versions"])
    assert other_versions(final) == ""
    verify(final)
    assert names(final.parent) == ["step-1"]


def test_what_was_installed_otherwise_is_told(tmp_path):
    final = published(tmp_path / "result")
    manifest = read_manifest(final)
    torch, peft = manifest["versions"]["torch"], manifest["versions"].pop("peft")
    manifest["versions"] |= {"torch": "2.0.0", "flash-attn-4": "4.0.0b36"}
    (final / module.MANIFEST).write_text(module._render(manifest))
    assert other_versions(final) == f"torch 2.0.0, now {torch}; peft missing, now {peft}; flash-attn-4 4.0.0b36, now missing"


def test_an_older_folder_is_replaced_and_nothing_is_left_over(tmp_path):
    published(tmp_path / "result", "old")
    published(tmp_path / "result", "new")
    assert (tmp_path / "result" / "weights.bin").read_text() == "new"
    assert names(tmp_path) == ["result"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_what_was_there_before(tmp_path, error):
    published(tmp_path / "result", "old")

    def fail() -> None:
        with publish(tmp_path / "result") as stage:
            (stage / "weights.bin").write_text("new")
            raise error

    with pytest.raises(error):
        fail()
    assert (tmp_path / "result" / "weights.bin").read_text() == "old"
    assert names(tmp_path) == ["result"]


def test_a_disk_without_room_is_a_resource_error_that_names_path_need_and_free(tmp_path, small_files):
    with pytest.raises(ResourceError) as caught:
        with publish(tmp_path / "result", need=3 * 2**20) as stage:
            (stage / "big.bin").write_bytes(bytes(2**17))
    message = str(caught.value)
    assert str(tmp_path / "result") in message
    assert "File too large" in message
    assert "3.0 MiB" in message
    assert "free" in message
    assert len(message.splitlines()) <= 5
    assert names(tmp_path) == []
    with pytest.raises(ResourceError, match="result"):
        write_atomically(tmp_path / "result", "x" * 2**17)
    assert names(tmp_path) == []


def test_each_flipped_bit_truncation_or_deletion_is_named(tmp_path):
    folder = published(tmp_path / "result")
    for name in ("weights.bin", "sub/config.json"):
        intact = (folder / name).read_bytes()
        for damage, why in ((bytes([intact[0] ^ 1]) + intact[1:], "sha256"), (intact[:-1], "bytes instead of"), (None, "is missing")):
            (folder / name).unlink()
            if damage is not None:
                (folder / name).write_bytes(damage)
            with pytest.raises(Damaged, match=why) as caught:
                verify(folder)
            assert (caught.value.folder, caught.value.file, caught.value.exit_code) == (folder, name, 2)
            (folder / name).write_bytes(intact)
    verify(folder)


def test_a_flipped_bit_anywhere_in_the_manifest_is_found(tmp_path):
    manifest = published(tmp_path / "result") / "manifest.json"
    intact = manifest.read_bytes()
    for position in range(len(intact)):
        damaged = bytearray(intact)
        damaged[position] ^= 1 << (position % 8)
        manifest.write_bytes(damaged)
        with pytest.raises(Damaged, match="manifest.json"):
            read_manifest(tmp_path / "result")
    manifest.unlink()
    with pytest.raises(Damaged, match="manifest.json is missing"):
        verify(tmp_path / "result")


def test_write_atomically_replaces_text_and_bytes(tmp_path):
    write_atomically(tmp_path / "new" / "latest", "step-1\n")
    write_atomically(tmp_path / "new" / "latest", b"step-2\n")
    assert (tmp_path / "new" / "latest").read_text() == "step-2\n"
    assert names(tmp_path / "new") == ["latest"]


def test_sweep_removes_what_dead_processes_left_and_nothing_else(tmp_path):
    dead = dead_process_id()
    (tmp_path / f".step-1.tmp-{dead}-00000000").mkdir()
    (tmp_path / f".step-1.tmp-{dead}-00000000" / "weights.bin").write_text("half")
    (tmp_path / f".latest.tmp-{dead}-00000000").write_text("half")
    (tmp_path / f".step-2.tmp-{os.getppid()}-00000000").mkdir()  # its writer lives
    (tmp_path / ".hidden").write_text("not ours")
    published(tmp_path / "step-3")
    with publish(tmp_path / "step-4") as stage:
        (tmp_path / f".step-5.tmp-{os.getpid()}-00000000").mkdir()  # a dead process that had our id
        sweep(tmp_path)
        assert names(tmp_path) == sorted([f".step-2.tmp-{os.getppid()}-00000000", ".hidden", "step-3", stage.name])
    sweep(tmp_path / "absent")


def test_sweep_puts_back_a_folder_whose_replacement_never_came(tmp_path):
    dead = dead_process_id()
    published(tmp_path / "result").rename(tmp_path / f".result.tmp-{dead}-00000000-old")
    sweep(tmp_path)
    verify(tmp_path / "result")
    published(tmp_path / "again").rename(tmp_path / f".result.tmp-{dead}-00000001-old")
    sweep(tmp_path)
    assert names(tmp_path) == ["result"]


def test_remove_leaves_nothing(tmp_path):
    remove(published(tmp_path / "result"))
    assert names(tmp_path) == []


def test_hidden_names_are_recognised():
    match = module.HIDDEN.fullmatch(hidden_name(Path("/runs/adapter")).name)
    assert match
    assert (match["name"], int(match["pid"]), match["old"]) == ("adapter", os.getpid(), None)


KILLED = """
import sys
from pathlib import Path
from ltune.checkpoints.publish import publish
while True:
    print("round", flush=True)
    with publish(Path(sys.argv[1])) as stage:
        for number in range(4):
            (stage / f"{number}.bin").write_bytes(bytes(50_000))
"""


def test_killed_at_random_instants_there_is_always_an_intact_folder(tmp_path):
    final = tmp_path / "result"
    published(final)
    for round_number in range(6):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(final)], stdout=subprocess.PIPE)
        assert process.stdout
        for _ in range(2 + 3 * round_number):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        sweep(tmp_path)
        verify(final)
        assert names(tmp_path) == ["result"]


def test_manifest_is_json_that_other_programs_can_read(tmp_path):
    manifest = json.loads((published(tmp_path / "result") / "manifest.json").read_text())
    assert set(manifest) == {"files", "versions", "sha256"}
