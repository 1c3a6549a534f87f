import json

from flashmoe.cli.report import Answer, json_report, summary_line, warnings
from flashmoe.cli.timing import bound, timing_report
from flashmoe.stats import Stats
from tests.support.scripted_model import sample_stats

ANSWER = Answer(["Good ", "morning"], [7, 8], "stop")


def test_summary_has_every_figure() -> None:
    assert summary_line(ANSWER, sample_stats()) == (
        "2 tokens (stop) | decode 10.0 tok/s | prefill 30 at 60.0 tok/s | first token 0.51 s"
        " | hit rate 75.0% | 1.500 GB read | peak RSS 0.250 GB"
    )


def test_fewer_experts_are_called_lossy_in_summary_and_warnings() -> None:
    stats = sample_stats(experts_per_token=4)
    assert summary_line(ANSWER, stats).endswith(" | lossy: 4 of 8 experts per token")
    assert warnings(stats) == [
        "experts per token lowered from 8 to 4: this is not the model's own answer"
    ]


def test_buffered_reads_are_said_aloud() -> None:
    (warning,) = warnings(sample_stats(direct_io=False))
    assert "O_DIRECT" in warning


def test_nothing_to_warn_of() -> None:
    assert warnings(sample_stats()) == []


def test_json_report_is_json_and_complete() -> None:
    stats = sample_stats(experts_per_token=4)
    report = json.loads(json.dumps(json_report(ANSWER, stats, {"seed": 3})))
    assert report["text"] == "Good morning"
    assert (report["tokens"], report["token_ids"]) == (2, [7, 8])
    assert report["finish_reason"] == "stop"
    assert report["timings"]["decode_tokens_per_second"] == 10
    assert report["timings"]["phase_seconds"]["disk_wait"] == 0.6
    assert report["cache"]["hit_rate"] == 0.75
    assert report["memory"]["peak_rss"] == 250_000_000
    assert report["engine"]["experts_per_token"] == 4
    assert report["options"] == {"seed": 3}
    assert report["warnings"] == warnings(stats)


def test_empty_stats_divide_by_nothing() -> None:
    assert "decode 0.0 tok/s" in summary_line(Answer(), Stats())
    assert "no bound" in timing_report(Stats())


def test_timing_gives_ms_per_token_and_layer_and_share() -> None:
    lines = timing_report(sample_stats()).splitlines()
    rows = [line.split() for line in lines]
    assert ["disk_wait", "60.000", "7.500", "60.0"] in rows
    assert ["head", "4.000", "-", "4.0"] in rows
    assert ["total", "100.000", "12.500", "100.0"] in rows
    assert lines[0].startswith("prefill (30 tokens)")


def test_timing_shows_phases_that_only_the_engine_knows() -> None:
    assert "  novel " in timing_report(sample_stats(phase_seconds={"novel": 1.0}))


def test_the_bound_is_the_largest_group_of_phases() -> None:
    assert "waiting for the disk (60%" in bound(sample_stats())
    phases = {"attention": 0.3, "delta": 0.3, "disk_wait": 0.4}
    assert "attention (60%" in bound(sample_stats(phase_seconds=phases))
