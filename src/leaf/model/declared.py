"""Check at start-up that a family describes its checkpoint; with a wrong field something else would be trained."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leaf.data.audio import load_audio
from leaf.data.recordings import audio_of, with_audio
from leaf.errors import ModelError
from leaf.model.family import Family
from leaf.model.policy import Policy, Prompt
from leaf.model.prompts import encode
from leaf.text import fold_whitespace

# Where the recording's last part has to reach the features, in seconds.
TAIL = 0.2
# Audio of any length is tried with this much, in seconds: more than one window of the extractors that cut.
ANY_LENGTH = 61.0
# Largest difference between two embeddings of one prompt, as a share of their norm.
SAME = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.02}


def check_declared(policy: Policy, rows: Sequence[Mapping[str, Any]]) -> None:
    """Check parts, projector, logits, neighbours and longest audio of a family on real rows.

    Raises:
        ModelError: a field of the family is wrong for this checkpoint; it is named.
    """
    check_parts(policy)
    check_scale(policy)
    (prompt,) = check_projector(policy, rows[0])
    check_neighbours(policy, rows[0], prompt)
    check_longest(policy.family, policy.processor, rows[0])


def _wrong(policy: Policy, field: str, why: str) -> ModelError:
    value = getattr(policy.family, field)
    return ModelError(
        f"The family {policy.family.model_type!r} has {field}={value!r}, and that is wrong for this "
        f"{type(policy.base).__name__}: {why}"
    )


def check_parts(policy: Policy) -> None:
    """Check that audio tower, projector, decoder layers and head share no weights; a projector may be in its tower."""
    layers = policy.family.module(policy.base, f"{policy.family.language_model}.layers")
    taken = {id(parameter) for part in (layers, policy.head) for parameter in part.parameters()}
    for field in ("audio_tower", "projector"):
        part = policy.family.module(policy.base, getattr(policy.family, field))
        if any(id(parameter) in taken for parameter in part.parameters()):
            raise _wrong(policy, field, "it shares weights with the decoder's layers or the head. Give its own path.")
    if policy.audio_tower is policy.projector:
        raise _wrong(policy, "projector", "it is the audio tower too. Give the path of each.")


def check_scale(policy: Policy) -> None:
    """Hold what the family says of the logits against the configuration of the language model, where that says it."""
    stated = stated_scale(policy.text_config)
    if stated is not None and not np.isclose(policy.logits_scale, stated):
        raise _wrong(
            policy,
            "logits_scale",
            f"it gives {policy.logits_scale:g} and the text configuration divides by {stated:g}.",
        )
    cap = policy.text_config.to_dict().get("final_logit_softcapping")
    if cap != policy.logits_cap:
        raise _wrong(policy, "logits_cap", f"it gives {policy.logits_cap} and final_logit_softcapping is {cap}.")


def stated_scale(text_config: Any) -> float | None:
    """Read what a text configuration says its logits are divided by; None where it says nothing."""
    settings = text_config.to_dict()
    if settings.get("logits_scaling") is not None:  # Granite divides
        return float(settings["logits_scaling"])
    if settings.get("logit_scale") is not None:  # Cohere multiplies
        return 1.0 / float(settings["logit_scale"])
    return None


def check_projector(policy: Policy, row: Mapping[str, Any]) -> list[Prompt]:
    """Check that tower and projector run, and that the embeddings at the placeholders are the projector's output.

    Returns:
        The row's prompt.
    """
    family, ran = policy.family, set()
    outputs: list[Tensor] = []
    hooks = [
        family.module(policy.base, path).register_forward_hook(lambda *_, path=path: ran.add(path))
        for path in (family.audio_tower, family.projector)
    ]
    last = family.module(policy.base, family.audio_output or family.projector)
    hooks.append(last.register_forward_hook(lambda module, given, output: outputs.extend(_found(output))))
    try:
        prompts = policy.embed([row])
    finally:
        for hook in hooks:
            hook.remove()
    for field in ("audio_tower", "projector"):
        if getattr(family, field) not in ran:
            raise _wrong(policy, field, "it does not run when a prompt is embedded. Give the path of one that does.")
    width = policy.text_config.hidden_size
    audio = prompts[0].embeddings[prompts[0].is_audio][:, :width].float()
    made = [output.reshape(-1, width).float() for output in outputs if output.shape[-1] == width]
    if not made or not len(audio) or _farthest(audio, torch.cat(made)) > SAME[policy.base.dtype]:
        raise _wrong(
            policy,
            "audio_output" if family.audio_output else "projector",
            f"the embeddings at the prompt's {len(audio)} places of {family.audio_token} are not its output. Give the "
            "module whose output the model puts there, and the token that it replaces.",
        )
    return prompts


def _found(output: Any) -> list[Tensor]:
    """Find the tensors in what a module gave back."""
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    return [value for value in values if isinstance(value, Tensor)]


def _farthest(wanted: Tensor, made: Tensor) -> float:
    """Compute the greatest distance of a wanted row to the nearest made one, as a share of the typical norm."""
    exact = "donot_use_mm_for_euclid_dist"  # the faster way loses the digits that tell equal from nearly equal
    # In blocks, because a long recording has thousands of each.
    nearest = [torch.cdist(part, made, compute_mode=exact).min(1).values.max() for part in wanted.split(64)]
    return float(max(nearest) / wanted.norm(dim=-1).mean())


def check_neighbours(policy: Policy, row: Mapping[str, Any], prompt: Prompt) -> None:
    """Check that a prompt is embedded alone as it is beside a longer one."""
    rate = policy.family.sampling_rate(policy.processor)
    wave = load_audio(audio_of(row), sampling_rate=rate)
    half = with_audio(row, {"array": wave[: len(wave) // 2 + 1], "sampling_rate": rate})
    (alone,), (_, beside) = policy.embed([half]), policy.embed([row, half])
    same = alone.embeddings.shape == beside.embeddings.shape
    away = float((alone.embeddings - beside.embeddings).norm() / alone.embeddings.norm()) if same else float("inf")
    if not away <= SAME[policy.base.dtype]:
        field = "alone" if not policy.family.alone else "forward"
        raise _wrong(
            policy,
            field,
            f"a prompt's embeddings differ by {away:.2g} of their norm when it is embedded beside a longer one. Set "
            "alone=True, or tell the model with forward=... to add no noise.",
        )


def check_longest(family: Family, processor: Any, row: Mapping[str, Any]) -> None:
    """Check that the processor keeps all of a recording of the greatest length that the family states.

    The end of a recording is noise, once as drawn and once in reverse order. If the features do not differ, the
    processor has cut them off. (Reversed noise has the same mean and spread, which some extractors divide by.)
    """
    rate = family.sampling_rate(processor)
    stated = family.max_seconds(processor)
    seconds = min(stated, ANY_LENGTH) if np.isinf(stated) else stated
    tail = int(TAIL * rate)
    noise = np.random.default_rng(0).normal(0.0, 0.1, tail).clip(-1, 1).astype(np.float32)
    silence = np.zeros(max(0, int(seconds * rate) - tail), np.float32)
    found = []
    for end in (noise, noise[::-1]):
        sound = {"array": np.concatenate([silence, end]), "sampling_rate": rate}
        found.append(_features(family, processor, with_audio(row, sound), seconds))
    if all(torch.equal(a, b) for a, b in zip(*found, strict=True)):
        raise ModelError(
            f"The family {family.model_type!r} says that its processor takes {stated:g} s of audio, and the last "
            f"{TAIL} s of a recording of {seconds:g} s do not reach the features: the processor cuts them off. Correct "
            "max_seconds."
        )


def _features(family: Family, processor: Any, row: Mapping[str, Any], seconds: float) -> list[Tensor]:
    """Compute the features of a row's audio, as the processor gives them."""
    try:
        batch = encode(family, processor, [row], None)
    except (ValueError, RuntimeError) as error:
        raise ModelError(
            f"The family {family.model_type!r} says that its processor takes {seconds:g} s of audio, and the processor "
            f"does not: {fold_whitespace(str(error))[:300]} Correct max_seconds."
        ) from error
    return [value for value in batch.values() if value.is_floating_point()]
