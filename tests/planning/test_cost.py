"""DeviceProfile: bytes and tokens to seconds."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sti_hf.planning import DeviceProfile, Workload
from tests.planning.problems import make_profile


def test_measured_points_come_back_and_between_them_it_is_linear() -> None:
    profile = make_profile(attention_seconds=(0.0, 0.0))
    assert profile.gemm_seconds(Workload(32), 1) == 4e-4
    assert profile.gemm_seconds(Workload(128), 4) == 4e-3
    assert profile.gemm_seconds(Workload(80), 4) == pytest.approx((1e-3 + 4e-3) / 2)
    assert profile.gemm_seconds(Workload(80), 2) == pytest.approx(7e-4 + (2.5e-3 - 7e-4) / 3)
    assert (profile.before_layers(Workload(32)), profile.after_layers(Workload(32))) == (1e-3, 1e-3)
    assert profile.before_layers(Workload(40, 2)) == pytest.approx(1.5e-3)
    assert profile.after_layers(Workload(80)) == pytest.approx(2e-3)


def test_attention_is_of_each_sequence_and_grows_with_its_pairs() -> None:
    profile, bare = make_profile(), make_profile(attention_seconds=(0.0, 0.0))

    def attention(workload: Workload, width: int = 4) -> float:
        return profile.gemm_seconds(workload, width) - bare.gemm_seconds(workload, width)

    assert attention(Workload(128)) == pytest.approx(2e-4)
    assert attention(Workload(128), width=1) == pytest.approx(2e-4 / 4)
    assert attention(Workload(128, 8)) == pytest.approx(8 * 2e-4)
    assert attention(Workload(32)) == attention(Workload(16, 64)) == 0
    assert attention(Workload(16, 8, cached=1008)) == pytest.approx(8 * 2e-4), "as many pairs as 128 new ones are"
    half = 2e-4 * (64**2 - 32**2) / (128**2 - 32**2)
    assert attention(Workload(64, 2)) == pytest.approx(2 * half), "linear in the pairs, not in the tokens"
    assert attention(Workload(256)) == pytest.approx(2e-4 * 4)
    assert profile.gemm_seconds(Workload(64, 8), 4) < profile.gemm_seconds(Workload(512), 4)


def test_images_are_priced_by_their_number() -> None:
    one, two, eight = (1e-3,), (1.8e-3,), (7e-3,)
    grid = {"tokens": (197, 394, 1576), "widths": (1,), "layer_seconds": (one, two, eight)}
    outside = {"before_seconds": (1.0, 2.0, 8.0), "after_seconds": (0.0, 0.0, 1.0)}
    images = make_profile(**grid, **outside, pairs=(197**2,), attention_seconds=(0.0,))
    assert [images.gemm_seconds(Workload(197, batch), 1) for batch in (1, 2, 8)] == pytest.approx([1e-3, 1.8e-3, 7e-3])
    assert [images.before_layers(Workload(197, batch)) for batch in (1, 8)] == pytest.approx([1.0, 8.0])


@st.composite
def measured_profiles(draw: st.DrawFn) -> DeviceProfile:
    """Whatever a device may be found to take, as long as nothing takes less time with more tokens or slices."""

    def rising(count: int, axes: tuple[int, ...] = ()) -> list[float] | list[list[float]]:
        steps = draw(arrays(np.float64, (count, *axes), elements=st.floats(0, 1)))
        for axis in range(steps.ndim):
            steps = steps.cumsum(axis)
        return steps.tolist()

    tokens, widths, pairs = (sorted(draw(st.sets(st.integers(1, 600), min_size=1, max_size=4))) for _ in range(3))
    return make_profile(
        tokens=tokens,
        widths=widths,
        layer_seconds=rising(len(tokens), (len(widths),)),
        pairs=[count**2 for count in pairs],
        attention_seconds=rising(len(pairs)),
        before_seconds=rising(len(tokens)),
        after_seconds=rising(len(tokens)),
    )


sizes = st.integers(1, 2000)


@given(
    measured_profiles(),
    st.tuples(sizes, sizes, st.integers(0, 3000), sizes),
    st.lists(st.integers(0, 500), min_size=4, max_size=4),
)
@settings(deadline=None)
def test_more_tokens_sequences_cache_or_slices_never_cost_less(
    profile: DeviceProfile, small: tuple[int, int, int, int], more: list[int]
) -> None:
    tokens, batch, cached, width = small
    large = [value + extra for value, extra in zip(small, more)]
    less, greater = Workload(tokens, batch, cached), Workload(*large[:3])
    slack = 1 + 1e-9
    assert profile.gemm_seconds(less, width) <= profile.gemm_seconds(greater, large[3]) * slack
    assert profile.before_layers(less) <= profile.before_layers(greater) * slack
    assert profile.after_layers(less) <= profile.after_layers(greater) * slack


def test_beyond_the_measured_points() -> None:
    profile = make_profile()
    # Short sequences: these have no attention that counts.
    assert profile.gemm_seconds(Workload(16, 16), 4) == pytest.approx(8e-3)
    assert profile.gemm_seconds(Workload(4), 4) == 1e-3
    narrow = make_profile(widths=(2, 4))
    assert narrow.gemm_seconds(Workload(32), 1) == narrow.gemm_seconds(Workload(32), 2) == 4e-4
    one = {"tokens": (128,), "layer_seconds": ((1e-3, 4e-3),), "before_seconds": (5e-3,), "after_seconds": (5e-3,)}
    assert make_profile(**one).gemm_seconds(Workload(32, 8), 4) == pytest.approx(8e-3)


def test_io_of_numbers_and_of_arrays() -> None:
    profile = make_profile()
    assert profile.io_seconds(200_000_000, 10) == pytest.approx(1.001)
    assert profile.io_seconds(np.array([0, 2_000_000]), np.array([0, 1])).tolist() == pytest.approx([0, 0.0101])


def test_layer_compute_decompresses_active_shards_only() -> None:
    profile = make_profile()
    expected = profile.gemm_seconds(Workload(128), 2) + 1000 * (1e-10 + 2.4e-10)
    assert profile.layer_compute(Workload(128), [2, 0, 6, 0], 1000) == pytest.approx(expected)


@pytest.mark.parametrize("row_bytes", [512, 1536, 3072, 4096, 5000, 8192])
def test_embedding_rows_touch_as_many_blocks_as_all_rows_of_a_table_do_on_average(row_bytes: int) -> None:
    starts = np.arange(4096) * row_bytes
    blocks = (-(-(starts + row_bytes) // 4096) - starts // 4096).mean()
    slow_disk = make_profile(row_seconds=0.0)
    assert slow_disk.embedding_seconds(7, row_bytes) == pytest.approx(7 * blocks * 4096 / 200e6)


def test_embedding_rows_cost_the_row_or_the_bytes() -> None:
    assert make_profile(row_seconds=1.0).embedding_seconds(7, 512) == 7.0
    assert make_profile(row_seconds=1.0).embedding_seconds(7, 0) == 0.0


def test_positions_are_one_read_of_their_bytes() -> None:
    profile = make_profile(row_seconds=1.0)
    assert profile.embedding_seconds(7, 512, position_bytes=400_000) == pytest.approx(7.0 + 400_000 / 200e6)
    assert profile.embedding_seconds(7, 0, position_bytes=400_000) == pytest.approx(400_000 / 200e6)


def test_json_round_trip() -> None:
    profile = make_profile(request_seconds=0.1 + 0.2)
    assert DeviceProfile.from_json(profile.to_json()) == profile


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"request_seconds": -1.0}, "request_seconds"),
        ({"request_seconds": float("nan")}, "request_seconds"),
        ({"bytes_per_second": 0.0}, "positive"),
        ({"bytes_per_second": float("inf")}, "bytes_per_second"),
        ({"row_seconds": "fast"}, "row_seconds"),
        ({"row_seconds": "1"}, "row_seconds"),
        ({"row_seconds": True}, "row_seconds"),
        ({"row_seconds": 10**400}, "row_seconds"),
        ({"tokens": "12"}, "ascending"),
        ({"tokens": (1.5, 2.5)}, "ascending"),
        ({"tokens": (128, 32)}, "ascending"),
        ({"tokens": ()}, "ascending"),
        ({"widths": (0, 4)}, "ascending"),
        ({"layer_seconds": ((4e-4, 1e-3),)}, "2 rows"),
        ({"layer_seconds": ((4e-4,), (1e-3,))}, "2 entries"),
        ({"layer_seconds": ((4e-4, float("nan")), (1e-3, 4e-3))}, "layer_seconds"),
        ({"before_seconds": (1.0,)}, "before_seconds"),
        ({"after_seconds": (1.0, -1.0)}, "after_seconds"),
        ({"pairs": (1024, 1024)}, "ascending"),
        ({"attention_seconds": (1.0,)}, "attention_seconds"),
        ({"decompress_seconds": {7: 1e-10}}, "7 bits"),
        ({"decompress_seconds": {2: -1e-10}}, "decompress_seconds"),
    ],
)
def test_numbers_that_cannot_be_measured(changes: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make_profile(**changes)


def test_a_fidelity_that_was_not_measured() -> None:
    with pytest.raises(ValueError, match="no decompression time at 3 bits"):
        make_profile(decompress_seconds={2: 1e-10}).layer_compute(Workload(128), [2, 3], 1000)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 1}', "null"])
def test_not_a_profile(text: str) -> None:
    with pytest.raises(ValueError, match="not a device profile"):
        DeviceProfile.from_json(text)


def test_a_profile_of_another_version() -> None:
    content = json.loads(make_profile().to_json()) | {"version": 1}
    with pytest.raises(ValueError, match="version 1"):
        DeviceProfile.from_json(json.dumps(content))


@pytest.mark.parametrize(
    ("layer_seconds", "rises"),
    [
        (((1.0, 2.0), (2.0, 4.0)), True),
        (((1.0, 1.0), (1.0, 1.0)), True),
        (((1.0, 2.0), (0.9, 4.0)), False),
        (((1.0, 2.0), (2.0, 1.9)), False),
        (((0.0, 0.0), (0.0, 0.0)), False),
    ],
)
def test_a_layer_takes_no_less_time_with_more_tokens_or_slices(
    layer_seconds: tuple[tuple[float, float], tuple[float, float]], rises: bool
) -> None:
    assert make_profile(layer_seconds=layer_seconds).rises is rises


@pytest.mark.parametrize("name", ["attention_seconds", "before_seconds", "after_seconds"])
def test_nothing_takes_less_time_with_more_tokens(name: str) -> None:
    assert make_profile(**{name: (1e-3, 1e-3)}).rises
    assert not make_profile(**{name: (2e-3, 1e-3)}).rises
