"""Every error that DeepInfer raises on purpose, drawn as one tree.

    DeepInferError
      CommandError                    what a terminal user sees: one line and a hint
        ConfigError                   a configuration value, file or variable
        CheckpointError               the Hugging Face side: not found, not a checkpoint, damaged
          UnreadableModel             its config.json has other keys than those of language models
        PlanError                     wishes that this device and checkpoint cannot meet together
        BuildError                    a compilation that started and could not finish
        EngineError                   an engine folder: missing, damaged, built for another machine
        BackendError                  the library behind an engine: missing, wrong version, failed
        BenchError                    a benchmark that could not be run to its end
      RequestError                    what an HTTP client sees: status, type, code, param
        InvalidHttp                   400 invalid_http
        InvalidJson                   400 invalid_json
        MissingParameter              400 missing_required_parameter
        InvalidValue                  400 invalid_value
        ContextLengthExceeded         400 context_length_exceeded
        UnsupportedParameter          400 unsupported_parameter
        InvalidApiKey                 401 invalid_api_key
        HostNotAllowed                403 host_not_allowed
        NotFound                      404 not_found
          ModelNotFound               404 model_not_found
        MethodNotAllowed              405 method_not_allowed
        BodyTimeout                   408 body_timeout
        ContentTooLarge               413 content_too_large
        UnsupportedMediaType          415 unsupported_media_type
        QueueFull                     429 queue_full
        RateLimitExceeded             429 rate_limit_exceeded
          AboveRateLimit              429 rate_limit_exceeded, not to be sent again
        HeadTooLarge                  431 head_too_large
        InternalError                 500 internal_error
        EngineLoading                 503 engine_loading
        ShuttingDown                  503 shutting_down
        EngineUnavailable             503 engine_unavailable
          RequestAbandoned            503 engine_unavailable, not to be sent again
        RequestTimeout                504 request_timeout

Raise a leaf; the root is caught in two places only: the command line and the server's error
handler. This module knows neither of them.
"""

from __future__ import annotations

from typing import ClassVar


class DeepInferError(Exception):
    """The root. `message` is one sentence without a final period; it may be shown to anybody."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class CommandError(DeepInferError):
    """An error for the terminal: one line, and a hint that says the way out."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(CommandError):
    pass


class CheckpointError(CommandError):
    pass


class UnreadableModel(CheckpointError):
    """With the architecture, which says more about the reason than the key that is missing."""

    def __init__(self, message: str, architecture: str) -> None:
        super().__init__(message)
        self.architecture = architecture


class PlanError(CommandError):
    pass


class BuildError(CommandError):
    pass


class EngineError(CommandError):
    pass


class BackendError(CommandError):
    pass


class BenchError(CommandError):
    pass


class RequestError(DeepInferError):
    """An error for an HTTP client, in the shape that the OpenAI SDK reads."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.param = param
        self.retry_after_s = retry_after_s


class InvalidRequest(RequestError):
    """What every mistake of the client has in common."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class InvalidHttp(InvalidRequest):
    code = "invalid_http"


class InvalidJson(InvalidRequest):
    code = "invalid_json"


class MissingParameter(InvalidRequest):
    code = "missing_required_parameter"


class InvalidValue(InvalidRequest):
    code = "invalid_value"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class UnsupportedParameter(InvalidRequest):
    code = "unsupported_parameter"


class InvalidApiKey(RequestError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class HostNotAllowed(InvalidRequest):
    status = 403
    code = "host_not_allowed"


class NotFound(InvalidRequest):
    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(InvalidRequest):
    status = 405
    code = "method_not_allowed"


class BodyTimeout(InvalidRequest):
    status = 408
    code = "body_timeout"


class ContentTooLarge(InvalidRequest):
    status = 413
    code = "content_too_large"


class UnsupportedMediaType(InvalidRequest):
    status = 415
    code = "unsupported_media_type"


class HeadTooLarge(InvalidRequest):
    status = 431
    code = "head_too_large"


class QueueFull(RequestError):
    status = 429
    type = "rate_limit_error"
    code = "queue_full"


class RateLimitExceeded(RequestError):
    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class AboveRateLimit(RateLimitExceeded):
    """The request is more than is ever allowed, whatever else is going on."""


class InternalError(RequestError):
    pass


class EngineLoading(RequestError):
    status = 503
    code = "engine_loading"


class ShuttingDown(RequestError):
    status = 503
    code = "shutting_down"


class EngineUnavailable(RequestError):
    status = 503
    code = "engine_unavailable"


class RequestAbandoned(EngineUnavailable):
    """The request may itself be what the engine dies of."""


class RequestTimeout(RequestError):
    status = 504
    code = "request_timeout"


def _leaves(root: type[RequestError]) -> list[type[RequestError]]:
    found = [root]
    for child in root.__subclasses__():
        found.extend(_leaves(child))
    return found


def request_error_by_code(code: str) -> type[RequestError]:
    """The class that carries `code`, so that an error can cross a process border by its code."""
    for kind in _leaves(RequestError):
        if kind.code == code and kind not in (RequestError, InvalidRequest):
            return kind
    return InternalError
