"""DeviceProfile: bytes and tokens to seconds."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sti_hf.planning import DeviceProfile
from tests.planning.problems import make_profile


def test_measured_points_come_back_and_between_them_it_is_linear() -> None:
    profile = make_profile()
    assert profile.gemm_seconds(32, 1) == 4e-4
    assert profile.gemm_seconds(128, 4) == 4e-3
    assert profile.gemm_seconds(80, 4) == pytest.approx((1e-3 + 4e-3) / 2)
    assert profile.gemm_seconds(80, 2) == pytest.approx(7e-4 + (2.5e-3 - 7e-4) / 3)
    assert profile.fixed_compute(32) == 2e-3
    assert profile.fixed_compute(80) == pytest.approx(3.5e-3)


def test_beyond_the_measured_points() -> None:
    profile = make_profile()
    assert profile.gemm_seconds(224, 4) == pytest.approx(7e-3)
    # The line through both points meets zero above zero tokens; proportion is the lower bound.
    assert profile.gemm_seconds(4, 4) == pytest.approx(1e-3 * 4 / 32)
    falling = make_profile(layer_seconds=((4e-4, 4e-3), (3e-4, 1e-3)))
    assert falling.gemm_seconds(4096, 4) == pytest.approx(1e-3)
    single = make_profile(tokens=(128,), layer_seconds=((1e-3, 4e-3),), fixed_seconds=(5e-3,))
    assert single.gemm_seconds(256, 4) == pytest.approx(8e-3)


def test_io_of_numbers_and_of_arrays() -> None:
    profile = make_profile()
    assert profile.io_seconds(200_000_000, 10) == pytest.approx(1.001)
    assert profile.io_seconds(np.array([0, 2_000_000]), np.array([0, 1])).tolist() == pytest.approx([0, 0.0101])


def test_layer_compute_decompresses_active_shards_only() -> None:
    profile = make_profile()
    expected = profile.gemm_seconds(128, 2) + 1000 * (1e-10 + 2.4e-10)
    assert profile.layer_compute(128, [2, 0, 6, 0], 1000) == pytest.approx(expected)


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
        ({"fixed_seconds": (1.0,)}, "fixed_seconds"),
        ({"decompress_seconds": {7: 1e-10}}, "7 bits"),
        ({"decompress_seconds": {2: -1e-10}}, "decompress_seconds"),
    ],
)
def test_numbers_that_cannot_be_measured(changes: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make_profile(**changes)


def test_a_fidelity_that_was_not_measured() -> None:
    with pytest.raises(ValueError, match="no decompression time at 3 bits"):
        make_profile(decompress_seconds={2: 1e-10}).layer_compute(128, [2, 3], 1000)


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
