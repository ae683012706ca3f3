"""What a whole training of verl needs on a machine without an accelerator: a platform, and a rollout by transformers.

verl loads this module in every process (VERL_USE_EXTERNAL_MODULES). Everything else is verl's: the task runner, agent
loop, reward loop, queue, replay buffer, FSDP engine and the sync of weights.
"""

# pyright: reportMissingImports=false, reportIncompatibleMethodOverride=false

import asyncio
import contextlib
import os
from types import SimpleNamespace
from typing import Any

import ray
import torch
from verl.plugin.platform import platform_manager
from verl.plugin.platform.platform_base import PlatformBase


class _Module(SimpleNamespace):
    """torch.cpu, with nothing done where it lacks a function of torch.cuda."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = getattr(torch.cpu, name, None)
        return found if found is not None else lambda *given, **named: 0


class OnCpu(PlatformBase):
    """The CPU as the accelerator; Ray is told that there is a GPU, and nobody looks for it."""

    device_name = "cpu"
    vendor_name = "cpu"
    device_module = _Module(mem_get_info=lambda *given: (1, 1), get_device_name=lambda *given: "CPU")

    def is_available(self):
        return True

    def current_device(self):
        return "cpu"

    def device_count(self):
        return 1

    def set_device(self, device_index):
        pass

    def synchronize(self, device_index=None):
        pass

    def manual_seed(self, seed):
        torch.manual_seed(seed)

    def manual_seed_all(self, seed):
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings):
        pass

    def empty_cache(self):
        pass

    def get_device_capability(self, device_index=0):
        return None, None

    def communication_backend_name(self):
        return "gloo"

    def visible_devices_envvar(self):
        return "CUDA_VISIBLE_DEVICES"

    @contextlib.contextmanager
    def nvtx_range(self, msg):
        yield

    def profiler_start(self):
        pass

    def profiler_stop(self):
        pass

    def ray_resource_name(self):
        return "GPU"

    def ray_noset_envvars(self):
        return []

    def is_ipc_supported(self):
        return False

    def cudart(self):
        return None


_init_process_group = torch.distributed.init_process_group


def _by_gloo(backend=None, **named):
    """Start the process group; verl names a backend for the CPU and one for the accelerator, here the same."""
    _init_process_group(backend="gloo", **named)


torch.distributed.init_process_group = _by_gloo
os.environ["VERL_ENGINE_DEVICE"] = "cuda"  # FSDP is registered under this name; it asks the platform where tensors go
platform_manager.set_platform(OnCpu())  # before verl's engines ask which it is

from verl.workers.rollout import base, replica  # noqa: E402


@ray.remote
class Server:
    """Serve the model with transformers: token ids and audio in, token ids and their log-probabilities out."""

    def __init__(self, path: str, response_length: int):
        from transformers import AutoConfig
        from verl.utils import hf_processor
        from verl.utils.model import get_hf_auto_model_class

        from leaf.engines.verl.audio import open_doors

        open_doors()
        self.processor = hf_processor(path)
        model = get_hf_auto_model_class(AutoConfig.from_pretrained(path))
        self.model = model.from_pretrained(path, dtype=torch.float32).eval()
        self.response_length = response_length
        self.version = None
        self.lock = asyncio.Lock()

    async def load(self, weights, version):
        """Take the weights that the actor sends, under the names of a checkpoint or of the model."""
        own = {name: value.clone() for name, value in self.model.state_dict().items()}
        missing, unexpected = self.model.load_state_dict(weights, strict=False)
        tied = {name for name in missing if name.endswith("lm_head.weight")}
        assert not unexpected, unexpected
        assert set(missing) <= tied, missing
        changed = [name for name, value in weights.items() if not torch.equal(own[name], value.to(own[name].dtype))]
        hearing = sum("language_model" not in name for name in changed)
        print(f"server at version {version}: {len(changed)} weights changed, {hearing} outside of the language model")
        self.version = version

    async def generate(self, prompt_ids, sampling_params, request_id, audio_data=None, **more):
        from verl.workers.rollout.replica import TokenOutput

        assert audio_data
        assert sampling_params["top_p"] == 1
        async with self.lock:
            features = self.processor.feature_extractor(
                list(audio_data), sampling_rate=16000, return_attention_mask=True, return_tensors="pt"
            )
            given = torch.tensor([prompt_ids])
            greedy = sampling_params["temperature"] == 0
            with torch.no_grad():
                made = self.model.generate(
                    input_ids=given,
                    attention_mask=torch.ones_like(given),
                    input_features=features["input_features"],
                    input_features_mask=features["attention_mask"],
                    do_sample=not greedy,
                    top_k=0,
                    max_new_tokens=self.response_length,
                    output_scores=True,
                    return_dict_in_generate=True,
                )
            tokens = made.sequences[0, given.shape[1] :].tolist()
            logs = [score.log_softmax(-1)[0, token].item() for score, token in zip(made.scores, tokens, strict=True)]
        return TokenOutput(
            token_ids=tokens,
            log_probs=logs if sampling_params.get("logprobs") else None,
            stop_reason="completed",
            extra_fields={"global_steps": self.version},
        )

    async def wake_up(self):
        pass

    async def sleep(self):
        pass


class Replica(replica.RolloutReplica):
    """One server beside the actor."""

    async def launch_servers(self):
        name = f"on_cpu_{self.replica_rank}"
        server = Server.options(name=name, num_cpus=0).remote(  # pyright: ignore[reportAttributeAccessIssue]
            self.model_config.path, self.config.response_length
        )
        self.servers, self._server_handle, self._server_address = [server], server, name


class Adapter(base.BaseRollout):
    """The actor's end: it sends its weights to the server."""

    async def resume(self, tags):
        pass

    async def release(self):
        pass

    async def update_weights(self, weights, global_steps=None, peft_config=None, **more):
        assert peft_config is None, "the adapter is merged"
        sent = {name: value.detach().cpu().clone() for name, value in weights}
        await ray.get_actor("on_cpu_0").load.remote(sent, global_steps)


replica.RolloutReplicaRegistry.register("on_cpu", lambda: Replica)
base._ROLLOUT_REGISTRY["on_cpu", "async"] = f"{__name__}.Adapter"
