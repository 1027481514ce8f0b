"""GET /v1/gpu/info: what the NVIDIA driver says now; an empty list on a machine without one."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from deepinfer.device import Gpu
from deepinfer.server.answers import GpuInfo, GpuList
from deepinfer.server.json import json_response
from deepinfer.server.openapi import ANY_ROUTE, describe_errors
from deepinfer.server.state import ServerState

GIB = 2**30


def make_router(state: ServerState) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/gpu/info", responses={200: {"model": GpuList}, **describe_errors(ANY_ROUTE)})
    async def read_gpu_info(request: Request) -> Response:
        """The GPUs of the machine. Sizes are in GiB, to one decimal."""
        gpus = await asyncio.to_thread(state.read_gpus)
        return json_response(GpuList(gpus=[_describe(gpu) for gpu in gpus]))

    return router


def _describe(gpu: Gpu) -> GpuInfo:
    major, minor = gpu.compute_capability
    return GpuInfo(
        id=gpu.index,
        name=gpu.name,
        total_memory_gb=round(gpu.total_memory_bytes / GIB, 1),
        free_memory_gb=round(gpu.free_memory_bytes / GIB, 1),
        compute_capability=f"{major}.{minor}",
        driver_version=gpu.driver_version,
        cuda_version=gpu.cuda_version,
        is_nvidia_5090=gpu.is_rtx_5090,
        is_nvidia_4090=gpu.is_rtx_4090,
    )
