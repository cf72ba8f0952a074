"""The choice of a setting: properties, and what is given up when memory runs out."""

from dataclasses import replace

from hypothesis import example, given, settings
from hypothesis import strategies as st

from ltune.models.fast.choice import USABLE, candidates, choose, least, quickest, refusal, seconds, smaller
from ltune.models.fast.layer import Keep
from ltune.models.fast.memory import Setting, needed, on_host
from tests.models.fast.test_memory import FULL, GIB, LLAMA, LOADED, made


@settings(max_examples=200)
@given(st.integers(0, 150 * GIB), st.integers(1, 40000), st.floats(0.01, 1), st.booleans(), st.sampled_from([LLAMA, FULL]))
def test_the_choice_fits_and_nothing_that_fits_is_quicker(free, window, share, again, shape):
    longest = max(1, int(window * share))
    chosen = choose(shape, free, window, longest, again=again)
    room = USABLE * free

    def fits(setting):
        return needed(shape, setting, window=window, longest=longest) <= room

    assert chosen.tokens >= longest
    assert fits(chosen) or chosen == least(longest)
    assert not (again and chosen.keep is Keep.ALL)
    if fits(chosen):
        others = [seconds(shape, one, window) for one in candidates(shape, window, longest, again=again) if fits(one)]
        assert seconds(shape, chosen, window) <= min(others)


def test_with_room_the_choice_is_the_quickest():
    assert choose(LLAMA, 200 * GIB, 8192, 1024) == quickest(LLAMA, 8192) == Setting(8192)
    assert choose(LLAMA, 200 * GIB, 8192, 1024, again=True) == quickest(LLAMA, 8192, again=True)
    assert choose(LLAMA, 0, 8192, 1024) == least(1024)


def test_refused_beyond_110_percent_of_the_memory():
    setting, loaded = least(1024), int(LOADED * GIB)
    all_of_it = loaded + needed(LLAMA, setting, window=8192, longest=1024)
    assert refusal(LLAMA, setting, int(all_of_it / 1.09) - loaded, loaded, 8192, 1024) is None
    said = refusal(LLAMA, setting, int(all_of_it / 1.11) - loaded, loaded, 8192, 1024)
    assert said is not None
    assert said.startswith("training needs 6.")
    assert "--model.memory least" in said
    assert len(said.splitlines()) <= 4


def test_a_row_that_is_too_long_has_its_inputs_on_the_host_and_keeps_its_attention():
    chosen = choose(LLAMA, 71 * GIB, 131072, 131072)
    assert (chosen.tokens, chosen.keep, chosen.offload, chosen.cached) == (131072, Keep.ATTENTION, True, False)
    assert chosen.kept_layers == 2
    assert smaller(replace(chosen, kept_layers=0), 0) == least(131072)
    assert smaller(least(131072), 0) is None


def test_the_host_must_have_room_too():
    there = on_host(LLAMA, least(131072))
    assert there == 64 * GIB
    assert choose(LLAMA, 71 * GIB, 131072, 131072, host=2 * there).offload
    assert choose(LLAMA, 40 * GIB, 8192, 1024, host=0).offload is False
    said = refusal(LLAMA, least(131072), 71 * GIB, 0, 131072, 131072, host=there - 1)
    assert said is not None
    assert said.startswith("layers' inputs would take 64.0 GiB of the host's memory, and 64.0 GiB are free.")
    assert refusal(LLAMA, least(131072), 71 * GIB, 0, 131072, 131072, host=there) is None


def test_as_many_layers_keep_everything_as_fit():
    chosen = choose(LLAMA, 71 * GIB, 32768, 32768)
    assert chosen == Setting(32768, Keep.ATTENTION, cached=False, kept_layers=chosen.kept_layers)
    assert 10 < chosen.kept_layers < 31
    one_more = replace(chosen, kept_layers=chosen.kept_layers + 1)
    assert needed(LLAMA, chosen, longest=32768) <= USABLE * 71 * GIB < needed(LLAMA, one_more, longest=32768)
    assert str(chosen).endswith(f"computed again, but not in the last {chosen.kept_layers} of the layers")
    assert choose(LLAMA, 71 * GIB, 32768, 32768, again=True).kept_layers == 0


@given(made, st.integers(0, 20000))
@example(Setting(tokens=1, cached=False), 2)
@example(Setting(2, Keep.ATTENTION, cached=False, offload=True, kept_layers=3), 0)
def test_giving_up_ends(setting, largest):
    for _ in range(100):
        if setting is None:
            return
        largest = min(largest, setting.tokens) if largest > 1 else 0
        after = smaller(setting, largest)
        assert after != setting
        setting, largest = after, largest // 2
    raise AssertionError("it goes on for ever")
