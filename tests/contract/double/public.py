"""Every name of the double that a package of the library exports, in one namespace.

The files that `installing.py` writes import from here; which name belongs to which package is in
the record.
"""

from __future__ import annotations

from tests.contract.double.arguments import TrtLlmArgs as TrtLlmArgs
from tests.contract.double.configs import MODEL_MAP as MODEL_MAP
from tests.contract.double.configs import BatchingType as BatchingType
from tests.contract.double.configs import BuildConfig as BuildConfig
from tests.contract.double.configs import CalibConfig as CalibConfig
from tests.contract.double.configs import CapacitySchedulerPolicy as CapacitySchedulerPolicy
from tests.contract.double.configs import ContextChunkingPolicy as ContextChunkingPolicy
from tests.contract.double.configs import CppExecutorError as CppExecutorError
from tests.contract.double.configs import DynamicBatchConfig as DynamicBatchConfig
from tests.contract.double.configs import (
    ExtendedRuntimePerfKnobConfig as ExtendedRuntimePerfKnobConfig,
)
from tests.contract.double.configs import KvCacheConfig as KvCacheConfig
from tests.contract.double.configs import KVCacheType as KVCacheType
from tests.contract.double.configs import LoraConfig as LoraConfig
from tests.contract.double.configs import LoRARequest as LoRARequest
from tests.contract.double.configs import PeftCacheConfig as PeftCacheConfig
from tests.contract.double.configs import PluginConfig as PluginConfig
from tests.contract.double.configs import QuantAlgo as QuantAlgo
from tests.contract.double.configs import QuantConfig as QuantConfig
from tests.contract.double.configs import RequestError as RequestError
from tests.contract.double.configs import SchedulerConfig as SchedulerConfig
from tests.contract.double.configs import SpeculativeDecodingMode as SpeculativeDecodingMode
from tests.contract.double.configs import WaitingQueuePolicy as WaitingQueuePolicy
from tests.contract.double.llm import LLM as LLM
from tests.contract.double.results import CompletionOutput as CompletionOutput
from tests.contract.double.results import Logprob as Logprob
from tests.contract.double.results import RequestOutput as RequestOutput
from tests.contract.double.sampling import GuidedDecodingParams as GuidedDecodingParams
from tests.contract.double.sampling import SamplingParams as SamplingParams
