"""What the operating system tells, from files such as it has."""

import pytest

from ltune.system import free_memory


def test_this_machine_tells():
    assert 0 < free_memory() < 2**50


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        ({"proc/meminfo": "MemTotal: 900 kB\nMemAvailable:     500 kB\n"}, 500 * 1024),
        ({"sys/fs/cgroup/memory.max": "max", "sys/fs/cgroup/memory.current": "7", "proc/meminfo": "MemAvailable: 1 kB"}, 1024),
        ({"sys/fs/cgroup/memory.max": "900", "sys/fs/cgroup/memory.current": "700", "proc/meminfo": "MemAvailable: 1 kB"}, 200),
        (
            {
                "sys/fs/cgroup/memory.max": "900",
                "sys/fs/cgroup/memory.current": "700",
                "sys/fs/cgroup/memory.stat": "anon 5\ninactive_file 50\n",
            },
            250,
        ),
        (
            {
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "900",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "950",
                "sys/fs/cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 20\n",
            },
            0,
        ),
    ],
)
def test_what_is_left_of_the_memory(tmp_path, files, free):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert free_memory(tmp_path) == free
