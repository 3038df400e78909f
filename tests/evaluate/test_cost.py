"""What answers cost: rates, memory of one side alone, and energy from counters that begin anew."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tunesmith.device import forget_peak_memory, peak_memory
from tunesmith.evaluate.cost import Energy, spent
from tunesmith.evaluate.report.figures import evaluation_figures
from tunesmith.records import Completion


def test_tokens_and_their_rate() -> None:
    answers = [Completion("一", "stop", 10, 3), Completion("", "stop", 20, 1)]
    assert spent(answers, 2.0) == {
        "completion_tokens": 4, "prompt_tokens": 30, "seconds": 2.0, "tokens_per_second": 2.0,
    }  # fmt: skip
    # Answers out of a file: nobody counted.
    assert spent([Completion("一", "stop", 0, 0)], None) == {}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_the_peak_is_that_of_what_came_after() -> None:
    large = torch.ones(60_000_000)
    before = peak_memory()
    del large
    if not forget_peak_memory():
        pytest.skip("the system has no way to")
    assert before - peak_memory() > 150_000_000
    small = torch.ones(15_000_000)
    assert peak_memory() - before < -100_000_000
    del small


def counters(folder: Path, **microjoules: int) -> Path:
    """Zones as the kernel shows them: packages, and parts of them that mustn't count twice."""
    for name, value in microjoules.items():
        zone = folder / f"intel-rapl:{name[1:].replace('_', ':')}"
        zone.mkdir(parents=True, exist_ok=True)
        (zone / "energy_uj").write_text(f"{value}\n")
        (zone / "max_energy_range_uj").write_text("1000000\n")
    return folder


def test_energy_over_a_turn_of_the_counter(tmp_path: Path) -> None:
    energy = Energy(counters(tmp_path, z0=900_000, z1=100_000, z0_0=5))
    counters(tmp_path, z0=990_000, z0_0=700_005)
    energy.tick("m answers", 0)
    counters(tmp_path, z0=40_000, z1=160_000)
    energy.tick("m answers", 5)
    # 0.09 J, then 0.05 over the turn at 1 J; and 0.06 of the other package.
    assert energy.joules() == pytest.approx(0.09 + 0.05 + 0.06)


def test_energy_that_was_not_measured_or_not_all_of_it_is_not_said(tmp_path: Path) -> None:
    assert Energy(tmp_path).joules() is None
    continued = Energy(counters(tmp_path, z0=1))
    continued.tick("m answers", 3)  # an earlier call's
    assert continued.joules() is None
    lost = Energy(tmp_path)
    (tmp_path / "intel-rapl:0/energy_uj").unlink()  # as for a user who mustn't read it
    assert lost.joules() is None
    assert Energy(tmp_path).joules() is None


def test_memory_of_the_process_so_far_is_no_figure_of_a_side() -> None:
    told = {"n": 8, "metrics": {}, "peak_memory_bytes": 2**30, "peak_memory_of": "the process so far"}
    assert evaluation_figures(told, []) == []
    (figure,) = evaluation_figures({**told, "peak_memory_of": "measuring"}, [])
    assert (figure.name, figure.b.value) == ("peak memory (GiB)", 1.0)
