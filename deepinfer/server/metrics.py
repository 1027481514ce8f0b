"""What `/metrics` says: the server's meters and its engines, read when somebody asks.

The names are decided here. Those with `trtllm_` are the ones that routers of inference traffic know
already; the others are ours. Nothing is counted here, and no registry but the one that is asked
for: two servers in one process do not see each other's figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from deepinfer import __version__
from deepinfer.server.engines import EngineCatalog, ServedEngine
from deepinfer.server.meter import Histogram, HttpMeter

MODEL = ("model_name",)
ROUTER = ("model_name", "engine_type")


@dataclass(frozen=True)
class _Figure:
    """One number an engine or a model; `read` says None when there is none yet."""

    name: str
    help: str
    read: Callable[[ServedEngine], float | None]
    family: type[GaugeMetricFamily] | type[CounterMetricFamily] = GaugeMetricFamily
    labels: tuple[str, ...] = MODEL


def _used_share(engine: ServedEngine) -> float | None:
    capacity = engine.client.capacity
    if capacity is None or not capacity.num_blocks:
        return None
    return engine.client.load.num_used_blocks / capacity.num_blocks


def _tokens_per_block(engine: ServedEngine) -> float | None:
    capacity = engine.client.capacity
    return None if capacity is None else capacity.tokens_per_block


def _num_blocks(engine: ServedEngine) -> float | None:
    capacity = engine.client.capacity
    return None if capacity is None else capacity.num_blocks


_ENGINE_FIGURES = (
    _Figure(
        "trtllm_num_requests_waiting",
        "Sequences that wait for the engine",
        lambda engine: engine.client.load.num_waiting,
        labels=ROUTER,
    ),
    _Figure(
        "trtllm_num_requests_running",
        "Sequences that the engine works on",
        lambda engine: engine.client.load.num_running,
        labels=ROUTER,
    ),
    _Figure(
        "trtllm_kv_cache_utilization",
        "Share of the KV cache's blocks that are in use, 0 to 1",
        _used_share,
        labels=ROUTER,
    ),
    _Figure(
        "trtllm_kv_cache_tokens_per_block",
        "Tokens that a block of the KV cache holds",
        _tokens_per_block,
        labels=ROUTER,
    ),
    _Figure(
        "trtllm_kv_cache_max_blocks",
        "Blocks of the KV cache",
        _num_blocks,
        labels=ROUTER,
    ),
    _Figure(
        "deepinfer_requests_waiting",
        "Sequences that wait for the engine",
        lambda engine: engine.client.load.num_waiting,
    ),
    _Figure(
        "deepinfer_requests_running",
        "Sequences that the engine works on",
        lambda engine: engine.client.load.num_running,
    ),
    _Figure(
        "deepinfer_engine_ready",
        "1 when the engine takes work, 0 when it loads, is down or is restarted",
        lambda engine: engine.client.status.is_ready,
    ),
    _Figure(
        "deepinfer_engine_restarts",
        "Times that the engine process was started again",
        lambda engine: engine.client.num_restarts,
        CounterMetricFamily,
    ),
    _Figure(
        "deepinfer_requests_resumed",
        "Sequences that went on in another life of the engine process",
        lambda engine: engine.client.num_resumed,
        CounterMetricFamily,
    ),
)

_MODEL_FIGURES = (
    _Figure(
        "deepinfer_prompt_tokens",
        "Tokens of prompts that the engine has read; each prompt of a request counts once",
        lambda engine: engine.meter.prompt_tokens,
        CounterMetricFamily,
    ),
    _Figure(
        "deepinfer_generation_tokens",
        "Tokens generated for answers, those of running ones included",
        lambda engine: engine.meter.generation_tokens,
        CounterMetricFamily,
    ),
)


@dataclass(frozen=True)
class _Distribution:
    name: str
    help: str
    read: Callable[[ServedEngine], Histogram]


_DISTRIBUTIONS = (
    _Distribution(
        "deepinfer_time_to_first_token_seconds",
        "From the arrival of a request to its first tokens",
        lambda engine: engine.meter.time_to_first_token,
    ),
    _Distribution(
        "deepinfer_inter_token_latency_seconds",
        "Between the arrivals of new tokens of a request",
        lambda engine: engine.meter.inter_token,
    ),
    _Distribution(
        "deepinfer_request_duration_seconds",
        "From the arrival of a request to its last token; those that were cut short are left out",
        lambda engine: engine.meter.end_to_end,
    ),
    _Distribution(
        "deepinfer_queue_time_seconds",
        "From the submission of a request to the admission of its first sequence",
        lambda engine: engine.meter.queue_time,
    ),
    _Distribution(
        "deepinfer_prompt_length_tokens",
        "Tokens of the prompts of a request",
        lambda engine: engine.meter.prompt_len,
    ),
    _Distribution(
        "deepinfer_output_length_tokens",
        "Tokens of an answer that came to its end",
        lambda engine: engine.meter.output_len,
    ),
)


def make_registry(engines: EngineCatalog, http: HttpMeter) -> CollectorRegistry:
    """A registry that belongs to one server, with the figures of its own process beside ours."""
    registry = CollectorRegistry()
    registry.register(_ServerCollector(engines, http))
    registry.register(ProcessCollector(registry=None))
    return registry


class _ServerCollector(Collector):
    """An engine process has its state once; what it generated is told apart by adapter."""

    def __init__(self, engines: EngineCatalog, http: HttpMeter) -> None:
        self._engines = engines
        self._http = http

    def collect(self) -> Iterator[Metric]:
        yield from (_collect_figure(figure, self._engines) for figure in _ENGINE_FIGURES)
        yield from (_collect_figure(figure, self._engines.models) for figure in _MODEL_FIGURES)
        yield self._collect_finished()
        yield from (self._collect_distribution(one) for one in _DISTRIBUTIONS)
        yield from self._collect_http()
        build = GaugeMetricFamily(
            "deepinfer_build_info", "1, with the version of the server", labels=["version"]
        )
        build.add_metric([__version__], 1)
        yield build

    def _collect_distribution(self, distribution: _Distribution) -> Metric:
        family = HistogramMetricFamily(distribution.name, distribution.help, labels=MODEL)
        for engine in self._engines.models:
            histogram = distribution.read(engine)
            family.add_metric([engine.model_id], _buckets(histogram), histogram.sum)
        return family

    def _collect_finished(self) -> Metric:
        family = CounterMetricFamily(
            "deepinfer_request_success",
            "Answers that came to their end, by finish reason",
            labels=("model_name", "finish_reason"),
        )
        for engine in self._engines.models:
            for reason, count in engine.meter.num_finished.items():
                family.add_metric([engine.model_id, reason.value], count)
        return family

    def _collect_http(self) -> Iterator[Metric]:
        http = self._http
        yield _by_labels(
            "deepinfer_http_responses",
            "Responses by route and status; 499 for a client that left before its response began",
            ("route", "status"),
            http.num_responses.items(),
        )
        yield _by_labels(
            "deepinfer_request_errors",
            "Requests that failed, by route and error code",
            ("route", "code"),
            http.num_errors.items(),
        )
        yield _by_labels(
            "deepinfer_key_requests",
            "Requests by the name of the key that they came with",
            ("key",),
            (((name,), count) for name, count in http.num_by_key.items()),
        )
        yield _by_labels(
            "deepinfer_key_tokens",
            "Tokens of requests that have ended, by the name of their key",
            ("key", "kind"),
            http.tokens_by_key.items(),
        )
        yield CounterMetricFamily(
            "deepinfer_requests_rejected", "Requests that were answered 429", http.num_rejected
        )
        yield CounterMetricFamily(
            "deepinfer_requests_cancelled",
            "Requests whose client left before the end",
            http.num_cancelled,
        )
        yield GaugeMetricFamily(
            "deepinfer_open_streams", "Streams that are being sent", http.num_open_streams
        )
        lag = HistogramMetricFamily(
            "deepinfer_event_loop_lag_seconds",
            "How late the event loop was, looked at ten times a second",
        )
        lag.add_metric([], _buckets(http.loop_lag), http.loop_lag.sum)
        yield lag


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    bounds = [*(str(float(bound)) for bound in histogram.bounds), "+Inf"]
    return list(zip(bounds, histogram.cumulative_counts, strict=True))


def _collect_figure(figure: _Figure, engines: Iterable[ServedEngine]) -> Metric:
    family = figure.family(figure.name, figure.help, labels=figure.labels)
    for engine in engines:
        value = figure.read(engine)
        if value is not None:
            labels = (engine.model_id, engine.manifest.backend.name)
            family.add_metric(labels[: len(figure.labels)], value)
    return family


def _by_labels(
    name: str,
    help_: str,
    labels: tuple[str, ...],
    counts: Iterable[tuple[tuple[object, ...], int]],
) -> Metric:
    family = CounterMetricFamily(name, help_, labels=labels)
    for key, count in counts:
        family.add_metric([str(part) for part in key], count)
    return family
